"""A dashboard that is served for a test, what it answers, and a browser to look at it."""

from __future__ import annotations

import http.client
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from starlette.applications import Starlette

from athanor.dashboard import server
from athanor.dashboard.shelf import Shelf

TOKEN = "a-token-that-only-the-test-has"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")


class Answer:
    def __init__(self, given: http.client.HTTPResponse) -> None:
        self.status, self.headers = given.status, given.headers
        self.text = given.read().decode()


class Served:
    """A folder of runs under an address."""

    def __init__(self, root: Path) -> None:
        self.shelf = Shelf(root)
        opened = server.listen(0)
        self.port: int = opened.getsockname()[1]
        self.app: Starlette = server.application(self.shelf, TOKEN, self.port)
        self.server = uvicorn.Server(uvicorn.Config(self.app, log_level="warning", timeout_graceful_shutdown=1))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [opened]}, daemon=True)
        self.thread.start()

    @property
    def address(self) -> str:
        return f"http://{server.HOST}:{self.port}"

    @property
    def entrance(self) -> str:
        return f"{self.address}/?token={TOKEN}"

    def ask(self, path: str, method: str = "GET", cookie: str | None = TOKEN, **headers: str) -> Answer:
        """The answer to a request whose path goes over the line as it is."""
        connection = http.client.HTTPConnection(server.HOST, self.port, timeout=60)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if cookie is not None:
            sent["Cookie"] = f"athanor-{self.port}={cookie}"
        try:
            connection.request(method, path, headers=sent)
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def page(self, path: str) -> str:
        answer = self.ask(path)
        assert answer.status == 200, answer.text[-2000:]
        return answer.text


@contextmanager
def served(root: Path) -> Iterator[Served]:
    made = Served(root)
    try:
        until(lambda: made.server.started)
        yield made
    finally:
        made.server.should_exit = True
        made.thread.join(30)


@contextmanager
def browser(size: str = "1280,900") -> Iterator:
    """Chromium without a window."""
    if not (BROWSER and DRIVER):
        pytest.skip("no Chromium with its driver here")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"):
        options.add_argument(argument)
    options.add_argument(f"--window-size={size}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield opened
    finally:
        opened.quit()


def until(happened, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)


def tree(root: Path) -> dict[str, tuple[int, int]]:
    """Every file below, by size and time of change."""
    return {
        path.relative_to(root).as_posix(): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }
