"""A headless Chromium, driven through its DevTools protocol over two pipes: no driver and no library."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 60  # seconds for an answer
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = [
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-extensions", "--remote-debugging-pipe", "--force-color-profile=srgb"),
]
KEYS = {"ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35}

needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs a browser: apt-get install chromium")


class Browser:
    """One page of it. `errors` are what its console complained of, `requests` what it wanted to load."""

    def __init__(self, to: int, answers: int) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._to, self._from = to, answers
        self._heard, self._number, self._session = b"", 0, ""
        self._loaded = 0
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask for something and wait for the answer; AssertionError if it is refused."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, file: Path, fragment: str = "", width: int = 1000, height: int = 800) -> None:
        """Load a file in a window of this size, in CSS pixels, and wait until it is there."""
        self.resize(width, height)
        self.call("Page.navigate", url="about:blank")
        loads = self._loaded
        self.call("Page.navigate", url=file.resolve().as_uri() + fragment)
        while self._loaded == loads or self.value("document.readyState") != "complete":
            if self._loaded == loads:
                self._next()

    def resize(self, width: int, height: int = 800) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def prefer(self, scheme: str, media: str = "") -> None:
        """light or dark; media: "print" for how it is printed."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives in the page; AssertionError if it throws."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """A key, pressed where the focus is."""
        code = KEYS.get(key, ord(key[0].upper()))
        text = {} if key in KEYS else {"text": key}
        for kind in ("keyDown", "keyUp"):
            event = {"type": kind, "key": key, "windowsVirtualKeyCode": code, **text}
            self.call("Input.dispatchKeyEvent", **event)
        # What follows from it has happened: events that it causes come after it, but before a timer.
        self.value("new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)))")

    def screenshot(self, file: Path, whole: bool = True) -> None:
        """A picture of the page as it is, or of the window."""
        content = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(content["data"]))

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while b"\0" not in self._heard:
            ready, _, _ = select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "the browser does not answer"
            part = os.read(self._from, 1 << 16)
            assert part, "the browser has ended"
            self._heard += part
        text, _, self._heard = self._heard.partition(b"\0")
        message = json.loads(text)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, event: str, values: dict[str, Any]) -> None:
        if event == "Page.loadEventFired":
            self._loaded += 1
        elif event == "Runtime.exceptionThrown":
            self.errors.append(str(values["exceptionDetails"].get("exception", values)))
        elif event == "Runtime.consoleAPICalled":
            self.errors.append(f"console.{values['type']}")
        elif event == "Log.entryAdded":
            self.errors.append(f"{values['entry']['level']}: {values['entry']['text']}")
        elif event == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"])


@contextmanager
def start_browser(profile: Path) -> Iterator[Browser]:
    """A browser with its own new profile, ended with the block."""
    (read_commands, write_commands), (read_answers, write_answers) = os.pipe(), os.pipe()
    # It reads from descriptor 3 and writes to 4.
    shell = f'exec "$0" "$@" 3<&{read_commands} 4>&{write_answers}'
    process = subprocess.Popen(
        ["bash", "-c", shell, BROWSER, *FLAGS, f"--user-data-dir={profile}"],
        pass_fds=(read_commands, write_answers),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for descriptor in (read_commands, write_answers):
        os.close(descriptor)
    try:
        yield Browser(write_commands, read_answers)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for descriptor in (write_commands, read_answers):
            os.close(descriptor)
