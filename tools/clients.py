"""Run other servers' tests and OpenAI's clients against a running server, and print a table.

    m3mlx serve --port 8642 &
    python -m venv clients
    clients/bin/pip install openai langchain-openai llama-index-llms-openai-like litellm \\
        'lm-eval[api]' transformers pytest pytest-asyncio requests filelock regex jsonschema
    npm install --prefix sdk ai@6 @ai-sdk/openai@3 @ai-sdk/openai-compatible@2
    python tools/clients.py http://127.0.0.1:8642 --suites suites --node sdk \\
        --python clients/bin/python --tokenizer FOLDER-OF-THE-MODEL

The suites are mlx-lm's, llama.cpp's and vLLM's, as far as they ask a server over HTTP; they are
fetched into the folder with git unless they are there, in mlx-lm, llama.cpp and vllm. What they
say of the text of one certain model, and of interfaces other than OpenAI's, fails here. A table
comes first, one line of JSON last.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
SUITES = {  # repository, folder to run in, files
    "mlx-lm": ("https://github.com/ml-explore/mlx-lm", "tests", ["test_server.py"]),
    "llama.cpp": (
        "https://github.com/ggml-org/llama.cpp",
        "tools/server/tests",
        [
            f"unit/test_{name}.py"
            for name in (
                "basic",
                "chat_completion",
                "completion",
                "embedding",
                "compat_oai_responses",
            )
        ],
    ),
    "vllm": (
        "https://github.com/vllm-project/vllm",
        ".",
        [
            f"tests/entrypoints/openai/{name}.py"
            for name in (
                "completion/test_completion",
                "completion/test_prompt_validation",
                "chat_completion/test_chat",
                "chat_completion/test_chat_completion",
                "chat_completion/test_chat_echo",
                "chat_completion/test_chat_logit_bias_validation",
                "chat_completion/test_completion_with_function_calling",
                "responses/test_simple",
            )
        ],
    ),
}
SECONDS = 900  # of one suite or client
HELLO = [{"role": "user", "content": "Hello?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
}


# --- suites


def fetched(name, folder):
    """Return the folder of a suite's repository, fetched if it is not there."""
    place, (address, path, _) = folder / name, SUITES[name]
    if not place.exists():
        clone = ["git", "clone", "-q", "--depth", "1", "--filter=blob:none", "--sparse", address]
        subprocess.run([*clone, str(place)], check=True)
        sparse = [
            "git",
            "-C",
            str(place),
            "sparse-checkout",
            "set",
            path if path != "." else "tests",
        ]
        subprocess.run(sparse, check=True)
    return place


def suite(name, options):
    """Run a suite; return how many of its tests passed, and of how many."""
    _, path, files = SUITES[name]
    folder = fetched(name, options.suites) / path
    python = sys.executable if name == "mlx-lm" else options.python
    environment = {
        **os.environ,
        "PEER": name,
        "PEER_URL": options.url,
        "PORT": options.url.rpartition(":")[2],
        "DEBUG_EXTERNAL": "1",
        "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
    }
    command = [
        python,
        "-m",
        "pytest",
        "-q",
        "--tb=line",
        "-p",
        "peers_plugin",
        "-rfE",
        "--no-header",
    ]
    there = [file for file in files if (folder / file).exists()]
    try:
        done = subprocess.run(
            [*command, "-p", "no:cacheprovider", *there],
            **{"cwd": folder, "env": environment, "timeout": SECONDS},
            **{"capture_output": True, "text": True},
        )
    except subprocess.TimeoutExpired as error:
        return 0, 0, [f"took longer than {SECONDS} s: {error.cmd[0]}"]
    if options.logs:
        (options.logs / f"{name}.txt").write_text(done.stdout + done.stderr)
    counts = {what: int(number) for number, what in re.findall(r"(\d+) (\w+)", _last(done.stdout))}
    passed = counts.get("passed", 0)
    lost = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return passed, passed + counts.get("failed", 0) + counts.get("errors", 0), lost


def _last(text):
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""


# --- clients; each yields what it does, as a name and a function


