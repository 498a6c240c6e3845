"""Take pictures of the page's states in a headless Chromium, for somebody to look at.

    python tools/screenshots.py FOLDER [--model NAME] [--keep docs/images] [--only STATE ...]

Every state is taken on three sizes, light and dark, as FOLDER/STATE-SIZE-SCHEME.png. With --keep,
small WebP files of a few are written too.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
from day_page import browsing, until
from selenium import webdriver
from selenium.webdriver.common.keys import Keys

import m3mlx.models.linux_cpu.openblas  # noqa: F401  before mlx
from m3mlx import Assistant
from m3mlx.config import Options
from m3mlx.serve import Settings, serve

SIZES = {"phone": (390, 844), "laptop": (1280, 800), "wide": (1760, 1000)}
SCHEMES = ("light", "dark")
KEPT = ("welcome-laptop-light", "answer-laptop-light", "markdown-laptop-dark")
KEPT += ("side-wide-light", "many-laptop-light", "answer-phone-dark", "settings-laptop-dark")
QUESTION = "Who founded Wrenmoor Observatory?"
# Holds an answer back after some events, makes requests fail, and holds uploads half way.
STALL = """
const real = fetch;
window.fetch = async (path, options) => {
  if (String(path).includes('chat/completions')) {
    if (window.failing) throw new TypeError('network');
    const response = await real(path, options);
    if (!window.stall) return response;
    let seen = 0;
    const held = new TransformStream({
      transform(text, out) {
        for (const line of text.split(/(?<=\\n\\n)/)) if (seen++ < window.stall) out.enqueue(line);
      },
      flush() { return new Promise(() => {}); },
    });
    const text = response.body.pipeThrough(new TextDecoderStream()).pipeThrough(held);
    return new Response(text.pipeThrough(new TextEncoderStream()), response);
  }
  return real(path, options);
};
const send = XMLHttpRequest.prototype.send;
XMLHttpRequest.prototype.send = function (form) {
  if (!window.half) return send.call(this, form);
  const sent = { lengthComputable: true, loaded: 62, total: 100 };
  this.upload.dispatchEvent(new ProgressEvent('progress', sent));
};
"""
MARKDOWN = '''The exposure time follows from the **signal to noise** that one wants:

$$t = \\frac{S^2 (n + b + r^2)}{n^2}$$

with $n$ electrons a second from the star, $b$ from the sky and a read noise of $r$.

| telescope | aperture | plate scale |
| :-- | --: | --: |
| Old Bess | 254 mm | 0.79 |
| Owl | 406 mm | 0.52 |

```python
def exposure(snr: float, star: float, sky: float = 2.5) -> float:
    """Seconds until a star reaches a signal to noise."""
    return snr**2 * (star + sky) / star**2  # without read noise
```

1. Point at the star.
2. Wait for `exposure(50, 120)` seconds; see [the guide](https://example.org/guide).
'''


class Stage:
    """The page in a browser, brought from state to state."""

    def __init__(self, browser: webdriver.Chrome, url: str, folder: Path):
        self.browser, self.url, self.folder = browser, url, folder
        self.client = httpx.Client(base_url=url, timeout=600)

    def open(self, samples: bool = True, **flags: object) -> None:
        if samples:
            self.client.post("/v1/page/demo").raise_for_status()
        self.browser.get("about:blank")
        self.browser.get(self.url)
        self.run("sessionStorage.clear(); localStorage.clear(); location.reload()")
        ready = "return document.getElementById('documents')?.dataset.total"
        until(lambda: self.run(ready), 60, 0.1)
        for name, value in flags.items():
            self.run(f"window.{name} = arguments[0]", value)
        time.sleep(0.5)

    def run(self, script: str, *arguments: object) -> object:
        return self.browser.execute_script(script, *arguments)

    def all(self, selector: str) -> list:
        return self.browser.find_elements("css selector", selector)

    def ask(self, question: str = QUESTION, wait: bool = True) -> None:
        self.all("#question")[0].send_keys(question, Keys.ENTER)
        if wait:
            until(lambda: self.all(".turn") and not self.all(".waiting"), 600, 0.2)
        else:
            time.sleep(4)

    def show(self, panel: str) -> None:
        """Open a side panel, which only matters where the window is narrow."""
        self.run(f"document.getElementById('{panel}').classList.add('open')")

    def take(self, name: str) -> None:
        for size, (width, height) in SIZES.items():
            for scheme in SCHEMES:
                self._emulate(width, height, scheme)
                time.sleep(0.25)
                self.shoot(self.folder / f"{name}-{size}-{scheme}.png")
        self._emulate(*SIZES["laptop"], "light")

    def shoot(self, path: Path) -> None:
        self.browser.save_screenshot(str(path))

    def _emulate(self, width: int, height: int, scheme: str) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)

    # --- the states, in the order in which they are made

    def empty(self) -> None:
        self.open(samples=False)

    def welcome(self) -> None:
        self.open()

    def reading(self) -> None:
        self.open(stall=2)
        self.ask(wait=False)

    def growing(self) -> None:
        self.open(stall=9)
        self.ask("Tell me about the observatory and its volunteers.", wait=False)

    def answer(self) -> None:
        self.open()
        self.ask()
        self.run("document.activeElement.blur(); document.querySelector('.passage').focus()")

    def markdown(self) -> None:
        self.open()
        details = {"mode": "off", "spans": [[0, 0]], "sources": [], "others": []}
        said = [
            {"role": "user", "content": "How long do I expose?"},
            {"role": "assistant", "content": MARKDOWN, "details": details},
        ]
        made = self.client.post(
            "/v1/sessions", json={"title": said[0]["content"], "messages": said}
        )
        self.open()
        self.run(f"location.hash = '{made.json()['name']}'; location.reload()")
        until(lambda: self.all(".code"), 30, 0.1)
        self.run("document.getElementById('log').scrollTop = 0")

    def side(self) -> None:
        self.open()
        length = "const field = document.getElementById('set-length'); field.value = 60;"
        self.run(f"{length} field.dispatchEvent(new Event('input', {{ bubbles: true }}))")
        self.run("document.querySelector('input[value=compare]').click()")
        self.ask()

    def failed(self) -> None:
        self.open(failing=True)
        self.ask("What is the observatory cat called?")

    def conversations(self) -> None:
        self.open()  # conversations are kept in a store, which begins with the samples
        for title in ("When does the dome open", "Recipe for pear chutney", "دليل الحديقة"):
            said = [{"role": "user", "content": title}, {"role": "assistant", "content": "Yes."}]
            self.client.post("/v1/sessions", json={"title": title, "messages": said})
        self.open()
        self.show("conversations")
        until(lambda: self.all("#kept button[aria-label^=Rename]"), 30, 0.1)
        self.all("#kept button[aria-label^=Rename]")[0].click()

    def uploads(self) -> None:
        self.open(half=True)
        self.run(
            "const data = new DataTransfer(); for (const name of ['history of the valley.pdf',"
            "'notes.md', 'a file with a very long name that goes on and on.txt'])"
            "data.items.add(new File(['x'.repeat(4_000_000)], name));"
            "const field = document.getElementById('files'); field.files = data.files;"
            "field.dispatchEvent(new Event('change'))"
        )
        self.show("documents")

    def many(self) -> None:
        for number in range(120):
            kind = ("md", "txt", "csv")[number % 3]
            body = {"text": f"Note {number}: nothing.", "name": f"note {number}.{kind}"}
            collection = {"collection": "work"} if number % 4 == 0 else {}
            self.client.post("/v1/memories", json={**body, **collection}).raise_for_status()
        self.open()
        self.show("documents")
        for tick in self.all("#list input")[1:4]:
            tick.click()

    def settings(self) -> None:
        self.open()
        self.all("#show-settings")[0].click()

    def inside(self) -> None:
        self.open()
        listed = self.client.get("/v1/memories").json()["data"]
        (id,) = (each["id"] for each in listed if each["path"] == "demo:welcome.md")
        page = self.client.post(f"/v1/memories/{id}/view", json={}).json()["page"]
        self.browser.get(f"{self.url}/{page}")


STATES: list[Callable[[Stage], None]] = [
    *(Stage.empty, Stage.welcome, Stage.reading, Stage.growing, Stage.answer, Stage.markdown),
    *(Stage.side, Stage.failed, Stage.conversations, Stage.uploads, Stage.settings, Stage.inside),
    Stage.many,
]


def keep(folder: Path, target: Path) -> None:
    """Write small copies of the pictures that the documentation shows."""
    from PIL import Image

    for name in KEPT:
        with Image.open(folder / f"{name}.png") as picture:
            picture.save(target / f"page-{name}.webp", quality=55, method=6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home:
        options = Options(model=given.model, store=Path(home) / "store")
        addresses: list[str] = []
        arguments = (lambda: Assistant.of(options), Settings(port=0), addresses.append)
        threading.Thread(target=serve, args=arguments, daemon=True).start()
        until(lambda: addresses, 600, 0.1)
        with browsing(given.folder) as page:
            stage = Stage(page.browser, addresses[0], given.folder)
            source = {"source": STALL}
            page.browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", source)
            for state in STATES:
                name = state.__name__
                if given.only and name not in given.only:
                    continue
                state(stage)
                stage.take(name)
                print(name, flush=True)
    if given.keep:
        keep(given.folder, given.keep)
    sys.stdout.flush()
    os._exit(0)  # the server's thread has no end of its own


if __name__ == "__main__":
    main()
