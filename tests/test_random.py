"""The random stream: bit for bit Philox, the same however it is cut, and resumed by two integers."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minillm
from minillm import backend, ops, random
from minillm.errors import InputError
from minillm.random import BLOCK, Generator, bits, keep_scale, manual_seed

seeds = st.integers(0, 2**64 - 1)
MASK = 2**64 - 1


@pytest.fixture(autouse=True)
def stream():
    """Leave the default stream as it was."""
    place = random.default.state()
    yield
    random.default.set_state(place)


def philox(counter: int, key: int) -> list[int]:
    """Philox4x64-10 as its paper defines it, in Python integers: four 64-bit words of one counter."""
    c = [counter >> 64 * i & MASK for i in range(4)]
    k = [key & MASK, key >> 64 & MASK]
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [second >> 64 ^ c[1] ^ k[0], second & MASK, first >> 64 ^ c[3] ^ k[1], first & MASK]
        k = [k[0] + 0x9E3779B97F4A7C15 & MASK, k[1] + 0xBB67AE8584CAA73B & MASK]
    return c


def test_the_reference_gives_the_published_answers():
    """Random123's known-answer vectors for philox4x64-10."""
    zeros = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    assert philox(0, 0) == zeros
    ones = [0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0]
    assert philox(2**256 - 1, 2**128 - 1) == ones