def with_openai(url, tokenizer):
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    ask = {"model": "m3mlx", "messages": HELLO, "max_tokens": 4}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    create = client.chat.completions.create
    yield "chat", lambda: create(**ask).choices[0].message.content
    yield "stream", lambda: len(list(create(**ask, stream=True)))
    yield "several answers", lambda: create(**ask, n=2).choices[1].finish_reason
    yield (
        "chances",
        lambda: create(**ask, logprobs=True, top_logprobs=2).choices[0].logprobs.content[0],
    )
    yield "penalties", lambda: create(**ask, presence_penalty=1, frequency_penalty=1, seed=3).id
    yield "tools", lambda: create(**ask, tools=[TOOL]).choices[0].finish_reason
    yield "schema", lambda: create(**ask, response_format=form).choices[0].message.content
    old = {"model": "m3mlx", "max_tokens": 1}
    scored = {"prompt": [[65, 66], [67]], "echo": True, "logprobs": 1}
    yield "completion", lambda: client.completions.create(**old, prompt="Hello").choices[0].text
    yield (
        "scored tokens",
        lambda: client.completions.create(**old, **scored).choices[1].logprobs.tokens,
    )
    yield (
        "embeddings",
        lambda: client.embeddings.create(model="x", input=["a", "b"], dimensions=8).data[1],
    )
    new = {"model": "m3mlx", "input": "Hello?", "max_output_tokens": 4}
    yield "response", lambda: client.responses.create(**new).output[0].content[0].text
    yield "response in events", lambda: len(list(client.responses.create(**new, stream=True)))
    yield (
        "models",
        lambda: [create(**{**ask, "model": each.id}).id for each in client.models.list()],
    )


def with_langchain(url, tokenizer):
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings

    place = {"base_url": f"{url}/v1", "api_key": "none"}
    chat = ChatOpenAI(model="m3mlx", max_tokens=4, max_retries=0, **place)
    texts = OpenAIEmbeddings(model="x", check_embedding_ctx_length=False, **place)
    greeting = [("system", "Be brief."), ("ai", "Hi, I am here."), ("human", "Hello?")]
    yield "chat", lambda: chat.invoke("Hello?").content
    yield "greeted", lambda: chat.invoke(greeting).content
    yield "stream", lambda: len(list(chat.stream("Hello?")))
    yield "batch", lambda: len(chat.batch(["a", "b", "c"]))
    yield "tools", lambda: chat.bind_tools([TOOL]).invoke("Hello?").tool_calls
    yield (
        "response",
        lambda: ChatOpenAI(model="m3mlx", use_responses_api=True, **place).invoke("Hi?").content,
    )
    yield "embeddings", lambda: len(texts.embed_documents(["a", "b"]))


def with_llama_index(url, tokenizer):
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai_like import OpenAILike

    place = {"model": "m3mlx", "api_base": f"{url}/v1", "api_key": "none", "max_tokens": 4}
    chat = OpenAILike(**place, is_chat_model=True, max_retries=0)
    plain = OpenAILike(**place, is_chat_model=False, max_retries=0)
    said = [ChatMessage(role="user", content="Hello?")]
    yield "chat", lambda: chat.chat(said).message.content
    yield "stream", lambda: len(list(chat.stream_chat(said)))
    yield "completion", lambda: plain.complete("Hello").text
    yield "completion in events", lambda: len(list(plain.stream_complete("Hello")))


def with_litellm(url, tokenizer):
    import litellm

    place = {"api_base": f"{url}/v1", "api_key": "none"}
    ask = {"model": "openai/m3mlx", "messages": HELLO, "max_tokens": 4, **place}
    yield "chat", lambda: litellm.completion(**ask).choices[0].message.content
    yield "stream", lambda: len(list(litellm.completion(**ask, stream=True)))
    yield "tools", lambda: litellm.completion(**ask, tools=[TOOL]).choices[0].finish_reason
    old = {"model": "text-completion-openai/m3mlx", "prompt": "Hello", "max_tokens": 3}
    yield "completion", lambda: litellm.text_completion(**old, **place).choices[0].text
    yield "embeddings", lambda: litellm.embedding(model="openai/x", input=["a"], **place).data[0]
    new = {"model": "openai/m3mlx", "input": "Hello?", "max_output_tokens": 4}
    yield "response", lambda: litellm.responses(**new, **place).output


