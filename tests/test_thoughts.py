"""Thoughts of thinking models: told apart, hidden, not searched, not kept in the context."""

import json

import click
import httpx
import mlx.core as mx
import pytest
import serving
import tiny
from click.testing import CliRunner
from mlx_lm.tokenizer_utils import load as load_tokenizer

from m3mlx import Assistant
from m3mlx.chat import chat as chats
from m3mlx.chat.chat import collect
from m3mlx.chat.conversation import Conversation
from m3mlx.chat.thoughts import AnswerText
from m3mlx.cli import main
from m3mlx.cli.render import echo_answer
from m3mlx.errors import M3Error
from m3mlx.models.template import Template

OPEN = "{% if add_generation_prompt %}<|a|><think>\n{% endif %}"  # always thinks


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = tmp_path_factory.mktemp("world")
    tiny.add_thinking(tiny.save_model(world / "decoder", vocab_size=tiny.VOCABULARY + 2))
    (world / "decoder" / "memory.json").write_text(json.dumps({"memory_layers": [0, 1]}))
    tiny.save_model(world / "plain")
    tiny.save_encoder(world / "encoder")
    (world / "notes").mkdir()
    (world / "notes" / "boat.txt").write_text("The blue boat lies at pier nine.\n\n" * 12)
    with Assistant(str(world / "decoder"), world / "store", encoder=str(world / "encoder")) as made:
        made.memorize([world / "notes"])
    return world


@pytest.fixture
def assistant(world):
    with Assistant(str(world / "decoder"), world / "store", encoder=str(world / "encoder")) as made:
        yield made


@pytest.fixture
def say(monkeypatch):
    """Let every model say a text, whatever it would have said."""

    real = Conversation.stream

    def say(text):
        def stream(self, turn, **given):
            tokens = [*self.decoder.template.encode_rendered(text)]
            said = iter([*tokens, *2 * [self.decoder.tokenizer.eos_token_id]])
            given["sampler"] = lambda logprobs: mx.array([next(said)])
            return real(self, turn, **given)

        monkeypatch.setattr(chats.Conversation, "stream", stream)

    return say


def tokenizer_of(folder, *marks, prompt=tiny.THINKING):
    return load_tokenizer(tiny.add_thinking(tiny.byte_tokenizer(folder), prompt, *marks))


def heard(tokenizer, text, **given):
    """What an answer of these tokens is told apart into."""
    answer, said = AnswerText(tokenizer, **given), {False: "", True: ""}
    for token in tokenizer.encode(text, add_special_tokens=False):
        part, thought = answer.add(token)
        said[thought] += part
    said[answer.thinking] += answer.end()
    return said[False], said[True]


@pytest.mark.parametrize(
    ("text", "thinking", "expected"),
    [
        ("plain", False, ("plain", "")),
        ("<think>\nhm 🦉\n</think>\n\nYes.", False, ("Yes.", "hm 🦉\n")),
        ("hm</think>Yes. ", True, ("Yes. ", "hm")),
        ("Well <think>hm</think> no", False, ("Well no", "hm")),
        ("<think>hm", False, ("", "hm")),
        ("</think> <think", False, ("</think> <think", "")),
    ],
)
def test_thoughts_are_told_apart(tmp_path, text, thinking, expected):
    assert heard(tokenizer_of(tmp_path), text, thinking=thinking) == expected


def test_marks_of_several_tokens(tmp_path):
    tokenizer = tokenizer_of(tmp_path, "<|channel>", "<channel|>", prompt="<|a|>")
    assert len(tokenizer.think_start_tokens) > 1
    text = "A <|channel>tho <|channel><|channel>thoughthm<channel|> B"
    assert heard(tokenizer, text) == ("A <|channel>tho <|channel>B", "hm")
    assert heard(tokenizer, "A <|channel>thou") == ("A <|channel>thou", "")


def test_a_tokenizer_without_marks_and_raw_text_tell_nothing_apart(tmp_path):
    plain = load_tokenizer(tiny.byte_tokenizer(tmp_path / "plain"))
    text = "<think>hm</think> Yes"
    assert heard(plain, text, thinking=True) == (text, "")
    thinking = tokenizer_of(tmp_path / "thinking")
    assert heard(thinking, text, thinking=True, tell_apart=False) == (text, "")


