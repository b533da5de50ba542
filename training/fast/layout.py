"""How the rows of a batch lie in one flattened row of tokens.

    rows       B B B a a a     B B B c c    B: what all rows begin with
    tokens     B B B│a a a│c c              the beginning once, then what each row has of its own, nothing padded
    positions  0 1 2 3 4 5 3 4              as if each row stood alone

Attention sees each row alone again: its own tokens behind those of the beginning.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

SCORES = 1 << 16
"""Attention scores of one head that are computed in one product; beyond it they no longer stay in the cache."""
WIDE, ALIKE = 128, 0.85
"""Rows of more own tokens than ``WIDE`` fill a product by themselves: only those that are nearly as long join them."""


@dataclass(frozen=True)
class Group:
    """Rows of like length whose attention is one product, padded to the longest of them.

    Shapes:
        tokens: ``[rows · longest]`` the token at each place of the padded rows laid end to end; any where none is
        back: ``[n]`` the places that hold a token, in the order of the flattened row
        targets: ``[n]`` those tokens
    """

    tokens: Tensor
    back: Tensor
    targets: Tensor
    lengths: tuple[int, ...]
    shared: int
    causal: bool
    _masks: dict[tuple[int | None, torch.dtype], Tensor | None] = field(default_factory=dict)

    @property
    def longest(self) -> int:
        """Own tokens of the longest row."""
        return max(self.lengths)

    @cached_property
    def span(self) -> slice | None:
        """Where the tokens stand if it is a single row, which needs no gathering; None for several."""
        if len(self.lengths) > 1:
            return None
        start = int(self.tokens[0])
        return slice(start, start + self.lengths[0])

    @cached_property
    def seen(self) -> Tensor:
        """``[rows · (shared + longest)]``: the beginning and then ``tokens``, for each row."""
        front = torch.arange(self.shared, device=self.tokens.device).expand(len(self.lengths), -1)
        return torch.cat((front, self.tokens.view(len(self.lengths), -1)), 1).flatten()

    def mask(self, window: int | None, dtype: torch.dtype = torch.float32) -> Tensor | None:
        """``[rows, 1, longest, shared + longest]``, −∞ where a token may not look; None if it may anywhere.

        Args:
            window: How far back a token sees, itself included; None: to the beginning.
        """
        if (window, dtype) not in self._masks:
            self._masks[window, dtype] = self._mask(window, dtype)
        return self._masks[window, dtype]

    def _mask(self, window: int | None, dtype: torch.dtype) -> Tensor | None:
        keys = torch.arange(-self.shared, self.longest)
        queries = torch.arange(self.longest)[:, None]
        allowed = (keys < torch.tensor(self.lengths)[:, None])[:, None, None, :].expand(-1, 1, self.longest, -1)
        if self.causal:
            allowed = allowed & (keys <= queries)
        if window is not None:
            allowed = allowed & (queries - keys < window)
        if bool(allowed.all()):
            return None
        allowed = allowed | (keys == queries)  # a padded place sees itself, or the softmax would divide by zero
        return torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, -math.inf).to(self.tokens.device)


@dataclass(frozen=True)
class Layout:
    """Where the tokens of each row are.

    Args:
        shared: Tokens that all rows begin with and that stand at the front once.
        lengths: Tokens of each row that follow them, at least one.
        causal: Whether a token sees only what came before it.
    """

    shared: int
    lengths: tuple[int, ...]
    causal: bool
    device: torch.device

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Where each row's own tokens begin."""
        starts, place = [], self.shared
        for length in self.lengths:
            starts.append(place)
            place += length
        return tuple(starts)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The beginning by itself, and then all rows, those of like length together."""
        groups = [self._beginning()] if self.shared else []
        longest_first = sorted(range(len(self.lengths)), key=lambda row: -self.lengths[row])
        rows: list[int] = []
        for row in longest_first:
            longest = self.lengths[rows[0]] if rows else self.lengths[row]
            full = (len(rows) + 1) * longest * (self.shared + longest) > SCORES
            if rows and (full or (longest > WIDE and self.lengths[row] < ALIKE * longest)):
                groups.append(self._group(rows))
                rows = []
            rows.append(row)
        return (*groups, self._group(rows))

    def place(self, row: int, position: int) -> int:
        """The token at ``position`` of a row."""
        return position if position < self.shared else self.starts[row] + position - self.shared

    def _beginning(self) -> Group:
        tokens = torch.arange(self.shared, device=self.device)
        return Group(tokens, tokens, tokens, (self.shared,), 0, self.causal)

    def _group(self, rows: Sequence[int]) -> Group:
        lengths = torch.tensor([self.lengths[row] for row in rows])
        there = torch.arange(int(lengths.max())) < lengths[:, None]
        places = torch.tensor([self.starts[row] for row in rows])[:, None] + torch.arange(int(lengths.max()))
        tokens = places.where(there, 0).flatten()
        back = there.flatten().nonzero()[:, 0]
        tokens, back, targets = (part.to(self.device) for part in (tokens, back, tokens[back]))
        return Group(tokens, back, targets, tuple(lengths.tolist()), self.shared, self.causal)


@dataclass(frozen=True, slots=True)
class Packed:
    """A batch in one flattened row.

    Shapes:
        input_ids, position_ids: ``[1, tokens]``
    """

    layout: Layout
    input_ids: Tensor
    position_ids: Tensor


def pack(
    rows: Sequence[Sequence[int]], *, causal: bool, share: bool, device: torch.device, first_position: int = 0
) -> Packed:
    """Lay ``rows`` of token ids end to end.

    Args:
        share: Put what all rows begin with at the front once. Only where ``causal``: else the beginning of each row
            sees what follows it.
        first_position: The position of a row's first token.
    """
    shared = common_beginning(rows) if share and causal and len(rows) > 1 else 0
    layout = Layout(shared, tuple(len(row) - shared for row in rows), causal, device)
    ids = [*rows[0][:shared], *(token for row in rows for token in row[shared:])]
    positions = [*range(shared), *(place for row in rows for place in range(shared, len(row)))]
    return Packed(layout, torch.tensor([ids], device=device), torch.tensor([positions], device=device) + first_position)


def common_beginning(rows: Sequence[Sequence[int]]) -> int:
    """Tokens that all rows begin with; the last token of the shortest row is not among them."""
    most = min(len(row) for row in rows) - 1
    first = rows[0]
    for place in range(most):
        if any(row[place] != first[place] for row in rows):
            return place
    return max(most, 0)
