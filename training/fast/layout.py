"""How the rows of a batch lie in one flattened row of tokens.

    rows       B B B a a a     B B B a a d     B B B c c    B: what all rows begin with
    tokens     B B B│a a a│d│c c                            a tree: each row's own tokens behind those of rows before it
    positions  0 1 2 3 4 5 5 3 4                            as if each row stood alone

What all rows begin with is the tree's trunk and stands at the front. A row's branch are the tokens that follow it and
belong to earlier rows (a a of the second row); what is left is its own. Nothing is padded. Attention sees each row
alone again: its own tokens behind those of its branch and of the trunk.
"""

import itertools
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
EVEN = 32
"""Padded rows see a multiple of it, as what torch's softmax does behind the last of its wide steps is slow."""


@dataclass(frozen=True)
class Group:
    """Rows of like length whose attention is one product, padded to the longest of them.

    Shapes:
        tokens: ``[rows · longest]`` the token at each place of the padded rows laid end to end; any where none is
        back: ``[n]`` the places that hold a token, in the order of the flattened row
        targets: ``[n]`` those tokens
        branches: ``[rows, width]`` the tokens of each row's branch, then any up to a width that suits the kernels
    """

    tokens: Tensor
    back: Tensor
    targets: Tensor
    branches: Tensor
    lengths: tuple[int, ...]
    widths: tuple[int, ...]
    shared: int
    causal: bool
    _masks: dict[tuple[int | None, torch.dtype], Tensor | None] = field(default_factory=dict)

    @property
    def longest(self) -> int:
        """Own tokens of the longest row."""
        return max(self.lengths)

    @property
    def front(self) -> int:
        """Places in front of each row's own tokens: trunk and padded branch."""
        return self.shared + self.branches.shape[1]

    @cached_property
    def span(self) -> slice | None:
        """Where the tokens stand if it is a single row, which needs no gathering; None for several."""
        if len(self.lengths) > 1:
            return None
        start = int(self.tokens[0])
        return slice(start, start + self.lengths[0])

    @cached_property
    def seen(self) -> Tensor:
        """``[rows · (front + longest)]``: the trunk, the branch and then ``tokens``, for each row."""
        trunk = torch.arange(self.shared, device=self.tokens.device).expand(len(self.lengths), -1)
        return torch.cat((trunk, self.branches, self.tokens.view(len(self.lengths), -1)), 1).flatten()

    @cached_property
    def seen_back(self) -> Tensor:
        """``[n]``: the places of ``seen`` that hold a row's own token, in the order of ``targets``."""
        rows, places = self.back // self.longest, self.back % self.longest
        return rows * (self.front + self.longest) + self.front + places

    @cached_property
    def branching(self) -> tuple[Tensor, Tensor]:
        """(places of ``seen`` that hold a branch's token, those tokens), ``[n]`` each."""
        there = torch.arange(self.branches.shape[1]) < torch.tensor(self.widths)[:, None]
        rows, places = there.nonzero().T.to(self.branches.device)
        return rows * (self.front + self.longest) + self.shared + places, self.branches[rows, places]

    def mask(self, window: int | None, dtype: torch.dtype = torch.float32) -> Tensor | None:
        """``[rows, 1, longest, front + longest]``, −∞ where a token may not look; None if it may anywhere.

        Args:
            window: How far back a token sees, itself included; None: to the beginning.
        """
        if (window, dtype) not in self._masks:
            self._masks[window, dtype] = self._mask(window, dtype)
        return self._masks[window, dtype]

    def _mask(self, window: int | None, dtype: torch.dtype) -> Tensor | None:
        before = self.shared + torch.tensor(self.widths)[:, None]
        front, own = torch.arange(self.front).expand(len(before), -1), torch.arange(self.longest)
        there = torch.cat((front < before, own < torch.tensor(self.lengths)[:, None]), 1)
        keys = torch.cat((front, before + own), 1)[:, None, None, :]
        queries = (before + own)[:, None, :, None]
        allowed = there[:, None, None, :].expand(-1, 1, self.longest, -1)
        if self.causal:
            allowed = allowed & (keys <= queries)
        if window is not None:
            allowed = allowed & (queries - keys < window)
        if bool(allowed.all()):
            return None
        # A padded place sees itself, or the softmax would divide by zero.
        itself = torch.arange(self.front + self.longest) == self.front + own[:, None]
        allowed = allowed | itself
        return torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, -math.inf).to(self.tokens.device)


