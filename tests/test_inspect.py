"""A look inside: every number is that of the memories and of the model, and the page is safe."""

import io
import json
import re
import stat
import sys
from html.parser import HTMLParser

import mlx.core as mx
import numpy as np
import pytest
import tiny
from click.testing import CliRunner

from m3mlx import Assistant
from m3mlx.cli import main
from m3mlx.errors import M3Error, StoreError
from m3mlx.inspect.answer import AnswerView
from m3mlx.inspect.document import inspect_document, kept_by_head
from m3mlx.inspect.page import Kept, KeptReference, Part, Span, answer_page, kept_page
from m3mlx.inspect.picture import kept_picture
from m3mlx.memory.codec import PADDING
from m3mlx.models.hooks import observe_attention

EVIL = "</span><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\u202e\x1b[31m"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = tmp_path_factory.mktemp("world")
    tiny.save_model(world / "decoder")
    tiny.save_encoder(world / "encoder")
    (world / "notes").mkdir()
    (world / "notes" / "evil.md").write_text(f"The boat is blue. {EVIL}\n")
    (world / "notes" / "long.txt").write_text("Päivää, the boiler hums — 日本.\n\n" * 20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("M3MLX_HOME", str(world / "home"))
        with make(world) as assistant:
            assistant.memorize([world / "notes"])
    return world


@pytest.fixture(autouse=True)
def home(world, monkeypatch):
    monkeypatch.setenv("M3MLX_HOME", str(world / "home"))


def make(world, **options):
    made = {"encoder": str(world / "encoder"), "tokens_per_head": 4, "budget": "uniform"}
    return Assistant(str(world / "decoder"), world / "store", **{**made, **options})


TAGS = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "div", "span", "figure"}
TAGS |= {"figcaption", "svg", "text", "rect", "table", "tr", "td"}
ATTRIBUTES = {"lang", "charset", "content", "http-equiv", "name", "class", "style", "title", "role"}
ATTRIBUTES |= {"x", "y", "width", "height"}


def safe(page: str) -> None:
    """Nothing but our own markup: no script, no request, no steering."""

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            assert tag in TAGS and {name for name, _ in attributes} <= ATTRIBUTES
            values = dict(attributes)
            assert "url" not in values.get("style", "") and "<" not in values.get("class", "")

    Reader().feed(page)
    assert not re.search(r"url\(|@import|https?:", page)
    assert "\u202e" not in page and "\x1b" not in page
    assert "default-src 'none'" in page


def shown(page: str) -> str:
    """The text of the page's tokens, as it was before it was escaped."""
    tokens = re.findall(r'<span style="[^"]*" title="[^"]*">(.*?)</span>', page, re.DOTALL)
    return "".join(tokens).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def test_tokens_are_shaded_by_the_heads_that_kept_them(world):
    with make(world) as assistant:
        page = kept_page(inspect_document(assistant, str(world / "notes" / "long.txt")))
        store = assistant.store()
        (document,) = store.find_documents([str(world / "notes" / "long.txt")])
        slots = store.slots_of(document.id)
        assert len(slots) > 1
        expected = []
        for slot in slots:
            positions = assistant.format.codec.unpack(store.read([slot])).positions[0]
            (stored,) = store.references([slot])
            kept = [int((positions == place).sum()) for place in range(len(stored.tokens))]
            assert sum(kept) == (positions != PADDING).sum()
            expected += kept
    found = [int(count) for count in re.findall(r'title="kept by (\d+) of 8 heads"', page)]
    assert found == expected and max(found) > 1
    with make(world) as assistant:
        texts = [r.text for r in assistant.store().references(slots)]
    assert shown(page) == "".join(texts)
    assert page.count("<rect") == 4 * 2 and "layer 4, head 2: 4.0 tokens" in page
    safe(page)


def test_one_reference_by_its_number(world):
    name = str(world / "notes" / "long.txt")
    with make(world) as assistant:
        one = kept_page(inspect_document(assistant, f"{name}#2"))
        assert one.count("<h2>") == 1 and "long.txt#2" in one
        for wrong in (f"{name}#0", f"{name}#99"):
            with pytest.raises(M3Error, match="no number"):
                inspect_document(assistant, wrong)
        with pytest.raises(M3Error, match="2 documents"):
            inspect_document(assistant, str(world / "notes"))
        with pytest.raises(StoreError, match="no document"):
            inspect_document(assistant, "nothing")


def test_what_documents_say_is_only_text(world):
    with make(world) as assistant:
        page = kept_page(inspect_document(assistant, str(world / "notes" / "evil.md")))
        safe(page)
        assert "<script>alert(1)" in shown(page)
        chat = assistant.chat()
        view = AnswerView(chat, EVIL)
        list(view.watch(chat.send(EVIL, max_tokens=3)))
        safe(view.page())
    safe(
        kept_page(
            Kept(EVIL, [KeptReference(EVIL, [EVIL], [1]), KeptReference(EVIL, [EVIL], None)], [], 1)
        )
    )
    safe(answer_page(EVIL, [Span([EVIL], [0.5], [Part(EVIL, "memory", EVIL, 0.5)])]))
    kept_page(Kept("", [], [], 0)), answer_page("", [])


def test_no_head_keeps_padding(world):
    with make(world) as assistant:
        config = assistant.format.config
        positions = np.full(config.kept, PADDING, np.uint8)
        assert kept_by_head(positions, config).tolist() == [[0, 0]] * 4
        positions[:6] = 3  # the first head's four, and two of the second's
        assert kept_by_head(positions, config).tolist() == [[4, 2], [0, 0], [0, 0], [0, 0]]


