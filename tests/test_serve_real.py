"""The server with the real default models: the right answer from the right document."""

import openai
import pytest
from serving import serving

from m3mlx import Assistant

pytestmark = [pytest.mark.slow, pytest.mark.model]


def test_the_right_answer_comes_from_the_right_document(tmp_path):
    with serving(lambda: Assistant(store=tmp_path / "store", memories=1)) as running:
        for name, text in (
            ("cat", "The observatory cat is called Biscuit."),
            ("dome", "The spare key of the dome lies in a teapot."),
        ):
            running.client.post("/v1/memories", json={"text": text, "name": name}, timeout=900)
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", timeout=900)

        def ask(messages, max_tokens, **extra):
            return client.chat.completions.create(
                model="m3mlx", messages=messages, max_tokens=max_tokens, extra_body=extra
            )

        said = [{"role": "user", "content": "What is the observatory cat called?"}]
        first = ask(said, 16)
        assert "Biscuit" in first.choices[0].message.content
        assert {source["path"] for source in first.m3mlx["sources"]} == {"text:cat"}
        assert "Biscuit" not in ask(said, 16, memory="off").choices[0].message.content
        said += [
            {"role": "assistant", "content": first.choices[0].message.content},
            {"role": "user", "content": "Where is the spare key of the dome?"},
        ]
        again = ask(said, 2)
        assert again.usage.prompt_tokens_details.cached_tokens > 15
        assert {source["path"] for source in again.m3mlx["sources"]} == {"text:dome"}