@dataclass(frozen=True)
class Layout:
    """Where the tokens of each row are.

    Args:
        shared: Tokens that all rows begin with and that stand at the front once.
        lengths: Own tokens of each row. None are left to a row that is the beginning of an earlier one.
        causal: Whether a token sees only what came before it.
        branches: Which tokens of earlier rows stand between the trunk and each row's own; empty: none for any row.
    """

    shared: int
    lengths: tuple[int, ...]
    causal: bool
    device: torch.device
    branches: tuple[tuple[int, ...], ...] = ()

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Where each row's own tokens begin."""
        return tuple(itertools.accumulate(self.lengths[:-1], initial=self.shared))

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The trunk by itself, and then all rows, those of like length together."""
        groups = [self._trunk()] if self.shared else []
        own = [row for row, length in enumerate(self.lengths) if length]
        rows: list[int] = []
        for row in sorted(own, key=lambda row: (-self.lengths[row], -len(self.branch(row)))):
            longest = self.lengths[rows[0]] if rows else self.lengths[row]
            widest = max(len(self.branch(each)) for each in (*rows, row))
            full = (len(rows) + 1) * longest * (self.shared + widest + longest) > SCORES
            if rows and (full or (longest > WIDE and self.lengths[row] < ALIKE * longest)):
                groups.append(self._group(rows))
                rows = []
            rows.append(row)
        return (*groups, self._group(rows)) if rows else tuple(groups)

    @cached_property
    def spans(self) -> tuple[Tensor, Tensor]:
        """All rows as the compiled kernels read them, the trunk as the first.

        Shapes:
            (``[rows, 4]``, ``[n]``): the first of a row's own tokens, how many, where its path begins, how many are on
            it; and the paths, the tokens of trunk and branch, of all rows
        """
        spans = [(0, self.shared, 0, 0)] if self.shared else []
        paths: list[int] = []
        for row, (start, length) in enumerate(zip(self.starts, self.lengths, strict=True)):
            if length:
                path = (*range(self.shared), *self.branch(row))
                spans.append((start, length, len(paths), len(path)))
                paths += path
        return torch.tensor(spans).view(-1, 4), torch.tensor(paths, dtype=torch.long)

    def branch(self, row: int) -> tuple[int, ...]:
        """The tokens between the trunk and a row's own."""
        return self.branches[row] if self.branches else ()

    def place(self, row: int, position: int) -> int:
        """The token at ``position`` of a row."""
        branch = self.branch(row)
        behind = position - self.shared
        if behind < 0:
            return position
        return branch[behind] if behind < len(branch) else self.starts[row] + behind - len(branch)

    def _trunk(self) -> Group:
        tokens = torch.arange(self.shared, device=self.device)
        nothing = tokens.new_zeros(1, 0)
        return Group(tokens, tokens, tokens, nothing, (self.shared,), (0,), 0, self.causal)

    def _group(self, rows: Sequence[int]) -> Group:
        lengths = torch.tensor([self.lengths[row] for row in rows])
        there = torch.arange(int(lengths.max())) < lengths[:, None]
        places = torch.tensor([self.starts[row] for row in rows])[:, None] + torch.arange(int(lengths.max()))
        tokens = places.where(there, 0).flatten()
        back = there.flatten().nonzero()[:, 0]
        widths = tuple(len(self.branch(row)) for row in rows)
        branches = self._padded_branches(rows, int(lengths.max()))
        tokens, back, targets, branches = (part.to(self.device) for part in (tokens, back, tokens[back], branches))
        lengths_of = tuple(lengths.tolist())
        return Group(tokens, back, targets, branches, lengths_of, widths, self.shared, self.causal)

    def _padded_branches(self, rows: Sequence[int], longest: int) -> Tensor:
        width = max(len(self.branch(row)) for row in rows)
        seen = self.shared + width + longest
        if seen > EVEN and (len(rows) > 1 or seen > longest):  # a row that sees itself only is not gathered
            width += -seen % EVEN
        padded = [[*self.branch(row), *[0] * (width - len(self.branch(row)))] for row in rows]
        return torch.tensor(padded, dtype=torch.long)


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
        share: Compute what rows begin with alike once. Only where ``causal``: else the beginning of each row sees what
            follows it.
        first_position: The position of a row's first token.
    """
    if not (share and causal and len(rows) > 1):
        ids = [token for row in rows for token in row]
        positions = [place for row in rows for place in range(len(row))]
        layout = Layout(0, tuple(map(len, rows)), causal, device)
    else:
        layout, ids, positions = _tree(rows, device)
    return Packed(layout, torch.tensor([ids], device=device), torch.tensor([positions], device=device) + first_position)


def _tree(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Layout, list[int], list[int]]:
    """(layout, token ids, their positions in a row): every different beginning of a row stands once."""
    known: dict[tuple[int, int], int] = {}  # (place of the token before, token) -> place
    positions: list[int] = []
    shared = common_beginning(rows)
    lengths, branches = [], []
    for row in rows:
        place, path, own = -1, [], len(known)
        for position, token in enumerate(row):
            place = known.setdefault((place, token), len(known))
            path.append(place)
            if place == len(positions):
                positions.append(position)
        own = max(own, shared)  # the trunk is nobody's own
        lengths.append(len(known) - own)
        branches.append(tuple(path[shared : len(path) - lengths[-1]]))
    layout = Layout(shared, tuple(lengths), True, device, tuple(branches))
    return layout, [token for _, token in known], positions


def common_beginning(rows: Sequence[Sequence[int]]) -> int:
    """Tokens that all rows begin with."""
    first, shortest = rows[0], min(len(row) for row in rows)
    differing = (place for place in range(shortest) if any(row[place] != first[place] for row in rows))
    return next(differing, shortest)
