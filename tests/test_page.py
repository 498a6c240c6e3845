"""The page in a real browser: ask, see sources, memorize, forget, on a phone, in the dark."""

import json
import os
import shutil
import subprocess
import time

import pytest
from selenium import webdriver
from selenium.webdriver import Keys
from selenium.webdriver.common.by import By
from serving import serving, tiny_assistant, tiny_world

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="needs Debian's packages chromium and chromium-driver"
    ),
]

EVIL = "<img src=x onerror=\"document.title='broken in'\"><b>bold"
SHOTS = os.environ.get("M3MLX_SCREENSHOTS")  # a folder, for somebody who wants to look


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--no-first-run", "--window-size=1280,860"),
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(DRIVER, log_output=subprocess.DEVNULL)
    browser = webdriver.Chrome(options, service)
    browser.set_page_load_timeout(60)
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    world = tiny_world(tmp_path_factory.mktemp("world"))
    with serving(lambda: tiny_assistant(world, world / "store")) as running:
        yield running


@pytest.fixture
def page(browser, server):
    """The page, newly opened, on a store of two documents."""
    if ids := [each["id"] for each in server.client.get("/v1/memories").json()["data"]]:
        server.post("/v1/memories/forget", ids=ids)
    for session in server.client.get("/v1/sessions").json()["data"]:
        server.client.delete(f"/v1/sessions/{session['name']}")
    server.post("/v1/memories", text="The blue boat lies at pier nine.", name="boat.md")
    server.post("/v1/memories", text=f"{EVIL} is written on the boiler.", name=f"{EVIL}.md")
    browser.set_window_size(1280, 860)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    browser.get("about:blank")  # leave what is typed or asked behind
    browser.get(server.url)
    browser.execute_script("sessionStorage.clear(); localStorage.clear(); location.reload()")
    until(lambda: len(browser.find_elements(By.CSS_SELECTOR, "#list li")) == 2)
    return browser


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def one(page, selector):
    return page.find_element(By.CSS_SELECTOR, selector)


def all_of(page, selector):
    return page.find_elements(By.CSS_SELECTOR, selector)


def ask(page, question):
    """Ask by keyboard alone, and wait for the whole answer."""
    page.switch_to.active_element.send_keys(question, Keys.ENTER)
    until(lambda: not all_of(page, ".waiting") and one(page, "#send").is_displayed())


def shot(page, name):
    if SHOTS:
        page.save_screenshot(f"{SHOTS}/{name}.png")


def marked_words(page):
    """The words of the answer that are shown while somebody points at a source."""
    return page.execute_script(
        "return [...(CSS.highlights.get('cited') ?? [])].map(String).join('').trim().slice(0, 20)"
    )


def choose(page, mode):
    page.execute_script(f"document.querySelector('input[value={mode}]').click()")


def test_an_answer_streams_in_and_shows_which_span_drew_on_which_document(page):
    shot(page, "empty")
    ask(page, "Where is the boat?")
    assert one(page, ".question p").text == "Where is the boat?"
    line, sources = one(page, ".line").text, one(page, ".sources")
    assert line.startswith("Memory") and "first word after" in line
    assert sources.text.startswith("Drew on ") and "boat.md, line 1" in sources.text
    numbers = [number.text for number in all_of(page, ".sources > ol .number")]
    assert numbers == [str(n) for n in range(1, len(numbers) + 1)] and numbers
    assert "distance" not in sources.text.lower() and "tokens" not in sources.text.lower()
    cites = all_of(page, ".cite")
    assert {cite.text for cite in cites} <= set(numbers) and cites
    webdriver.ActionChains(page).move_to_element(one(page, ".passage")).perform()
    assert marked_words(page) in one(page, ".words").text and marked_words(page)
    cites[0].send_keys(Keys.ENTER)
    assert "passage" in page.switch_to.active_element.get_attribute("class")


def test_text_of_documents_never_becomes_part_of_the_page(page):
    ask(page, EVIL)
    assert EVIL in one(page, ".question").text
    assert EVIL in one(page, "#list").text and EVIL in one(page, ".answer").text
    assert not all_of(page, "img") and not all_of(page, "main b")
    assert page.title != "broken in"


def test_documents_are_memorized_with_progress_and_forgotten(page, server, tmp_path):
    note = tmp_path / "kite.md"
    note.write_text("A kite hangs in the pear tree. " * 200)
    (tmp_path / "program.exe").write_bytes(b"MZ")
    one(page, "#files").send_keys(f"{note}\n{tmp_path / 'program.exe'}")
    until(lambda: len(all_of(page, "#list li")) == 3)
    until(lambda: all_of(page, "#uploads .error"))
    assert "not read" in one(page, "#uploads .error").text
    assert "upload:kite.md" in server.names()
    forget = one(page, "#list button[aria-label='Forget kite.md']")
    forget.click()
    assert forget.text == "Really forget?" and "upload:kite.md" in server.names()
    forget.click()
    until(lambda: len(all_of(page, "#list li")) == 2)
    assert "upload:kite.md" not in server.names()


