"""Encoding, the loss, greedy answers, LoRA on each architecture."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.base import resolve_base
from adapters.templates import PromptInput, PromptTemplate, completion_ids
from tests.support.tiny import DECODERS, ENCODERS
from tests.training.conftest import INSTRUCTIONS, write_jsonl
from training.batches import NOT_LEARNED
from training.classify import ClassifyTask
from training.config import make_config
from training.errors import ConfigError, DataError
from training.generate import greedy
from training.instruct import InstructTask
from training.model import add_lora

Tiny = Callable[[str], Path]


def instruct(base: Path, data: Path, **flags: Any) -> InstructTask:
    config = make_config("instruct", {"data": data, "base": str(base), "rank": 2, **flags})
    task = InstructTask(config)  # type: ignore[arg-type]
    task.encode(resolve_base(config.base))
    return task


def classify(base: Path, data: Path, **flags: Any) -> ClassifyTask:
    config = make_config("classify", {"data": data, "base": str(base), "rank": 2, **flags})
    task = ClassifyTask(config)  # type: ignore[arg-type]
    task.encode(resolve_base(config.base))
    return task


def wrapped(task: Any) -> Any:
    torch.manual_seed(0)
    model = add_lora(task.load_model(), task.base, task.config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(0, 0.2)
    return model.eval()


@pytest.mark.parametrize("template", ["alpaca", "chat", "plain"])
def test_a_row_is_its_prompt_its_answer_and_one_eos(tiny: Tiny, instructions: Path, template: str) -> None:
    task = instruct(tiny("llama"), instructions, template=template)
    row = INSTRUCTIONS[0]
    example = next(example for example in task.split.train if example.number == 1)
    prompt = PromptInput.from_instruction(row["instruction"], row["input"])
    expected = PromptTemplate.named(template).encode(task.tokenizer, prompt)
    assert list(example.ids[: example.prompt_length]) == expected
    answer = completion_ids(task.tokenizer, row["output"])
    assert list(example.ids[example.prompt_length :]) == [*answer, task.tokenizer.eos_token_id]


@pytest.mark.parametrize("loss", ["completion", "all"])
def test_each_row_trains_exactly_one_eos(tiny: Tiny, instructions: Path, loss: str) -> None:
    task = instruct(tiny("gpt2"), instructions, loss=loss)
    batch = task.collate(task.split.train)
    eos = task.tokenizer.eos_token_id
    assert ((batch["targets"] == eos).sum(1) == 1).all()
    learned = (batch["targets"] != NOT_LEARNED).sum(1)
    for example, count in zip(task.split.train, learned.tolist(), strict=True):
        assert count == len(example.ids) - (example.prompt_length if loss == "completion" else 1)


def test_a_jinja_file_is_a_template(tiny: Tiny, instructions: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("Q: {{ instruction }}\nA:")
    task = instruct(tiny("llama"), instructions, template=str(file))
    example = task.split.train[0]
    assert task.tokenizer.decode(example.ids[: example.prompt_length]).startswith("Q: Name the")
    assert task.manifest_fields()["prompt"].template == "jinja"
    with pytest.raises(ConfigError, match="neither alpaca, chat, plain nor a file"):
        instruct(tiny("llama"), instructions, template="no/such.jinja")


def test_an_eos_inside_an_answer_is_a_bad_row(tiny: Tiny, tmp_path: Path) -> None:
    rows = [*INSTRUCTIONS, {"instruction": "a", "output": "one <|endoftext|> two"}]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match=rf"line {len(rows)}: 'output' holds <\|endoftext\|>"):
        instruct(tiny("gpt2"), data)


def test_rows_too_long_are_left_out_and_counted(tiny: Tiny, tmp_path: Path) -> None:
    rows = [*INSTRUCTIONS, {"instruction": "a", "output": "long " * 300}]
    task = instruct(tiny("gpt2"), write_jsonl(tmp_path / "rows.jsonl", rows))
    assert task.notes[-1] == "1 rows of more than 256 tokens are left out (--max-length)"
    assert len(task.split.train) + len(task.split.validation) == len(INSTRUCTIONS)
    with pytest.raises(ConfigError, match="no rows are left within 8 tokens"):
        instruct(tiny("gpt2"), tmp_path / "rows.jsonl", max_length=8)


def test_texts_too_long_lose_an_end_and_are_counted(tiny: Tiny, tmp_path: Path) -> None:
    rows = [{"text": f"{n} " + "long " * 30 + "end", "label": n % 2} for n in range(20)]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    left = classify(tiny("bert"), data, max_length=16)
    assert left.notes == ["20 texts of more than 16 tokens lose their left end"]
    example = left.split.train[0]
    assert len(example.ids) == 16
    assert left.tokenizer.decode(example.ids).endswith("end")
    right = classify(tiny("bert"), data, max_length=16, truncation_side="right").split.train[0]
    assert right.ids != example.ids
    assert right.text == example.text


def test_the_context_of_the_base_bounds_the_rows(tiny: Tiny, instructions: Path) -> None:
    task = instruct(tiny("gpt2"), instructions, max_length=1024)
    assert task.max_length == 256
    assert "rows may have 256 tokens" in task.notes[-1]


def test_held_out_rows_that_are_trained_on_are_told(tiny: Tiny, instructions: Path) -> None:
    task = instruct(tiny("gpt2"), instructions, validation=instructions)
    assert task.notes == [f"{len(INSTRUCTIONS)} of the held-out rows stand among the training rows too"]


def test_an_encoder_cannot_answer(tiny: Tiny, instructions: Path) -> None:
    task = instruct(tiny("distilbert"), instructions, template="alpaca")
    with pytest.raises(ConfigError, match="an encoder cannot write answers"):
        task.load_model()


@pytest.mark.parametrize("kind", [*DECODERS, "mistral"])
def test_the_short_way_to_the_loss_is_the_long_way(tiny: Tiny, instructions: Path, kind: str) -> None:
    task = instruct(tiny(kind), instructions)
    model = wrapped(task)
    batch = task.collate(task.split.train[:4])
    loss, count = task.loss(model, batch)
    assert task._fast_logits is True
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    plain = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["targets"], ignore_index=NOT_LEARNED)
    torch.testing.assert_close(loss / count, plain, rtol=1e-5, atol=1e-5)


def test_an_architecture_that_caps_its_logits_takes_the_long_way(tiny: Tiny, instructions: Path) -> None:
    task = instruct(tiny("llama"), instructions)
    model = wrapped(task)
    model.get_base_model().register_forward_hook(lambda _module, _inputs, output: _capped(output))
    batch = task.collate(task.split.train[:2])
    logits, _ = task.logits(model, batch)
    assert task._fast_logits is False
    assert logits.abs().max() <= 1


def _capped(output: Any) -> Any:
    output.logits = output.logits.tanh()
    return output


@pytest.mark.parametrize("kind", DECODERS)
def test_greedy_answers_do_not_depend_on_the_batch(tiny: Tiny, instructions: Path, kind: str) -> None:
    task = instruct(tiny(kind), instructions)
    model = wrapped(task)
    prompts = [example.ids[: example.prompt_length] for example in task.split.train[:5]]
    prompts[1] = prompts[1][-9:]

    def answers(size: int) -> list[str]:
        return greedy(model, task.tokenizer, prompts, pad_id=task.pad_id, most_tokens=8, context=256, batch_size=size)

    assert answers(5) == answers(1)
    assert len(set(answers(5))) > 1


def test_answers_stop_at_the_context(tiny: Tiny, instructions: Path) -> None:
    task = instruct(tiny("gpt2"), instructions)
    model, prompt = wrapped(task), (task.split.train[0].ids * 10)[:250]

    def answer(most_tokens: int) -> list[str]:
        return greedy(model, task.tokenizer, [prompt], pad_id=1, most_tokens=most_tokens, context=256, batch_size=1)

    assert answer(99) == answer(6)
    assert answer(6) != answer(5)


def test_the_base_s_own_dropout_can_be_set(tiny: Tiny, instructions: Path) -> None:
    config_says = {module.p for module in dropouts(instruct(tiny("gpt2"), instructions))}
    assert config_says == {0.1}
    assert {module.p for module in dropouts(instruct(tiny("gpt2"), instructions, base_dropout=0.0))} == {0.0}
    llama = wrapped(instruct(tiny("llama"), instructions, base_dropout=0.25))
    assert llama.get_base_model().model.layers[0].self_attn.attention_dropout == 0.25


def dropouts(task: InstructTask) -> list[torch.nn.Dropout]:
    return [module for module in wrapped(task).modules() if isinstance(module, torch.nn.Dropout)]


@pytest.mark.parametrize("kind", [*DECODERS, *ENCODERS, "roberta"])
def test_a_classifier_trains_lora_on_the_base_and_its_head_whole(tiny: Tiny, reviews: Path, kind: str) -> None:
    task = classify(tiny(kind), reviews)
    model = wrapped(task)
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    head = {name.partition(".modules_to_save.")[0].rpartition(".")[2] for name in trained if "lora_" not in name}
    shapes = task.base.head_shapes(2)
    assert head == {name.partition(".")[0] for name in shapes}
    assert not any("lora_" in name and name.partition("model.")[2].startswith(tuple(shapes)) for name in trained)
    adapted = {name.partition(".lora_A")[0] for name in trained if ".lora_A" in name}
    assert len(adapted) == len([module for module in task.base.linear_shapes() if module != "lm_head"])
    logits, targets = task.logits(model, task.collate(task.split.train[:6]))
    assert logits.shape == (6, 2)
    assert targets.tolist() == [example.label for example in task.split.train[:6]]
    assert model.config.id2label == {0: "negative", 1: "positive"}


def test_a_base_without_its_pooler_is_refused(tiny: Tiny, reviews: Path, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    AutoModel.from_pretrained(tiny("bert"), add_pooling_layer=False).save_pretrained(tmp_path / "bare")
    AutoTokenizer.from_pretrained(tiny("bert")).save_pretrained(tmp_path / "bare")
    task = classify(tmp_path / "bare", reviews)
    with pytest.raises(ConfigError, match=r"lacks weights that its classifier uses: bert\.pooler"):
        task.load_model()


def test_targets_that_the_base_does_not_have(tiny: Tiny, instructions: Path) -> None:
    task = instruct(tiny("gpt2"), instructions, targets="c_attn,q_proj")
    with pytest.raises(ConfigError, match="no linear module 'q_proj'; it has c_attn, c_fc, c_proj"):
        add_lora(task.load_model(), task.base, task.config)


def test_sentences_need_labels_that_exist(reviews: Path) -> None:
    flags = {"data": reviews, "sentences": "Fine.", "sentence_labels": "great"}
    with pytest.raises(ConfigError, match="unknown label 'great'; the labels are negative, positive"):
        ClassifyTask(make_config("classify", flags))  # type: ignore[arg-type]
