"""Run the zoo: `python -m tests.zoo [--jobs N] [--out FOLDER] [--table FILE] [names or globs]`."""

from __future__ import annotations

import argparse
import fnmatch
import json
import multiprocessing
import sys
import time
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from tests.zoo import stages, table, timm_models, torchvision_models, transformers_models
from tests.zoo.entry import Entry, package

_FORK = multiprocessing.get_context("fork")


def entries() -> list[Entry]:
    """Every model of the zoo."""
    found = torchvision_models.entries() + timm_models.entries() + transformers_models.entries()
    return sorted(found, key=lambda entry: (entry.package, entry.name.lower()))


class Keeper:
    """A process that runs one model, and how long it may."""

    def __init__(self, entry: Entry, seconds: float, gigabytes: float) -> None:
        self.entry = entry
        self.seconds = seconds
        self.start = time.monotonic()
        self.receiver, sender = _FORK.Pipe(duplex=False)
        self.process = _FORK.Process(target=_child, args=(entry, sender, gigabytes))
        self.process.start()
        sender.close()

    def result(self) -> dict[str, Any] | None:
        """What the process sent; None while it runs."""
        late = time.monotonic() - self.start > self.seconds
        if not late and not self.receiver.poll():
            return None
        found = self._received()
        if late and not found:
            self.process.kill()
        self.process.join()
        if not found:
            why = f"took longer than {self.seconds:.0f} s" if late else "the process died"
            failed = stages.Result(self.entry.name, self.entry.package)
            failed.judge("prepared", why)
            found = failed.to_dict()
        return found | {"wall": time.monotonic() - self.start}

    def _received(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = self.receiver.recv() if self.receiver.poll() else {}
        except EOFError:  # it died before it sent anything
            return {}
        return found


def _child(entry: Entry, sender: Connection, gigabytes: float) -> None:
    stages.limit_memory(gigabytes)
    sender.send(stages.run(entry).to_dict())
    sender.close()


def run_all(chosen: list[Entry], options: argparse.Namespace) -> None:
    """Run models, some at a time, and write each result as it comes."""
    waiting, running = list(chosen), list[Keeper]()
    done = 0
    while waiting or running:
        while waiting and len(running) < options.jobs:
            running.append(Keeper(waiting.pop(0), options.seconds, options.gigabytes))
        wait([keeper.receiver for keeper in running], timeout=1.0)
        for keeper in list(running):
            found = keeper.result()
            if found is None:
                continue
            running.remove(keeper)
            done += 1
            name = found["name"].replace("/", "_").replace(" ", "_")
            (options.out / f"{name}.json").write_text(json.dumps(found, indent=1))
            sys.stdout.write(f"{done}/{len(chosen)} {table.line(found)}\n")
            sys.stdout.flush()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.zoo", description=__doc__)
    parser.add_argument("names", nargs="*", help="names or globs of models; default: all")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=300.0, help="limit for one model")
    parser.add_argument("--gigabytes", type=float, default=12.0, help="limit for one model")
    parser.add_argument("--out", type=Path, default=Path("out/zoo"), help="results, one file each")
    parser.add_argument("--table", type=Path, help="write the table of all results here")
    return parser.parse_args()


def main() -> None:
    """Run what was asked for, then write the table."""
    options = _arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    known = entries()
    wanted = options.names or ["*"]
    chosen = [e for e in known if any(fnmatch.fnmatchcase(e.name, w) for w in wanted)]
    torch.set_num_threads(1)  # threads do not survive the fork
    for name in ("torchvision", "timm", "transformers", "onnxruntime", "onnxscript"):
        package(name)  # once, for all the processes
    run_all(chosen, options)
    results = [json.loads(file.read_text()) for file in sorted(options.out.glob("*.json"))]
    names = {entry.name for entry in known}
    results = [found for found in results if found["name"] in names]
    sys.stdout.write("\n".join(table.summary(results)) + "\n")
    if options.table:
        options.table.write_text(table.page(results))


if __name__ == "__main__":
    main()
