"""Times of calls that are compared: interleaved, the fastest of many rounds.

Why CPU time of the thread: on a shared machine wall time counts what others do. Why interleaved:
clocks and caches drift, and what is compared must drift together. Why the minimum: everything that
disturbs a deterministic program makes it slower.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# for sessions: idle threads of one must not spin while another one is measured
NO_SPINNING = {"session.force_spinning_stop": "1"}
_LEAST = 2e-3  # seconds of one measurement; shorter calls are repeated


def fastest(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 15,
    seconds: float = math.inf,
    clock: Callable[[], float] = time.thread_time,
) -> dict[str, float]:
    """Seconds of each call: the minimum over rounds in which all take turns.

    Args:
        calls: what to measure, by name.
        rounds: how often each is measured.
        seconds: of all measuring, from which no further round is begun.
        clock: by default the CPU time of the calling thread, in which each call must run then.
    """
    repeats = {name: _repeats(call, clock) for name, call in calls.items()}
    best = dict.fromkeys(calls, math.inf)
    end = time.monotonic() + seconds
    for done in range(rounds):
        if done and time.monotonic() > end:
            break
        for name, call in calls.items():
            begin = clock()
            for _ in range(repeats[name]):
                call()
            best[name] = min(best[name], (clock() - begin) / repeats[name])
    return best


def _repeats(call: Callable[[], object], clock: Callable[[], float]) -> int:
    call()  # warm up
    begin = clock()
    call()
    return max(1, round(_LEAST / max(clock() - begin, 1e-6)))
