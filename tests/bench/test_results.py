"""What a run leaves behind: every key, a reason for every null, also where a run was cut off."""

import json
from pathlib import Path
from typing import Any

import pytest

from adapters.base import BaseSource
from bench.context import Bench, Options
from bench.markdown import render
from bench.measuring import Spread, System, percentile, take_turns
from bench.plots import draw
from bench.remote import Remote, RemoteError
from bench.report import RATIOS, Report
from bench.sections import SECTIONS
from bench.sections.churn import compare
from bench.sections.classify import agreement
from bench.sections.endurance import growth
from bench.sections.section import Section
from bench.sections.standard import adapters_of, spread_out
from bench.serving import main, parse, run_sections

KEYS = {
    "distinct_vs_llamacpp", "distinct_vs_peft_mixed", "base_vs_llamacpp", "distinct_vs_identical", "distinct_vs_base",
    "step_vs_floor", "http_vs_engine", "classify_vs_peft", "adapters1000_vs_5", "bystander_p99", "cold_minus_warm_ms",
}  # fmt: skip
MACHINE = {
    "cpu": "a processor", "cores": 2, "instructions": [], "threads": 2, "memory_gib": 8, "system": "Linux",
    "torch": "2", "load_before": 0.0,
}  # fmt: skip


def options(cache: Path, **more: Any) -> Options:
    given = {"shape": "embedded", "quick": True, "rounds": 1, "threads": 1, "dtype": "float32", "llama_server": None}
    return Options(**{**given, "cache": cache, **more})


def check(document: dict[str, Any]) -> None:
    assert {"machine", "workload", "rates", "ratios", "reasons"} <= document.keys()
    assert document["ratios"].keys() == KEYS
    for key, value in document["ratios"].items():
        assert (value is None) == (key in document["reasons"]), key
        assert value is None or value > 0
    assert all(document["reasons"].values())


def test_every_ratio_has_one_quick_section() -> None:
    assert sorted(ratio for section in SECTIONS if section.quick for ratio in section.ratios) == sorted(KEYS)
    assert RATIOS.keys() == KEYS
    assert len({section.name for section in SECTIONS}) == len(SECTIONS)


