"""Requests as clients send them: what is taken, clamped, left, and refused by name."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3mlx.serve import openai, responses
from m3mlx.serve.app import _line
from m3mlx.serve.errors import BadRequest
from m3mlx.serve.messages import read_messages, turns_of
from m3mlx.serve.openai import MAX_CHOICES, MAX_TEXTS, MAX_TOKENS

USER = {"role": "user", "content": "Hello?"}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "5"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def test_clients_see_one_event_whatever_they_take_for_the_end_of_a_line():
    event = {"type": "response.output_text.delta", "delta": "a\u2028b\u2029c\x85d\x1ce\r\nf 箱"}
    name, data, end = _line(event).splitlines()
    assert name == "event: response.output_text.delta" and not end
    assert json.loads(data.removeprefix("data: ")) == event


def chat(**fields):
    return openai.chat({"messages": [USER], **fields})


def how(**fields):
    return chat(**fields).requests[0].generation


def refused(parse, **fields):
    with pytest.raises(BadRequest) as caught:
        parse(**fields)
    assert caught.value.status == 400 and str(caught.value)
    return caught.value.param


# --- harmless fields, and those of the sampler

HARMLESS = (
    "user metadata store service_tier safety_identifier prompt_cache_key reasoning_effort "
    "verbosity parallel_tool_calls keep_alive num_ctx options cache_prompt id_slot prediction "
    "draft_model "
    "num_draft_tokens add_generation_prompt continue_final_message typical_p frobnicate echo"
).split()


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_fields_are_left_whatever_they_are_and_told(name):
    for value in (True, 0, -1.5, "low", [], {}, [1, "x"], {"a": None}):
        asked = chat(**{name: value})
        assert asked.ignored == (name,), value
        assert asked.requests == chat().requests
    assert chat(**{name: None}).ignored == ()


def test_every_field_of_the_sampler_arrives():
    given = {
        **{"temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "seed": 7},
        **{"xtc_probability": 0.1, "xtc_threshold": 0.2, "repetition_penalty": 1.1},
        **{"presence_penalty": 0.3, "frequency_penalty": -0.4, "repetition_context_size": 30},
        **{"presence_context_size": 31, "frequency_context_size": 32, "logit_bias": {"5": -1}},
    }
    made = how(**given)
    assert (made.temp, made.top_p, made.top_k, made.min_p, made.seed) == (0.7, 0.9, 40, 0.05, 7)
    assert (made.xtc_probability, made.xtc_threshold) == (0.1, 0.2)
    expected = {name: given[name] for name in given if "penalty" in name or "context" in name}
    assert made.logits == {**expected, "logit_bias": {5: -1.0}}
    assert how(repeat_penalty=1.2).logits == {"repetition_penalty": 1.2}
    assert how(logit_bias=[[3, 2]]).logits == {"logit_bias": {3: 2.0}}
    assert how().logits == {}
    assert how(stop_token_ids=[3, 4]).ends == (3, 4) and how(stop_token_ids=[]).ends == ()


@pytest.mark.parametrize(
    "given, name, value",
    [
        ({"max_tokens": 10**9}, "max_tokens", MAX_TOKENS),
        ({"max_tokens": -1}, "max_tokens", MAX_TOKENS),
        ({"max_tokens": 16.0}, "max_tokens", 16),
        ({"max_completion_tokens": 9, "max_tokens": 4}, "max_tokens", 9),
        ({"top_p": 7}, "top_p", 1.0),
        ({"top_p": 0}, "top_p", 1e-6),
        ({"top_k": -1}, "top_k", 0),
        ({"min_p": 2}, "min_p", 1.0),
        ({"seed": -1}, "seed", 2**64 - 1),
        ({"temperature": 10**400}, "temp", 100.0),
        ({"temperature": 1000}, "temp", 100.0),
    ],
)
def test_what_is_beyond_the_bounds_is_clamped(given, name, value):
    assert getattr(how(**given), name) == value


NUMBERS = (
    "temperature top_p top_k min_p seed xtc_probability xtc_threshold repetition_penalty "
    "presence_penalty frequency_penalty repetition_context_size presence_context_size "
    "frequency_context_size max_tokens max_completion_tokens n best_of top_logprobs"
).split()
WRONG = {
    **dict.fromkeys(NUMBERS, (True, "1", [], {}, [1], float("nan"), float("-inf"))),
    **dict.fromkeys(("stream", "logprobs"), (0, 1, "true", [], {})),
    **dict.fromkeys(("stream_options", "chat_template_kwargs"), (1, "x", [1], True)),
    **dict.fromkeys(("response_format", "json_schema"), (1, "json", [1], True)),
    "logit_bias": (1, "x", {"a": 1}, {"1": "x"}, {"1": None}, [1], [[1]], {"1": float("nan")}),
    "stop": (1, {}, [1], [None], True, ["x"] * 65),
    "tools": (1, "x", {}, [1], [{}], [{"type": "function"}], [{"function": {"name": 1}}]),
    "tool_choice": (1, "all", [], True),
    "functions": (1, "x", [{}]),
    "model": (1, [], {}, True),
    "memory": (1, "some", [], True),
    "collection": (1, "", [], True),
    "stop_token_ids": (5, "x", {}, ["x"], [1.5], [True], [[1]]),
    "messages": (None, 1, "x", {}, []),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_type_is_refused_and_named(name):
    for value in WRONG[name]:
        assert refused(chat, **{name: value}) == name, value


@pytest.mark.parametrize(
    "fields, param",
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"response_format": {"type": "yaml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": 5}}, "response_format"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"guided_regex": "x"}, "guided_regex"),
        ({"adapters": "x"}, "adapters"),
        ({"best_of": 3, "n": 2}, "best_of"),
        ({"n": MAX_CHOICES + 1}, "n"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        (
            {"chat_template_kwargs": {"enable_thinking": "yes"}},
            "chat_template_kwargs.enable_thinking",
        ),
    ],
)
def test_what_would_change_the_answer_and_is_not_done_is_refused_by_name(fields, param):
    assert refused(chat, **fields) == param


def test_what_changes_nothing_is_taken():
    for fields in (
        {"response_format": {"type": "text"}, "modalities": ["text"], "tool_choice": "auto"},
        {"tools": [], "functions": [], "logit_bias": {}, "stop": [], "suffix": "", "n": 1},
        {"stop": None, "stream_options": None, "model": None, "adapters": None},
        {"model": ""},
        {"model": "gpt-9"},
        {"chat_template_kwargs": {"enable_thinking": False, "add_special": 1}},
    ):
        assert chat(**fields).requests == chat().requests
    assert chat(stop=["", "x"]).requests[0].stop == ("x",)
    assert chat(tools=[TOOL], tool_choice="none").requests[0].tools == ()
    assert chat(tools=[TOOL]).requests[0].tools == (TOOL,)
    assert chat(functions=[TOOL["function"]]).requests[0].tools == (TOOL,)
    assert how(response_format={"type": "json_object"}).schema == {"type": "object"}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array"}}}
    assert how(response_format=form).schema == {"type": "array"}
    assert (chat(logprobs=True).requests[0].chances, chat(top_logprobs=3).requests[0].chances) == (
        *(0, 3),
    )


# --- messages


def said(*messages):
    turns = turns_of(read_messages(list(messages)))
    roles = [message["role"] for message in turns.earlier]
    assert roles == ["user", "assistant"] * (len(roles) // 2)
    return turns


def ai(text):
    return {"role": "assistant", "content": text}


def test_every_order_of_messages_becomes_a_conversation():
    assert said(USER).message == "Hello?"
    assert said(USER, USER).message == "Hello?\n\nHello?"
    turns = said(ai("Hi"), USER)
    assert [m["content"] for m in turns.earlier] == ["", "Hi"] and turns.message == "Hello?"
    assert said({"role": "system", "content": "Be kind."}).message == "Be kind."
    turns = said({"role": "developer", "content": "Be kind."}, USER)
    assert (turns.system, turns.message) == ("Be kind.", "Hello?")
    turns = said(USER, ai(None), USER)
    assert [m["content"] for m in turns.earlier] == ["Hello?", ""]
    turns = said(USER, ai("Dear"))
    assert (turns.message, turns.prefill, turns.earlier) == ("Hello?", "Dear", ())
    assert said(USER, ai("De"), ai("ar")).prefill == "De\n\nar"
    turns = said(USER, ai("x"), {"role": "system", "content": "Late."}, USER)
    assert turns.system == "Late." and len(turns.earlier) == 2
    parts = [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}, "c"]
    assert said({"role": "user", "content": parts, "name": "Ann"}).message == "abc"
    assert said({"role": "user"}).message == said({"role": "user", "content": []}).message == ""


def test_calls_of_tools_belong_to_their_question():
    turns = said(USER, CALLED, RESULT)
    assert turns.message == "Hello?" and [m["role"] for m in turns.exchange] == [
        "assistant",
        "tool",
    ]
    assert turns.exchange[0]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"a": 1}}
    turns = said(USER, CALLED, RESULT, ai("It is 5."), USER)
    assert len(turns.earlier[0]["exchange"]) == 2 and turns.exchange == []
    turns = said(USER, CALLED, RESULT, USER)  # nobody answered
    assert [m["content"] for m in turns.earlier] == ["Hello?", ""]
    assert said(RESULT).exchange and said(CALLED).exchange and said(ai("x"), CALLED).earlier
    old = {"role": "assistant", "content": "", "function_call": CALL["function"]}
    assert said(USER, old, {"role": "function", "name": "f", "content": "5"}).exchange
    broken = {"function": {"name": "f", "arguments": "{no json"}}
    turns = said(USER, {**CALLED, "tool_calls": [broken]})
    assert turns.exchange[0]["tool_calls"][0]["function"]["arguments"] == "{no json"


@pytest.mark.parametrize(
    "message, param",
    [
        ("Hello", "messages[1]"),
        (None, "messages[1]"),
        ({"content": "x"}, "messages[1].role"),
        ({"role": "robot", "content": "x"}, "messages[1].role"),
        ({"role": ["user"], "content": "x"}, "messages[1].role"),
        ({"role": "user", "content": 5}, "messages[1].content"),
        ({"role": "user", "content": {"text": "x"}}, "messages[1].content"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages[1].content"),
        ({"role": "user", "content": [{"type": "text", "text": 1}]}, "messages[1].content"),
        ({"role": "user", "content": [{"type": ["text"], "text": "x"}]}, "messages[1].content"),
        ({"role": "assistant", "tool_calls": "x"}, "messages[1].tool_calls"),
        ({"role": "assistant", "tool_calls": [{}]}, "messages[1].tool_calls[0]"),
        ({"role": "assistant", "function_call": 5}, "messages[1].function_call"),
        ({"role": "assistant", "content": "x", "audio": {"id": "1"}}, "messages[1].audio"),
        ({"role": "tool", "tool_call_id": 5, "content": "x"}, "messages[1].tool_call_id"),
    ],
)
def test_what_is_no_message_is_refused_by_its_place(message, param):
    assert refused(chat, messages=[USER, message]) == param


# --- prompts, embeddings, responses


def test_prompts_are_texts_or_tokens_one_or_many():
    def prompts(prompt, **fields):
        asked = openai.completion({"prompt": prompt, **fields})
        return [each.tokens or each.message for each in asked.requests]

    assert prompts("x") == ["x"] and prompts("") == [""] and prompts([5, 6]) == [(5, 6)]
    assert prompts(["x", "y"]) == ["x", "y"] and prompts([[1], [2, 3]]) == [(1,), (2, 3)]
    for wrong in (None, 5, {}, [], [[]], [1, "x"], ["x", [1]], [True], [1.5], ["x"] * 129):
        assert refused(prompts, prompt=wrong) == "prompt", wrong
    assert refused(prompts, prompt="x", suffix="y") == "suffix"
    assert refused(prompts, prompt="x", echo="yes") == "echo"
    assert refused(prompts, prompt=["x"] * 64, n=3) == "n"
    asked = openai.completion({"prompt": "x", "echo": True, "logprobs": 1, "max_tokens": 0})
    (request,) = asked.requests
    assert (request.echo, request.chances, request.generation.max_tokens) == (True, 1, 0)
    assert openai.completion({"prompt": "x", "logprobs": False}).requests[0].chances is None


def test_inputs_of_embeddings_are_texts_or_tokens():
    def parse(**fields):
        return openai.embeddings(fields)

    assert parse(input="x").inputs == ["x"] and parse(input=[1, 2]).inputs == [[1, 2]]
    assert parse(input=["x", "y"], user="z").ignored == ("user",)
    wrong = (None, 5, [], [[]], [1, "x"], {}, [None], ["x"] * (MAX_TEXTS + 1))
    for value in wrong:
        assert refused(parse, input=value) == "input"
    for name, value in (("dimensions", 0), ("dimensions", "8"), ("encoding_format", "int8")):
        assert refused(parse, input="x", **{name: value}) == name


def test_items_of_a_response_become_a_conversation():
    def parse(**fields):
        return responses.response(fields)[0].requests[0]

    request = parse(input="Hello?", instructions="Be kind.", max_output_tokens=3)
    assert (request.message, request.system) == ("Hello?", "Be kind.")
    request = parse(
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "2 + 3?"}]},
            {"type": "reasoning", "summary": []},
            {"type": "function_call", "call_id": "1", "name": "add", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "1", "output": "5"},
        ]
    )
    assert request.message == "2 + 3?" and len(request.exchange) == 2
    for wrong in (None, 5, [], {}):
        assert refused(parse, input=wrong) == "input"
    assert refused(parse, input=[{"type": "item_reference", "id": "x"}]) == "input[0]"
    assert refused(parse, input="x", previous_response_id="y") == "previous_response_id"
    assert refused(parse, input="x", text={"format": 5}) == "text"
    assert refused(parse, input="x", max_output_tokens=0) == "max_output_tokens"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
NAMES = sorted({*WRONG, *HARMLESS[:3], "prompt", "input", "text", "instructions", "dimensions"})


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), JSON, max_size=4), st.booleans())
def test_no_request_fails_in_another_way(fields, begun):
    start = {"messages": [USER], "prompt": "x", "input": "x"} if begun else {}
    for parse in (openai.chat, openai.completion, openai.embeddings, responses.response):
        try:
            parse({**start, **fields})
        except BadRequest as error:
            assert error.status == 400 and json.dumps(str(error))


def test_a_response_takes_what_a_chat_takes():
    asked, _ = responses.response({"input": "Hello", "memories": 3, "stop": ["."], "top_k": 7})
    chat = openai.chat(
        {"messages": [{"role": "user", "content": "Hello"}], "memories": 3, "stop": ".", "top_k": 7}
    )
    (response,), (request,) = asked.requests, chat.requests
    assert (response.stop, response.generation) == (request.stop, request.generation)
    assert response.generation.memories == 3 and response.stop
