"""adapter_config.json: every field has a fate, and ranks and scalings are PEFT's own."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer

from adapters import config
from adapters.base import BaseSource
from adapters.config import parse_lora_config, read_lora_config
from adapters.errors import AdapterFormatError, AdapterUnsupportedError
from adapters.patterns import check_patterns, matching_key
from tests.support.tiny import peft_model, write_peft_adapter

PLAIN: dict[str, Any] = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8}


def test_every_field_of_pefts_config_has_a_fate() -> None:
    fields = {field.name for field in dataclasses.fields(LoraConfig)}
    known = config._SERVED | config._HARMLESS | set(config._REFUSED)
    assert fields - known == set()
    assert not config._SERVED & config._HARMLESS
    assert not set(config._REFUSED) & (config._SERVED | config._HARMLESS)


def test_pefts_defaults_are_accepted(tmp_path: Path) -> None:
    LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]).save_pretrained(tmp_path)
    spec = read_lora_config(tmp_path)
    assert (spec.r, spec.lora_alpha, spec.task_type, spec.target_modules) == (8, 8, "CAUSAL_LM", ("q_proj",))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_dora", True),
        ("bias", "all"),
        ("bias", "lora_only"),
        ("lora_bias", True),
        ("layer_replication", [[0, 4], [2, 5]]),
        ("trainable_token_indices", [1, 2]),
        ("target_parameters", ["experts.gate_up_proj"]),
        ("megatron_config", {"tensor_model_parallel_size": 2}),
        ("alora_invocation_tokens", [5, 6]),
        ("use_qalora", True),
        ("monteclora_config", {}),
        ("use_bdlora", {"nblocks": 2}),
        ("arrow_config", {"top_k": 2}),
        ("kasa_config", {"beta": 1.0}),
        ("ensure_weight_tying", True),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "pissa_niter_16"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", "lora_ga"),
        ("peft_type", "LOHA"),
        ("task_type", "SEQ_2_SEQ_LM"),
        ("task_type", "FEATURE_EXTRACTION"),
        ("task_type", "TOKEN_CLS"),
        ("task_type", "QUESTION_ANS"),
        ("a_field_of_tomorrow", None),
    ],
)
def test_what_is_not_served_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(AdapterUnsupportedError, match=field) as caught:
        parse_lora_config({**PLAIN, field: value})
    assert caught.value.key == field


@pytest.mark.parametrize("how", [True, False, "gaussian", "eva", "orthogonal", "mica"])
def test_initialisations_that_leave_the_base_alone_are_served(how: bool | str) -> None:
    assert parse_lora_config({**PLAIN, "init_lora_weights": how}).r == 4


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("r", 0),
        ("r", -1),
        ("r", 2.5),
        ("r", True),
        ("r", "4"),
        ("r", 10**9),
        ("lora_alpha", "8"),
        ("lora_alpha", None),
        ("use_rslora", "yes"),
        ("rank_pattern", ["q_proj"]),
        ("rank_pattern", {"q_proj": 0}),
        ("alpha_pattern", {"q_proj": "x"}),
        ("modules_to_save", "score"),
        ("modules_to_save", [1]),
        ("target_modules", 7),
        ("base_model_name_or_path", 7),
    ],
)
def test_wrong_types_name_their_field(field: str, value: Any) -> None:
    with pytest.raises(AdapterFormatError) as caught:
        parse_lora_config({**PLAIN, field: value})
    assert (caught.value.key or "").startswith(field)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '"x"',
        '{"r": NaN}',
        '{"r": 1, "r": 2}',
        "[" * 100_000,
        '{"peft_type": "LORA", "lora_alpha": Infinity}',
    ],
)
def test_broken_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(AdapterFormatError) as caught:
        read_lora_config(tmp_path)
    assert caught.value.key == "adapter_config.json"


def test_bytes_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_bytes(b'{"r": "\xff"}')
    with pytest.raises(AdapterFormatError, match="UTF-8"):
        read_lora_config(tmp_path)


def test_a_missing_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(AdapterFormatError, match=r"adapter_config\.json is missing"):
        read_lora_config(tmp_path)


# PEFT saves patterns sorted, and the first that matches wins: where two match, they stand in sorted order here.
PATTERNS = [
    {"rank_pattern": {"c_attn": 8}, "alpha_pattern": {"mlp.c_fc": 3}},
    {
        "rank_pattern": {"^transformer.h.0.attn.c_attn": 2, "h.1.attn.c_attn": 6},
        "alpha_pattern": {r"h\.\d+\.mlp\..*": 5},
    },
    {"rank_pattern": {r".*\.h\.(0|1)\.mlp\.c_(?:fc|proj)": 3}, "use_rslora": True},
    {
        "rank_pattern": {"attn.c_attn": 9, "c_proj": 2},
        "alpha_pattern": {"h.[01].attn.c_proj": 7, "c_proj": 1},
        "use_rslora": True,
    },
    {"rank_pattern": {"attn.c_(?:attn|proj)": 2, "c_[a-z]+": 16, "h.0.mlp.c_proj$": 1}},
]


@pytest.mark.parametrize("options", PATTERNS)
def test_ranks_and_scalings_are_pefts_own(
    bases: dict[str, BaseSource], tmp_path: Path, options: dict[str, Any]
) -> None:
    folder = write_peft_adapter(bases["gpt2"].path, tmp_path / "adapter", **options)
    model = PeftModel.from_pretrained(peft_model(bases["gpt2"].path, task="generate"), folder)
    _compare(model, folder)


def test_patterns_with_a_classifier_and_another_architecture(bases: dict[str, BaseSource], tmp_path: Path) -> None:
    options = {
        "rank_pattern": {"layers.0.self_attn.q_proj": 7, "q_proj": 2},
        "alpha_pattern": {"^model.layers.1.*_proj": 3},
    }
    folder = write_peft_adapter(bases["llama"].path, tmp_path / "adapter", task="classify", **options)
    model = PeftModel.from_pretrained(peft_model(bases["llama"].path, task="classify"), folder)
    _compare(model, folder)


def test_a_spec_can_be_made_before_training(bases: dict[str, BaseSource]) -> None:
    """What a training job would be refused for, it can be refused for before it starts."""
    asked = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=2, target_modules=["q_proj"], use_rslora=True)
    spec = parse_lora_config({name: value for name, value in asked.to_dict().items() if name != "target_modules"})
    model = get_peft_model(peft_model(bases["llama"].path, task="generate"), asked)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    assert spec.scaling_of("model.layers.0.self_attn.q_proj") == layer.scaling["default"]


def _compare(model: PeftModel, folder: Path) -> None:
    spec = read_lora_config(folder)
    layers = {name: module for name, module in model.base_model.model.named_modules() if isinstance(module, LoraLayer)}
    assert layers
    for name, layer in layers.items():
        assert spec.rank_of(name) == layer.r["default"], name
        assert spec.scaling_of(name) == pytest.approx(layer.scaling["default"], rel=1e-12), name
    assert len({(spec.rank_of(name), spec.scaling_of(name)) for name in layers}) > 1


@pytest.mark.parametrize(
    "key",
    [
        "(a+)+",
        "(.*)*x",
        "(a|a)*",
        "(a|a)b",
        ".*.*.*.*",
        "a?a?a?a?aaaa",
        "((a|b)|c)",
        "(?=x)",
        r"(a)\1",
        "(?P<n>x)",
        "[",
        "(",
        "a{9,2}",
        "",
        "q_proj\n",
        "a" * 300,
        "(" * 200,
        "(a|" * 80,
    ],
)
def test_patterns_that_could_run_for_ever_are_refused(key: str) -> None:
    begin = time.perf_counter()
    with pytest.raises(AdapterUnsupportedError, match="rank_pattern"):
        parse_lora_config({**PLAIN, "rank_pattern": {key: 2}})
    assert time.perf_counter() - begin < 0.1


def test_the_worst_pattern_that_is_served_is_quick() -> None:
    key = (
        ".*.*.*("
        + "|".join("_" + "s" * n for n in range(1, 12))
        + ")("
        + "|".join("." * n for n in range(1, 15))
        + ")x"
    )
    check_patterns("rank_pattern", [key])
    begin = time.perf_counter()
    assert matching_key([key], "model.layers.10.self_attn.qqqq_" + "s" * 30 + "proj") is None
    assert time.perf_counter() - begin < 0.5


def test_too_many_patterns_are_refused() -> None:
    patterns = {f"h.{index}.attn": 2 for index in range(2000)}
    with pytest.raises(AdapterUnsupportedError, match="2000 keys"):
        parse_lora_config({**PLAIN, "rank_pattern": patterns})


def test_the_config_that_peft_writes_is_json(peft_folders: dict[str, Path]) -> None:
    for folder in peft_folders.values():
        assert parse_lora_config(json.loads((folder / "adapter_config.json").read_text())) == read_lora_config(folder)