@settings(max_examples=50, deadline=None)
@given(seeds, st.integers(0, 2**40), st.integers(0, 40))
def test_bits_are_philox_of_the_next_counter_low_half_first(seed, counter, count):
    words = [word for b in range(-(-count // BLOCK)) for word in philox(counter + b + 1, seed)]
    expected = [half for word in words for half in (word & 0xFFFFFFFF, word >> 32)][:count]
    numbers = bits(seed, counter, count)
    assert numbers.dtype == np.uint32
    assert numbers.tolist() == expected


def test_bits_are_numpys_own_stream():
    words = np.random.Philox(key=7).random_raw(50)
    np.testing.assert_array_equal(bits(7, 0, 100), words.view(np.uint32))
    np.testing.assert_array_equal(bits(7, 3, 16), words.view(np.uint32)[3 * BLOCK : 3 * BLOCK + 16])


@settings(max_examples=50, deadline=None)
@given(seeds, st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_a_stream_can_be_made_in_pieces(seed, blocks):
    whole = bits(seed, 0, BLOCK * sum(blocks))
    starts = np.cumsum([0, *blocks])[:-1].tolist()
    pieces = {
        start: bits(seed, start, BLOCK * n) for start, n in sorted(zip(starts, blocks, strict=True), reverse=True)
    }
    np.testing.assert_array_equal(np.concatenate([pieces[start] for start in starts]), whole)


def test_streams_of_two_seeds_differ():
    a, b = bits(1, 0, 1000), bits(2, 0, 1000)
    assert (a == b).sum() < 3
    assert (a[:-1] == a[1:]).sum() < 3


# --- Generator -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "blocks"), [(0, 0), (1, 1), (8, 1), (9, 2), (16, 2), (1000, 125)])
def test_reserve_sets_whole_blocks_aside(count, blocks):
    generator = Generator(3)
    assert generator.reserve(count) == (3, 0)
    assert generator.counter == blocks
    assert generator.reserve(1) == (3, blocks)


def test_two_reservations_share_no_numbers():
    generator = Generator(3)
    first, second = bits(*generator.reserve(9), 9), bits(*generator.reserve(9), 9)
    assert not set(first.tolist()) & set(second.tolist())


def test_resuming_needs_two_integers():
    generator = Generator(11)
    generator.reserve(100)
    generator.numpy()
    saved = json.loads(json.dumps(generator.state()))
    expected = [generator.reserve(5), generator.numpy().normal(), generator.reserve(7)]
    other = Generator()
    other.set_state(saved)
    assert [other.reserve(5), other.numpy().normal(), other.reserve(7)] == expected


def test_numpy_generators_are_streams_of_their_own():
    generator = Generator(5)
    a, b = generator.numpy(), generator.numpy()
    streams = [a, b, Generator(6).numpy()]
    words = [*(one.bit_generator.random_raw(100) for one in streams), bits(5, 0, 200).view(np.uint64)]
    assert len({word for draw in words for word in draw.tolist()}) == 400
    np.testing.assert_array_equal(Generator(5).numpy().bit_generator.random_raw(100), words[0])


def test_numpy_generators_of_great_seeds_differ():
    draws = [Generator(seed).numpy().bit_generator.random_raw() for seed in (2**64 - 1, 2**64 - 2, 2**63, 2**63 + 1)]
    assert len(set(draws)) == 4


def test_manual_seed_restarts_the_default_stream():
    x = minillm.Tensor(np.ones((50, 50)))
    assert manual_seed(4) is random.default
    first, second = ops.dropout(x, 0.5).data, ops.dropout(x, 0.5).data
    assert not np.array_equal(first, second)
    minillm.manual_seed(4)
    np.testing.assert_array_equal(ops.dropout(x, 0.5).data, first)
    manual_seed(np.int64(5))
    assert random.default.state() == {"seed": 5, "counter": 0}
    json.dumps(random.default.state())
    assert not np.array_equal(ops.dropout(x, 0.5).data, first)


# --- keep_scale ----------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(seeds, st.integers(0, 1000), st.integers(0, 100), st.floats(0, 0.99), st.sampled_from([np.float32, np.float64]))
def test_an_element_is_dropped_if_its_number_is_below_the_share(seed, counter, count, p, dtype):
    mask = keep_scale(seed, counter, (count,), p, np.dtype(dtype))
    kept = bits(seed, counter, count) >= round(p * 2**32)
    assert mask.dtype == dtype
    np.testing.assert_array_equal(mask, np.where(kept, dtype(1 / (1 - p)), dtype(0)))


def test_an_element_whose_number_is_the_share_itself_is_kept():
    numbers = bits(1, 2, 50)
    for i in (0, 7, 49):
        mask = keep_scale(1, 2, (50,), numbers[i] / 2**32, np.dtype(np.float64))
        np.testing.assert_array_equal(mask != 0, numbers >= numbers[i])


@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (3, 5), (2, 3, 4)])
def test_shapes_are_filled_in_order(shape):
    mask = keep_scale(1, 2, shape, 0.5, np.dtype(np.float32))
    assert mask.shape == shape
    flat = keep_scale(1, 2, (mask.size,), 0.5, np.dtype(np.float32))
    np.testing.assert_array_equal(mask.reshape(-1), flat)


@pytest.mark.parametrize("size", [8191, 8192, 8193, 100_000])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_masks_depend_neither_on_chunks_nor_on_threads(size, threads, monkeypatch):
    expected = np.where(bits(9, 5, size) >= round(0.3 * 2**32), np.float32(1 / 0.7), np.float32(0))
    monkeypatch.setattr(backend, "cutting", backend.cutting._replace(threads=threads, parallel_bytes=0))
    monkeypatch.setattr(backend, "CACHE_BYTES", 1)
    np.testing.assert_array_equal(keep_scale(9, 5, (size,), 0.3, np.dtype(np.float32)), expected)


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_the_share_dropped_is_p_and_the_mean_is_kept(p):
    n = 1_000_000
    mask = keep_scale(0, 0, (n,), p, np.dtype(np.float64))
    deviation = np.sqrt(p * (1 - p) / n)
    assert abs((mask == 0).mean() - p) < 5 * deviation
    assert abs(mask.mean() - 1) < 5 * deviation / (1 - p)


@settings(max_examples=50, deadline=None)
@given(seeds, st.integers(0, 1000), st.integers(0, 40), st.integers(0, 40), st.floats(0, 0.99))
def test_a_part_of_a_mask_begins_anywhere(seed, counter, skip, count, p):
    whole = keep_scale(seed, counter, (skip + count,), p, np.dtype(np.float64))
    np.testing.assert_array_equal(keep_scale(seed, counter, (count,), p, np.dtype(np.float64), skip), whole[skip:])


@pytest.mark.parametrize("skip", [1, 7, 8195])
def test_a_long_part_depends_neither_on_chunks_nor_on_threads(skip, monkeypatch):
    expected = np.where(bits(9, 5, skip + 50_000) >= round(0.3 * 2**32), np.float32(1 / 0.7), np.float32(0))[skip:]
    monkeypatch.setattr(backend, "cutting", backend.cutting._replace(threads=2, parallel_bytes=0))
    np.testing.assert_array_equal(keep_scale(9, 5, (50_000,), 0.3, np.dtype(np.float32), skip), expected)


def test_neighbours_in_a_mask_are_independent():
    kept = keep_scale(0, 0, (1_000_000,), 0.5, np.dtype(np.float64)) > 0
    for lag in (1, 2, 4, 8, 8192):
        assert abs((kept[lag:] == kept[:-lag]).mean() - 0.5) < 5 * 0.5 / np.sqrt(kept.size)


# --- part ----------------------------------------------------------------------------------------------------------


def test_parts_lie_within_each_other_and_end():
    assert (random.default.rows, random.default.heads) == (None, None)
    with random.part(rows=(2, 8)):
        with random.part(heads=(1, 4)):
            assert (random.default.rows, random.default.heads) == ((2, 8), (1, 4))
            with random.part(rows=(0, 3)):
                assert (random.default.rows, random.default.heads) == ((0, 3), (1, 4))
                with contextlib.suppress(KeyError), random.part(heads=(0, 2)):
                    raise KeyError
                assert (random.default.rows, random.default.heads) == ((0, 3), (1, 4))
            assert (random.default.rows, random.default.heads) == ((2, 8), (1, 4))
        assert (random.default.rows, random.default.heads) == ((2, 8), None)
    assert (random.default.rows, random.default.heads) == (None, None)


def test_a_part_ends_on_the_generator_where_it_began(monkeypatch):
    before = random.default
    with random.part(rows=(2, 8)):
        monkeypatch.setattr(random, "default", Generator(1))
    assert before.rows is None


def test_a_copy_goes_on_alone():
    generator = Generator(4)
    generator.reserve(100)
    with random.part(rows=(1, 2)):
        place = random.default.copy()
        assert (place.rows, place.heads) == ((1, 2), None)
    other = generator.copy()
    assert other.reserve(9) == generator.reserve(9)
    other.reserve(9)
    assert other.counter == generator.counter + 2
    assert "rows" not in generator.state()


@pytest.mark.parametrize(("count", "place"), [(3, (0, 2)), (1, (4, 4)), (2, (-1, 4))])
def test_a_part_that_is_none(count, place):
    with random.part(rows=place), pytest.raises(InputError, match=rf"dropout: {count} rows from {place[0]} on"):
        ops.dropout(minillm.Tensor(np.ones((count, 3))), 0.5)
    q = minillm.Tensor(np.ones((1, count, 2, 4)))
    with random.part(heads=place), pytest.raises(InputError, match=rf"attention: {count} heads from {place[0]} on"):
        ops.attention(q, q, q, dropout_p=0.5)
