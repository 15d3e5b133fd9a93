"""Who computes which heads: every query head once, as evenly as can be, each beside its key head."""

from __future__ import annotations

import pytest
from conftest import tiny_config

from tuneval.parallel.heads import Heads


@pytest.mark.parametrize(
    ("queries", "keys"), [(28, 4), (6, 2), (9, 3), (12, 3), (12, 12), (14, 2), (15, 3), (40, 8), (7, 1)]
)
def test_every_query_head_is_computed_once_beside_its_key_head(queries, keys):
    config = tiny_config(num_attention_heads=queries, num_key_value_heads=keys)
    for size in range(1, queries + 1):
        everyone = [Heads.of(config, size, rank) for rank in range(size)]
        columns = [c for columns in everyone[0]._heads() for c in columns]
        assert columns == [c for share in everyone[0]._shares() for c in share] == list(range(queries * 8))
        counts = [len(columns) // 8 for columns in everyone[0]._heads()]
        assert min(counts) > 0 and max(counts) - min(counts) <= 1
        for heads, mine in zip(everyone, everyone[0]._heads()):
            start, stop = heads.key_rows.start // 8, heads.key_rows.stop // 8
            seen = heads.order or [n // heads.queries_of_a_key for n in range(len(mine) // 8)]
            wanted = [(mine.start // 8 + n) // (queries // keys) for n in range(len(mine) // 8)]
            assert [start + key for key in seen] == wanted and wanted[-1] + 1 == stop
        assert everyone[0].are_shares == (queries % size == 0)


def test_qwen_7b_on_eight_processes():
    """28 query heads, 4 key heads: four and three by turns, so that two processes share one key head."""
    config = tiny_config(num_attention_heads=28, num_key_value_heads=4)
    everyone = [Heads.of(config, 8, rank) for rank in range(8)]
    assert [h.queries_of_a_key for h in everyone] == [4, 3, 4, 3, 4, 3, 4, 3]
    assert [h.key_rows.start // 8 for h in everyone] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert all(h.order is None for h in everyone)
