"""Progress of the command line: rich if installed and somebody watches, else lines."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

_EVERY = 5.0  # seconds between two plain lines of one bar


class Progress:
    """Steps, bars and warnings on standard error.

    Args:
        quiet: say nothing but warnings.
        verbose: say also how long steps took, and what the library logs about its work.
        stream: where lines go; standard error by default.
    """

    def __init__(
        self, *, quiet: bool = False, verbose: bool = False, stream: TextIO | None = None
    ) -> None:
        self._quiet, self._verbose = quiet, verbose
        self._stream = stream if stream is not None else sys.stderr
        self._began: float | None = None
        self._handler = _Lines(self)

    def __enter__(self) -> Progress:
        log = logging.getLogger("fxquant")
        self._level = log.level
        log.addHandler(self._handler)
        if self._verbose:
            log.setLevel(logging.DEBUG)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        log = logging.getLogger("fxquant")
        log.removeHandler(self._handler)
        log.setLevel(self._level)
        self._took()
        self._stream.flush()

    def step(self, text: str) -> None:
        """Say what begins now."""
        self._took()
        if not self._quiet:
            self._line(f"{text} ...")

    def note(self, text: str) -> None:
        """Say what was found on the way."""
        if not self._quiet:
            self._line(f"  {text}")

    def _took(self) -> None:
        """Say how long the last step took, if somebody wants to know."""
        now = time.monotonic()
        if self._verbose and self._began is not None:
            self._line(f"  took {now - self._began:.1f} s")
        self._began = now

    def warn(self, message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        """Show a warning as one line; has the signature of `warnings.showwarning`."""
        self.say(f"warning: {message}")

    def say(self, text: str) -> None:
        """A line that --quiet does not silence."""
        self._line(text)

    @contextmanager
    def bar(self, text: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """A bar of ``total`` steps; yields what sets the number of steps done."""
        rich = _rich() if self._stream.isatty() and not self._quiet else None
        if rich is None:
            yield self._plain(text, total)
            return
        columns = rich.Progress(transient=True, console=_console(self._stream))
        with columns:
            task = columns.add_task(text, total=total)
            yield lambda done: columns.update(task, completed=done)

    def _plain(self, text: str, total: int | None) -> Callable[[int], None]:
        last = time.monotonic()
        end = "" if total is None else f"/{total}"

        def advance(done: int) -> None:
            nonlocal last
            now = time.monotonic()
            if not self._quiet and (done == total or now - last >= _EVERY):
                last = now
                self._line(f"{text}: batch {done}{end}")

        return advance

    def _line(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()


class _Lines(logging.Handler):
    """What the library logs, as lines of the progress."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self.progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        """One record is one line."""
        level = record.levelname.lower()
        self.progress.say(f"{level}: {record.getMessage()}")


def _rich() -> Any:
    try:
        import rich.progress
    except ImportError:  # an extra
        return None
    return rich.progress


def _console(stream: TextIO) -> Any:
    from rich.console import Console

    return Console(file=stream)
