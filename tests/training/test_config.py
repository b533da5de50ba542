"""Recipes, flags and the environment, and what the command line says of them."""

import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from training.config import CONFIGS, flag_of, make_config
from training.errors import ConfigError
from training.fast.levers import Levers
from training.prepared import wanted_levers

ROOT = Path(__file__).resolve().parents[2]


def train(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "training", *arguments],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.toml"
    file.write_text('task = "instruct"\ndata = "rows.jsonl"\nlr = 0.5\nrank = 4\ntargets = ["c_attn", "c_proj"]\n')
    return file


def test_flags_win_over_the_recipe_and_the_recipe_over_the_defaults(recipe: Path) -> None:
    config = make_config("instruct", {"rank": 2}, recipe)
    assert (config.rank, config.lr, config.epochs) == (2, 0.5, 3)
    assert config.targets == ("c_attn", "c_proj")


def test_paths_of_a_recipe_are_relative_to_it(recipe: Path) -> None:
    assert make_config("instruct", {}, recipe).data == recipe.parent / "rows.jsonl"


def test_lists_and_tables_are_given_by_commas() -> None:
    assert make_config("classify", {"labels": "no, yes", "targets": "q_lin,v_lin"}).targets == ("q_lin", "v_lin")
    config = make_config("classify", {"rank_pattern": "q_lin=4, lin1=8", "columns": "review=text"})
    assert (config.rank_pattern, config.columns) == ({"q_lin": 4, "lin1": 8}, {"review": "text"})


def test_unknown_keys_of_a_recipe_are_refused_by_name(recipe: Path) -> None:
    recipe.write_text(recipe.read_text() + "learning_rate = 1\nepoch = 2\n")
    with pytest.raises(ConfigError, match=r"unknown keys: learning_rate, epoch\. Known are: .*lr"):
        make_config("instruct", {}, recipe)


def test_a_key_of_the_other_task_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text('template = "chat"\n')
    with pytest.raises(ConfigError, match="unknown keys: template"):
        make_config("classify", {}, file)


def test_a_recipe_for_the_other_task_names_the_right_command(recipe: Path) -> None:
    with pytest.raises(ConfigError, match="tenora train instruct --recipe"):
        make_config("classify", {}, recipe)


def test_every_wrong_value_is_named_by_where_it_came_from(recipe: Path) -> None:
    recipe.write_text("lr = -1\nclip = nan\n")
    with pytest.raises(ConfigError) as raised:
        make_config("instruct", {"eval_every": -2, "schedule": "bent"}, recipe)
    message = str(raised.value)
    assert f"{recipe}: lr" in message
    assert f"{recipe}: clip" in message
    assert "--eval-every: " in message
    assert "--schedule: Input should be 'constant', 'linear' or 'cosine'" in message


@pytest.mark.parametrize(
    ("task", "flags", "said"),
    [
        ("instruct", {"validation_split": 0.5, "test_split": 0.5}, "leave no rows"),
        ("instruct", {"test_split": 0.5, "test": "x.csv"}, "use one of them"),
        ("instruct", {"metric": "exact_match", "answers": 0}, "answers above 0"),
        ("classify", {"labels": "no,no"}, "labels must be different names"),
        ("classify", {"sentences": "a|b", "sentence_labels": "x"}, "one label for each"),
        ("instruct", {"update": "head"}, "update head needs a head to train, and instruct has none"),
        ("reward", {"update": "full"}, "update full is for instruct and text"),
        ("text", {"update": "full", "publish": "a/b"}, "makes a base, which is no adapter and is not published"),
        ("text", {"resume": True}, "resume needs the folder of the run that goes on: give output"),
        ("instruct", {"judge": "http://x"}, "set judge_model"),
        ("instruct", {"judge": "http://x", "judge_model": "m", "answers": 0}, "set answers above 0"),
        ("instruct", {"rank_pattern": "c_attn"}, "c_attn: write NAME=VALUE"),
    ],
)
def test_values_that_do_not_fit_together(task: str, flags: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_config(task, flags)


def test_a_recipe_that_is_not_toml_or_not_there(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("lr = = 1")
    with pytest.raises(ConfigError, match="not a TOML file"):
        make_config("instruct", {}, broken)
    with pytest.raises(ConfigError, match="No such file"):
        make_config("instruct", {}, tmp_path / "none.toml")


def test_the_manifest_s_recipe_names_no_places_of_this_machine(tmp_path: Path) -> None:
    config = make_config("instruct", {"data": tmp_path / "rows.jsonl", "store": tmp_path, "output": tmp_path})
    recipe = config.as_recipe()
    assert recipe["data"] == "rows.jsonl"
    assert str(tmp_path) not in str(recipe)
    assert {"store", "output", "publish", "resume", "judge_key"}.isdisjoint(recipe)


@pytest.mark.parametrize("task", CONFIGS)
def test_help_explains_every_flag_in_a_line(task: str) -> None:
    done = train(task, "--help")
    assert done.returncode == 0
    assert f"tenora train {task}" in done.stdout
    for name, field in CONFIGS[task].model_fields.items():
        flag = flag_of(name, field)
        line = next(line for line in done.stdout.splitlines() if re.search(rf"{flag}[ /]", line))
        assert (field.description or "").split(" [")[0][:60] in line


def test_the_environment_stands_between_flags_and_recipe(recipe: Path) -> None:
    done = train("instruct", "--recipe", str(recipe), TENORA_LR="-3", TENORA_RANK="0")
    assert done.returncode == 2
    assert "--lr: " in done.stderr
    assert "-3" in done.stderr
    done = train("instruct", "--recipe", str(recipe), "--rank", "-7", TENORA_RANK="0")
    assert "(given: -7)" in done.stderr


def test_data_must_be_given() -> None:
    done = train("classify")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--data is missing" in done.stderr


@pytest.mark.parametrize("lever", [field.name for field in fields(Levers)])
def test_every_lever_has_a_flag(lever: str) -> None:
    """``--no-…`` switches off that one and no other."""
    given = {"data": "rows.jsonl", lever: False}
    assert wanted_levers(make_config("instruct", given)) == Levers().without(lever)


def test_what_trains_all_weights_has_no_fused_layers() -> None:
    assert wanted_levers(make_config("text", {"data": "a.txt", "update": "full"})) == Levers().without("fused")
    assert wanted_levers(make_config("text", {"data": "a.txt"})) == Levers()


@pytest.mark.parametrize("dtype", ["float16", "fp16", "half"])
def test_there_is_no_float16(dtype: str) -> None:
    with pytest.raises(ConfigError, match="dtype"):
        make_config("instruct", {"data": "rows.jsonl", "dtype": dtype})
