"""What the numbers of a head mean, as each adapter's manifest says.

classify, single_label    softmax: the labels' probabilities sum to one (the engine's own)
classify, multi_label     sigmoid: each label's probability by itself
score                     the number as it is
"""

from dataclasses import replace

from torch import Tensor

from adapters.manifest import Manifest
from service.engine.batch import Batch
from service.engine.engine import Engine
from service.engine.events import ClassifiedEvent, Event
from service.engine.runner import Output


class HeadEngine(Engine):
    """The engine with every meaning of a head; a ClassifiedEvent holds what the adapter's manifest promises."""

    def _classified(self, batch: Batch, output: Output) -> list[Event]:
        """Tell what came of the texts: the engine's own events, the numbers of some put in another way."""
        values: dict[tuple[str, int], tuple[float, ...]] = {}
        for group, logits in zip(batch.texts, output.label_logits, strict=True):
            assert group.sequences[0].adapter is not None, "the base has no head"
            if (meant := _meant(group.sequences[0].adapter.manifest, logits)) is not None:
                rows = map(tuple, meant.tolist())
                values |= {sequence.key: row for sequence, row in zip(group.sequences, rows, strict=True)}
        return [_with(event, values) for event in super()._classified(batch, output)]


def _meant(manifest: Manifest, logits: Tensor) -> Tensor | None:
    """``[texts, labels]`` logits as the manifest means them; None where that is the engine's softmax."""
    if manifest.task == "score":
        return logits
    return logits.sigmoid() if manifest.multi_label else None


def _with(event: Event, values: dict[tuple[str, int], tuple[float, ...]]) -> Event:
    if not isinstance(event, ClassifiedEvent):
        return event
    return replace(event, probabilities=values.get((event.request_id, event.index), event.probabilities))
