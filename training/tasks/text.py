"""The task of reading texts as they stand: what a base learns before anybody gives it instructions."""

from collections.abc import Sequence
from typing import Any

from adapters.templates import PromptInput, PromptTemplate
from training.config import TextConfig
from training.data.rows import DocumentRow
from training.fast.model import FastModel
from training.reporting.results import Sample
from training.tasks.examples import AnswerExample, Learned
from training.tasks.language import LanguageTask

_PLAIN = PromptTemplate.named("plain")
_PROMPT_TOKENS = 16
"""Tokens of a text's beginning that are given to be continued."""


class TextTask(LanguageTask[DocumentRow]):
    """Texts with an end token each, cut into pieces of the longest length; loss over all tokens."""

    config: TextConfig

    def encode_row(self, row: DocumentRow) -> Sequence[AnswerExample]:
        """The pieces of a text; each but the first begins with the last token of the one before, which it follows."""
        # As a prompt begins when it is served: with the tokenizer's own opening token, if it has that habit.
        opened = _PLAIN.encode(self.tokenizer, PromptInput.from_instruction(row.text))
        ids = (*opened, self.tokenizer.eos_token_id)
        step = self.max_length - 1
        starts = range(0, max(len(ids) - 1, 1), step)
        return [self._piece(row, ids[start : start + self.max_length]) for start in starts]

    def finish(self) -> None:
        """A text of a single token predicts nothing."""
        self.keep(lambda example: len(example.ids) > 1, "nothing learned", "text", "of no tokens", "remove them")

    def answer(self, fast: FastModel, examples: Sequence[AnswerExample]) -> list[Sample]:
        """How the model goes on, beside how the text does; there is no right or wrong."""
        return [
            Sample(prompt=example.text, answer=said, expected=example.expected)
            for example, said in zip(examples, self.continued(fast, examples), strict=True)
        ]

    def manifest_fields(self) -> dict[str, Any]:
        """A prompt is the text that is continued."""
        eos = {"text": self.tokenizer.eos_token, "id": self.tokenizer.eos_token_id}
        return {"task": "generate", "prompt": _PLAIN.to_manifest(self.tokenizer), "eos": eos}

    def _piece(self, row: DocumentRow, ids: tuple[int, ...]) -> AnswerExample:
        prompt = max(1, min(_PROMPT_TOKENS, len(ids) // 2))
        end = prompt + self.config.answer_tokens
        said, follows = (
            self.tokenizer.decode(part, skip_special_tokens=True).strip() for part in (ids[:prompt], ids[prompt:end])
        )
        return AnswerExample(row.place, ids, (Learned(1, len(ids)),), prompt, said, follows)
