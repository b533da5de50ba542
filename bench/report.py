"""What a run of the serving benchmark found."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.document import Document
from bench.measuring import Spread

RATIOS: Mapping[str, str] = {
    "distinct_vs_llamacpp": "distinct adapters over HTTP: output tokens/s of Tenora ÷ llama.cpp's server",
    "distinct_vs_peft_mixed": "distinct adapters: Tenora over HTTP ÷ PEFT `adapter_names`",
    "base_vs_llamacpp": "no adapters, over HTTP: Tenora ÷ llama.cpp's server",
    "distinct_vs_identical": "Tenora over HTTP: distinct adapters ÷ one adapter for all",
    "distinct_vs_base": "Tenora over HTTP: distinct adapters ÷ no adapters",
    "step_vs_floor": "a decode step: its floor ÷ what it takes",
    "http_vs_engine": "distinct adapters: Tenora over HTTP ÷ its engine called directly",
    "classify_vs_peft": "mixed texts, several classifiers: texts/s of Tenora ÷ padded PEFT `adapter_names`",
    "adapters1000_vs_5": "open loop at 0.8 of capacity: output tokens/s with 1,000 adapters ÷ with 5",
    "bystander_p99": "p99 inter-token latency of a stream while others load and unload ÷ while it is quiet",
    "cold_minus_warm_ms": "time to the first token of an adapter only on disk − of a warm one, in ms",
}
LESS_IS_BETTER = frozenset({"bystander_p99", "cold_minus_warm_ms"})


class Report(Document):
    """Collects what sections find out: besides the ratios, what each system did."""

    def __init__(self, path: Path | None, machine: Mapping[str, Any], workload: Mapping[str, Any]) -> None:
        super().__init__(path, machine, workload, RATIOS)
        self.document["rates"] = {}

    def rate(self, key: str, name: str, spread: Spread) -> None:
        """What a system did, over the rounds."""
        self.document["rates"][key] = {"system": name, **spread.to_json()}

    def figures(self, section: str, values: Mapping[str, Any]) -> None:
        """Whatever else a section measured."""
        self.document["figures"].setdefault(section, {}).update(values)

    def ratio_of(self, key: str, over: str, under: str) -> None:
        """A ratio of two rates; stays null where one of them is missing."""
        rates = self.document["rates"]
        if over in rates and under in rates:
            self.ratio(key, rates[over]["median"] / rates[under]["median"])

    def value(self, key: str) -> float | None:
        """The median of a rate, if it was measured."""
        rate = self.document["rates"].get(key)
        return None if rate is None else float(rate["median"])
