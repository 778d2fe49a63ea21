"""A page in headless Chromium (DevTools protocol): what it asked for, its errors, what stands in it, a picture."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_WIDTH, _TIMEOUT = 1280, 90.0


@dataclass
class Page:
    """What a page did until it was loaded and quiet; `answers` are those of the expressions that were asked."""

    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    answers: list[Any] = field(default_factory=list)
    picture: bytes = b""


@dataclass(frozen=True)
class Press:
    """A key that is pressed and let go, in place of an expression."""

    key: str


def visit(place: Path | str, expressions: Sequence[str | Press] = ()) -> Page:
    """Open a file or URL, evaluate JavaScript in it, and take a picture (PNG) of the whole page."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(prefix="larmor-chromium-", ignore_cleanup_errors=True) as profile:
        command = [
            CHROMIUM,
            "--headless=new",
            "--no-sandbox",
            "--use-angle=swiftshader",
            "--enable-unsafe-swiftshader",
            "--disable-dev-shm-usage",
        ]
        command += [f"--user-data-dir={profile}", "--remote-debugging-port=0", "--no-first-run", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            return asyncio.run(asyncio.wait_for(_visit(_address(process), place, expressions), _TIMEOUT))
        finally:
            process.terminate()
            process.wait()


def _address(process: subprocess.Popen[str]) -> str:
    """The browser's own address, which it prints."""
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"DevTools listening on ws://([\d.:]+)/", line):
            return f"http://{found[1]}"
    raise AssertionError("chromium ended without saying where it listens")


async def _visit(address: str, place: Path | str, expressions: Sequence[str | Press]) -> Page:
    page = Page()
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{address}/json") as answer:
            target = next(item for item in await answer.json() if item["type"] == "page")
        async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            tab = _Tab(socket, page)
            for domain in ("Network", "Runtime", "Log", "Page"):
                await tab.call(f"{domain}.enable")
            size = {"width": _WIDTH, "height": 900, "deviceScaleFactor": 1, "mobile": False}
            await tab.call("Emulation.setDeviceMetricsOverride", **size)
            await tab.call("Page.navigate", url=place if isinstance(place, str) else place.resolve().as_uri())
            await tab.until("Page.loadEventFired")
            for expression in expressions:
                if isinstance(expression, Press):
                    text = {"text": expression.key} if len(expression.key) == 1 else {}
                    for kind in ("keyDown", "keyUp"):
                        await tab.call("Input.dispatchKeyEvent", type=kind, key=expression.key, **text)
                    continue
                found = await tab.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
                page.answers.append(found["result"].get("value"))
            shot = await tab.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
            page.picture = base64.b64decode(shot["data"])
    return page


class _Tab:
    """Commands to one tab; events on the way are noted."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, page: Page) -> None:
        self._socket, self._page, self._number = socket, page, 0

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": params})
        while (message := await self._next()).get("id") != self._number:
            pass
        assert "error" not in message, message
        return message["result"]

    async def until(self, event: str) -> None:
        while (await self._next()).get("method") != event:
            pass

    async def _next(self) -> dict[str, Any]:
        message = json.loads(await self._socket.receive_str())
        match message.get("method"):
            case "Network.requestWillBeSent":
                self._page.requests.append(message["params"]["request"]["url"])
            case "Runtime.exceptionThrown":
                details = message["params"]["exceptionDetails"]
                self._page.errors.append(details.get("exception", {}).get("description") or details["text"])
            case "Log.entryAdded" if message["params"]["entry"]["level"] == "error":
                self._page.errors.append(message["params"]["entry"]["text"])
        return message
