"""Who holds which block: nothing is lost, nothing is shared."""

import random
from typing import Any

import pytest
import torch

from service.engine.cuda.paged_cache import BLOCK_TOKENS, SCRATCH, PagedKVCache
from service.engine.kv_cache import Allocation, Content
from tests.engine.cuda.rows import take

CPU = torch.device("cpu")


def cache(**sizes: Any) -> PagedKVCache:
    given = {"layers": 2, "rows": 3, "blocks": 8, "length": 16, "kv_heads": 1, "head_dim": 2, "block_tokens": 4} | sizes
    return PagedKVCache(**given, dtype=torch.float32, device=CPU)


def within(max_bytes: int, *, rows: int = 4, length: int = 600) -> PagedKVCache:
    return PagedKVCache.within(
        max_bytes, layers=1, rows=rows, length=length, kv_heads=1, head_dim=2, dtype=torch.float32, device=CPU
    )


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_coming_and_going(seed: int) -> None:
    """Few tokens and scopes, so that many sequences begin alike; all blocks hold what the table says, at all times."""
    rng, kv = random.Random(seed), cache(rows=5, blocks=12, layers=1)
    held: dict[int, Content] = {}
    for _ in range(150):
        if held and rng.random() < 0.5:
            row = rng.choice(sorted(held))
            content = held.pop(row)
            done = Content(content.scope, content.tokens[: rng.randint(0, len(content.tokens))])
            if rng.random() < 0.7:
                kv.release(row, done)
            else:
                kv.release(row, scrub=len(content.tokens))
        else:
            content = Content(rng.choice("ab"), [rng.choice([1, 2]) for _ in range(rng.randint(1, 16))])
            before, fits = (kv.free, kv.free_blocks), kv.fits(len(content.tokens))
            assert fits == (before[0] > 0 and before[1] >= -(-len(content.tokens) // 4))
            allocation = kv.allocate(content, len(content.tokens) - 1, tokens=len(content.tokens))
            if allocation is None:
                assert not fits
                assert (kv.free, kv.free_blocks) == before, "something was taken for nothing"
            else:
                assert fits
                assert allocation.reused < len(content.tokens)
                compute(kv, allocation, content)
                held[allocation.row] = content
        kv.check_integrity()
        for row, content in held.items():
            places = torch.tensor(kv.places(row, 0, len(content.tokens)))
            assert kv.keys[0].flatten(0, 1)[places, 0, 0].tolist() == marks(content), "what was computed is not there"
            assert SCRATCH not in set((places // 4).tolist()), "a sequence writes to the scratch block"
    for row in list(held):
        kv.release(row)
    assert (kv.free, kv.free_blocks) == (5, 11)


def marks(content: Content) -> list[float]:
    """A number for each token that depends on all before it, as keys and values do."""
    found = [float(ord(str(content.scope)))]
    for token in content.tokens:
        found.append((found[-1] * 3 + token) % 1009)
    return found[1:]


def compute(kv: PagedKVCache, allocation: Allocation, content: Content) -> None:
    new = torch.tensor(marks(content)[allocation.reused :]).view(-1, 1, 1).expand(-1, 1, 2)
    places = kv.places(allocation.row, allocation.reused, len(content.tokens))
    kv.write(0, torch.tensor(places), new, new)


def test_a_finished_beginning_is_shared_under_the_same_scope_only() -> None:
    kv = cache(rows=3, blocks=9)
    row = take(kv, 10)
    kv.release(row, Content("acme/1", range(10)))
    first = kv.allocate(Content("acme/1", range(16)), 15)
    second = kv.allocate(Content("acme/1", range(9)), 8, tokens=9)
    other = kv.allocate(Content("zeta/1", range(9)), 8, tokens=4)
    assert first is not None and second is not None and other is not None
    assert (first.reused, second.reused, other.reused) == (8, 8, 0)
    assert kv.block_table[first.row, :2].tolist() == kv.block_table[second.row, :2].tolist()
    assert kv.block_table[first.row, 2] != kv.block_table[second.row, 2]
    kv.check_integrity()


def test_the_last_token_is_always_computed() -> None:
    kv = cache()
    kv.release(take(kv, 8), Content("", range(8)))
    allocation = kv.allocate(Content("", range(8)), 7, tokens=8)
    assert allocation is not None
    assert allocation.reused == 4


def test_what_is_longest_unused_makes_room_the_ends_first() -> None:
    kv = cache(rows=2, blocks=5)
    kv.release(take(kv, 16), Content("", range(16)))
    kv.release(take(kv, 8))
    allocation = kv.allocate(Content("", range(16)), 15)
    assert allocation is not None
    assert allocation.reused == 8, "the last two of four blocks were given away"


def test_nothing_is_kept_where_it_is_not_wanted() -> None:
    kv = cache(reuse=False)
    kv.release(take(kv, 8), Content("", range(8)))
    allocation = kv.allocate(Content("", range(8)), 7)
    assert allocation is not None
    assert allocation.reused == 0


def test_places_follow_the_block_table() -> None:
    kv = cache()
    take(kv, 4)
    row = take(kv, 11)
    table = kv.block_table[row].tolist()
    assert kv.places(row, 0, 11) == [table[position // 4] * 4 + position % 4 for position in range(11)]
    assert kv.places(row, 5, 9) == kv.places(row, 0, 11)[5:9]
    assert table[3] == SCRATCH
    assert kv.block_table[kv.scratch_row].tolist() == [SCRATCH] * 4


def test_what_is_written_is_where_the_table_says() -> None:
    kv = cache()
    row = take(kv, 10)
    keys = torch.arange(20.0).view(10, 1, 2)
    kv.write(1, torch.tensor(kv.places(row, 0, 10)), keys, -keys)
    blocks = kv.block_table[row].long()
    torch.testing.assert_close(kv.keys[1][blocks].flatten(0, 1)[:10], keys)
    torch.testing.assert_close(kv.values[1][blocks].flatten(0, 1)[:10], -keys)
    assert not kv.keys[0].any()


def test_a_scrubbed_row_leaves_nothing_behind() -> None:
    kv = cache()
    row = take(kv, 8)
    nan = torch.full((6, 1, 2), torch.nan)
    for layer in range(2):
        kv.write(layer, torch.tensor(kv.places(row, 0, 6)), nan, nan)
    kv.release(row, scrub=6)
    assert not any(tensor.isnan().any() for tensor in (*kv.keys, *kv.values))


def test_blocks_run_out_before_rows_do() -> None:
    kv = cache(rows=3, blocks=6)
    assert take(kv, 16) == 0
    assert kv.allocate(Content("", ()), 0, tokens=8) is None
    assert take(kv, 4) == 1
    kv.release(0)
    assert take(kv, 8) == 0


def test_more_than_a_row_can_hold_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="do not fit"):
        take(cache(), 17)


def test_the_cache_takes_what_it_may_and_no_more_than_it_needs() -> None:
    block_bytes = 2 * BLOCK_TOKENS * 2 * 4
    assert within(7 * block_bytes + 1).blocks == 7
    assert within(1 << 40).blocks == 1 + 4 * 3
    with pytest.raises(ValueError, match=rf"{4 * block_bytes} bytes .* raise it or lower max_model_len"):
        within(4 * block_bytes - 1)


def test_a_table_that_says_otherwise_is_noticed() -> None:
    kv = cache()
    take(kv, 8)
    kv.block_table[0, 0] = 7
    with pytest.raises(AssertionError, match="block table is off"):
        kv.check_integrity()
