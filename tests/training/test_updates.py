"""What of a model is trained: LoRA matrices, a head, everything; and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.tiny import DECODERS, ENCODERS
from tests.training.running import encoded
from training.errors import ConfigError
from training.loop import make_optimiser
from training.tasks.task import Task
from training.updates import make_update, set_dropout, trained

Tiny = Callable[[str], Path]


def prepared(task: Task[Any, Any]) -> Any:
    return make_update(task.base, task.config).prepare(task.load_model())


@pytest.mark.parametrize("kind", [*DECODERS, *ENCODERS, "roberta"])
def test_a_classifier_trains_lora_on_the_base_and_its_head_whole(
    tiny: Tiny, reviews: Path, tmp_path: Path, kind: str
) -> None:
    task = encoded("classify", tmp_path, base=str(tiny(kind)), data=reviews)
    model = prepared(task)
    names = {name for name, _ in trained(model)}
    head = {name.partition(".modules_to_save.")[0].rpartition(".")[2] for name in names if "lora_" not in name}
    shapes = task.base.head_shapes(2)
    assert head == {name.partition(".")[0] for name in shapes}
    adapted = {name.partition(".lora_A")[0] for name in names if ".lora_A" in name}
    assert len(adapted) == len([module for module in task.base.linear_shapes() if module != "lm_head"])
    assert model.config.id2label == {0: "negative", 1: "positive"}


@pytest.mark.parametrize("kind", ["llama", "distilbert"])
def test_a_head_can_be_all_that_is_trained(tiny: Tiny, reviews: Path, tmp_path: Path, kind: str) -> None:
    task = encoded("classify", tmp_path, base=str(tiny(kind)), data=reviews, update="head")
    sizes = {name: value.numel() for name, value in trained(prepared(task))}
    assert not [name for name in sizes if "lora_" in name]
    assert sum(sizes.values()) == sum(torch.Size(shape).numel() for shape in task.base.head_shapes(2).values())


def test_all_weights_can_be_trained(tiny: Tiny, instructions: Path, tmp_path: Path) -> None:
    task = encoded("instruct", tmp_path, base=str(tiny("llama")), data=instructions, update="full")
    model = prepared(task)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_names_that_the_base_does_not_have(tiny: Tiny, instructions: Path, tmp_path: Path) -> None:
    for flag in ("targets", "rank_pattern", "alpha_pattern"):
        names = "c_attn,q_proj" if flag == "targets" else "c_attn=2,q_proj=4"
        task = encoded("instruct", tmp_path, base=str(tiny("gpt2")), data=instructions, **{flag: names})
        shown = flag.replace("_", "-")
        with pytest.raises(ConfigError, match=f"--{shown}: .* no linear module 'q_proj'; it has c_attn, c_fc, c_proj"):
            prepared(task)


def test_lora_plus_gives_the_b_matrices_their_rate(tiny: Tiny, reviews: Path, tmp_path: Path) -> None:
    task = encoded("classify", tmp_path, base=str(tiny("gpt2")), data=reviews, lora_plus=16, lr=1e-3)
    parameters = dict(trained(prepared(task)))
    optimiser = make_optimiser(parameters, task.config)
    rates = {id(value): group["highest"] for group in optimiser.param_groups for value in group["params"]}
    assert {name: rates[id(value)] for name, value in parameters.items()} == {
        name: pytest.approx(16e-3 if "lora_B" in name else 1e-3) for name in parameters
    }
    assert any("lora_A" in name for name in parameters)
    assert any("score" in name for name in parameters)


def test_the_base_s_own_dropout_can_be_set(tiny: Tiny, instructions: Path, tmp_path: Path) -> None:
    gpt2 = encoded("instruct", tmp_path, base=str(tiny("gpt2")), data=instructions).load_model()

    def rates() -> set[float]:
        return {module.p for module in gpt2.modules() if isinstance(module, torch.nn.Dropout)}

    assert rates() == {0.1}
    set_dropout(gpt2, 0.0)
    assert rates() == {0.0}
    llama = encoded("instruct", tmp_path, base=str(tiny("llama")), data=instructions).load_model()
    set_dropout(llama, 0.25)
    assert llama.model.layers[0].self_attn.attention_dropout == 0.25
