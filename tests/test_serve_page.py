"""What the page asks of the server: kept conversations, pages of documents, quotes, samples."""

import re
from pathlib import Path

import pytest
from serving import serving, tiny_assistant, tiny_world
from small_store import in_bytes, new_store

from m3mlx.inspect import page as inside
from m3mlx.serve.documents import upload_name
from m3mlx.serve.sessions import unused_name
from m3mlx.sessions import check_name
from m3mlx.store.sessions import FILE, Sessions

PAGE = Path(__file__).parents[1] / "m3mlx" / "serve" / "page"
SAID = [
    {"role": "user", "content": "Where is the boat?"},
    {"role": "assistant", "content": "At pier nine.", "details": {"mode": "explicit"}},
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    world = tiny_world(tmp_path_factory.mktemp("world"))
    with serving(lambda: tiny_assistant(world, world / "store"), upload_bytes=100_000) as running:
        yield running


@pytest.fixture
def kept(server):
    """The server with a store that has one document and no conversation."""
    server.post("/v1/memories", text="The blue boat lies at pier nine.", name="boat.md")
    for session in server.client.get("/v1/sessions").json()["data"]:
        server.client.delete(f"/v1/sessions/{session['name']}")
    return server


def test_without_a_store_nothing_is_kept_and_all_lists_are_empty(server):
    get = server.client.get
    assert get("/v1/memories?limit=5").json()["all"] == 0
    assert get("/v1/sessions").json() == {"object": "list", "data": [], "kept": False}
    assert server.post("/v1/sessions", title="Boat", messages=SAID).status_code == 404
    assert get("/v1/page/questions").json()["data"] == []
    about = get("/v1/page/about").json()
    assert about["model"] == "decoder" and about["parameters"] > 100_000 and ".md" in about["types"]


def test_a_conversation_is_kept_gone_on_with_renamed_found_and_erased(kept):
    name = kept.post("/v1/sessions", title="Where is the boat?", messages=SAID).json()["name"]
    assert name == "Where is the boat"
    assert kept.post("/v1/sessions", title=name, messages=SAID).json()["name"] == f"{name} 2"
    url = f"/v1/sessions/{name}"
    again = {"keep": 1, "expect": 2, "messages": [{"role": "assistant", "content": "Gone."}]}
    assert kept.client.put(url, json=again).json()["messages"] == 2
    changed = kept.client.put(url, json={**again, "expect": 4})
    assert changed.status_code == 409 and "Load it again" in changed.json()["error"]["message"]
    said = kept.client.get(url).json()["data"]
    assert [each["content"] for each in said] == ["Where is the boat?", "Gone."]
    assert kept.client.get(f"{url} 2").json()["data"][1]["details"] == {"mode": "explicit"}
    taken = kept.client.patch(url, json={"name": f"{name} 2"})
    assert taken.status_code == 400 and "already" in taken.json()["error"]["message"]
    assert kept.client.patch(url, json={"name": "Pier"}).json() == {"name": "Pier"}
    found = kept.client.get("/v1/sessions", params={"search": "GONE"}).json()["data"]
    assert [each["name"] for each in found] == ["Pier"]
    assert kept.client.delete("/v1/sessions/Pier").status_code == 200
    for method in (kept.client.get, kept.client.delete):
        assert method("/v1/sessions/Pier").status_code == 404


@pytest.mark.parametrize(
    "messages",
    [
        *(None, [], "x", [{"role": "user"}], [{"role": "tool", "content": "x"}], [1]),
        [{"role": "user", "content": "x", "details": 1}],
    ],
)
def test_messages_that_are_none_are_refused(kept, messages):
    assert kept.post("/v1/sessions", title="t", messages=messages).status_code == 400
    body = {"keep": 0, "expect": 0, "messages": messages}
    assert kept.client.put("/v1/sessions/t", json=body).status_code == 400


def test_every_title_makes_a_name_that_a_session_can_have():
    titles = ["", "?!", "x" * 300, "a\n\tb", "../../etc", "دليل", "-- x --", "e\u0301a" * 50]
    for title in titles:
        check_name(name := unused_name(title, {"Conversation"}))
        assert unused_name(title, {"Conversation", name}) not in (name, "Conversation")


def test_a_file_of_conversations_of_the_first_format_is_gone_on_with(tmp_path):
    with new_store(tmp_path / "store") as store, store.sessions() as sessions:
        sessions.add("plans", SAID)
        sessions._db.execute("ALTER TABLE message DROP COLUMN details")
        sessions._db.execute("PRAGMA user_version=1")
    with Sessions(tmp_path / "store") as sessions:
        assert [message.details for message in sessions.messages("plans")] == [None, None]
        assert sessions.replace("plans", 1, SAID[1:], expected=2) == 2
        assert sessions.messages("plans")[1].details == {"mode": "explicit"}


def test_details_are_encrypted_and_erased_with_what_they_belong_to(tmp_path):
    made = {"encrypt": True, "passphrase": lambda: "nine buttons"}
    detailed = [{**SAID[1], "details": {"mode": "marmalade"}}]
    with new_store(tmp_path / "encrypted", **made) as store, store.sessions() as sessions:
        sessions.add("plans", detailed)
        assert sessions.messages("plans")[0].details == {"mode": "marmalade"}
        assert not in_bytes(store.path, b"marmalade")
    with new_store(tmp_path / "plain") as store, store.sessions() as sessions:
        sessions.add("plans", [*SAID, *detailed])
        assert in_bytes(store.path, b"marmalade")
        sessions.replace("plans", 1, [], expected=3)
        assert not in_bytes(store.path, b"marmalade", b"pier nine")
        assert (store.path / FILE).exists()


def test_documents_come_in_pages_sorted_and_filtered(kept):
    for number in range(7):
        kept.post("/v1/memories", text=f"Note {number}. " * (1 + number), name=f"note-{number}.txt")
    kept.post("/v1/memories", text="A work note.", name="work.md", collection="work")

    def names(query):
        found = kept.client.get(f"/v1/memories?{query}").json()
        return [each["path"].removeprefix("text:") for each in found["data"]], found

    shown, found = names("limit=3&offset=2&sort=name&q=NOTE-")
    assert shown == ["note-2.txt", "note-3.txt", "note-4.txt"] and found["total"] == 7
    assert found["all"] == 9 and found["types"] == {"txt": 7, "md": 2}
    assert found["collections"] == {"": 8, "work": 1}
    assert names("type=md&sort=oldest")[0] == ["boat.md", "work.md"]
    assert names("collection=work&limit=9")[0] == ["work.md"]
    assert names("sort=newest&limit=1")[0] == ["work.md"]
    assert names("sort=largest&limit=1")[0] == ["note-6.txt"]
    assert names("since=2001-01-01T00:00:00Z")[1]["total"] == 9
    assert names("since=2999-01-01T00:00:00.000Z")[1]["total"] == 0
    for query in ("limit=x", "limit=0", "offset=-1", "sort=age", "since=yesterday"):
        assert kept.client.get(f"/v1/memories?{query}").status_code == 400
    ids = [each["id"] for each in names("q=note-&limit=99")[1]["data"]]
    assert kept.post("/v1/memories/forget", ids=[*ids, 9999]).status_code == 404
    assert names("limit=99")[1]["all"] == 9  # nothing was erased
    assert len(kept.post("/v1/memories/forget", ids=ids).json()["forgotten"]) == 7
    for ids in ([], None, ["1"], [True]):
        assert kept.post("/v1/memories/forget", ids=ids).status_code == 400


def test_sources_of_a_kept_answer_are_quoted_until_they_are_forgotten(kept):
    (hit,) = kept.post("/v1/memories/recall", query="boat", k=1).json()["data"]
    asked = [{"document": hit["document"], "start": hit["start"]}, {"document": 999, "start": 0}]
    there, gone = kept.post("/v1/memories/quotes", sources=asked).json()["data"]
    assert there == {"path": hit["path"], "text": hit["text"]} and gone is None
    kept.client.delete(f"/v1/memories/{hit['document']}")
    assert kept.post("/v1/memories/quotes", sources=asked).json()["data"] == [None, None]
    for sources in (None, [1], [{}], [{"document": "1", "start": 0}]):
        assert kept.post("/v1/memories/quotes", sources=sources).status_code == 400


def test_an_answer_names_what_it_reads_before_its_first_word(kept):
    body = {"messages": SAID[:1], "stream": True, "max_tokens": 3}
    lines = kept.post("/v1/chat/completions", **body).text.splitlines()
    events = [line for line in lines if line.startswith("data: {")]
    assert '"memory": "explicit"' in events[0]
    assert "boat.md" in events[1] and '"content": ""' in events[1]


def test_a_request_says_how_many_memories_are_read(kept):
    for number in range(4):
        kept.post("/v1/memories", text=f"Boat {number} lies at pier {number}.", name=f"b{number}")
    body = {"messages": SAID[:1], "max_tokens": 2}
    for memory in ("explicit", "text"):
        for count in (1, 3):
            answer = kept.post("/v1/chat/completions", memory=memory, memories=count, **body)
            assert len(answer.json()["m3mlx"]["sources"]) == count
    for wrong in (0, -1, "two", 1.5):
        assert kept.post("/v1/chat/completions", memories=wrong, **body).status_code == 400


def own_documents(server):
    listed = server.client.get("/v1/memories").json()["data"]
    return [each for each in listed if not each["path"].startswith("demo:")]


def test_the_samples_are_memorized_and_can_be_asked_about(kept):
    kept.post("/v1/memories", text="# Dahlias\n\nThey want sun.", name="garden.md")
    asked = kept.client.get("/v1/page/questions").json()["data"]
    assert "What does garden.md say about Dahlias?" in asked
    added = kept.client.post("/v1/page/demo").json()["added"]
    assert len(added) == 8 and all(path.startswith("demo:") for path in added)
    kept.post("/v1/memories/forget", ids=[each["id"] for each in own_documents(kept)[1:]])
    asked = kept.client.get("/v1/page/questions").json()["data"]
    assert len(asked) == 3 and "Who founded Wrenmoor Observatory?" in asked
    assert not asked[0].startswith("Who founded")  # one's own come first


@pytest.mark.parametrize(
    "folder, name",
    [
        *((None, "upload:a.md"), ("", "upload:a.md"), ("x/y", "upload:x/y/a.md")),
        *(("../../etc/.", "upload:etc/a.md"), ("C:\\x\u202ey\0", "upload:C:/x y/a.md")),
        ("/".join("abcdefghij"), "upload:c/d/e/f/g/h/i/j/a.md"),
    ],
)
def test_an_upload_of_a_folder_keeps_its_place(folder, name):
    assert upload_name("../z/a.md", folder) == name


def test_two_files_of_one_name_in_two_folders_are_two_documents(kept):
    for folder in ("one", "two"):
        content = {"file": ("a.md", f"It is {folder}.".encode())}
        kept.client.post("/v1/memories", files=content, data={"folder": folder})
    assert {"upload:one/a.md", "upload:two/a.md"} <= set(kept.names())


def test_files_of_the_page_are_whole_and_nothing_else_is_served(server):
    known = re.findall(r'(?:src|href)="(page/[^"]+)"', (PAGE / "index.html").read_text("utf-8"))
    modules = [f"page/{file.name}" for file in PAGE.glob("*.js")]
    for path in {*known, *modules}:
        response = server.client.get(f"/{path}")
        assert response.status_code == 200 and response.headers["x-content-type-options"]
    for path in ("/page/", "/page/../app.py", "/page/%2e%2e/app.py", "/page/..%2fapp.py"):
        assert server.client.get(path).status_code in (404, 405), path
    for file in (PAGE / "vendor").glob("*.js"):
        assert (PAGE / "vendor" / f"{file.name.removesuffix('.min.js')}.LICENSE.txt").exists()


# --- contrast, from the names of the colours

TEXT = 4.5  # WCAG AA: contrast of text, and of the edges of what is operated
EDGE = 3.0
PAIRS = [
    *(
        (ink, back, TEXT)
        for ink in ("ink", "soft", "accent", "bad")
        for back in ("paper", "raised")
    ),
    *((ink, "tint", TEXT) for ink in ("ink", "soft", "accent")),
    *((ink, "code", TEXT) for ink in ("ink", "soft", "word", "string", "value", "note", "accent")),
    *(("on-accent", "accent", TEXT), ("paper", "ink", TEXT), ("ink", "mark", TEXT)),
    *((edge, back, EDGE) for edge in ("edge", "accent") for back in ("paper", "raised", "tint")),
]


def rgb(colour):
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


def luminance(colour):
    parts = [part / 255 for part in (rgb(colour) if isinstance(colour, str) else colour)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_is_kept_can_be_read_through_its_shade(scheme):
    light, dark = re.findall(r":root \{(.*?)\}", inside._STYLE, re.S)
    style = light if scheme == "light" else dark
    colours = dict(re.findall(r"--(\w+): (#\w{6});", style))
    (kept,) = re.findall(r"--kept: (\d+), (\d+), (\d+);", style)
    for share in (0.1, 0.4, 0.75):  # the most that a token is shaded
        back = [
            share * int(k) + (1 - share) * p
            for k, p in zip(kept, rgb(colours["raised"]), strict=True)
        ]
        assert contrast(colours["ink"], back) >= TEXT
    assert contrast(colours["dim"], colours["paper"]) >= TEXT


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_the_contrast_of_wcag_aa(scheme):
    css = (PAGE / "page.css").read_text("utf-8")
    light, dark = re.findall(r":root \{(.*?)\}", css, re.S)
    colours = dict(re.findall(r"--([\w-]+): (#\w{6});", light if scheme == "light" else dark))
    for ink, back, least in PAIRS:
        assert contrast(colours[ink], colours[back]) >= least, f"{ink} on {back}"
    assert not re.findall(r"#[0-9a-f]{3,8}\b", css.split("box-sizing")[1])  # no other colours
