"""Rows as token ids: what the model reads, which tokens it learns, and what the loss is."""

import itertools
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, logsigmoid

from adapters.templates import PromptInput, PromptTemplate, completion_ids, encode_text, scored_ids
from tests.support.tiny import DECODERS, tiny_tokenizer
from tests.training.conftest import INSTRUCTIONS, PAIRS, REVIEWS, TAGGED, write_jsonl
from tests.training.running import config, encoded
from training.data.rows import Place
from training.errors import ConfigError, DataError
from training.fast.levers import Levers
from training.fast.model import FastModel
from training.run import make_task
from training.tasks.examples import AnswerExample, Learned
from training.tasks.task import Task

Tiny = Callable[[str], Path]
NOT_LEARNED = -100
# Ends every answer as training does, so that a conversation goes on where the turn before it ended.
GOES_ON = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}<assistant>"
)


def fast(task: Task[Any, Any], model: Any = None) -> FastModel:
    torch.manual_seed(0)
    return FastModel(model or task.load_model(), Levers(), torch.float32, task.pad_id)


def row_number(task: Task[Any, Any], number: int) -> Any:
    parts = (task.examples.train, task.examples.validation, task.examples.test)
    return next(example for part in parts for example in part if example.place.number == number)


def conversation(*turns: str | tuple[str, float]) -> dict[str, Any]:
    """User and assistant by turns; a pair is an answer with its weight."""
    messages: list[dict[str, Any]] = []
    for index, turn in enumerate(turns):
        content, weight = turn if isinstance(turn, tuple) else (turn, None)
        message = {"role": "assistant" if index % 2 else "user", "content": content}
        messages.append(message if weight is None else {**message, "weight": weight})
    return {"messages": messages}


def conversations(folder: Path, base: Path, *turns: str | tuple[str, float], **flags: Any) -> tuple[Any, list[Any]]:
    """The task, and what one conversation became in it; the others only fill the parts."""
    template = folder / "goes_on.jinja"
    template.write_text(GOES_ON)
    rows = [conversation(*turns), *(conversation(f"say {n}", f"{n}") for n in range(9))]
    held_out = write_jsonl(folder / "held_out.jsonl", rows[1:3])
    flags = {"template": str(template), **flags}
    data = write_jsonl(folder / "talks.jsonl", rows)
    task = encoded("instruct", folder, base=str(base), data=data, validation=held_out, **flags)
    return task, [example for example in task.examples.train if example.place.number == 1]


def learned_text(task: Any, example: AnswerExample) -> list[str]:
    return [task.tokenizer.decode(example.ids[part.start : part.stop]) for part in example.learned]


