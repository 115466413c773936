"""A headless browser that tests look at and press keys in, over a pipe: no port, no driver."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PROGRAM = next((found for name in _NAMES if (found := shutil.which(name))), None)
_CODES = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39,
          "ArrowDown": 40}  # fmt: skip
_PATIENCE = 60.0  # seconds, of a machine that does much else


class Page:
    """One page of a browser."""

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back = os.fdopen(to, "wb", 0), os.fdopen(back, "rb", 0)
        self._read, self._count, self._session = b"", 0, ""
        self.errors: list[str] = []
        target = self._send("Target.createTarget", url="about:blank")["targetId"]
        attached = self._send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        self._send("Page.enable")
        self._send("Runtime.enable")

    def _send(self, method: str, **params: Any) -> Any:
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(str(answer["params"]["exceptionDetails"]))
            if answer.get("id") == self._count:
                return answer["result"]

    def _next(self) -> Any:
        while b"\0" not in self._read:
            more = self._back.read(1 << 16)
            if not more:
                msg = "the browser ended"
                raise RuntimeError(msg)
            self._read += more
        one, self._read = self._read.split(b"\0", 1)
        return json.loads(one)

    def open(self, page: Path, address: str = "") -> None:
        """Open a report, and wait until it is drawn."""
        self._send("Page.navigate", url="about:blank")  # the same file again would not be loaded
        self._send("Page.navigate", url=f"{page.as_uri()}#{address}")
        self.wait("document.documentElement.dataset.ready !== undefined")

    def value(self, expression: str) -> Any:
        """What JavaScript says."""
        found = self._send("Runtime.evaluate", expression=expression, returnByValue=True)
        return found["result"].get("value")

    def wait(self, expression: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + _PATIENCE
        while not self.value(expression):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.02)

    def press(self, *keys: str) -> None:
        """Press keys one after the other."""
        for key in keys:
            typed = {"text": key} if len(key) == 1 else {}
            event: dict[str, Any] = {"key": key, "windowsVirtualKeyCode": _CODES.get(key, 0)}
            self._send("Input.dispatchKeyEvent", type="keyDown", **event, **typed)
            self._send("Input.dispatchKeyEvent", type="keyUp", **event)


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A browser with one page.

    Args:
        folder: for its profile.
    """
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    # it reads from descriptor 3 and writes to 4; first out of each other's way
    high = [fcntl.fcntl(end, fcntl.F_DUPFD, 100) for end in (theirs_in, theirs_out)]
    command = [
        str(PROGRAM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        f"--user-data-dir={folder / 'profile'}", "--window-size=1200,800",
        "--remote-debugging-pipe", "about:blank",
    ]  # fmt: skip
    shell = f'exec "$@" 3<&{high[0]} 4>&{high[1]}'
    process = subprocess.Popen(
        ["bash", "-c", shell, "browser", *command], pass_fds=high, stderr=subprocess.DEVNULL
    )
    for end in (theirs_in, theirs_out, *high):
        os.close(end)
    page = None
    try:
        page = Page(ours_out, ours_in)
        yield page
    finally:
        process.terminate()
        process.wait()
        if page is not None:
            page._to.close()
            page._back.close()
