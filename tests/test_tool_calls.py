"""Calls of tools: found in answers however they arrive, and forced."""

import json
from types import SimpleNamespace

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.tool_parsers import json_tools, mistral, qwen3_coder
from serving import serving, tiny_assistant, tiny_world

from m3mlx.chat.sampling import can_keep_to_schemas
from m3mlx.serve import tool_calls
from m3mlx.serve.tool_calls import ForcedCall, ToolCalls

needs_grammar = pytest.mark.skipif(not can_keep_to_schemas(), reason="needs m3mlx[schema]")


def tokenizer(family=json_tools):
    return SimpleNamespace(
        has_tool_calling=True,
        tool_parser=family.parse_tool_call,
        tool_call_start=family.tool_call_start,
        tool_call_end=family.tool_call_end,
    )


def tool(name, **properties):
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


WEATHER = tool("weather", city={"enum": ["Paris", "Rome"]})
TIME = tool("time", zone={"enum": ["UTC", "CET"]})


def fed(calls, text, cuts=()):
    """Feed a text, cut at some places; return what is text, and the calls."""
    places = sorted({min(cut, len(text)) for cut in cuts})
    ends = [*places, len(text)]
    said, found = "", []
    for start, end in zip([0, *places], ends, strict=True):
        more, new = calls.feed(text[start:end], last=False)
        said, found = said + more, found + new
    more, new = calls.feed("", last=True)
    return said + more, [
        (each["function"]["name"], each["function"]["arguments"]) for each in found + new
    ]


def written(name, arguments):
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


PARIS, ROME = written("weather", '{"city": "Paris"}'), written("weather", '{"city": "Rome"}')
ANSWERS = {  # what a model writes: what is text of it, and the calls
    PARIS: ("", [("weather", '{"city": "Paris"}')]),
    f"{PARIS}\n{ROME}": (
        "\n",
        [("weather", '{"city": "Paris"}'), ("weather", '{"city": "Rome"}')],
    ),
    f"I look. {PARIS} Wait.": ("I look.  Wait.", [("weather", '{"city": "Paris"}')]),
    written("weather", "{}"): ("", [("weather", "{}")]),
    '<tool_call>{"name": "weather"}</tool_call>': ("", [("weather", "{}")]),
    written("weather", '"Paris"'): ("", [("weather", "Paris")]),
    written("weather", "null"): ("", [("weather", "{}")]),
    **{
        broken: (broken, [])
        for broken in (
            written("weather", "{city: Paris}"),
            written("weather", '{"city": "Pa'),
            "<tool_call>Paris</tool_call>",
            '<tool_call>{"arguments": {}}</tool_call>',
            '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
            "<tool_call>[1, 2]</tool_call>",
            "<tool_call>null</tool_call>",
            "Hm <tool_call>",
            '<tool_call>{"name": "weather", "argu',
            "a < b, <tool",
        )
    },
    f"<tool_call>nothing</tool_call>{PARIS}": (
        "<tool_call>nothing</tool_call>",
        [("weather", '{"city": "Paris"}')],
    ),
}


@pytest.mark.parametrize("text", ANSWERS)
@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(0, 120), max_size=6))
def test_calls_are_found_and_nothing_is_lost_however_an_answer_arrives(text, cuts):
    assert fed(ToolCalls(tokenizer(), [WEATHER]), text, cuts) == ANSWERS[text]
    assert fed(ToolCalls(tokenizer(), []), text, cuts) == (text, [])


@pytest.mark.parametrize(
    "family, text",
    [
        (qwen3_coder, "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n"
         "</function>\n</tool_call>"),
        (mistral, '[TOOL_CALLS]weather[ARGS]{"city": "Paris"}'),
    ],
)  # fmt: skip
def test_families_have_parsers_of_their_own(family, text):
    for cuts in ((), range(len(text))):
        said, calls = fed(ToolCalls(tokenizer(family), [WEATHER]), text, cuts)
        assert (said.strip(), calls) == ("", [("weather", '{"city": "Paris"}')])


def forced(*tools):
    return ForcedCall(tokenizer(), tools)


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(0, 120), max_size=6))
def test_a_forced_call_is_told_when_it_is_whole(cuts):
    one = forced(WEATHER)
    assert one.changes["opening"] == "<tool_call>\n"
    assert one.changes["prefill"] == '{"name": "weather", "arguments": '
    assert fed(one, '{"city": "}Par\\"is"}', cuts) == ("", [("weather", '{"city": "}Par\\"is"}')])
    assert one.whole
    two = forced(WEATHER, TIME)
    assert two.changes["prefill"] == ""
    text = '{"name": "time", "arguments": {"zone": "CET"}}'
    assert fed(two, text, cuts) == ("", [("time", '{"zone": "CET"}')])


@pytest.mark.parametrize("text", ['{"city": "Par', "Paris", "5", "[]", ""])
def test_a_forced_call_that_becomes_none_is_text(text):
    assert fed(forced(WEATHER), text) == (f'{{"name": "weather", "arguments": {text}', [])
    other = '{"name": "frob", "arguments": {}}'
    assert fed(forced(WEATHER, TIME), other) == (other, [])


def test_a_call_ends_where_it_is_whole_and_not_before():
    call = forced(WEATHER)
    assert call.feed('{"city": {"a": 1}', last=False) == ("", []) and not call.whole
    assert call.feed("}", last=False)[1] and call.whole
    assert call.feed("</tool_call>", last=True) == ("", [])


# --- a server


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    world = tiny_world(tmp_path_factory.mktemp("world"))
    tiny.add_tools(world / "decoder")
    with serving(lambda: tiny_assistant(world, world / "store")) as running:
        yield running