# ── instruct ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_golden_vectors_of_recipe_1(tiny: Tiny, instructions: Path, tmp_path: Path) -> None:
    """One end token a row is learned, though rows are padded with it, and the loss is that of the book's batch."""
    eos = 0  # the tiny base's, as 50256 is GPT-2's
    rows = [[10, 11, 12, 13, 14], [15, 16], [17, 18, 19]]
    inputs = [[10, 11, 12, 13, 14], [15, 16, eos, eos, eos], [17, 18, 19, eos, eos]]
    targets = [
        [11, 12, 13, 14, eos],
        [16, eos, NOT_LEARNED, NOT_LEARNED, NOT_LEARNED],
        [18, 19, eos, NOT_LEARNED, NOT_LEARNED],
    ]
    place = Place(Path("rows"), "line", 1)
    examples = [AnswerExample(place, (*ids, eos), (Learned(0, len(ids) + 1),), 1) for ids in rows]
    for example, of_row in zip(examples, targets, strict=True):
        wanted = [(position, token) for position, token in enumerate(of_row) if token != NOT_LEARNED]
        assert [(target.position, target.token) for target in example.targets()] == wanted
    task = encoded("instruct", tmp_path, base=str(tiny("gpt2")), data=instructions)
    model = task.load_model()
    mask = torch.tensor([[1] * 5, [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(inputs), attention_mask=mask).logits
        expected = cross_entropy(logits.flatten(0, 1), torch.tensor(targets).flatten(), ignore_index=NOT_LEARNED)
        found = task.loss(fast(task, model), examples) / task.weight(examples)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("template", ["alpaca", "chat", "plain"])
def test_a_row_is_its_prompt_its_answer_and_one_eos(
    tiny: Tiny, instructions: Path, tmp_path: Path, template: str
) -> None:
    task = encoded("instruct", tmp_path, base=str(tiny("llama")), data=instructions, template=template)
    row, example = INSTRUCTIONS[0], row_number(task, 1)
    prompt = PromptInput.from_instruction(row["instruction"], row["input"])
    expected = PromptTemplate.named(template).encode(task.tokenizer, prompt)
    assert list(example.ids[: example.prompt_length]) == expected
    answer = completion_ids(task.tokenizer, row["output"])
    assert list(example.ids[example.prompt_length :]) == [*answer, task.tokenizer.eos_token_id]


@pytest.mark.parametrize("loss", ["completion", "all"])
def test_each_row_learns_exactly_one_eos(tiny: Tiny, instructions: Path, tmp_path: Path, loss: str) -> None:
    task = encoded("instruct", tmp_path, base=str(tiny("gpt2")), data=instructions, loss=loss)
    for example in task.examples.train:
        tokens = [target.token for target in example.targets()]
        assert tokens.count(task.tokenizer.eos_token_id) == 1
        assert len(tokens) == len(example.ids) - (example.prompt_length if loss == "completion" else 1)
        assert example.weight == len(tokens)


def test_a_conversation_that_goes_on_is_one_row(tiny: Tiny, tmp_path: Path) -> None:
    task, examples = conversations(tmp_path, tiny("llama"), "a b", "c d", "e f", "g h")
    (example,) = examples
    end = task.tokenizer.eos_token
    assert task.tokenizer.decode(example.ids) == f"<user>a b<assistant>c d{end}<user>e f<assistant>g h{end}"
    assert learned_text(task, example) == [f"c d{end}", f"g h{end}"]
    assert task.tokenizer.decode(example.ids[: example.prompt_length]) == "<user>a b<assistant>"
    assert (example.text, example.expected) == ("a b", "c d")


def test_a_template_that_renders_said_answers_otherwise_makes_a_row_of_each(tiny: Tiny, tmp_path: Path) -> None:
    # The tiny base's chat template writes no end token after what the assistant said.
    task, examples = conversations(tmp_path, tiny("llama"), "a b", "c d", "e f", "g h", template="chat")
    end = task.tokenizer.eos_token
    assert [learned_text(task, example) for example in examples] == [[f"c d{end}"], [f"g h{end}"]]
    assert [task.tokenizer.decode(example.ids) for example in examples] == [
        f"<|user|>\na b\n<|assistant|>\nc d{end}",
        f"<|user|>\na b\n<|assistant|>\nc d\n<|user|>\ne f\n<|assistant|>\ng h{end}",
    ]


def test_weights_of_answers(tiny: Tiny, tmp_path: Path) -> None:
    end = "<|endoftext|>"
    task, (first_unlearned,) = conversations(tmp_path, tiny("llama"), "a b", ("c d", 0), "e f", "g h")
    assert learned_text(task, first_unlearned) == [f"g h{end}"]
    assert first_unlearned.expected == "g h"
    task, (last_unlearned,) = conversations(tmp_path, tiny("llama"), "a b", "c d", "e f", ("g h", 0))
    assert task.tokenizer.decode(last_unlearned.ids) == f"<user>a b<assistant>c d{end}"  # nobody learns from the rest
    task, (example,) = conversations(tmp_path, tiny("llama"), "a b", ("c d", 0.5), "e f", ("g h", 2))
    assert [part.weight for part in example.learned] == [0.5, 2]
    model = task.load_model()
    with torch.no_grad():
        found = task.loss(fast(task, model), [example]) / task.weight([example])
        each = cross_entropy(
            model(torch.tensor([example.ids])).logits[0, :-1], torch.tensor(example.ids[1:]), reduction="none"
        )
    weights = torch.zeros(len(example.ids))
    for part in example.learned:
        weights[part.start : part.stop] = part.weight
    torch.testing.assert_close(found, (each * weights[1:]).sum() / weights.sum(), rtol=1e-5, atol=1e-5)


def test_all_of_a_conversation_can_be_learned(tiny: Tiny, tmp_path: Path) -> None:
    _, (example,) = conversations(tmp_path, tiny("llama"), "a b", "c d", "e f", "g h", loss="all")
    assert example.learned == (Learned(1, len(example.ids)),)


def test_a_conversation_that_the_template_cannot_render_is_a_bad_row(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 1: the alpaca template takes .* — pass --template chat"):
        conversations(tmp_path, tiny("llama"), "a", "b", "c", "d", template="alpaca")


def test_a_jinja_file_is_a_template(tiny: Tiny, instructions: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("Q: {{ instruction }}\nA:")
    task = encoded("instruct", tmp_path, base=str(tiny("llama")), data=instructions, template=str(file))
    example = task.examples.train[0]
    assert task.tokenizer.decode(example.ids[: example.prompt_length]).startswith("Q: Name the")
    assert task.manifest_fields()["prompt"].template == "jinja"
    with pytest.raises(ConfigError, match="neither alpaca, chat, plain nor a file"):
        encoded("instruct", tmp_path, base=str(tiny("llama")), data=instructions, template="no/such.jinja")


def test_an_eos_inside_an_answer_is_a_bad_row(tiny: Tiny, tmp_path: Path) -> None:
    rows = [*INSTRUCTIONS, {"instruction": "a", "output": "one <|endoftext|> two"}]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match=rf"line {len(rows)}: an answer holds <\|endoftext\|>"):
        encoded("instruct", tmp_path, base=str(tiny("gpt2")), data=data)


def test_rows_too_long_are_left_out_and_counted(tiny: Tiny, tmp_path: Path) -> None:
    rows = [*INSTRUCTIONS, {"instruction": "a", "output": "long " * 300}]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    task = encoded("instruct", tmp_path, base=str(tiny("gpt2")), data=data)
    found = next(finding for finding in task.findings if finding.kind == "over-long")
    assert (found.severity, found.message) == ("warning", "1 row of more than 256 tokens is left out")
    assert found.mend == "shorten them: the base reads no more"
    assert [place.number for place in found.places] == [len(rows)]
    assert len(task.examples.train) + len(task.examples.validation) == len(INSTRUCTIONS)
    with pytest.raises(ConfigError, match=r"rows of more than 8 tokens are left out, and none are left to train on"):
        encoded("instruct", tmp_path, base=str(tiny("gpt2")), data=data, max_length=8)


@pytest.mark.parametrize("task", ["instruct", "reward", "dpo"])
def test_all_that_is_wrong_is_said_before_anything_is_trained(tiny: Tiny, tmp_path: Path, task: str) -> None:
    """Of the rows, and of what the template and the tokenizer refuse."""
    if task == "dpo":
        pytest.importorskip("trl", reason="the dpo extra is not installed")
    good = PAIRS[:8] if task != "instruct" else INSTRUCTIONS[:8]
    ends = {"prompt": "a", "completion": "b<|endoftext|>"}
    ends = ends if task == "instruct" else {"prompt": "a", "chosen": "b", "rejected": "c<|endoftext|>"}
    data = write_jsonl(tmp_path / "rows.jsonl", [*good, ends, {"prompt": ""}])
    with pytest.raises(DataError) as caught:
        make_task(config(task, tmp_path, base=str(tiny("gpt2")), data=data))
    assert {problem.number for problem in caught.value.problems} == {9, 10}
    with pytest.raises(DataError) as caught:  # and what can be said without the base, without it
        make_task(config(task, tmp_path, base="somebody/large-base", data=data))
    assert {problem.number for problem in caught.value.problems} == {10}


def test_a_bad_row_is_told_of_a_base_that_cannot_end_answers(tiny: Tiny, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", [{"text": "a b"}, {"text": ""}])
    with pytest.raises(DataError, match="line 2: 'text' is empty"):
        make_task(config("text", tmp_path, base=str(tiny("bert")), data=data))


def test_the_context_of_the_base_bounds_the_rows(tiny: Tiny, instructions: Path, tmp_path: Path) -> None:
    task = encoded("instruct", tmp_path, base=str(tiny("gpt2")), data=instructions, max_length=1024)
    assert task.max_length == 256
    assert "rows may have 256 tokens" in task.notes[-1]


def test_held_out_rows_that_are_trained_on_are_told(tiny: Tiny, instructions: Path, tmp_path: Path) -> None:
    task = encoded("instruct", tmp_path, base=str(tiny("gpt2")), data=instructions, validation=instructions)
    assert any("ask what a training row asks" in finding.message for finding in task.findings), task.findings


def test_an_encoder_cannot_answer(tiny: Tiny, instructions: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="an encoder cannot write answers"):
        encoded("instruct", tmp_path, base=str(tiny("distilbert")), data=instructions).load_model()


@pytest.mark.parametrize("kind", [*DECODERS, "mistral"])
def test_the_loss_is_transformers_own(tiny: Tiny, instructions: Path, tmp_path: Path, kind: str) -> None:
    task = encoded("instruct", tmp_path, base=str(tiny(kind)), data=instructions)
    model, examples = task.load_model(), task.examples.train[:4]
    plain = []
    with torch.no_grad():
        for example in examples:
            labels = torch.tensor([*[NOT_LEARNED] * example.prompt_length, *example.ids[example.prompt_length :]])
            logits = model(torch.tensor([example.ids])).logits[0, :-1]
            plain.append(cross_entropy(logits, labels[1:], ignore_index=NOT_LEARNED, reduction="sum"))
        found = task.loss(fast(task, model), examples)
    torch.testing.assert_close(found, torch.stack(plain).sum(), rtol=1e-5, atol=1e-4)


# ── classify ──────────────────────────────────────────────────────────────────────────────────────────────────


def logits_of(task: Task[Any, Any], model: Any, examples: list[Any]) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model(torch.tensor([example.ids])).logits for example in examples])


@pytest.mark.parametrize("weighted", ["none", "balanced"])
def test_the_loss_of_labels_is_torch_s(tiny: Tiny, tmp_path: Path, weighted: str) -> None:
    rows = [*REVIEWS, *({"text": f"bad again {n}", "label": "negative"} for n in range(20))]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    task = encoded("classify", tmp_path, base=str(tiny("distilbert")), data=data, class_weights=weighted)
    torch.manual_seed(0)
    model, examples = task.load_model(), task.examples.train[:7]
    labels = torch.tensor([example.labels[0] for example in examples])
    assert set(labels.tolist()) == {0, 1}
    counts = torch.bincount(torch.tensor([row.labels[0] for row in task.rows.train]))
    weight = counts.sum() / (2 * counts) if weighted == "balanced" else None
    expected = cross_entropy(logits_of(task, model, examples), labels, weight=weight)
    with torch.no_grad():
        found = task.loss(fast(task, model), examples) / task.weight(examples)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weighted", ["none", "balanced"])
def test_the_loss_of_several_labels_is_torch_s(tiny: Tiny, tmp_path: Path, weighted: str) -> None:
    tagged = [*TAGGED, *({"text": f"another {n}", "labels": ["even"]} for n in range(9))]
    data = write_jsonl(tmp_path / "tagged.jsonl", tagged)
    task = encoded("classify", tmp_path, base=str(tiny("gpt2")), data=data, class_weights=weighted)
    assert task.dataset.labels == ("even", "low")
    torch.manual_seed(0)
    model, examples = task.load_model(), task.examples.train[:6]
    wanted = torch.tensor(
        [[float(label in tagged[row.place.number - 1]["labels"]) for label in ("even", "low")] for row in examples]
    )
    rows, having = len(task.rows.train), [sum(label in row.labels for row in task.rows.train) for label in (0, 1)]
    assert having[0] != having[1]
    weights = torch.ones(wanted.shape)
    if weighted == "balanced":
        for row, label in itertools.product(range(len(wanted)), (0, 1)):
            alike = having[label] if wanted[row, label] else rows - having[label]
            weights[row, label] = rows / 2 / alike
    expected = binary_cross_entropy_with_logits(logits_of(task, model, examples), wanted, weights)
    with torch.no_grad():
        found = task.loss(fast(task, model), examples) / task.weight(examples)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert task.manifest_fields()["problem_type"] == "multi_label"


def test_a_label_that_every_text_has_counts_all_the_same(tiny: Tiny, tmp_path: Path) -> None:
    """Nobody lacks it: the weight of what never comes is no infinity."""
    rows = [{"text": f"text {n}", "labels": ["always", *(["even"] if n % 2 else [])]} for n in range(20)]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    task = encoded("classify", tmp_path, base=str(tiny("gpt2")), data=data, class_weights="balanced")
    torch.manual_seed(0)
    with torch.no_grad():
        assert torch.isfinite(task.loss(fast(task, task.load_model()), task.examples.train))


def test_texts_too_long_lose_an_end_and_are_counted(tiny: Tiny, tmp_path: Path) -> None:
    rows = [{"text": f"{n} " + "long " * 30 + "end", "label": n % 2} for n in range(20)]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    cut: dict[str, list[int]] = {}
    for side in ("left", "right"):
        task = encoded("classify", tmp_path, base=str(tiny("bert")), data=data, max_length=16, truncation_side=side)
        (found,) = [finding for finding in task.findings if finding.kind == "over-long"]
        assert found.message == f"20 texts of more than 16 tokens are cut at the {side} end"
        assert len(found.places) == 20
        example = row_number(task, 5)
        assert example.text == rows[4]["text"]
        assert list(example.ids) == encode_text(task.tokenizer, example.text, 16, side)
        cut[side] = list(example.ids)
    assert len(cut["left"]) == len(cut["right"]) == 16
    assert task.tokenizer.decode(cut["left"]).endswith("end")
    assert task.tokenizer.decode(cut["right"]).startswith("4 long")


def test_sentences_need_labels_that_exist(reviews: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown label 'great'; the labels are negative, positive"):
        encoded("classify", tmp_path, data=reviews, sentences="Fine.", sentence_labels="great")


def test_a_base_without_its_pooler_is_refused(tiny: Tiny, reviews: Path, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    AutoModel.from_pretrained(tiny("bert"), add_pooling_layer=False).save_pretrained(tmp_path / "bare")
    AutoTokenizer.from_pretrained(tiny("bert")).save_pretrained(tmp_path / "bare")
    task = encoded("classify", tmp_path, base=str(tmp_path / "bare"), data=reviews)
    with pytest.raises(ConfigError, match=r"lacks weights that its classifier uses: bert\.pooler"):
        task.load_model()


# ── text ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("length", [8, 9, 256])
def test_pieces_of_a_text_overlap_by_one_token_and_every_token_is_learned_once(
    tiny: Tiny, texts: Path, tmp_path: Path, length: int
) -> None:
    task = encoded("text", tmp_path, base=str(tiny("gpt2")), data=texts, max_length=length)
    for row in task.rows.train:
        pieces = [example for example in task.examples.train if example.place == row.place]
        assert max(piece.tokens for piece in pieces) <= length
        for before, after in pairwise(pieces):
            assert before.ids[-1] == after.ids[0]
        whole = [pieces[0].ids[0], *(token for piece in pieces for token in piece.ids[1:])]
        assert whole == [*completion_ids(task.tokenizer, row.text), task.tokenizer.eos_token_id]
        learned = [target.token for piece in pieces for target in piece.targets()]
        assert learned == whole[1:]


def test_a_text_begins_as_it_does_when_it_is_served(tiny: Tiny, texts: Path, tmp_path: Path) -> None:
    """A tokenizer with the habit of an opening token has it before prompts, so texts are learned behind it."""
    shutil.copytree(tiny("llama"), tmp_path / "opening")
    tokenizer = tiny_tokenizer()
    opening = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", tokenizer.bos_token_id)])
    tokenizer.backend_tokenizer.post_processor = opening
    tokenizer.save_pretrained(tmp_path / "opening")
    task = encoded("text", tmp_path, base=str(tmp_path / "opening"), data=texts)
    row, example = task.rows.train[0], task.examples.train[0]
    prompt = PromptInput.from_instruction(row.text)
    served = PromptTemplate.from_manifest(task.manifest_fields()["prompt"]).encode(task.tokenizer, prompt)
    assert served[0] == task.tokenizer.bos_token_id
    assert list(example.ids) == [*served, task.tokenizer.eos_token_id]


# ── reward ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("kind", "template"), [("llama", "chat"), ("bert", "plain"), ("gpt2", "alpaca")])
def test_answers_are_scored_as_they_are_served(
    tiny: Tiny, pairs: Path, tmp_path: Path, kind: str, template: str
) -> None:
    task = encoded("reward", tmp_path, base=str(tiny(kind)), data=pairs, template=template)
    named, row, example = PromptTemplate.named(template), PAIRS[2], row_number(task, 3)
    prompt = PromptInput.from_instruction(row["prompt"])
    assert list(example.ids) == scored_ids(named, task.tokenizer, prompt, row["chosen"])
    assert list(example.rejected) == scored_ids(named, task.tokenizer, prompt, row["rejected"])
    torch.manual_seed(0)
    model, examples = task.load_model(), task.examples.train[:3]
    with torch.no_grad():
        scores = [
            [float(model(torch.tensor([ids])).logits) for ids in (example.ids, example.rejected)]
            for example in examples
        ]
        found = task.loss(fast(task, model), examples) / task.weight(examples)
    margins = torch.tensor([better - worse for better, worse in scores])
    torch.testing.assert_close(found, -logsigmoid(margins).mean(), rtol=1e-4, atol=1e-5)


def test_a_part_that_learns_nothing_is_refused(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi.", "weight": 0}]
    rows = write_jsonl(tmp_path / "silent.jsonl", [{"messages": turns}] * 8)
    with pytest.raises(ConfigError, match="no training row has anything to learn"):
        encoded("instruct", tiny("llama"), data=rows, template="plain")
