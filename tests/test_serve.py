"""The server over real HTTP: OpenAI's client, documents, what is refused, and how."""

import base64
import json
import re
import threading
import time

import httpx
import numpy as np
import openai
import pytest
from serving import serving, tiny_assistant, tiny_world, wait_until
from tokenizers import pre_tokenizers

BOAT = "The blue boat lies at pier nine.\n"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = tiny_world(tmp_path_factory.mktemp("world"))
    notes = world / "notes"
    notes.mkdir()
    (notes / "boiler.md").write_text("# Boiler\n\nThe boiler was serviced by Ada Quill in May.\n")
    (notes / "boat.txt").write_text(BOAT * 12)
    (world / "secret.txt").write_text("The safe opens with 4711.")
    (notes / "way-out.txt").symlink_to(world / "secret.txt")
    (notes / "folder-out").symlink_to(world)
    return world


@pytest.fixture(scope="module")
def home(world):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("M3MLX_HOME", str(world / "home"))
        yield


@pytest.fixture(scope="module")
def server(world, home):
    """Two documents are memorized; tests that change that undo it."""
    with serving(
        lambda: tiny_assistant(world, world / "store"),
        roots=[world / "notes"],
        upload_bytes=100_000,
    ) as running:
        done = running.post(
            "/v1/memories",
            paths=[str(world / "notes" / "boiler.md"), str(world / "notes" / "boat.txt")],
        )
        assert done.json()["references"] >= 2, done.text
        yield running


@pytest.fixture
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)


def ask(text):
    return [{"role": "user", "content": text}]


def paths(sources):
    return [source["path"].rpartition("/")[2] for source in sources]


# --- answers, by the official client


def test_an_answer_carries_its_sources_and_what_was_used(client):
    answer = client.chat.completions.create(
        model="m3mlx", messages=ask("Where is the boat?"), max_tokens=5
    )
    assert answer.choices[0].finish_reason in ("stop", "length")
    used = answer.usage
    assert used.completion_tokens <= 5 and used.prompt_tokens_details.cached_tokens == 0
    assert used.total_tokens == used.prompt_tokens + used.completion_tokens
    assert answer.m3mlx["memory"] == "explicit"
    assert set(paths(answer.m3mlx["sources"])) == {"boiler.md", "boat.txt"}
    assert {"start", "end", "page", "line", "text", "distance", "span"} < answer.m3mlx["sources"][
        0
    ].keys()