def test_a_file_can_be_dropped_anywhere(page, server):
    drop = """
        const data = new DataTransfer();
        data.items.add(new File(['The heron stands on one leg.'], 'heron.txt'));
        for (const kind of ['dragenter', 'dragover', 'drop'])
            document.getElementById('log').dispatchEvent(
                new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true}));
    """
    page.execute_script(drop)
    until(lambda: len(all_of(page, "#list li")) == 3)
    assert "upload:heron.txt" in server.names()
    assert not one(page, "#drop").is_displayed()


def test_a_look_inside_shows_what_is_kept_of_a_document_and_of_a_source(page):
    ask(page, "Where is the boat?")
    here = page.current_window_handle
    for selector, title in (
        ("#list button[aria-label='Look inside boat.md']", "text:boat.md"),
        (".passage button[aria-label='Look inside boat.md']", "text:boat.md#1"),
    ):
        one(page, selector).click()
        until(lambda: len(page.window_handles) == 2)
        page.switch_to.window(next(h for h in page.window_handles if h != here))
        try:
            until(lambda title=title: page.title == f"m3mlx: what is kept of {title}")
            assert "The blue boat lies at pier nine." in one(page, ".text").text
            shades = {
                s.value_of_css_property("background-color") for s in all_of(page, ".text span")
            }
            assert len(shades) > 1 and all_of(page, "rect.cell")
            shot(page, "inside")
        finally:
            page.close()
            page.switch_to.window(here)


def test_many_documents_are_found_by_name(page, server):
    for number in range(12):
        server.post("/v1/memories", text=f"Note {number}.", name=f"note-{number}.md")
    page.get(server.url)
    until(lambda: len(all_of(page, "#list li")) == 14)
    assert one(page, "#list .name").text == "note-11.md"  # the newest first
    one(page, "#find").send_keys("BOAT")
    until(lambda: [item.text for item in all_of(page, "#list .name")] == ["boat.md"])
    shot(page, "find")


def test_the_three_kinds_of_memory_stand_side_by_side(page):
    choose(page, "compare")
    one(page, "#question").click()
    ask(page, "Where is the boat?")
    assert [title.text for title in all_of(page, ".side .mode")] == ["Memory", "Text", "Off"]
    assert len(all_of(page, ".side .sources")) == 2  # off draws on nothing
    shot(page, "compare")
    choose(page, "off")
    one(page, "#question").click()
    ask(page, "And now?")  # goes on with its own answer
    assert not all_of(page, ".error")
    assert len(all_of(page, ".turn > .answer")) == 1


def test_escape_stops_an_answer_and_a_new_conversation_begins_empty(page):
    page.switch_to.active_element.send_keys("Where?", Keys.ENTER)
    until(lambda: all_of(page, ".waiting"))
    page.switch_to.active_element.send_keys(Keys.ESCAPE)
    until(lambda: not all_of(page, ".waiting"))
    assert not all_of(page, ".error")
    one(page, "#reset").click()
    assert not all_of(page, ".turn") and one(page, "#welcome").is_displayed()
    ask(page, "Again?")
    assert not all_of(page, ".error")


def test_everything_is_reached_by_keyboard(page):
    wanted, seen = {"question", "send", "reset", "add", "mode"}, set()
    for _ in range(20):
        element = page.switch_to.active_element
        seen |= {element.get_attribute("id"), element.get_attribute("name")}
        if element.get_attribute("aria-label"):
            seen.add("forget")
        element.send_keys(Keys.TAB)
    assert wanted | {"forget"} <= seen


def test_on_a_phone_nothing_is_wider_than_the_screen(page):
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True},
    )
    try:
        ask(page, "Where is the boat?")
        shot(page, "phone")
        assert not one(page, "#documents").is_displayed()
        one(page, "#show-documents").click()
        assert one(page, "#documents").is_displayed()
        shot(page, "phone-documents")
        assert page.execute_script("return document.documentElement.scrollWidth") <= 390
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_it_is_dark_where_dark_is_preferred(page):
    def brightness(what):
        colour = page.execute_script(
            f"return getComputedStyle(document.documentElement).{what}.match(/[0-9]+/g)"
        )
        return sum(map(int, colour[:3])) / 3

    assert brightness("backgroundColor") > 200 > 100 > brightness("color")
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    assert brightness("backgroundColor") < 60 < 180 < brightness("color")
    ask(page, "Where is the boat?")
    shot(page, "dark")


def test_a_server_with_a_token_asks_for_it(browser, tmp_path_factory):
    world = tiny_world(tmp_path_factory.mktemp("world"))
    token = "nine brass buttons"
    with serving(lambda: tiny_assistant(world, world / "store"), token=token) as running:
        browser.get(running.url)
        until(lambda: one(browser, "#login").is_displayed())
        shot(browser, "login")
        browser.switch_to.active_element.send_keys(token, Keys.ENTER)
        until(lambda: one(browser, "#about").text == "decoder")


def test_nothing_was_asked_of_anybody_else_and_nothing_complained(browser, server):
    """Last, since it reads the logs of all tests above."""
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            url = message["params"]["request"]["url"]
            assert url.startswith(("http://127.0.0.1:", "data:", "chrome:", "about:")), url
    complaints = [entry["message"] for entry in browser.get_log("browser")]
    expected = ("401", "415")  # the login, and the file that is no document
    assert [text for text in complaints if not any(word in text for word in expected)] == []