def test_an_answer_is_the_same_when_it_is_watched(world):
    with make(world) as assistant:
        assistant.decoder.tokenizer._eos_token_ids = set()
        plain = [s.token for s in assistant.chat().send("The boiler?", max_tokens=70)]
        chat = assistant.chat()
        view = AnswerView(chat, "The boiler?")
        steps = list(view.watch(chat.send("The boiler?", max_tokens=70)))
        assert [s.token for s in steps] == plain
        again = [s.token for s in assistant.chat().send("The boiler?", max_tokens=70)]
        assert again == plain
        page = view.page()
        spans = [span.finished() for span in view._spans]
        assert "Tokens 1 to 65" in page and "Tokens 66 to 70" in page
        assert "".join("".join(span.tokens) for span in spans) == "".join(s.text for s in steps)
        for span, step in zip(spans, (steps[0], steps[-2]), strict=True):
            parts = {part.kind for part in span.parts}
            assert parts == {"memory", "prefix", "context"}
            assert sum(part.share for part in span.parts) == pytest.approx(1, abs=1e-4)
            names = sorted(part.name for part in span.parts if part.kind == "memory")
            assert len(names) == len(step.sources) == assistant.memories
            assert {name.rpartition(":")[0] for name in names} <= {h.path for h in step.sources}
            assert all(0 < share < 1 for share in span.memory)


def test_shares_are_those_of_attention_itself(world):
    """One pass computed by hand: logits of the last query over all keys of a layer."""
    with make(world) as assistant:
        chat = assistant.chat()
        view, caught = AnswerView(chat, "Boat?"), []

        def catch(queries, keys, values, cache, scale, mask):
            if hasattr(cache, "length"):
                caught.append((queries, keys, cache.length, scale, mask))

        with observe_attention(assistant.decoder.model, catch):
            next(view.watch(chat.send("Boat?", max_tokens=1)))
        (span,) = view._spans
        shares = []
        for queries, keys, length, scale, mask in caught[-4:]:
            q = np.array(queries)[0, :, -1]
            k = np.repeat(np.array(keys)[0], 2, axis=0)
            logits = np.einsum("hd,hkd->hk", q, k) * scale
            if isinstance(mask, mx.array):
                row = np.array(mask)[0, :, -1]
                logits += row if row.dtype != bool else np.where(row, 0, -np.inf)
            weights = np.exp(logits - logits.max(1, keepdims=True))
            weights = (weights / weights.sum(1, keepdims=True)).mean(0)
            end = length + len(assistant.format.config.prefix)
            memories = weights[:length].reshape(len(span.hits), -1).sum(1)
            shares.append([*memories, weights[length:end].sum(), weights[end:].sum()])
        assert np.allclose(span.shares[0], np.mean(shares, axis=0), atol=1e-5)


def test_the_commands(world, tmp_path):
    def run(*words):
        made = ["--store", world / "store", "--model", world / "decoder"]
        words = [*words, *made, "--encoder", world / "encoder"]
        return CliRunner().invoke(main, [*map(str, words)])

    page = tmp_path / "page.html"
    result = run("inspect", world / "notes" / "evil.md", "-o", page)
    assert result.exit_code == 0 and result.stdout == f"{page}\n"
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    safe(page.read_text("utf-8"))
    answer = tmp_path / "answer.html"
    result = run("ask", "Boat?", "--max-tokens", 3, "--inspect", answer)
    assert result.exit_code == 0 and "evil.md" in answer.read_text("utf-8")
    asked = run("ask", "Boat?", "--max-tokens", 3, "--inspect", answer, "--json")
    assert json.loads(asked.stdout)["memory"] == "explicit"
    result = run("inspect", world / "notes" / "evil.md", "-o", tmp_path / "page.png")
    assert result.exit_code == 0 and (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
    assert run("inspect", world / "notes" / "evil.md", "-o", tmp_path / "page.gif").exit_code == 2
    missing = run("inspect", world / "notes" / "evil.md", "-o", tmp_path / "no" / "page.html")
    assert missing.exit_code == 1 and "page.html" in missing.stderr
    assert run("inspect", "nothing", "-o", tmp_path / "x.html").exit_code == 1
    assert not (tmp_path / "x.html").exists()


def test_a_picture_shows_the_same(world, tmp_path):
    image = pytest.importorskip("PIL.Image", reason="pip install 'm3mlx[png]'")
    many, few = (
        Kept("note.md", [KeptReference("note.md", ["one ", "two"], heads)], [[1.0, 2.0]], 2)
        for heads in ([2, 0], None)
    )
    for kept in (many, few):
        assert kept_picture(kept).startswith(b"\x89PNG")
    orange = (218, 146, 63)  # three quarters of the way from paper to the darkest

    def dark(kept):
        colours = image.open(io.BytesIO(kept_picture(kept))).convert("RGB").getcolors(2**24)
        return sum(n for n, colour in colours if max(map(abs, np.subtract(colour, orange))) < 8)

    assert dark(many) > 200 and dark(few) == 0  # without a memory nothing is kept
    kept_picture(Kept(EVIL, [KeptReference(EVIL, [EVIL], [1])], [], 1))
    kept_picture(Kept("", [], [], 0))
    with pytest.raises(M3Error, match=r"too long .*#1"):
        kept_picture(Kept("long", [KeptReference("", ["word\n"] * 2000, None)], [], 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "PIL", None)
        with pytest.raises(M3Error, match=r"m3mlx\[png\]"):
            kept_picture(few)


def test_a_reference_without_a_memory_is_shown_as_text(world, tmp_path):
    with make(world) as assistant:
        assistant.store_path = tmp_path / "cold"
        note = tmp_path / "note.md"
        note.write_text("The kite is red.")
        assistant.memorize([note], cold=True)
        page = kept_page(inspect_document(assistant, str(note)))
    assert "has not been written yet" in page and "The kite is red." in page