def test_a_section_that_fails_leaves_the_others(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "results" / "out.json"
    report = Report(path, MACHINE, options(cache).workload())
    saved = []

    def fine(bench: Bench) -> None:
        bench.report.rate("one", "System one", Spread((10.0, 12.0, 11.0), "tok/s"))
        bench.report.rate("two", "System two", Spread((5.0, 5.5, 6.0), "tok/s"))
        bench.report.ratio_of("distinct_vs_base", "one", "two")
        bench.report.ratio_of("distinct_vs_llamacpp", "one", "absent")

    def broken(bench: Bench) -> None:
        saved.append(json.loads(path.read_text()))
        raise ValueError("no such thing")

    sections = [Section("fine", "works", fine), Section("broken", "does not", broken, ("step_vs_floor",))]
    assert run_sections(Bench(options(cache), report), sections) == ["broken"]
    check(saved[0])  # as a run that was cut off there would have left it
    document = json.loads(path.read_text())
    check(document)
    assert document["ratios"]["distinct_vs_base"] == 2.0
    assert document["reasons"]["step_vs_floor"] == "its section failed: no such thing"
    assert document["rates"]["one"] == {
        "system": "System one", "median": 11.0, "low": 10.0, "high": 12.0, "rounds": 3, "unit": "tok/s",
    }  # fmt: skip
    assert list(path.parent.iterdir()) == [path]


def test_a_run_of_one_section(
    llama: BaseSource, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.json"
    arguments = ["--only", "step", "--rounds", "1", "--threads", "1", "--dtype", "float32", "--shape", str(llama.path)]
    assert main([*arguments, "--cache", str(cache), "--json", str(path), "--markdown", str(tmp_path / "out.md")]) == 0
    document = json.loads(path.read_text())
    check(document)
    assert [key for key, value in document["ratios"].items() if value is not None] == ["step_vs_floor"]
    assert document["figures"]["step"]["floor_ms"] > 0
    assert (tmp_path / "out.md").read_text() == capsys.readouterr().out


def test_absent_rivals_are_named(llama: BaseSource, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole of the standard case, its systems replaced by ones that answer at once or are not there."""
    from bench.sections import standard

    class Fake:
        def __init__(self, target: str, **_options: Any) -> None:
            self.target = target

        def wait(self) -> None:
            if "peft" in self.target:
                raise RemoteError("ModuleNotFoundError: No module named 'peft'")

        def call(self, method: str, batch: list[list[int]], *rest: Any) -> int:
            if method == "continuous":
                raise RemoteError("RuntimeError: not on this machine")
            return len(batch) * rest[-1]

        def __enter__(self) -> "Fake":
            return self

        def __exit__(self, *_error: object) -> None:
            pass

    class Server:
        port = 0

        def request(self, *work: Any) -> Any:
            return work

        def cpu_seconds(self) -> float:
            return 0.0

    monkeypatch.setattr(standard, "Remote", Fake)
    monkeypatch.setattr(standard, "over_http", lambda _server, requests: len(requests) * 48)
    monkeypatch.setattr(Bench, "server", Server())
    report = Report(None, MACHINE, {})
    bench = Bench(options(cache, shape=str(llama.path), at_once=4, rank=2), report)
    assert run_sections(bench, [standard.SECTION]) == []
    check(report.document)
    reasons, ratios = report.document["reasons"], report.document["ratios"]
    assert "--llama-server" in reasons["distinct_vs_llamacpp"]
    assert "--llama-server" in reasons["base_vs_llamacpp"]
    assert "peft" in reasons["distinct_vs_peft_mixed"]
    assert "not on this machine" in reasons["transformers_continuous"]
    assert ratios["http_vs_engine"] is not None
    assert "transformers_generate" in report.document["rates"]


def test_turns() -> None:
    calls = []

    def system(key: str) -> System:
        return System(key, key, lambda number: calls.append((key, number)) or 1, lambda: calls.append((key, "warm")))

    lost = []
    broken = System("c", "c", lambda number: 1 // 0, lambda: None)
    rates = take_turns(
        [system("a"), system("b"), broken], 2, lambda _text: None, failed=lambda made, _error: lost.append(made.key)
    )
    assert calls == [("a", "warm"), ("b", "warm"), ("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert rates.keys() == {"a", "b"}
    assert lost == ["c"]


def test_slow_systems_and_extras_get_fewer_rounds() -> None:
    calls = []
    take_turns([System("a", "a", lambda n: calls.append(n) or 1, lambda: None)], 5, lambda _text: None, patience=1e-9)
    take_turns([System("a", "a", lambda n: calls.append(n) or 1, lambda: None, most=2)], 5, lambda _text: None)
    assert calls == [0, 0, 1]


def test_kinds_of_systems_alternate() -> None:
    made = [System(key, key, lambda _n: 1, lambda: None) for key in ("t_1", "t_2", "t_3", "l_1", "l_2", "p_1")]
    assert [system.key for system in spread_out(made)] == ["t_1", "l_1", "p_1", "t_2", "l_2", "t_3"]
    assert adapters_of("base", 3) == [None, None, None]
    assert adapters_of("identical", 3) == [0, 0, 0]
    assert sorted(adapters_of("distinct", 3)) == [0, 1, 2]


def test_comparisons() -> None:
    assert compare([[1, 2, 3], [4, 5, 6]], [[1, 2, 3], [4, 9, 6]]) == {"equal_answers": 0.5, "equal_tokens": 0.6667}
    found = agreement([(0.9, 0.1), (0.4, 0.6)], [(0.8, 0.2), (0.6, 0.4)])
    assert found == {"same_label": 0.5, "largest_difference_of_probabilities": 0.2}
    assert percentile(range(100), 0.99) == 99
    assert percentile([1.0], 0.5) == 1.0


def test_growth_is_seen_and_standing_still_is_not() -> None:
    steady = growth([(float(second), 500_000_000 + 1_000_000 * (second % 2)) for second in range(0, 300, 2)])
    assert steady == {"warm_mb": 500.0, "end_mb": 500.0, "largest_mb": 500.0, "mb_per_minute": 0.0}
    leaking = growth([(float(second), 500_000_000 + 100_000 * second) for second in range(0, 300, 2)])
    assert leaking["mb_per_minute"] == 6.0
    assert leaking["end_mb"] > leaking["warm_mb"]


def test_what_raises_elsewhere_is_one_sentence() -> None:
    with pytest.raises(RemoteError, match=r"ModuleNotFoundError: No module named 'bench\.nothing'"):
        Remote("bench.nothing:Thing", threads=1).wait()


def test_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    quick = [section.name for section in parse(["--quick"]).sections]
    assert quick == [section.name for section in SECTIONS if section.quick]
    assert [section.name for section in parse(["--only", "cliff,step"]).sections] == ["step", "cliff"]
    for wrong in (["--only", "nothing"], ["--rounds", "0"], ["--llama-server", str(tmp_path / "none")]):
        with pytest.raises(SystemExit):
            parse(wrong)
    with pytest.raises(SystemExit):
        parse(["--help"])
    shown = capsys.readouterr().out
    assert all(section.name in shown for section in SECTIONS)


def full_document() -> dict[str, Any]:
    report = Report(None, MACHINE, options(Path()).workload())
    for key, name in (
        ("tenora_http_distinct", "Tenora over HTTP, 16 distinct adapters"),
        ("peft_mixed", "PEFT, mixed"),
    ):
        report.rate(key, name, Spread((10.0, 12.0), "tok/s"))
    for count in (1, 5, 1000):
        report.rate(f"sweep_{count}", f"open loop over {count}", Spread((100.0, 110.0), "tok/s"))
    for kind in ("identical", "skewed"):
        report.rate(f"popularity_{kind}", kind, Spread((100.0, 110.0), "tok/s"))
    report.figures("popularity", {"requests": 64, "adapters": {"identical": 1, "skewed": 20}})
    latencies = {"p50": 10.0, "p99": 15.0, "p100": 20.0}
    report.figures(
        "bystander",
        {"itl_ms": dict.fromkeys(("quiet", "loads", "requests", "bytes"), latencies), "loads_per_second": 3.0},
    )
    points = [{"working_set": k, "tokens_per_s": 100 - k, "p50_ms": 20.0, "p99_ms": 40.0} for k in (7, 8, 16, 32)]
    report.figures("cliff", {"slots": 8, "host_cache_adapters": 16, "at_once": 4, "new_tokens": 16, "points": points})
    return report.document


def test_tables_and_plots(tmp_path: Path) -> None:
    text = render(full_document())
    assert all(f"`{key}`" in text for key in KEYS)
    drawn = draw(full_document(), tmp_path / "plots")
    assert {path.stem for path in drawn} == {"systems", "adapters", "bystander", "cliff", "popularity"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
    assert draw(Report(None, MACHINE, options(Path()).workload()).document, tmp_path / "none") == []
