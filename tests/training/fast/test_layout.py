"""Where the tokens of each row are."""

import pytest
import torch

from training.fast.layout import Layout, common_beginning, pack

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("rows", "shared"),
    [
        ([[1, 2, 3], [1, 2, 4]], 2),
        ([[1, 2, 3], [1, 2, 3]], 2),
        ([[1, 2, 3], [1, 2]], 1),
        ([[1, 2], [1, 2, 3, 4]], 1),
        ([[1], [1, 2]], 0),
        ([[1], [1]], 0),
        ([[1, 2], [3, 2]], 0),
        ([[1, 2, 3]], 2),
        ([[7, 7, 7, 1], [7, 7, 7, 2], [7, 7, 3, 3]], 2),
    ],
)
def test_common_beginning(rows: list[list[int]], shared: int) -> None:
    """The last token of the shortest row is never among them: every row has one of its own."""
    assert common_beginning(rows) == shared


def test_pack() -> None:
    packed = pack([[5, 6, 1, 2, 3], [5, 6, 4]], causal=True, share=True, device=CPU)
    assert packed.input_ids.tolist() == [[5, 6, 1, 2, 3, 4]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 4, 2]]
    assert (packed.layout.shared, packed.layout.lengths, packed.layout.starts) == (2, (3, 1), (2, 5))
    assert [packed.layout.place(1, position) for position in range(3)] == [0, 1, 5]
    assert [packed.layout.place(row, 0) for row in (0, 1)] == [0, 0]


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
