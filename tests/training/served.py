"""An adapter as serving reads it: by the store, in the engine; and as PEFT reads it."""

from collections.abc import Sequence as Ids
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor

from adapters.adapter import load_adapter
from adapters.base import resolve_base
from adapters.names import AdapterRef
from adapters.store import Store, Version
from service.engine.config import EngineConfig
from service.engine.engine import Engine
from service.engine.sequence import Sequence
from tests.engine.driving import drain, generation
from tests.support.tiny import peft_model

TOLERANCE = 1e-4


def published(folder: Path, name: str = "acme/mine") -> Version:
    """The newest version in the store of a run."""
    return Store(folder / "store").resolve(AdapterRef.parse(name))


def of_engine(base: Path, adapter: Path | None, rows: Ids[Ids[int]]) -> Tensor:
    """``[rows, …]``: log-probabilities of the token after each row, or the numbers of a head."""
    source = resolve_base(str(base))
    engine = Engine(source, EngineConfig(dtype="float32", device="cpu", threads=1))
    loaded = None if adapter is None else load_adapter(adapter, source)
    generates = loaded is None or loaded.manifest.task == "generate"
    size = source.config().vocab_size
    sequences = [
        generation(str(number), list(ids), loaded, vocabulary=size, max_tokens=1)
        if generates
        else Sequence(str(number), list(ids), adapter=loaded)
        for number, ids in enumerate(rows)
    ]
    outcomes = drain(engine, *sequences)
    found = [outcomes[str(number)] for number in range(len(rows))]
    return torch.stack([outcome.logprobs[0] if generates else outcome.probabilities for outcome in found])


@torch.no_grad()
def of_peft(base: Path, adapter: Path, rows: Ids[Ids[int]], *, labels: int = 0, means: str = "softmax") -> Tensor:
    """The same by PEFT's own forward; ``means`` is what the numbers of a head of ``labels`` mean."""
    task = "classify" if labels else "generate"
    model = PeftModel.from_pretrained(peft_model(base, task=task, num_labels=labels), adapter).eval()
    logits = [model(input_ids=torch.tensor([list(ids)]), attention_mask=torch.ones(1, len(ids))).logits for ids in rows]
    if not labels:
        return torch.stack([of_row[0, -1].log_softmax(-1) for of_row in logits])
    found = torch.cat(logits)
    return {"softmax": found.softmax(-1), "sigmoid": found.sigmoid(), "number": found}[means]


def assert_served_as_trained(
    base: Path, adapter: Path, rows: Ids[Ids[int]], *, labels: int = 0, means: str = "softmax"
) -> None:
    """The engine gives what PEFT gives, and rows differ, or this would prove nothing."""
    found = of_engine(base, adapter, rows)
    torch.testing.assert_close(found, of_peft(base, adapter, rows, labels=labels, means=means), rtol=0, atol=TOLERANCE)
    assert (found.amax(0) - found.amin(0)).max() > 10 * TOLERANCE
