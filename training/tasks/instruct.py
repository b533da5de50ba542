"""The task of following instructions, in one exchange or in several."""

from collections.abc import Sequence
from typing import Any

from adapters.templates import PromptInput
from training.config import InstructConfig
from training.data.lengths import find_template
from training.data.rows import Exchange, InstructRow
from training.data.unfit import answer_ids
from training.fast.model import FastModel
from training.reporting.results import Sample
from training.tasks.examples import AnswerExample, Learned
from training.tasks.language import LanguageTask


class InstructTask(LanguageTask[InstructRow]):
    """Rows of instruction and answer, or conversations; loss over the answers' tokens."""

    config: InstructConfig

    def __init__(self, config: InstructConfig) -> None:
        self._template = find_template(config.template)
        super().__init__(config)

    def encode_row(self, row: InstructRow) -> Sequence[AnswerExample]:
        """The exchanges as one row where each prompt continues the one before, as serving would render it."""
        examples: list[AnswerExample] = []
        for exchange in row.exchanges:
            prompt = self._template.encode(self.tokenizer, exchange.prompt)
            ids = (*prompt, *answer_ids(self.tokenizer, exchange.answer), self.tokenizer.eos_token_id)
            before = examples.pop() if examples and _continues(examples[-1].ids, ids) else None
            examples.append(self._example(row, exchange, ids, len(prompt), before))
        return [_trimmed(example) for example in examples if example.weight]

    def finish(self) -> None:
        """Leave out rows that are too long, since their end is what matters most."""
        self.keep_short(lambda example: len(example.ids))

    def answer(self, fast: FastModel, examples: Sequence[AnswerExample]) -> list[Sample]:
        """Greedy answers, right if they are the expected ones."""
        return [
            Sample(prompt=example.text, answer=said, expected=example.expected, right=said == example.expected)
            for example, said in zip(examples, self.continued(fast, examples), strict=True)
        ]

    def manifest_fields(self) -> dict[str, Any]:
        """The prompt and the token that ends an answer."""
        eos = {"text": self.tokenizer.eos_token, "id": self.tokenizer.eos_token_id}
        return {"task": "generate", "prompt": self._template.to_manifest(self.tokenizer), "eos": eos}

    def _example(
        self, row: InstructRow, exchange: Exchange, ids: tuple[int, ...], prompt: int, before: AnswerExample | None
    ) -> AnswerExample:
        if self.config.loss == "all":
            learned: tuple[Learned, ...] = (Learned(1, len(ids)),)
        else:
            own = (Learned(prompt, len(ids), exchange.weight),) if exchange.weight else ()
            learned = (*(before.learned if before else ()), *own)
        if before is not None and before.learned:
            return AnswerExample(row.place, ids, learned, before.prompt_length, before.text, before.expected)
        return AnswerExample(row.place, ids, learned, prompt, spoken(exchange.prompt), exchange.answer.strip())


def spoken(prompt: PromptInput) -> str:
    """What is asked, in words."""
    if prompt.messages is not None:
        return "\n".join(turn.content for turn in prompt.messages if turn.role != "assistant")
    instruction = prompt.instruction or ""
    return f"{instruction}\n{prompt.input}" if prompt.input else instruction


def _continues(before: Sequence[int], ids: Sequence[int]) -> bool:
    """Whether ``ids`` begin with all of ``before``: a template that renders a finished answer otherwise does not."""
    return tuple(ids[: len(before)]) == tuple(before)


def _trimmed(example: AnswerExample) -> AnswerExample:
    """Without what follows the last learned token: nobody would learn from it."""
    end = example.learned[-1].stop
    if end == len(example.ids):
        return example
    ids = example.ids[:end]
    return AnswerExample(example.place, ids, example.learned, example.prompt_length, example.text, example.expected)
