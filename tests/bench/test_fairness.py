"""A quick run of the fairness benchmark: what is written down, and that the command refuses what makes no sense."""

import json
import math
from pathlib import Path

import pytest

from adapters.base import BaseSource
from bench import fairness
from bench.document import Document


def test_a_quick_run_writes_every_figure(llama: BaseSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = fairness.Kind((4, 12), (2, 6), 3)
    monkeypatch.setattr(fairness, "OTHER", short)
    monkeypatch.setattr(fairness, "POLITE", fairness.Kind((4, 8), (2, 4), 1))
    path = tmp_path / "fairness.json"
    args = fairness.parse(
        ["--base", str(llama.path), "--rows", "4", "--backlog", "20", "--dtype", "float32", "--threads", "1"]
    )
    two, document = fairness.build(args), Document(path, {}, {}, fairness.RATIOS)
    fairness.measure(two, document, rounds=1, window=0.6)
    document.save()
    found = json.loads(path.read_text())
    assert all(value is None or (math.isfinite(value) and value > 0) for value in found["ratios"].values())
    assert {key for key, value in found["ratios"].items() if value is None} == set(found["reasons"])
    assert found["ratios"]["tokens_fair_vs_fcfs"] is not None
    flood = found["figures"]["flood, fair"]
    assert flood["refused"] > 0, "more was sent than may be in flight"
    assert flood["tokens_per_s"] > 0
    assert set(found["figures"]) >= {f"{load}, {way}" for load in fairness.LOADS for way in fairness.WAYS}
    machine = {"cpu": "a CPU", "threads": 1, "cores": 1, "system": "a system", "torch": "2", "load_before": 0.0}
    text = fairness.render({**found, "machine": machine})
    assert all(f"`{ratio}`" in text for ratio in fairness.RATIOS)


def test_arrivals_come_at_the_rate_that_was_asked_for() -> None:
    rows = list(fairness.arrivals("other", fairness.OTHER, 50.0, 100.0, 1))
    assert len(rows) == pytest.approx(5000, rel=0.1)
    assert [row.at for row in rows] == sorted(row.at for row in rows)
    assert {row.adapter for row in rows} == set(range(fairness.OTHER.adapters))
    assert rows == list(fairness.arrivals("other", fairness.OTHER, 50.0, 100.0, 1))


@pytest.mark.parametrize("option", [["--rounds", "0"], ["--window", "0"]])
def test_senseless_options_are_refused(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fairness.parse(option)
    assert "--rounds must be at least 1" in capsys.readouterr().err