def test_a_stream_says_the_same_as_a_whole_answer(client):
    request = {"model": "m3mlx", "messages": ask("Where is the boat?"), "max_tokens": 70}
    whole = client.chat.completions.create(**request)
    chunks = list(
        client.chat.completions.create(
            **request, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    spans = [c.m3mlx for c in chunks if "span" in (getattr(c, "m3mlx", None) or {})]
    streamed = [source for span in spans for source in span["sources"]]
    (last,) = [c.m3mlx for c in chunks if "timings" in (getattr(c, "m3mlx", None) or {})]
    assert last["sources"] == whole.m3mlx["sources"]
    assert all(0 <= s["share"] <= 1 for s in last["sources"])
    for early in (streamed, last["sources"]):
        assert {s["span"] for s in early} == {span["span"] for span in spans}


def test_a_stream_ends_with_done_and_usage_only_if_asked(server):
    body = {"messages": ask("Hello?"), "max_tokens": 3, "stream": True}
    with server.client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = [line for line in response.iter_lines() if line]
    assert events[-1] == "data: [DONE]"
    assert all("usage" not in json.loads(event[6:]) for event in events[:-1])


@pytest.mark.parametrize("memory", ["explicit", "text", "off"])
def test_each_request_chooses_its_memory(client, memory):
    answer = client.chat.completions.create(
        model="m3mlx",
        messages=ask("Where is the boat?"),
        max_tokens=3,
        extra_body={"memory": memory},
    )
    assert answer.m3mlx["memory"] == memory
    assert bool(answer.m3mlx["sources"]) == (memory != "off")
    assert (answer.usage.prompt_tokens > 100) == (memory == "text")


def test_a_conversation_that_goes_on_is_not_read_again_and_answers_the_same(client, server):
    messages = [{"role": "system", "content": "Be brief."}, *ask("Where is the boat?")]
    first = client.chat.completions.create(model="m3mlx", messages=messages, max_tokens=6)
    said = first.choices[0].message.content
    messages += [{"role": "assistant", "content": said}, *ask("And the boiler?")]
    request = {"model": "m3mlx", "messages": messages, "max_tokens": 6}
    warm = client.chat.completions.create(**request)
    assert warm.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens
    server.endpoints.conversations.clear()
    cold = client.chat.completions.create(**request)
    assert cold.usage.prompt_tokens_details.cached_tokens == 0
    assert cold.usage.prompt_tokens > first.usage.prompt_tokens


def read(running, messages, **fields):
    """Answer, number of tokens of the prompt, and how many of them were read for it."""
    body = {"messages": messages, "max_tokens": 4, **fields}
    answer = running.post("/v1/chat/completions", **body).json()
    used = answer["usage"]
    cached = used["prompt_tokens_details"]["cached_tokens"]
    text = answer["choices"][0]["message"]["content"]
    return text, used["prompt_tokens"], used["prompt_tokens"] - cached


@pytest.mark.parametrize("memory", ["explicit", "text", "off"])
def test_only_what_no_conversation_shares_is_read(server, memory):
    server.endpoints.conversations.clear()
    long = "Where is the boat? " * 8
    system = {"role": "system", "content": "Be brief. " * 12}
    text, _, _ = read(server, [system, *ask(long)], memory=memory)
    more = [system, *ask(long), {"role": "assistant", "content": text}, *ask("And the boiler?")]
    again, prompt, new = read(server, more, memory=memory)
    assert new < prompt / 2
    regenerated, _, new = read(server, more, memory=memory)
    assert (regenerated, new) == (again, 1)  # the last token gives the first of the answer
    edited = [*more[:-1], *ask("And the kite?")]
    _, prompt, new = read(server, edited, memory=memory)
    assert new < prompt / 2
    other, prompt, new = read(server, [system, *ask("Hello?")], memory=memory)
    assert prompt - new >= len(system["content"])
    server.endpoints.conversations.clear()
    assert read(server, [system, *ask("Hello?")], memory=memory)[0] == other


def continued(running, prompt, **fields):
    """Text, number of tokens of the prompt, and how many of them were read for it."""
    body = {"prompt": prompt, "max_tokens": 4, "memory": "off", **fields}
    answer = running.post("/v1/completions", **body).json()
    used = answer["usage"]
    cached = used["prompt_tokens_details"]["cached_tokens"]
    return answer["choices"][0]["text"], used["prompt_tokens"], used["prompt_tokens"] - cached


def test_what_texts_to_be_continued_share_is_read_once(server):
    cache = server.endpoints.conversations
    cache.clear()
    shots = "Question: where is the boat? Answer: at pier nine.\n" * 5
    first, prompt, new = continued(server, f"{shots}Question: and the kite?")
    assert new == prompt
    other, prompt, new = continued(server, f"{shots}Question: who is Ada?")
    assert new < prompt / 5
    again, _, new = continued(server, f"{shots}Question: and the kite?")
    assert (again, new) == (first, 1)
    longer, prompt, new = continued(server, f"{shots}Question: and the kite?{first} So")
    assert new < prompt / 5
    assert len(cache._kept) <= 3
    for memory in ("explicit", "text"):  # what is read beside the text, or before it
        alone, _, _ = continued(server, f"{shots}Question: who is Ada?", memory=memory)
        assert continued(server, f"{shots}Question: who is Ada?", memory=memory)[0] == alone
    _, prompt, new = read(server, ask(shots), memory="off")
    assert new == prompt  # never from the caches of a text
    cache.clear()
    assert continued(server, f"{shots}Question: who is Ada?")[0] == other
    assert continued(server, f"{shots}Question: and the kite?{first} So")[0] == longer
    scored = {"echo": True, "logprobs": 1, "max_tokens": 0}
    kept = len(cache._kept)
    _, prompt, new = continued(server, f"{shots}Question: who is Ada?", **scored)
    assert new == prompt and len(cache._kept) == kept  # whose tokens are all looked at


def test_an_answer_ends_before_a_token(server):
    whole = server.post(
        "/v1/completions", prompt="Hello", max_tokens=12, logprobs=0, memory="off"
    ).json()["choices"][0]
    tokens = whole["logprobs"]["tokens"]
    ends = next(token for token in tokens if len(token.encode()) == 1 and token.isascii())
    place = tokens.index(ends)
    for stream in (False, True):
        body = {"prompt": "Hello", "max_tokens": 12, "memory": "off", "stream": stream}
        given = {**body, "stop_token_ids": [byte_token(ends)]}
        response = server.post("/v1/completions", **given)
        if stream:
            lines = [line[6:] for line in response.text.splitlines() if "{" in line]
            parts = [json.loads(line)["choices"][0] for line in lines]
        else:
            parts = response.json()["choices"]
        assert "".join(part["text"] for part in parts) == "".join(tokens[:place])
        assert parts[-1]["finish_reason"] == "stop"


def byte_token(character):
    """Return the id of a character in the tokenizer of the tiny models."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    (encoded,) = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(character)
    return alphabet.index(encoded[0])


def test_a_large_conversation_is_kept_and_the_oldest_are_dropped(server):
    cache = server.endpoints.conversations
    cache.clear()
    cache._limit = 1
    try:
        messages = ask("word " * 100)
        for _ in range(2):
            text, prompt, new = read(server, messages)
            messages += [{"role": "assistant", "content": text}, *ask("And?")]
        assert new < prompt / 2 and len(cache._kept) == 1
        cache._limit = 2 * cache.nbytes
        for number in range(5):
            read(server, ask(f"{number} word " * 80))
        assert 1 <= len(cache._kept) < 5 and cache.nbytes <= cache._limit
    finally:
        cache._limit = None


def test_an_answer_ends_at_a_stop_word(client):
    request = {"model": "m3mlx", "messages": ask("Where is the boat?"), "max_tokens": 40}
    whole = client.chat.completions.create(**request).choices[0].message.content
    stop = whole[len(whole) // 2 :][:2]
    for stream in (False, True):
        answer = client.chat.completions.create(**request, stop=[stop, "never said"], stream=stream)
        if stream:
            chunks = list(answer)
            text = "".join(c.choices[0].delta.content or "" for c in chunks)
            reason = chunks[-1].choices[0].finish_reason
        else:
            text, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
        assert (text, reason) == (whole[: whole.index(stop)], "stop")


def test_a_seed_repeats_and_a_temperature_draws(client):
    request = {"model": "m3mlx", "messages": ask("Hello?"), "max_tokens": 12, "temperature": 1.5}
    texts = [
        client.chat.completions.create(**request, seed=seed).choices[0].message.content
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_completions_go_on_with_a_text_as_it_stands(client):
    request = {"model": "decoder", "prompt": "The blue boat", "max_tokens": 4}
    whole = client.completions.create(**request)
    assert whole.usage.prompt_tokens == len("The blue boat")  # a byte is a token; no template
    assert paths(whole.m3mlx["sources"])
    text = "".join(c.choices[0].text for c in client.completions.create(**request, stream=True))
    assert text == whole.choices[0].text


def test_models_and_embeddings(client, server):
    assert [model.id for model in client.models.list()] == ["decoder", "m3mlx"]
    assert client.models.retrieve("m3mlx").owned_by == "m3mlx"
    texts = ["a blue boat", "", "the boiler"]
    floats = client.embeddings.create(model="encoder", input=texts, encoding_format="float")
    packed = server.post(
        "/v1/embeddings", model="encoder", input=texts, encoding_format="base64"
    ).json()["data"]
    vectors = np.array([item.embedding for item in floats.data], np.float32)
    assert vectors.shape == (3, 32) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    for vector, item in zip(vectors, packed, strict=True):
        assert np.array_equal(np.frombuffer(base64.b64decode(item["embedding"]), "<f4"), vector)
    assert floats.usage.prompt_tokens > 6


# --- what is refused

USER = ask("Hello?")


@pytest.mark.parametrize(
    "path, body, param",
    [
        ("chat/completions", {"messages": USER, "max_tokens": "9"}, "max_tokens"),
        ("chat/completions", {"messages": USER, "logit_bias": {"9999": 1}}, "logit_bias"),
        ("completions", {}, "prompt"),
        ("completions", {"prompt": [1, 9999]}, "prompt"),
        ("completions", {"prompt": [-1]}, "prompt"),
        ("responses", {}, "input"),
        ("embeddings", {"input": [[1], [99999]]}, "input"),
        ("embeddings", {"input": "x", "dimensions": 999}, "dimensions"),
        ("memories", {}, "text"),
        ("memories", {"text": ""}, "text"),
        ("memories", {"text": "x", "name": 5}, "name"),
        ("memories", {"paths": "x"}, "text"),
        ("memories/recall", {"query": ""}, "query"),
        ("memories/recall", {"query": "x", "k": 0}, "k"),
        ("memories/recall", {"query": "x", "k": True}, "k"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(server, path, body, param):
    response = server.post(f"/v1/{path}", **body)
    error = response.json()["error"]
    assert response.status_code == 400 and error.keys() == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param), error


def test_fields_that_are_left_are_named_in_a_header(server):
    response = server.post(
        "/v1/chat/completions", messages=USER, max_tokens=1, user="x", **{"ä\n": 1}
    )
    assert response.headers["x-m3mlx-ignored"] == "user, ??"
    response = server.post("/v1/embeddings", input="x", user="y")
    assert response.headers["x-m3mlx-ignored"] == "user"


@pytest.mark.parametrize(
    "fields",
    [
        {"top_k": 3},
        {"top_k": 10**6},
        {"min_p": 0.3, "top_p": 0},
        {"xtc_probability": 1.0, "xtc_threshold": 0.05},
        {"repetition_penalty": 1.5, "repetition_context_size": 0},
        {"presence_penalty": 2, "frequency_penalty": 2},
        {"logit_bias": {"65": 100}},
    ],
    ids=str,
)
def test_the_sampler_does_what_a_request_asks(server, fields):
    body = {"messages": USER, "max_tokens": 8, "temperature": 1.5, "seed": 5}
    plain, changed = (
        server.post("/v1/chat/completions", **body, **more).json()["choices"][0]["message"]
        for more in ({}, fields)
    )
    assert changed != plain or "top_k" in fields
    if "logit_bias" in fields:
        assert len(set(changed["content"])) == 1


def test_chances_are_those_of_the_model(client):
    request = {"model": "", "messages": USER, "max_tokens": 3}
    answer = client.chat.completions.create(**request, logprobs=True, top_logprobs=4)
    for each in answer.choices[0].logprobs.content:
        assert each.logprob == each.top_logprobs[0].logprob and len(each.top_logprobs) == 4
        values = [top.logprob for top in each.top_logprobs]
        assert values == sorted(values, reverse=True) and sum(np.exp(values)) <= 1.0001
    streamed = client.chat.completions.create(**request, logprobs=True, stream=True)
    told = [c.choices[0].logprobs for c in streamed if c.choices and c.choices[0].logprobs]
    assert len([each for part in told for each in part.content]) == 3


@pytest.mark.parametrize("memory", ["explicit", "text", "off"])
def test_a_text_is_scored_and_continued(client, server, memory):
    """As lm-eval asks for the likelihood of answers: tokens, echoed with their chances."""
    request = {"model": "", "prompt": [*b"AB"], "max_tokens": 1, "echo": True, "logprobs": 2}
    scored = client.completions.create(**request, extra_body={"memory": memory}).choices[0]
    (longer,) = client.completions.create(
        **{**request, "prompt": [[*b"ABC"]], "max_tokens": 0}, extra_body={"memory": memory}
    ).choices
    assert len(scored.logprobs.tokens) == 3 and len(longer.logprobs.tokens) == 3
    assert scored.logprobs.token_logprobs[0] is longer.logprobs.token_logprobs[0] is None
    assert longer.logprobs.token_logprobs[1] == pytest.approx(
        scored.logprobs.token_logprobs[1], abs=1e-3
    )
    assert scored.logprobs.text_offset[:2] == [0, 1] and scored.text.startswith(longer.text[:2])


def test_several_prompts_and_answers_come_in_order(client):
    request = {"model": "", "max_tokens": 3, "temperature": 1.5, "seed": 1}
    many = client.completions.create(prompt=["The boat", "A boiler"], n=2, **request)
    assert [choice.index for choice in many.choices] == [0, 1, 2, 3]
    assert many.choices[0].text != many.choices[1].text
    one = client.completions.create(prompt="A boiler", **request)
    assert one.choices[0].text == many.choices[2].text
    assert many.usage.prompt_tokens == 16 and many.usage.completion_tokens == 12
    parts = list(
        client.chat.completions.create(
            model="",
            messages=USER,
            n=2,
            max_tokens=3,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert {part.choices[0].index for part in parts if part.choices} == {0, 1}
    assert parts[-1].usage.completion_tokens == 6


def test_a_response_is_told_whole_and_in_events(client):
    request = {"model": "m3mlx", "input": "Where is the boat?", "max_output_tokens": 6}
    whole = client.responses.create(**request)
    assert whole.status in ("completed", "incomplete") and whole.output_text
    assert whole.usage.output_tokens <= 6 and paths(whole.m3mlx["sources"])
    with client.responses.stream(**request) as stream:
        events = list(stream)
        final = events[-1].response
    names = [event.type for event in events]
    assert names[:2] == ["response.created", "response.in_progress"]
    assert names[-1] == f"response.{whole.status}" and final.output_text == whole.output_text
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "assistant", "content": "Hi"}, *USER],
        [{"role": "system", "content": "Say hi"}],
        [*USER, {"role": "assistant", "content": None}, *USER],
        [*USER, {"role": "assistant", "content": "Dear"}],
        ask("  "),
        ask(""),
        ask("<|e|><|a|>"),
        ask("\u0000\u202e\ud7ff\U0001f989"),
    ],
    ids=str,
)
def test_odd_conversations_are_answered(server, messages):
    for memory in ("explicit", "text", "off"):
        body = {"messages": messages, "max_tokens": 2, "memory": memory}
        response = server.post("/v1/chat/completions", **body)
        assert response.status_code == 200, response.text


@pytest.mark.parametrize("prompt", ["", " ", "\n", "<|e|>", "\u0000", [0], [[1], [2]], ["", "x"]])
def test_odd_prompts_are_continued(server, prompt):
    for memory in ("explicit", "text", "off"):
        body = {"prompt": prompt, "max_tokens": 2, "echo": True, "logprobs": 1, "memory": memory}
        response = server.post("/v1/completions", **body)
        assert response.status_code == 200, response.text
        assert None not in response.json()["choices"][0]["logprobs"]["token_logprobs"][1:]


def test_tools_are_left_where_the_template_knows_none(server):
    tool = {"type": "function", "function": {"name": "f"}}
    server.endpoints.knows_tools = False
    response = server.post("/v1/chat/completions", messages=USER, tools=[tool], max_tokens=1)
    assert response.headers["x-m3mlx-ignored"] == "tools"


def test_long_texts_are_embedded_whole_and_shortened_vectors_are_unit(server):
    texts = ["boiler " * 99 + "a", "boiler " * 99 + "something else", "boiler"]
    whole = server.post("/v1/embeddings", input=texts).json()
    vectors = np.array([each["embedding"] for each in whole["data"]])
    assert not np.allclose(vectors[0], vectors[1], atol=1e-4)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert whole["usage"]["prompt_tokens"] > 200
    short = server.post("/v1/embeddings", input=texts, dimensions=8).json()["data"]
    cut = vectors[:, :8] / np.linalg.norm(vectors[:, :8], axis=1, keepdims=True)
    assert np.allclose([each["embedding"] for each in short], cut, atol=1e-5)
    encoder = server.thread.reader._assistant.encoder  # the thread has loaded it
    ids = encoder.tokenizer.encode("boiler", add_special_tokens=False).ids
    same = server.post("/v1/embeddings", input=ids).json()["data"][0]["embedding"]
    assert np.allclose(same, vectors[2], atol=1e-5)


def test_a_model_by_another_name_is_the_one_that_is_there(client):
    for model in ("mlx-community/Qwen3-4B-4bit", "", "encoder"):
        answer = client.chat.completions.create(model=model, messages=USER, max_tokens=1)
        assert answer.model == "decoder"
    assert client.embeddings.create(model="decoder", input="x").model == "encoder"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-5")


def test_a_conversation_longer_than_the_context_is_refused(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="m3mlx", messages=ask("word " * 5000))
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    "content, headers, status",
    [
        (b"{", {"content-type": "application/json"}, 400),
        (b"[]", {"content-type": "application/json"}, 400),
        (b"\xff", {"content-type": "application/json"}, 400),
        (b"[" * 100_000, {"content-type": "application/json"}, 400),
        (b'{"query": "\\ud800"}', {"content-type": "application/json"}, 400),
        (b'{"query": "x"}', {"content-type": "Application/JSON; Charset=UTF-8"}, 200),
        (b'\xef\xbb\xbf{"query": "x"}', {"content-type": "application/json"}, 200),
        (b'{"query": "x"}', {"content-type": "text/plain"}, 415),
        (b"query=x", {"content-type": "application/x-www-form-urlencoded"}, 415),
    ],
)
def test_what_is_no_json_is_refused(server, content, headers, status):
    response = server.client.post("/v1/memories/recall", content=content, headers=headers)
    assert response.status_code == status and ("error" in response.json()) == (status != 200)


def test_unknown_paths_and_methods_answer_in_the_same_shape(server):
    for method, path, status in (("GET", "/v2", 404), ("PUT", "/v1/memories", 405)):
        response = server.client.request(method, path)
        assert response.status_code == status and response.json()["error"]["message"]


# --- documents


def test_documents_are_listed_found_and_forgotten(server):
    done = server.post("/v1/memories", text="A kite hangs in the pear tree.", name="kite/../x")
    assert done.json()["added"] == ["text:kite .. x"]
    again = server.post("/v1/memories", text="A kite hangs in the pear tree.", name="kite/../x")
    assert again.json()["unchanged"] == ["text:kite .. x"]
    listed = server.client.get("/v1/memories").json()["data"]
    (kite,) = [document for document in listed if document["path"] == "text:kite .. x"]
    assert kite["references"] == 1 and kite["state"] == "cold"  # until it is read, or idle
    hits = server.post("/v1/memories/recall", query="A kite hangs in the pear tree.", k=1).json()
    assert hits["data"][0]["document"] == kite["id"]
    gone = server.client.delete(f"/v1/memories/{kite['id']}?verify=true").json()
    assert gone["forgotten"][0]["path"] == "text:kite .. x" and gone["found"] == []
    assert "text:kite .. x" not in server.names()
    missing = server.client.delete(f"/v1/memories/{kite['id']}")
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "not_found"
    state = server.client.get("/v1/memories/status").json()
    assert state["documents"] == len(server.names()) and state["model"] == "decoder"


def test_a_fact_is_kept_at_once_and_replaced_by_a_later_one(server):
    first = server.post("/v1/memories", fact="Ada Quill lives in Porto.", by="Ada").json()
    assert first["text"] == "Ada Quill lives in Porto." and first["by"] == "Ada"
    assert first["path"].startswith("fact:") and first["replaces"] == []
    assert server.post("/v1/memories", fact="Ada Quill lives in Porto.", by="Ada").json()["known"]
    moved = server.post("/v1/memories", fact="Ada Quill lives in Lagos.", by="Ada").json()
    assert moved["path"] == first["path"] and len(moved["replaces"]) == 1
    hits = server.post("/v1/memories/recall", query="Where does Ada Quill live?", k=9).json()[
        "data"
    ]
    texts = [hit["text"] for hit in hits]
    assert moved["text"] in texts and first["text"] not in texts
    for body in (
        {"fact": ""},
        {"fact": 7},
        {"fact": "x" * 2001},
        {"fact": "It rains.", "by": 7},
        {"fact": "It rains.", "keep_both": "yes"},
    ):
        refused = server.post("/v1/memories", **body)
        assert refused.status_code == 400 and refused.json()["error"]["param"] in ("fact", "by")
    server.client.delete(f"/v1/memories/{moved['id']}")


def test_a_forgotten_document_is_gone_from_conversations_that_go_on(client, server):
    server.post("/v1/memories", text="The heron stands on one leg.", name="heron")
    messages = ask("Where does the heron stand?")
    first = client.chat.completions.create(model="m3mlx", messages=messages, max_tokens=3)
    assert "text:heron" in paths(first.m3mlx["sources"])
    (id,) = [
        document["id"]
        for document in server.client.get("/v1/memories").json()["data"]
        if document["path"] == "text:heron"
    ]
    server.client.delete(f"/v1/memories/{id}")
    messages += [{"role": "assistant", "content": first.choices[0].message.content}, *USER]
    second = client.chat.completions.create(model="m3mlx", messages=messages, max_tokens=3)
    assert "text:heron" not in paths(second.m3mlx["sources"])
    assert second.usage.prompt_tokens_details.cached_tokens == 0  # what was read beside it is gone


def upload(server, name, content, **headers):
    return server.client.post(
        "/v1/memories", files={"file": (name, content)}, headers={"accept": "*/*", **headers}
    )


def test_an_upload_reports_progress_and_its_name_has_no_folders(server):
    response = upload(server, "../../a/kite.md", b"# Kite\n" * 99, accept="text/event-stream")
    events = [
        json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")
    ]
    assert response.text.endswith("data: [DONE]\n\n")
    assert events[-1]["added"] == ["upload:kite.md"]
    steps = [event for event in events if event.get("progress") == "memorizing"]
    assert steps[0]["done"] == 0 and steps[-1]["done"] == steps[-1]["total"]
    changed = upload(server, "kite.md", b"# Another\n")
    assert changed.json()["changed"] == ["upload:kite.md"]
    listed = server.client.get("/v1/memories").json()["data"]
    (id,) = [document["id"] for document in listed if document["path"] == "upload:kite.md"]
    server.client.delete(f"/v1/memories/{id}")


@pytest.mark.parametrize(
    "name, content, status",
    [
        ("prog.exe", b"MZ", 415),
        ("", b"x", 400),
        ("box.mbox", b"From a", 422),
        ("empty.txt", b"", 422),
        ("binary.txt", bytes(100), 422),
        ("broken.pdf", b"%PDF-1.7\nthis is where it ends", 422),
        ("large.txt", b"x" * 100_001, 413),
        ("huge.txt", b"x" * 200_000, 413),
    ],
)
def test_uploads_of_wrong_type_size_or_content_are_refused(server, name, content, status):
    before = server.names()
    response = upload(server, name, content)
    assert response.status_code == status, response.text
    assert response.json()["error"]["message"]
    assert server.names() == before


def test_an_upload_without_a_length_is_cut_off_at_the_limit(server):
    def endless():
        head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
        yield head
        for _ in range(1000):
            yield b"x" * 10_000

    headers = {"content-type": "multipart/form-data; boundary=b"}
    try:
        response = server.client.post("/v1/memories", content=endless(), headers=headers)
        assert response.status_code == 413
    except httpx.WriteError:
        pass  # the server has closed before all was sent
    assert server.client.get("/health").json() == {"status": "ok"}


def test_a_broken_upload_is_refused(server):
    for content, kind in (
        (b"nonsense", "multipart/form-data; boundary=b"),
        (b"nonsense", "multipart/form-data"),
        (b"--b--\r\n", "multipart/form-data; boundary=b"),
    ):
        response = server.client.post(
            "/v1/memories", content=content, headers={"content-type": kind}
        )
        assert response.status_code == 400, response.text


def test_paths_are_read_inside_the_roots_only(server, world):
    notes = world / "notes"
    before = server.names()
    for path in (
        world / "secret.txt",
        notes / ".." / "secret.txt",
        notes / "way-out.txt",  # a link that leads out
        notes / "folder-out" / "secret.txt",
        notes / "folder-out",
        "/etc/passwd",
        f"{notes}-beside",
        "boat.txt",
        "~/x",
        "a\0b",
    ):
        response = server.post("/v1/memories", paths=[str(path)])
        assert response.status_code == 403, (path, response.text)
        assert response.json()["error"]["code"] == "outside_roots"
    assert server.post("/v1/memories", paths=[str(notes / "none.txt")]).json()["failed"]
    whole = server.post("/v1/memories", paths=[str(notes)]).json()  # its links are left out
    assert whole["added"] == [] and len(whole["unchanged"]) == 2
    assert server.names() == before


def test_without_roots_no_path_is_read_and_without_a_store_it_still_answers(world, home, tmp_path):
    with serving(lambda: tiny_assistant(world, tmp_path / "store")) as running:
        assert running.post("/v1/memories", paths=["/tmp"]).status_code == 403
        assert running.names() == [] and running.post("/v1/memories/recall", query="x").json() == {
            "object": "list",
            "data": [],
        }
        answer = running.post("/v1/chat/completions", messages=USER, max_tokens=2).json()
        assert answer["m3mlx"]["memory"] == "off"
        asked = running.post("/v1/chat/completions", messages=USER, memory="explicit")
        assert asked.status_code == 400 and "nothing is memorized" in asked.text
        running.post("/v1/memories", text=BOAT)
        answer = running.post("/v1/chat/completions", messages=USER, max_tokens=2).json()
        assert paths(answer["m3mlx"]["sources"]) == ["text:" + BOAT.strip()]


# --- many at once


def long_answer(running):
    """A stream that goes on for long, and its first line, once it has begun."""
    body = {"messages": USER, "max_tokens": 1500, "stream": True, "temperature": 2, "seed": 3}
    return running.client.stream("POST", "/v1/chat/completions", json=body)


def test_requests_queue_within_a_bound_and_end_when_their_client_leaves(world, home, tmp_path):
    def make():
        assistant = tiny_assistant(world, tmp_path / "store")
        assistant.decoder.tokenizer._eos_token_ids = set()  # answers go on until their limit
        return assistant

    with serving(make, waiting=1) as running:
        with long_answer(running) as first:
            lines = first.iter_lines()
            next(lines)
            short = {"messages": USER, "max_tokens": 1}
            with pytest.raises(httpx.ReadTimeout):  # waits, and then leaves
                httpx.post(f"{running.url}/v1/chat/completions", json=short, timeout=0.5)
            wait_until(lambda: running.thread.pending() == 1)
            patient = httpx.Client(base_url=running.url, timeout=60)
            found = []

            def wait():
                found.append(patient.post("/v1/chat/completions", json=short))

            waiting = threading.Thread(target=wait)
            waiting.start()
            wait_until(lambda: running.thread.pending() == 2)
            full = running.post("/v1/chat/completions", **short)
            assert full.status_code == 503 and int(full.headers["retry-after"]) > 0
            assert full.json()["error"]["code"] == "busy"
            # what only reads the store waits for no answer
            start = time.monotonic()
            assert running.client.get("/v1/memories").status_code == 200
            assert running.client.get("/v1/memories/status").json()["pending"] == 2
            assert running.post("/v1/memories/recall", query="x").status_code == 200
            assert running.post("/v1/embeddings", input="x").status_code == 200
            assert time.monotonic() - start < 15 and running.thread.pending() == 2
        start = time.monotonic()  # the first client has left in the middle of its answer
        waiting.join(20)
        assert found[0].status_code == 200 and time.monotonic() - start < 15
        wait_until(lambda: running.thread.pending() == 0)


# --- collections, attached stores, and a look inside


def sources(running, question, **fields):
    body = {"messages": ask(question), "max_tokens": 2, **fields}
    answer = running.post("/v1/chat/completions", **body)
    assert answer.status_code == 200, answer.text
    return set(paths(answer.json()["m3mlx"]["sources"]))


@pytest.fixture
def boats(world, home, tmp_path):
    """A store of its own for a server."""
    with tiny_assistant(world, tmp_path / "store") as assistant:
        assistant.memorize(contents={"text:plain": b"A boiler."})
        assistant.memorize(contents={"text:boat": b"A blue boat."}, collection="boats")
    return tmp_path / "store"


def test_a_request_may_name_a_collection(world, boats):
    with serving(lambda: tiny_assistant(world, boats)) as running:
        assert sources(running, "Boat?") == {"text:plain", "text:boat"}
        assert sources(running, "Boat?", collection="boats") == {"text:boat"}
        assert sources(running, "Boat?", collection="boats", memory="text") == {"text:boat"}
        assert sources(running, "Boat?") == {"text:plain", "text:boat"}
        done = running.post("/v1/memories", text="A raft.", name="raft", collection="boats")
        assert done.status_code == 200
        files = {"file": ("ark.txt", b"An ark."), "collection": (None, "boats")}
        assert running.client.post("/v1/memories", files=files).status_code == 200
        found = running.post("/v1/memories/recall", query="boiler", collection="boats").json()
        assert {hit["path"] for hit in found["data"]} == {
            "text:boat",
            "text:raft",
            "upload:ark.txt",
        }
        listed = running.client.get("/v1/memories?collection=boats").json()["data"]
        assert {document["collection"] for document in listed} == {"boats"} and len(listed) == 3
        for wrong in (7, "", ["boats"]):
            for path in ("/v1/chat/completions", "/v1/memories/recall", "/v1/memories"):
                body = {"messages": ask("x"), "query": "x", "text": "x", "collection": wrong}
                body = {k: body[k] for k in ("messages", "collection")} if "chat" in path else body
                refused = running.post(path, **body)
                assert refused.status_code == 400, refused.text
                assert refused.json()["error"]["param"] == "collection"


def test_a_conversation_goes_on_only_within_the_collection_it_began_in(world, boats):
    with serving(lambda: tiny_assistant(world, boats)) as running:
        first = {"messages": ask("Boat?"), "max_tokens": 2, "collection": "boats"}
        said = running.post("/v1/chat/completions", **first).json()["choices"][0]["message"]
        messages = [*ask("Boat?"), {"role": "assistant", "content": said["content"]}, *ask("And?")]
        for collection, cached in ((None, False), ("boats", True)):
            body = {"messages": messages, "max_tokens": 2, "collection": collection}
            used = running.post("/v1/chat/completions", **body).json()["usage"]
            assert (used["prompt_tokens_details"]["cached_tokens"] > 0) == cached


def test_a_server_of_one_collection_has_nothing_else(world, boats):
    with serving(lambda: tiny_assistant(world, boats), collection="boats") as running:
        assert sources(running, "Boiler?") == {"text:boat"}
        assert running.names() == ["text:boat"]
        assert running.client.get("/v1/memories/status").json()["collection"] == "boats"
        running.post("/v1/memories", text="A raft.", name="raft")
        assert set(running.names()) == {"text:boat", "text:raft"}
        with tiny_assistant(world, boats) as assistant:
            hidden = next(d.id for d in assistant.documents() if d.path == "text:plain")
        assert running.client.delete(f"/v1/memories/{hidden}").status_code == 404
        assert running.post(f"/v1/memories/{hidden}/view").status_code == 404
        for path, body in (
            ("/v1/chat/completions", {"messages": ask("x")}),
            ("/v1/memories/recall", {"query": "x"}),
            ("/v1/memories", {"text": "x"}),
        ):
            refused = running.post(path, **body, collection="others")
            assert refused.status_code == 403 and "boats only" in refused.text
        assert running.client.get("/v1/memories?collection=others").status_code == 403


def test_sources_say_which_attached_store_they_are_of(world, boats, tmp_path):
    def make():
        assistant = tiny_assistant(world, tmp_path / "own", also=[boats])
        assistant.memorize(contents={"text:own": b"A kite."})
        return assistant

    with serving(make) as running:
        found = running.post("/v1/memories/recall", query="boat").json()["data"]
        stores = {hit["path"]: hit["store"] for hit in found}
        assert stores == {"text:own": None, "text:plain": str(boats), "text:boat": str(boats)}
        assert sources(running, "Boat?") == stores.keys()
        assert running.names() == ["text:own"]


def test_a_look_inside_opens_once_and_needs_no_token_of_its_own(world, boats):
    token = "nine brass buttons"
    with serving(lambda: tiny_assistant(world, boats), token=token) as running:
        assert running.post("/v1/memories/1/view").status_code == 401
        running.client.headers["authorization"] = f"Bearer {token}"
        made = running.post("/v1/memories/2/view", start=0)
        assert made.status_code == 200, made.text
        del running.client.headers["authorization"]
        page = running.client.get(f"/{made.json()['page']}")
        assert page.status_code == 200 and "text:boat#1" in page.text
        assert "A blue boat." in re.sub("<[^>]*>", "", page.text)
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src" not in policy
        assert page.headers["cache-control"] == "no-store"
        assert running.client.get(f"/{made.json()['page']}").status_code == 404
        assert running.client.get("/view/guessed").status_code == 404
        running.client.headers["authorization"] = f"Bearer {token}"
        for id, body, status in ((99, {}, 404), (1, {"start": 7}, 400), (1, {"start": "0"}, 400)):
            assert running.post(f"/v1/memories/{id}/view", **body).status_code == status
        waiting = running.post("/v1/memories/1/view").json()["page"]
        running.client.delete("/v1/memories/1")
        assert running.client.get(f"/{waiting}").status_code == 404  # forgotten is forgotten
        made = [running.post("/v1/memories/2/view").json()["page"] for _ in range(20)]
        there = [running.client.get(f"/{page}").status_code for page in made]
        assert there == [404] * 12 + [200] * 8  # few wait at the same time