def ask(server, **fields):
    body = {"messages": [{"role": "user", "content": "Hello?"}], "max_tokens": 300, **fields}
    response = server.post("/v1/chat/completions", **{"tools": [WEATHER, TIME], **body})
    assert response.status_code == 200, response.text
    return response


def named(name):
    return {"type": "function", "function": {"name": name}}


CHOICES = {
    "required": {"weather", "time"},
    **{
        json.dumps(choice): names
        for choice, names in (
            (named("time"), {"time"}),
            ({"type": "function", "name": "time"}, {"time"}),
            ({"type": "allowed_tools", "allowed_tools": {"mode": "required",
              "tools": [named("weather")]}}, {"weather"}),
        )
    },
}  # fmt: skip


@needs_grammar
@pytest.mark.parametrize("choice", CHOICES)
def test_a_call_can_be_forced_whole_and_streamed(server, choice):
    given = json.loads(choice) if choice.startswith("{") else choice
    said = ask(server, tool_choice=given).json()["choices"][0]
    (call,) = said["message"]["tool_calls"]
    function, names = call["function"], CHOICES[choice]
    assert function["name"] in names and said["message"]["content"] is None
    arguments = json.loads(function["arguments"])
    possible = {"time": ("zone", ["UTC", "CET"]), "weather": ("city", ["Paris", "Rome"])}
    key, values = possible[function["name"]]
    assert list(arguments) == [key] and arguments[key] in values
    assert said["finish_reason"] == "tool_calls"
    lines = ask(server, tool_choice=given, stream=True).text.splitlines()
    events = [json.loads(line[6:])["choices"][0] for line in lines if line.startswith("data: {")]
    deltas = [each["delta"] for each in events]
    told = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert [(each["index"], each["function"]) for each in told] == [(0, function)]
    assert not any(delta.get("content") for delta in deltas)
    assert events[-1]["finish_reason"] == "tool_calls"


@needs_grammar
def test_a_forced_call_that_is_cut_off_is_none(server):
    said = ask(server, tool_choice=named("weather"), max_tokens=1).json()["choices"][0]
    assert said["finish_reason"] == "length" and "tool_calls" not in said["message"]


@needs_grammar
def test_parameters_with_references_keep_to_them(server):
    schema = {"$defs": {"Z": {"enum": ["UTC"]}}, "properties": {"z": {"$ref": "#/$defs/Z"}}}
    pointed = {"type": "function", "function": {"name": "pointed", "parameters": {
        "type": "object", "required": ["z"], **schema}}}  # fmt: skip
    for tools, choice in (([pointed, WEATHER], named("pointed")), ([pointed] * 2, "required")):
        said = ask(server, tools=tools, tool_choice=choice).json()["choices"][0]
        arguments = json.loads(said["message"]["tool_calls"][0]["function"]["arguments"])
        assert arguments["z"] == "UTC"


@needs_grammar
def test_a_response_has_the_forced_call(server):
    body = {"input": "Hello?", "tools": [WEATHER], "tool_choice": "required"}
    output = server.post("/v1/responses", **body, max_output_tokens=300).json()["output"]
    assert [item["type"] for item in output] == ["function_call"]
    assert output[0]["name"] == "weather" and "city" in json.loads(output[0]["arguments"])


def test_none_auto_and_no_choice_force_nothing(server):
    for choice in ("none", "auto", None):
        said = ask(server, tool_choice=choice, max_tokens=4).json()["choices"][0]
        assert "tool_calls" not in said["message"]
    shown = ask(server, tool_choice="auto", max_tokens=1).json()["usage"]["prompt_tokens"]
    hidden = ask(server, tool_choice="none", max_tokens=1).json()["usage"]["prompt_tokens"]
    assert shown > hidden + 100  # the template shows tools that may be called


@pytest.mark.parametrize(
    "tools, choice",
    [
        ([], "required"),
        ([], named("weather")),
        ([WEATHER], named("time")),
        ([WEATHER], {}),
        ([WEATHER], {"type": "function", "function": {}}),
        ([WEATHER], {"type": "allowed_tools", "allowed_tools": {"tools": [named("time")]}}),
        ([WEATHER], "some"),
    ],
)
def test_a_choice_that_cannot_be_kept_is_refused(server, tools, choice):
    body = {"messages": [{"role": "user", "content": "Hello?"}], "tools": tools}
    response = server.post("/v1/chat/completions", **body, tool_choice=choice, max_tokens=1)
    assert response.status_code == 400 and response.json()["error"]["param"] == "tool_choice"


def test_without_the_library_one_tool_is_forced_and_several_are_refused(server, monkeypatch):
    from m3mlx.serve import app

    for module in (app, tool_calls):
        monkeypatch.setattr(module, "can_keep_to_schemas", lambda: False)
    said = ask(server, tools=[WEATHER], tool_choice="required", max_tokens=3).json()["choices"][0]
    assert said["finish_reason"] == "length" or said["message"].get("tool_calls")
    body = {"messages": [{"role": "user", "content": "Hello?"}], "tools": [WEATHER, TIME]}
    response = server.post("/v1/chat/completions", **body, tool_choice="required")
    assert response.status_code == 400 and "m3mlx[schema]" in response.text


def test_a_template_without_tools_cannot_force(server, monkeypatch):
    monkeypatch.setattr(server.endpoints, "knows_tools", False)
    body = {"messages": [{"role": "user", "content": "Hello?"}], "tools": [WEATHER]}
    response = server.post("/v1/chat/completions", **body, tool_choice="required")
    assert response.status_code == 400 and response.json()["error"]["param"] == "tool_choice"
