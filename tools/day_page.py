"""The web page of tools/day.py, in a headless browser."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver


def until(condition: Callable[[], object], seconds: float, every: float = 0.5) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(every)
    return True


class Page:
    """The page, operated as a user does."""

    def __init__(self, browser: object, shots: Path):
        self.browser, self.shots = browser, shots

    def all(self, selector: str) -> list:
        return self.browser.find_elements("css selector", selector)

    def open(self, url: str) -> None:
        self.browser.get(url)
        until(lambda: self.all("#about")[0].text and self.all("#list li"), 120)
        self.browser.execute_script("document.querySelector('#reset').click()")

    def shot(self, name: str) -> None:
        self.browser.save_screenshot(str(self.shots / f"{name}.png"))

    def listed(self) -> list[str]:
        """The names on all pages of the list."""
        names: list[str] = []
        script = "return [...document.querySelectorAll('#list .name')].map(n => n.textContent)"
        while True:
            names += (shown := self.browser.execute_script(script))
            turned = "const on = document.getElementById('later'); if (on.disabled) return false;"
            if not self.browser.execute_script(f"{turned} on.click(); return true"):
                break
            until(lambda before=shown: self.browser.execute_script(script) != before, 60)
        self.find("")  # back to the first page
        return names

    def find(self, words: str) -> None:
        """Search the list of documents."""
        self.browser.execute_script(
            "const find = document.getElementById('find'); find.value = arguments[0];"
            "find.dispatchEvent(new Event('input'))",
            words,
        )
        time.sleep(1)

    def ask(self, question: str) -> list[str]:
        """Ask a question; return the paths of the answer's sources."""
        field = self.all("#question")[0]
        field.send_keys(question, "\ue007")  # Enter
        until(lambda: self.all(".question")[-1:] and question in self.all(".question")[-1].text, 60)
        until(lambda: self.all("#send")[0].is_displayed() and not self.all(".waiting"), 600)
        return self.browser.execute_script(
            "const last = [...document.querySelectorAll('.question')].pop().nextElementSibling;"
            "return [...last.querySelectorAll('.place')].map(place => place.title)"
        )

    def open_sources(self) -> None:
        script = (
            "for (const more of document.querySelectorAll('.sources details')) more.open = true;"
            "arguments[0].scrollIntoView({block: 'center'})"
        )
        self.browser.execute_script(script, self.all(".passage")[0])

    def inside(self) -> str:
        """Open the view of the first source's memory; return the document that it names."""
        here = self.browser.current_window_handle
        self.all(".passage button")[0].click()
        until(lambda: len(self.browser.window_handles) == 2, 60)
        self.browser.switch_to.window(self.browser.window_handles[-1])
        until(lambda: self.browser.title.startswith("m3mlx: "), 60)
        about = self.browser.title.partition(" kept of ")[2].partition("#")[0]
        self.shot("inside")
        self.browser.close()
        self.browser.switch_to.window(here)
        return about

    def drop(self, file: Path) -> None:
        self.all("#files")[0].send_keys(str(file))

    def compare(self) -> None:
        self.browser.execute_script("document.querySelector('input[value=compare]').click()")

    def forget(self, name: str) -> None:
        self.find(name)
        (button,) = self.all(f"#list button[aria-label='Forget {name}']")
        self.browser.execute_script("arguments[0].scrollIntoView()", button)
        button.click()
        button.click()
        until(lambda: name not in self.listed(), 60)

    def phone(self) -> None:
        self.browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True},
        )


@contextmanager
def browsing(shots: Path) -> Iterator[Page]:
    shots.mkdir(exist_ok=True)
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in (
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--disable-background-networking", "--no-first-run", "--window-size=1280,860"),
    ):
        options.add_argument(argument)
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    browser = webdriver.Chrome(options, service)
    try:
        yield Page(browser, shots)
    finally:
        browser.quit()
