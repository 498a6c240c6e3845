"""A plugin of `llm` (https://llm.datasette.io): ``llm -m m3mlx "Who serviced the boiler?"``.

Sources are kept in llm's log, with each response.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Literal

import llm
import llm.cli
import llm.parts
from pydantic import Field

from .. import config
from ..assistant import Assistant
from ..chat.chat import Source
from ..chat.step import Step
from ..errors import M3Error
from .messages import Turns, turns_of

CARRIED = {"store", "model", "encoder", "adapter_path", "memory"}  # from prompt to prompt


@llm.hookimpl
def register_models(register: Callable[..., None]) -> None:
    register(M3())


class M3(llm.Model):
    """The model that ``M3MLX_MODEL`` or an option names, with the memories of a store."""

    model_id = "m3mlx"
    can_stream = True

    class Options(llm.Options):
        store: str | None = Field(None, description="Folder of memories (or M3MLX_STORE).")
        model: str | None = Field(None, description="Language model (or M3MLX_MODEL).")
        encoder: str | None = Field(None, description="Sentence encoder.")
        adapter_path: str | None = Field(None, description="LoRA adapter of mlx-lm.")
        memory: Literal["explicit", "text", "off"] | None = Field(
            None, description="Read memories (explicit), paste the same text, or neither (off)."
        )  # a default of llm's options could not be told from what somebody chose
        max_tokens: int = Field(256, ge=1, description="Maximum length of an answer.")
        temperature: float = Field(0.0, ge=0, le=2, description="0 takes the likeliest token.")
        top_p: float = Field(1.0, ge=0, le=1, description="Share of likelihood drawn from.")
        seed: int | None = Field(None, ge=0, description="Makes drawing repeatable.")

    def __init__(self) -> None:
        self._assistant: Assistant | None = None  # of the last response

    def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,
        response: llm.Response,
        conversation: llm.Conversation | None,
    ) -> Iterator[str]:
        options = _continued(prompt.options, conversation)
        said = _turns(prompt)
        memory = options.memory or "explicit"
        spans: dict[int, Step] = {}  # the last step of each
        try:
            chat = self._open(options).chat(memory=memory, system=said.system)
            chat.messages += said.earlier
            for step in chat.send(
                said.message,
                max_tokens=options.max_tokens,
                temp=options.temperature,
                top_p=options.top_p,
                seed=options.seed,
            ):
                if not step.thought:
                    yield step.text
                spans[step.span] = step
        except M3Error as error:
            raise llm.ModelError(str(error)) from error
        timings = step.timings
        response.set_usage(input=timings.prompt_tokens, output=timings.generated_tokens)
        response.response_json = {
            "memory": memory,
            "sources": [vars(each) for last in spans.values() for each in Source.of_step(last)],
            "timings": vars(timings),
        }

    def _open(self, options: Options) -> Assistant:
        """Return the assistant of these options, the last one if they are the same."""
        wanted = config.Options(
            model=options.model or os.environ.get("M3MLX_MODEL"),
            store=Path(options.store) if options.store else config.default_store(),
            encoder=options.encoder,
            adapter_path=options.adapter_path,
        )
        if self._assistant is None or self._assistant.options != wanted:
            if self._assistant:
                self._assistant.close()
            self._assistant = Assistant.of(wanted)
        return self._assistant


def _continued(options: llm.Options, conversation: llm.Conversation | None) -> M3.Options:
    """Return options with those of earlier prompts, which llm logs and does not carry on."""
    given: dict[str, object] = {}
    for chosen in (*_logged(conversation), options.model_dump(exclude_unset=True)):
        given |= {name: chosen[name] for name in CARRIED & chosen.keys() if chosen[name]}
    return M3.Options(**{**options.model_dump(exclude_unset=True), **given})


def _logged(conversation: llm.Conversation | None) -> list[dict[str, object]]:
    """Return the options of a conversation's prompts so far, the first one first."""
    if conversation is None:
        return []
    if conversation.responses:  # asked by this process, or logged by an earlier llm
        chosen = [each.prompt.options for each in conversation.responses]
        return [each.model_dump(exclude_unset=True) for each in chosen]
    words = ["logs", "--cid", conversation.id, "-n", "0", "--json"]
    with redirect_stdout(io.StringIO()) as told:  # its command, as its log's form is its own
        llm.cli.cli.main(words, standalone_mode=False)
    rows = json.loads(told.getvalue())
    logged = [row["options_json"] for row in rows]
    return [json.loads(each) if isinstance(each, str) else each or {} for each in logged]


def _turns(prompt: llm.Prompt) -> Turns:
    """Return the conversation that a prompt continues."""
    messages = []
    for message in prompt.messages:
        texts = [part.text for part in message.parts if isinstance(part, llm.parts.TextPart)]
        if len(texts) < len(message.parts):
            raise llm.ModelError("m3mlx takes text only, no tools and no attachments")
        messages.append({"role": message.role, "content": "".join(texts)})
    return turns_of(messages)
