from hypothesis import given
from hypothesis import strategies as st

from lathe.engine.kv_cache import PagePool


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 9)), max_size=60))
def test_pages_are_never_lost_or_given_twice(moves):
    pool, held = PagePool(32), []
    for takes, count in moves:
        if takes and count <= pool.num_free:
            held.append(pool.take(count, after=held[-1][-1] if held else None))
        elif not takes and held:
            pool.give_back(held.pop(count % len(held)))
        pool.check()
        flat = [page for pages in held for page in pages]
        assert len(flat) == len(set(flat)) == 32 - pool.num_free
        assert all(0 <= page < 32 for page in flat)
    for pages in held:
        pool.give_back(pages)
    pool.check()
    assert pool.take(32) == list(range(32))


def test_a_growing_sequence_stays_in_one_piece():
    pool = PagePool(64)
    first = pool.take(4)
    other = pool.take(4)
    assert pool.take(2, after=other[-1]) == [8, 9]
    pool.give_back(first)
    assert pool.take(3) == [0, 1, 2]
    assert pool.take(3, after=2) == [3, 10, 11]
