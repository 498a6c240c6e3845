"""The text of an answer as its tokens come, with the model's thoughts told apart.

A thinking model encloses its thoughts in marks, such as ``<think>`` and ``</think>``. mlx-lm knows
those of each tokenizer. A mark may be several tokens.
"""

from __future__ import annotations

from mlx_lm.tokenizer_utils import TokenizerWrapper


class AnswerText:
    """Detokenizes an answer.

    Args:
        thinking: the prompt has opened a thought.
        tell_apart: False to treat thoughts and their marks as text like any other.

    Attributes:
        thinking: the next token belongs to a thought.
    """

    def __init__(
        self, tokenizer: TokenizerWrapper, thinking: bool = False, tell_apart: bool = True
    ):
        self._detokenizer = tokenizer.detokenizer
        known = tell_apart and tokenizer.has_thinking
        marks = (tokenizer.think_start_tokens, tokenizer.think_end_tokens)
        self._marks: tuple[tuple[int, ...], ...] = marks if known else ((), ())
        self.thinking = thinking and known
        self._fresh = self.thinking  # nothing but a mark came before: leave out blank text
        self._held: list[int] = []  # tokens that may begin a mark

    def add(self, token: int) -> tuple[str, bool]:
        """Add a token; return the text that it adds, and whether it belongs to a thought.

        Marks belong to the thought, and have no text; text that was held back before one is given
        with it.
        """
        before, mark = self.thinking, self._marks[self.thinking]
        self._held.append(token)
        while self._held and tuple(self._held) != mark[: len(self._held)]:
            self._detokenizer.add_token(self._held.pop(0))
        ended = bool(mark) and len(self._held) == len(mark)
        if ended:
            self._detokenizer.finalize()
        text = self._text()
        if ended:
            self._held.clear()
            self._detokenizer.reset()
            self.thinking, self._fresh = not before, True
        return text, before or (self.thinking and not text)

    def end(self) -> str:
        """Return the text that was held back."""
        for token in self._held:
            self._detokenizer.add_token(token)
        self._detokenizer.finalize()
        return self._text()

    def _text(self) -> str:
        text = self._detokenizer.last_segment
        if self._fresh:
            text = text.lstrip()
            self._fresh = not text
        return text
