"""Where the tokens of each row are."""

import pytest
import torch

from tests.training.fast.models import tree_rows
from training.fast.layout import Layout, common_beginning, pack

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("rows", "shared"),
    [
        ([[1, 2, 3], [1, 2, 4]], 2),
        ([[1, 2, 3], [1, 2, 3]], 3),
        ([[1, 2, 3], [1, 2]], 2),
        ([[1, 2], [1, 2, 3, 4]], 2),
        ([[1], [1, 2]], 1),
        ([[1, 2], [3, 2]], 0),
        ([[1, 2, 3]], 3),
        ([[7, 7, 7, 1], [7, 7, 7, 2], [7, 7, 3, 3]], 2),
    ],
)
def test_common_beginning(rows: list[list[int]], shared: int) -> None:
    assert common_beginning(rows) == shared


def test_pack() -> None:
    packed = pack([[5, 6, 1, 2, 3], [5, 6, 4]], causal=True, share=True, device=CPU)
    assert packed.input_ids.tolist() == [[5, 6, 1, 2, 3, 4]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 4, 2]]
    assert (packed.layout.shared, packed.layout.lengths, packed.layout.starts) == (2, (3, 1), (2, 5))
    assert [packed.layout.place(1, position) for position in range(3)] == [0, 1, 5]
    assert [packed.layout.place(row, 0) for row in (0, 1)] == [0, 0]


def test_pack_as_a_tree() -> None:
    """The second row goes on behind two tokens of the first; nothing is left to the third and the fourth."""
    packed = pack(
        [[5, 6, 1, 2, 3], [5, 6, 1, 2, 7, 8], [5, 6, 1], [5, 6, 1, 2, 7, 8]], causal=True, share=True, device=CPU
    )
    assert packed.input_ids.tolist() == [[5, 6, 1, 2, 3, 7, 8]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 4, 4, 5]]
    layout = packed.layout
    assert (layout.shared, layout.lengths, layout.branches) == (3, (2, 2, 0, 0), ((), (3,), (), (3, 5, 6)))
    assert [layout.place(1, position) for position in range(6)] == [0, 1, 2, 3, 5, 6]
    assert [layout.place(3, position) for position in range(6)] == [0, 1, 2, 3, 5, 6]


@pytest.mark.parametrize("seed", range(8))
def test_random_trees(seed: int) -> None:
    """Every different beginning stands once, and every row finds its tokens, at its positions, in its own order."""
    rows = tree_rows(12, seed)
    packed = pack(rows, causal=True, share=True, device=CPU)
    ids, positions = packed.input_ids[0].tolist(), packed.position_ids[0].tolist()
    assert len(ids) == len({tuple(row[: end + 1]) for row in rows for end in range(len(row))})
    assert len(ids) < sum(map(len, rows)) - common_beginning(rows) * (len(rows) - 1)
    for index, row in enumerate(rows):
        places = [packed.layout.place(index, position) for position in range(len(row))]
        assert [ids[place] for place in places] == row
        assert [positions[place] for place in places] == list(range(len(row)))
        assert places == sorted(places)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(("seed", "most"), [(0, 9), (1, 9), (2, 9), (0, 60)])
def test_what_is_seen_in_a_tree(seed: int, most: int, window: int | None) -> None:
    """Each token once, and it sees what stands before it in a row that has it: by the masks alone."""
    rows = tree_rows(12, seed, most)
    layout = pack(rows, causal=True, share=True, device=CPU).layout
    before = {}
    for index, row in enumerate(rows):
        places = [layout.place(index, position) for position in range(len(row))]
        for end in range(1, len(row) + 1):
            before[places[end - 1]] = set(places[max(0, end - window) if window else 0 : end])
    found: dict[int, set[int]] = {}
    for group in layout.groups:
        mask, seen = group.mask(window), group.seen.view(len(group.lengths), -1)
        for row, length in enumerate(group.lengths):
            for place in range(length):
                token = int(group.tokens.view(len(group.lengths), -1)[row, place])
                allowed = torch.ones(seen.shape[1], dtype=torch.bool) if mask is None else mask[row, 0, place] == 0
                assert token not in found
                found[token] = set(seen[row][allowed].tolist())
                assert int(allowed.sum()) == len(found[token])
    assert found == before


@pytest.mark.parametrize(
    ("rows", "causal", "share"),
    [
        ([[5, 6, 1], [5, 6, 2]], True, False),
        ([[5, 6, 1], [5, 6, 2]], False, True),
        ([[5, 6, 1]], True, True),
    ],
)
def test_nothing_is_shared(rows: list[list[int]], causal: bool, share: bool) -> None:
    """Where it is not asked for, where the beginning sees what follows it, and where there is one row."""
    packed = pack(rows, causal=causal, share=share, device=CPU)
    assert packed.layout.shared == 0
    assert packed.input_ids.tolist() == [[token for row in rows for token in row]]


def test_positions_begin_where_the_architecture_says() -> None:
    packed = pack([[4, 5], [6]], causal=False, share=False, device=CPU, first_position=2)
    assert packed.position_ids.tolist() == [[2, 3, 2]]


def test_every_token_is_in_one_group() -> None:
    layout = Layout(3, tuple(range(1, 200, 7)), True, CPU)
    targets = torch.cat([group.targets for group in layout.groups])
    assert len(layout.groups) > 2
    assert sorted(targets.tolist()) == list(range(layout.shared + sum(layout.lengths)))


def test_long_rows_are_not_padded_to_longer_ones() -> None:
    """Short ones are: there a product for each would cost more than the padding. The longest are alone in any case."""
    long = Layout(0, (400, 390, 160, 150, 130, 100, 3), False, CPU)
    assert [group.lengths for group in long.groups] == [(400,), (390,), (160, 150), (130,), (100, 3)]


def test_long_rows_see_an_even_number() -> None:
    """As many as suit the kernels, what is too many masked; rows that are alone and see only themselves do without."""
    beginning, several = Layout(3, (40, 38), True, CPU, ((), (5,))).groups
    assert (beginning.front, several.front, several.front + several.longest) == (0, 24, 64)
    (alone,) = Layout(0, (40,), True, CPU).groups
    assert alone.front == 0
    mask = several.mask(None)
    assert mask is not None
    assert (mask[:, 0, :38] == 0).sum(-1).tolist() == [[extra + own for own in range(1, 39)] for extra in (3, 4)]


def test_masks() -> None:
    """None where everything may be seen; a padded place sees itself only."""
    assert Layout(0, (2, 2), False, CPU).groups[0].mask(None) is None
    (group,) = Layout(0, (2, 1), True, CPU).groups
    mask = group.mask(None)
    assert mask is not None
    assert (mask == 0)[:, 0].tolist() == [[[True, False], [True, True]], [[True, False], [True, True]]]
    assert group.mask(None) is mask


def test_what_a_row_sees() -> None:
    """The beginning and then its own tokens, each row by itself."""
    beginning, group = Layout(2, (1, 3), True, CPU).groups
    assert group.lengths == (3, 1)
    assert group.seen.view(2, -1)[:, :2].tolist() == [[0, 1]] * 2
    assert group.seen.view(2, -1)[0].tolist() == [0, 1, 3, 4, 5]
    assert group.seen.view(2, -1)[1, 2] == 2
    assert beginning.shared == 0
