"""A real Chromium without a window, for the tests of pages: started once, closed at the end, never on the network."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SIZES = {"desktop": (1280, 800, False), "phone": (390, 844, True)}


def plain(text: str) -> str:
    """A text of the page with the minus signs of Python, and not those of a printer."""
    return text.replace("\N{MINUS SIGN}", "-")


def check_policy(page: str) -> None:
    """Check that the policy of a page lets nothing be loaded, and only its own script and style run."""
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy.startswith("default-src 'none'; ")
    for tag, rule in ("script", "script-src"), ("style", "style-src"):
        [own] = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
        assert f"{rule} 'sha256-{digest}'" in policy


def start_browser() -> Any:
    """A driver of the Chromium of this machine; the test is skipped, saying why, where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is absent: pip install '.[browser]'")
    names = "chromium", "chromium-browser", "google-chrome"
    chromium = next(filter(None, map(shutil.which, names)), None)
    chromedriver = shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        pytest.skip("no Chromium with its driver was found: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    arguments = ["--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--force-device-scale-factor=1"]
    if getattr(os, "geteuid", lambda: 1)() == 0:
        arguments.append("--no-sandbox")  # Chromium's sandbox refuses to run as root
    for argument in arguments:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))


class Browser:
    """What the tests do with a page."""

    def __init__(self, driver: Any):
        self.driver = driver

    def look(self, size: str = "desktop", **features: str) -> None:
        """Set the size of the window and media features, such as prefers_color_scheme="dark"."""
        width, height, mobile = SIZES[size]
        metrics = dict(width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        media = [dict(name=name.replace("_", "-"), value=value) for name, value in features.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", dict(features=media))

    def open(self, path: Path, place: str = "") -> None:
        """Open a page at a place, and wait until it is drawn."""
        self.driver.get("about:blank")
        self.driver.get(f"{path.as_uri()}{place}")
        ready = self.driver.execute_async_script(
            "const done = arguments[0], end = Date.now() + 20000;"
            "(function look() { document.body?.dataset.ready ? done(true)"
            " : Date.now() > end ? done(false) : setTimeout(look, 10) })()"
        )
        assert ready, f"the page was not drawn; the console says {self.console()}"

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script in the page returns."""
        return self.driver.execute_script(script, *arguments)

    def press(self, *keys: str, shift: bool = False) -> None:
        """Press keys, as a person does: whatever has the focus gets them."""
        from selenium.webdriver import ActionChains, Keys

        actions = ActionChains(self.driver, duration=0)
        if shift:
            actions.key_down(Keys.SHIFT)
        for key in keys:
            actions.send_keys(getattr(Keys, key.upper()) if len(key) > 1 else key)
        if shift:
            actions.key_up(Keys.SHIFT)
        actions.perform()

    def go(self, place: str) -> None:
        """Follow the link of a place within the page."""
        self.driver.execute_async_script(
            "const [place, done] = arguments;"
            "if (decodeURIComponent(location.hash) === place) done();"
            "else { addEventListener('hashchange', () => setTimeout(done), {once: true}); location.hash = place }",
            place,
        )

    def place(self) -> str:
        """The address within the page, such as #31.4."""
        return self.driver.execute_async_script(
            "const done = arguments[0];"
            "(function look() { stepper.settled() ? done(decodeURIComponent(location.hash)) : setTimeout(look, 10) })()"
        )

    def text(self, selector: str) -> str:
        """The text of an element, with the minus signs of Python."""
        text = self.run("return document.querySelector(arguments[0])?.textContent ?? ''", selector)
        return plain(text)

    def texts(self, selector: str) -> list[str]:
        """The texts of all elements that fit."""
        script = "return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent)"
        return [plain(text) for text in self.run(script, selector)]

    def console(self) -> list[str]:
        """What the console has said since it was last asked."""
        return [entry["message"] for entry in self.driver.get_log("browser")]


def browsers() -> Iterator[Browser]:
    """Starts a browser, and closes it at the end."""
    driver = start_browser()
    try:
        yield Browser(driver)
    finally:
        driver.quit()
