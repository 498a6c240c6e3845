"""Every state of the page, on three sizes, light and dark: what tools/screenshots.py shows."""

import sys
from pathlib import Path

import pytest
from serving import serving, tiny_assistant, tiny_world
from test_page import CHROMIUM, DRIVER, browser  # noqa: F401  a fixture

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import screenshots

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="needs Debian's packages chromium and chromium-driver"
    ),
]
FAULTS = (Path(__file__).parent / "data" / "page_faults.js").read_text("utf-8")


class Looked(screenshots.Stage):
    """Looks for faults where somebody would take a picture."""

    def shoot(self, path):
        super().shoot(path)
        self.faults += [f"{path.name}: {fault}" for fault in self.run(FAULTS)]


@pytest.fixture(scope="module")
def stage(browser, tmp_path_factory):  # noqa: F811
    world = tiny_world(tmp_path_factory.mktemp("world"))
    source = {"source": screenshots.STALL}
    script = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", source)
    with serving(lambda: tiny_assistant(world, world / "store")) as running:
        yield Looked(browser, running.url, tmp_path_factory.mktemp("shots"))
        browser.get("about:blank")
    browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)


@pytest.mark.parametrize("state", screenshots.STATES, ids=lambda state: state.__name__)
def test_every_state_can_be_read_and_operated(stage, state):
    stage.faults = []
    getattr(stage, state.__name__)()
    stage.take(state.__name__)
    assert not stage.faults, "\n".join(stage.faults)
    pictures = list(stage.folder.glob(f"{state.__name__}-*.png"))
    assert len(pictures) == len(screenshots.SIZES) * len(screenshots.SCHEMES)