def with_lm_eval(url, tokenizer):
    from lm_eval.api.instance import Instance
    from lm_eval.models.api_models import JsonChatStr
    from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI

    shared = {"model": "m3mlx", "max_retries": 1}
    plain = LocalCompletionsAPI(base_url=f"{url}/v1/completions", tokenizer=tokenizer, **shared)
    chat = LocalChatCompletion(base_url=f"{url}/v1/chat/completions", **shared)
    pairs = [("The boat is", " blue"), ("The boat is", " at pier nine")]
    scored = [Instance("loglikelihood", {}, pair, n) for n, pair in enumerate(pairs)]
    until = ("Hello", {"until": ["\n"], "max_gen_toks": 4, "temperature": 0})
    asked = [Instance("generate_until", {}, until, 0)]
    yield "likelihood", lambda: [value for value, _ in plain.loglikelihood(scored) if value < 0][1]
    yield "completion", lambda: plain.generate_until(asked)[0]
    said = [{"role": "user", "content": "Hello"}]
    turns = [Instance("generate_until", {}, (JsonChatStr(json.dumps(said)), until[1]), 0)]
    yield "chat", lambda: chat.generate_until(turns)[0]


def with_llm(url, tokenizer):
    folder = Path(tempfile.mkdtemp())
    about = f"- model_id: there\n  model_name: m3mlx\n  api_base: {url}/v1\n"
    (folder / "extra-openai-models.yaml").write_text(about)
    environment = {**os.environ, "LLM_USER_PATH": str(folder), "OPENAI_API_KEY": "none"}

    def run(*words):
        command = [sys.executable, "-m", "llm", *words]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
        return done.stdout

    yield "prompt", lambda: run("-m", "there", "Hello?", "-o", "max_tokens", "4")
    yield "continued", lambda: run("-c", "And?", "-o", "max_tokens", "4")
    yield (
        "not streamed",
        lambda: run("-m", "there", "--no-stream", "Hello?", "-o", "max_tokens", "4"),
    )


CLIENTS = {
    "openai": with_openai,
    "langchain": with_langchain,
    "llama-index": with_llama_index,
    "litellm": with_litellm,
    "lm-eval": with_lm_eval,
    "llm": with_llm,
}


def use(name, url, tokenizer):
    """Do everything with a client; print what failed, and the counts as JSON."""
    lost, count = [], 0
    for what, act in CLIENTS[name](url, tokenizer):
        count += 1
        try:
            act()
        except BaseException as error:
            lost.append(f"{what}: {type(error).__name__} {error}"[:300])
    print(json.dumps([count - len(lost), count, lost]))


def client(name, options):
    python = sys.executable if name == "llm" else options.python
    command = [python, __file__, options.url, "--client", name]
    command += ["--tokenizer", options.tokenizer] if options.tokenizer else []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        return json.loads(_last(done.stdout))
    except (ValueError, subprocess.TimeoutExpired) as error:
        return 0, 1, [f"{type(error).__name__}: {_last(getattr(done, 'stderr', ''))}"]


def vercel(options):
    """Run what the Vercel AI SDK does, from the folder that has its packages."""
    if options.node is None:
        return 0, 0, ["needs --node"]
    program = options.node / "clients_vercel.mjs"  # node looks for packages beside it
    program.write_text((HERE / "clients_vercel.mjs").read_text("utf-8"))
    try:
        command = ["node", program.name, options.url]
        done = subprocess.run(
            command, cwd=options.node, capture_output=True, text=True, timeout=SECONDS
        )
        return json.loads(_last(done.stdout))
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return 0, 1, [f"{type(error).__name__}: {error}"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--suites", type=Path, help="folder of the other servers' repositories")
    parser.add_argument("--python", default=sys.executable, help="of the clients' environment")
    parser.add_argument("--tokenizer", help="folder with the tokenizer of the model, for lm-eval")
    parser.add_argument("--node", type=Path, help="folder with the packages of the Vercel AI SDK")
    parser.add_argument("--only", nargs="*", choices=[*SUITES, *CLIENTS, "vercel"])
    parser.add_argument("--logs", type=Path, help="folder for what the suites print")
    parser.add_argument("--client", choices=list(CLIENTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        return use(options.client, options.url, options.tokenizer)
    found = {}
    ways = {**dict.fromkeys(SUITES, suite), **dict.fromkeys(CLIENTS, client)}
    there = [*(SUITES if options.suites else ()), *CLIENTS, *(["vercel"] if options.node else ())]
    for name in options.only or there:
        found[name] = vercel(options) if name == "vercel" else ways[name](name, options)
        for line in found[name][2]:
            print(f"{name}: {line}"[:250], file=sys.stderr)
    print("| suite or client | passed | of |\n| --- | --- | --- |")
    for name, (passed, count, _) in found.items():
        print(f"| {name} | {passed} | {count} |")
    print(json.dumps({name: each[:2] for name, each in found.items()}))


if __name__ == "__main__":
    main()
