"""Texts that are nearly the same: MinHash finds the candidates, and the exact overlap decides.

Two texts are compared by the runs of five characters that they hold, after case, punctuation and white space are
evened out. Candidates are texts that agree in a band of their MinHash signature; at an overlap of 0.8 that finds
98 of 100 pairs and more. What is found is then true: no pair is reported whose overlap is below the threshold.
"""

import re
from collections import defaultdict
from collections.abc import Sequence

import numpy
from numpy.typing import NDArray

Hashes = NDArray[numpy.uint32]

THRESHOLD = 0.8
_RUN = 5
_BANDS, _BAND = 8, 4
_LEAST = _BANDS * _BAND // 2
"""Places of a signature that agree before the exact overlap is worth counting: at 0.8 only one in 10,000 has fewer."""
_MOST = 256
"""Texts of a band that later ones are compared with: bounds the work where thousands agree by a common phrase."""
_GENERATOR = numpy.random.default_rng(5)
_FACTORS: Hashes = _GENERATOR.integers(0, 1 << 32, (_BANDS * _BAND, 1), dtype=numpy.uint32) | numpy.uint32(1)
_SHIFTS: Hashes = _GENERATOR.integers(0, 1 << 32, (_BANDS * _BAND, 1), dtype=numpy.uint32)
_WEIGHTS: Hashes = _GENERATOR.integers(0, 1 << 32, _RUN, dtype=numpy.uint32) | numpy.uint32(1)


def near_copies(texts: Sequence[str], threshold: float = THRESHOLD) -> dict[int, int]:
    """{index: index of the earliest text found that it is a near copy of}, for every text that is one."""
    runs = [_runs(text) for text in texts]
    signatures = numpy.stack([_signature(of_text) for of_text in runs]) if runs else numpy.empty((0, 0), numpy.uint32)
    found: dict[int, int] = {}
    for band in range(0, _BANDS * _BAND, _BAND):
        for members in _agreeing(signatures[:, band : band + _BAND]):
            for later, earlier in _copies(members, signatures, runs, threshold):
                found[later] = min(earlier, found.get(later, earlier))
    return found


def overlap(one: Hashes, other: Hashes) -> float:
    """Jaccard's index of two sets of runs: shared ones over all; 1 for equal texts."""
    shared = numpy.intersect1d(one, other, assume_unique=True).size
    return float(shared / (one.size + other.size - shared))


def _agreeing(band: Hashes) -> list[list[int]]:
    """Groups of at least two texts whose signatures agree in a band [texts, rows of the band]."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for index, row in enumerate(band):
        groups[row.tobytes()].append(index)
    return [members for members in groups.values() if len(members) > 1]


def _copies(
    members: Sequence[int], signatures: Hashes, runs: Sequence[Hashes], threshold: float
) -> list[tuple[int, int]]:
    """Each member that is a near copy, with the earlier one whose signature is most like its own."""
    originals: list[int] = []
    copies = []
    for index in members:
        agreeing = (signatures[originals[:_MOST]] == signatures[index]).sum(axis=1)
        best = int(agreeing.argmax()) if originals else 0
        likely = bool(originals) and agreeing[best] >= _LEAST
        if likely and overlap(runs[originals[best]], runs[index]) >= threshold:
            copies.append((index, originals[best]))
        else:
            originals.append(index)
    return copies


def _runs(text: str) -> Hashes:
    """The hashes of a text's runs, each once, sorted."""
    even = re.sub(r"\W+", " ", text.casefold()).strip() or text
    codes = numpy.frombuffer(even.ljust(_RUN).encode("utf-32-le", "surrogatepass"), dtype=numpy.uint32)
    count = codes.size - _RUN + 1
    hashes = numpy.zeros(count, numpy.uint32)
    for offset, weight in enumerate(_WEIGHTS):
        hashes += codes[offset : offset + count] * weight
        hashes ^= hashes >> numpy.uint32(15)
    return numpy.unique(hashes)


def _signature(runs: Hashes) -> Hashes:
    """The least hash under each of the functions, [bands * rows]."""
    lowest: Hashes = (runs * _FACTORS + _SHIFTS).min(axis=1)
    return lowest