def test_the_template_asks_for_thoughts_only_if_told_to_and_its_prefix_stays(tmp_path):
    template = Template(tokenizer_of(tmp_path))
    thinking, not_thinking = (template.turn("hi", think=think).tokens for think in (True, False))
    marks = template.encode_rendered("<think>\n\n</think>\n\n")
    assert not_thinking == (*thinking, *marks)
    assert not template.opens_thought(thinking) and not template.opens_thought(not_thinking)
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    later = template.resume(said, "c", think=True).tokens
    assert later[-len(thinking) :] != not_thinking and later[-len(marks) :] != tuple(marks)


def test_a_model_that_always_thinks_reads_earlier_answers_without_an_open_thought(tmp_path):
    template = Template(tokenizer_of(tmp_path, prompt=OPEN))
    (start,) = template.encode_rendered("<think>")
    turn = template.turn("hi").tokens
    assert turn.count(start) == 1 and template.opens_thought(turn)
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 2
    resumed = template.resume(said, "c").tokens
    assert resumed.count(start) == 1 and template.opens_thought(resumed)
    answered = template.encode_rendered("\n\na<|e|><|a|>b<|e|><|u|>")
    assert list(resumed[: len(answered)]) == answered


def test_words_that_look_like_a_mark_are_words(tmp_path):
    tokenizer = tokenizer_of(tmp_path, prompt="{% if add_generation_prompt %}<|a|>{% endif %}")
    template = Template(tokenizer)
    assert tokenizer.think_start_id not in template.encode("<think>hm</think>")
    assert not template.opens_thought(template.turn("<think>").tokens)


def test_a_template_without_a_system_role_puts_the_system_text_first(tmp_path):
    folder = tiny.byte_tokenizer(tmp_path)
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    settings["chat_template"] = refusal + settings["chat_template"]
    file.write_text(json.dumps(settings))
    template = Template(load_tokenizer(folder))
    turn = template.turn("hello", system="Be brief.")
    assert turn.tokens[: turn.words[1]] == tuple(template.encode("\n\nBe brief.\n\nhello"))


@pytest.mark.parametrize("end", ["<|e|>", "<|s|>"])
def test_each_of_several_ends_of_turn_ends_an_answer(assistant, say, end):
    tokenizer = assistant.decoder.tokenizer
    tokenizer.add_eos_token("<|s|>")
    say(f"Yes.{end}and more")
    answer = assistant.ask("Hello?", memory="off")
    assert (answer.text, answer.finish_reason) == ("Yes.", "stop")


def test_thoughts_are_no_part_of_the_answer_nor_of_the_next_turns_context(assistant, say):
    chat = assistant.chat(memory="off")
    say("<think>\nIt is nine.\n</think>\n\nPier nine.")
    steps = list(chat.send("Where is the boat?", think=True))
    assert {step.thought for step in steps} == {False, True} and not steps[-1].thought
    answer = collect(steps, "off")
    assert (answer.text, answer.thoughts) == ("Pier nine.", "It is nine.\n")
    assert [m["content"] for m in chat.messages] == ["Where is the boat?", "Pier nine."]
    said = list(chat.messages)
    say("Yes.")
    again = collect(chat.send("Sure?"), "off")
    whole = assistant.decoder.template.resume(said, "Sure?")
    assert again.timings.prompt_tokens + chat.cached == len(whole.tokens)
    after = collect(chat.send("Really?"), "off")  # no thoughts came before: caches are kept
    turn = assistant.decoder.template.turn("Really?", first=False)
    assert after.timings.prompt_tokens == len(turn.tokens)


def test_an_answer_interrupted_in_a_thought_is_empty(assistant, say):
    chat = assistant.chat(memory="off")
    say("<think>hm</think>Yes.")
    steps = chat.send("Hello?")
    assert next(steps).thought and next(steps).thought
    steps.close()
    assert chat.messages[-1]["content"] == ""
    assert collect(chat.send("Again?"), "off").text == "Yes."
    short = collect(chat.send("Again?", max_tokens=2), "off")
    assert (short.text, short.thoughts, short.finish_reason) == ("", "h", "length")


