"""A browser without a window, told what to do through Chromium's own protocol: JSON messages on two pipes."""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

PATIENCE = 120  # seconds until a page must have said something
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def program() -> str | None:
    """The browser: ONNURI_CHROMIUM, or the first that is on the path."""
    return os.environ.get("ONNURI_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One page. `requests`: every address that it asked for."""

    def __init__(self, pipes: tuple[Any, Any]):
        self.read, self.write = pipes
        self.number, self.session, self.requests, self.said = 0, None, list[str](), list[str]()
        self.loaded = False

    def tell(self, method: str, **parameters: Any) -> dict:
        """The answer to a message; what comes in between is noted."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        self.write.write(json.dumps(message | ({"sessionId": self.session} if self.session else {})).encode() + b"\0")
        while True:
            found = self.next()
            if found.get("id") == self.number:
                assert "error" not in found, found
                return found["result"]

    def next(self) -> dict:
        data = bytearray()
        while (byte := self.read.read(1)) != b"\0":
            assert byte, "the browser is gone"
            data += byte
        found = json.loads(data)
        self.loaded |= found.get("method") == "Page.loadEventFired"
        if found.get("method") == "Network.requestWillBeSent":
            self.requests.append(found["params"]["request"]["url"])
        if found.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"):
            self.said.append(json.dumps(found["params"])[:600])
        return found

    def run(self, expression: str) -> Any:
        """The value of an expression of JavaScript."""
        found = self.tell("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, expression: str) -> Any:
        """Its value as soon as it is something."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if value := self.run(expression):
                return value
            time.sleep(0.1)
        raise AssertionError(f"{expression} stays empty; the page said {self.said}")

    def picture(self, path: Path, width: int = 1000, height: int = 1000) -> None:
        self.tell(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        shot = self.tell("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def opened(address: str, language: str = "en-US") -> Iterator[Page]:
    """The page at an address, in a browser of its own."""
    ours, theirs = os.pipe(), os.pipe()
    with TemporaryDirectory(prefix="onnuri-browser-") as profile:
        options = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--remote-debugging-pipe",
            f"--lang={language}",
        ]
        command = [
            str(program()),
            *options,
            f"--accept-lang={language}",
            f"--user-data-dir={profile}",
            "--no-first-run",
        ]
        redirected = ["bash", "-c", f'exec "$@" 3<&{ours[0]} 4>&{theirs[1]}', "bash", *command]
        child = subprocess.Popen(
            redirected, pass_fds=(ours[0], theirs[1]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(ours[0])
        os.close(theirs[1])
        with os.fdopen(theirs[0], "rb") as read, os.fdopen(ours[1], "wb", 0) as write:
            page = Page((read, write))
            try:
                target = page.tell("Target.createTarget", url="about:blank")["targetId"]
                page.session = page.tell("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
                for domain in ("Network", "Runtime", "Log", "Page"):
                    page.tell(f"{domain}.enable")
                page.loaded = False  # that of the empty page
                page.tell("Page.navigate", url=address)
                while not page.loaded:
                    page.next()
                yield page
            finally:
                child.terminate()
                child.wait(20)
