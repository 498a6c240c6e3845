"""The server with the real default models: right answers from right documents."""

import openai
import pytest
from serving import serving
from test_real_model import FACTS

from m3mlx import Assistant, demo

pytestmark = [pytest.mark.slow, pytest.mark.model]


def test_the_right_answer_comes_from_the_right_document(tmp_path):
    question, words = FACTS["welcome.md"]

    def make():
        return Assistant(store=tmp_path / "store", memories=1)

    with serving(make, roots=[demo.DATA / "demo"]) as running:
        paths = [str(demo.DATA / "demo" / name) for name in FACTS]
        done = running.client.post("/v1/memories", json={"paths": paths}, timeout=900).json()
        assert sorted(done["added"]) == sorted(paths)
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", timeout=300)

        def ask(messages, **extra):
            return client.chat.completions.create(
                model="m3mlx", messages=messages, max_tokens=32, extra_body=extra
            )

        said = [{"role": "user", "content": question}]
        first = ask(said)
        assert words in first.choices[0].message.content
        assert {source["path"] for source in first.m3mlx["sources"]} == {
            str(demo.DATA / "demo" / "welcome.md")
        }
        assert words not in ask(said, memory="off").choices[0].message.content
        said += [
            {"role": "assistant", "content": first.choices[0].message.content},
            {"role": "user", "content": "Say that again."},
        ]
        again = ask(said)
        assert again.usage.prompt_tokens_details.cached_tokens > 30
        (id,) = [
            document["id"]
            for document in running.client.get("/v1/memories").json()["data"]
            if document["path"].endswith("welcome.md")
        ]
        assert running.client.delete(f"/v1/memories/{id}?verify=true").json()["found"] == []
        gone = ask(said[:1])
        assert all("welcome.md" not in source["path"] for source in gone.m3mlx["sources"])