def test_thoughts_are_never_searched(assistant, say, monkeypatch):
    queries, search = [], assistant.search

    def searched(texts, k, **given):
        queries.extend(texts)
        return search(texts, k, **given)

    monkeypatch.setattr(assistant, "search", searched)
    say(f"<think>{'secret ' * 30}</think>{'open ' * 40}")
    steps = list(assistant.chat().send("Where is the boat?", max_tokens=400))
    first, *refreshes = queries
    assert first == "Where is the boat?" and len(refreshes) >= 3
    assert all("secret" not in query and "open" in query for query in refreshes)
    spans = {step.span: step.sources for step in steps}
    assert len(spans) > len(queries) and spans[0] == spans[1] == spans[2]


def test_a_model_that_cannot_think_says_so(world, tmp_path):
    with (
        Assistant(str(world / "plain"), tmp_path / "store") as plain,
        pytest.raises(M3Error, match="no thinking model"),
    ):
        next(plain.chat(memory="off").send("Hello?", think=True))


# --- the command line


@pytest.fixture
def m3(world):
    def run(*args, **given):
        env = {
            "M3MLX_HOME": str(world / "home"),
            "M3MLX_MODEL": str(world / "decoder"),
            "M3MLX_STORE": str(world / "store"),
        }
        done = CliRunner().invoke(main, [*args, "--memory", "off"], env=env, **given)
        assert done.exit_code == 0, done.stderr
        return done

    return run


def test_ask_hides_thoughts_unless_asked(m3, say):
    say("<think>hm</think>Yes.")
    hidden = m3("ask", "Hello?")
    assert hidden.stdout.strip() == "Yes." and hidden.stderr == ""
    shown = m3("ask", "Hello?", "--think")
    assert shown.stdout.strip() == "Yes." and shown.stderr.strip() == "hm"
    assert "thoughts" not in json.loads(m3("ask", "Hello?", "--json").stdout)
    data = json.loads(m3("ask", "Hello?", "--json", "--think").stdout)
    assert (data["answer"], data["thoughts"]) == ("Yes.", "hm")
    short = m3("ask", "Hello?", "--max-tokens", "2")
    assert short.stdout.strip() == "" and "still thinking" in short.stderr


def test_a_thought_that_a_person_stops_is_not_called_too_long(assistant, say, capsys):
    say("<think>hm</think>Yes.")
    with click.Context(click.Command("ask")):
        echo_answer(assistant.chat().send("Hello?"), lambda: True)
    shown = capsys.readouterr()
    assert shown.out == " …\n" and shown.err == ""


def test_chat_hides_thoughts_and_saves_none(m3, say, tmp_path):
    say("<think>hm</think>Yes.")
    file = tmp_path / "said.md"
    lines = f"Hello?\n/save {file}\n"
    hidden, shown = m3("chat", input=lines), m3("chat", "--think", input="Hello?\n")
    assert "Yes." in hidden.stdout and "hm" not in hidden.output and "hm" in shown.stderr
    assert "hm" not in file.read_text() and "Yes." in file.read_text()


# --- the server


def test_the_server_tells_thoughts_apart(world, say):
    say("<think>hm</think>Yes.")

    def make():
        return serving.tiny_assistant(world, world / "store")

    with serving.serving(make) as running:
        body = {"messages": [{"role": "user", "content": "Hello?"}], "memory": "off"}
        path = "/v1/chat/completions"
        first = running.post(path, **body).json()
        whole = first["choices"][0]["message"]
        assert (whole["content"], whole["reasoning_content"]) == ("Yes.", "hm")
        lines = running.post(path, **body, stream=True).text.splitlines()
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        deltas = [event["choices"][0]["delta"] for event in events]
        thoughts = [delta for delta in deltas if "reasoning_content" in delta]
        assert "".join(delta["reasoning_content"] for delta in thoughts) == "hm"
        assert not any("content" in delta for delta in thoughts)
        assert "".join(delta.get("content", "") for delta in deltas) == "Yes."
        said = [*body["messages"], {"role": "assistant", "content": "Yes."}, *body["messages"]]
        used = running.post(path, messages=said, memory="off").json()["usage"]
        cached = used["prompt_tokens_details"]["cached_tokens"]
        assert 0 < cached <= first["usage"]["prompt_tokens"]  # the question, and not the thought
        _refused_and_taken(running, path, body)


def _refused_and_taken(running, path, body):
    taken: httpx.Response = running.post(
        path, **body, chat_template_kwargs={"enable_thinking": True}
    )
    assert taken.status_code == 200
    for given in ({"enable_thinking": 1}, [1]):
        assert running.post(path, **body, chat_template_kwargs=given).status_code == 400
