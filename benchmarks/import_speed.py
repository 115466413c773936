"""CPU seconds of `import fxquant` over `import torch`, and of `fxquant --help`, as medians.

python -m benchmarks.import_speed [--rounds 9]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

_HELP = "from fxquant.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass"
STARTS = {
    "nothing": "pass",
    "import torch": "import torch",
    "import torch, fxquant": "import torch, fxquant",
    "import torch; from fxquant import *": "import torch\nfrom fxquant import *",
    "fxquant --help": _HELP,
}


def cpu_seconds(code: str) -> float:
    """User and system time of a new Python process."""
    before = os.times()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return (after.children_user - before.children_user) + (
        after.children_system - before.children_system
    )


def main() -> None:
    """Interleaved, so that a slow moment of the machine meets all alike."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    times: dict[str, list[float]] = {name: [] for name in STARTS}
    for _ in range(rounds):
        for name, code in STARTS.items():
            times[name].append(cpu_seconds(code))
    torch = statistics.median(times["import torch"])
    for name, found in times.items():
        middle = statistics.median(found)
        over = (
            f"  {middle - torch:+.2f} s over torch" if "fxquant" in name and "torch" in name else ""
        )
        print(f"{name:40} {middle:6.2f} s{over}")


if __name__ == "__main__":
    main()
