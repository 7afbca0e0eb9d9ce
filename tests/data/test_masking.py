"""Masking: its proportions, what is never hidden, whole words, and that the seed decides everything."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minillm
from minillm import random
from minillm.data.masking import mask_tokens
from minillm.errors import DtypeError, InputError, ShapeError

V, MASK, SPECIALS = 50, 3, (0, 1, 2)  # padding, [CLS], [SEP]


def check_share(count: int, of: int, expected: float) -> None:
    """A count of independent events lies within five standard deviations: by chance outside once in two million."""
    assert abs(count - of * expected) < 5 * math.sqrt(of * expected * (1 - expected)), f"{count / of} for {expected}"


@pytest.fixture
def many(rng: np.random.Generator) -> np.ndarray:
    """A million ordinary tokens."""
    return rng.integers(4, V, (2000, 500))


# Proportions


@pytest.mark.parametrize("probability", [0.15, 0.4])
def test_the_proportions_are_those_of_the_paper(many: np.ndarray, probability: float) -> None:
    minillm.manual_seed(0)
    seen, labels = mask_tokens(many, V, MASK, SPECIALS, probability=probability)
    assert seen.dtype == labels.dtype == np.int64
    chosen = labels != -100
    np.testing.assert_array_equal(labels[chosen], many[chosen])
    np.testing.assert_array_equal(seen[~chosen], many[~chosen])
    hidden = int(chosen.sum())
    check_share(hidden, many.size, probability)
    ordinary = V - 4
    check_share(int((seen[chosen] == MASK).sum()), hidden, 0.8)
    check_share(
        int((seen[chosen] == many[chosen]).sum()), hidden, 0.1 + 0.1 / ordinary
    )  # some are replaced by themselves
    replaced = seen[chosen & (seen != MASK) & (seen != many)]
    check_share(len(replaced), hidden, 0.1 * (1 - 1 / ordinary))
    for token in range(4, V):
        check_share(int((replaced == token).sum()), len(replaced), 1 / ordinary)
    for token in range(4, V):  # no token is hidden more often than another
        check_share(int(chosen[many == token].sum()), int((many == token).sum()), probability)


def test_every_place_is_as_likely_and_neighbours_do_not_depend_on_each_other(many: np.ndarray) -> None:
    minillm.manual_seed(1)
    chosen = mask_tokens(many, V, MASK, SPECIALS)[1] != -100
    for column in range(500):
        check_share(int(chosen[:, column].sum()), 2000, 0.15)
    check_share(int((chosen[:, 1:] & chosen[:, :-1]).sum()), chosen[:, 1:].size, 0.15**2)
    check_share(int((chosen[1:] & chosen[:-1]).sum()), chosen[1:].size, 0.15**2)


def test_none_and_all() -> None:
    ids = np.array([[1, 4, 5, 6, 2, 0]])
    seen, labels = mask_tokens(ids, V, MASK, SPECIALS, probability=0)
    np.testing.assert_array_equal(seen, ids)
    assert (labels == -100).all()
    labels = mask_tokens(ids, V, MASK, SPECIALS, probability=1)[1]
    assert labels.tolist() == [[-100, 4, 5, 6, -100, -100]]


# What is never hidden


@st.composite
def batches(draw: st.DrawFn):
    """(ids, special ids, lengths or None), with every kind of token at every kind of place."""
    B, T = draw(st.integers(0, 4)), draw(st.integers(0, 9))
    ids = draw(st.lists(st.lists(st.integers(0, 9), min_size=T, max_size=T), min_size=B, max_size=B))
    lengths = draw(st.none() | st.lists(st.integers(0, T), min_size=B, max_size=B))
    lengths = None if lengths is None else np.array(lengths, int)
    return np.array(ids, int).reshape(B, T), draw(st.sets(st.integers(0, 8))), lengths


@given(batches(), st.sampled_from([0.15, 0.7, 1.0]), st.lists(st.booleans(), min_size=10, max_size=10))
def test_specials_and_padding_are_never_touched_nor_put_in(case, probability: float, continues: list[bool]) -> None:
    ids, specials, lengths = case
    before = ids.copy()
    words = np.array(continues) if continues[0] else None
    seen, labels = mask_tokens(ids, 10, 7, specials, lengths=lengths, probability=probability, continues=words)
    np.testing.assert_array_equal(ids, before)
    forbidden = np.isin(ids, [7, *specials])
    if lengths is not None:
        forbidden |= np.arange(ids.shape[1]) >= lengths[:, None]
    assert (labels[forbidden] == -100).all()
    np.testing.assert_array_equal(seen[forbidden], ids[forbidden])
    chosen = labels != -100
    np.testing.assert_array_equal(labels[chosen], ids[chosen])
    np.testing.assert_array_equal(seen[~chosen], ids[~chosen])
    assert not (set(seen[chosen].tolist()) & (specials - {7}))
    if probability == 1:
        np.testing.assert_array_equal(chosen, ~forbidden)


# Whole words


def words_of(row: list[int], hideable: list[bool], continues: list[bool]) -> list[list[int]]:
    """The positions of each word, token by token."""
    words: list[list[int]] = []
    for t, token in enumerate(row):
        if hideable[t] and continues[token] and t and hideable[t - 1]:
            words[-1].append(t)
        else:
            words.append([t])
    return words


@given(batches(), st.lists(st.booleans(), min_size=10, max_size=10), st.integers(0, 1000))
@settings(max_examples=300)
def test_the_tokens_of_a_word_are_chosen_together(case, continues: list[bool], seed: int) -> None:
    ids, specials, lengths = case
    generator = random.Generator(seed)
    words = np.array(continues)
    labels = mask_tokens(ids, 10, 7, specials, lengths=lengths, probability=0.5, continues=words, generator=generator)[
        1
    ]
    for b, row in enumerate(ids.tolist()):
        length = len(row) if lengths is None else lengths[b]
        hideable = [token != 7 and token not in specials and t < length for t, token in enumerate(row)]
        for word in words_of(row, hideable, continues):
            assert len({bool(labels[b, t] != -100) for t in word}) == 1


def test_words_are_chosen_as_often_as_tokens_and_one_by_one(many: np.ndarray) -> None:
    minillm.manual_seed(2)
    continues = np.arange(V) >= 30
    seen, labels = mask_tokens(many, V, MASK, SPECIALS, continues=continues)
    chosen, starts = labels != -100, ~continues[many]
    starts[:, 0] = True
    check_share(int(chosen[starts].sum()), int(starts.sum()), 0.15)
    second = starts[:, 1:] & starts[:, :-1]  # where a word follows a word of one token
    check_share(int((chosen[:, 1:] & chosen[:, :-1] & second).sum()), int(second.sum()), 0.15**2)
    hidden = int(chosen.sum())
    check_share(int((seen[chosen] == MASK).sum()), hidden, 0.8)  # each token of a word on its own
    long = chosen[:, 1:] & ~starts[:, 1:]
    check_share(int(((seen[:, 1:] == MASK) & (seen[:, :-1] == MASK) & long).sum()), int(long.sum()), 0.64)


def test_a_special_token_ends_a_word() -> None:
    """[CLS] ##a ##b [SEP] ##c: here are two words, and over many draws they differ."""
    continues = np.zeros(V, bool)
    continues[[10, 11, 12]] = True
    ids = np.tile([1, 10, 11, 2, 12], (4000, 1))
    chosen = mask_tokens(ids, V, MASK, SPECIALS, continues=continues, probability=0.5)[1] != -100
    assert not chosen[:, [0, 3]].any()
    np.testing.assert_array_equal(chosen[:, 1], chosen[:, 2])
    check_share(int((chosen[:, 1] & chosen[:, 4]).sum()), 4000, 0.25)


# The seed


def test_the_seed_decides_and_each_call_draws_anew(many: np.ndarray) -> None:
    ids = many[:4, :100]

    def draw(seed: int) -> list[np.ndarray]:
        minillm.manual_seed(seed)
        return [array for _ in range(2) for array in mask_tokens(ids, V, MASK, SPECIALS)]

    first, again, other = draw(5), draw(5), draw(6)
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert (first[1] != other[1]).any()
    assert (first[1] != first[3]).any()  # dynamic masking
    own = random.Generator(5)
    minillm.manual_seed(99)
    place = random.default.state()
    np.testing.assert_array_equal(mask_tokens(ids, V, MASK, SPECIALS, generator=own)[1], first[1])
    assert random.default.state() == place


def test_a_resumed_stream_hides_the_same(many: np.ndarray) -> None:
    generator = random.Generator(7)
    mask_tokens(many, V, MASK, generator=generator)
    state = generator.state()
    expected = mask_tokens(many, V, MASK, generator=generator)
    resumed = random.Generator()
    resumed.set_state(state)
    for one, two in zip(mask_tokens(many, V, MASK, generator=resumed), expected, strict=True):
        np.testing.assert_array_equal(one, two)


# What cannot be used


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"ids": [4, 5]}, ShapeError, r"^mask_tokens: ids have shape \(2,\); give \(B, T\)"),
        ({"ids": [[50]]}, InputError, "^mask_tokens: token id 50 is out of range; expected 0 to 49$"),
        ({"ids": [[0.5]]}, DtypeError, "token id must be integers"),
        ({"mask_id": 50}, InputError, "special id 50 is out of range"),
        ({"special_ids": [-1]}, InputError, "special id -1 is out of range"),
        ({"special_ids": range(50)}, InputError, "all 50 tokens are special"),
        ({"probability": 1.5}, InputError, "probability is 1.5; give a number from 0 to 1"),
        ({"probability": math.nan}, InputError, "probability is nan"),
        ({"lengths": [3]}, InputError, "lengths 3 is out of range; expected 0 to 2"),
        ({"lengths": [1, 1]}, ShapeError, "lengths has B=2"),
        ({"continues": [True] * 49}, ShapeError, r"continues has shape \(49,\) and dtype bool; give \(50,\) of bool"),
        ({"continues": [1] * 50}, ShapeError, r"continues has shape \(50,\) and dtype int64"),
    ],
)
def test_what_cannot_be_used(arguments, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mask_tokens(**{"ids": [[4, 5]], "vocab_size": V, "mask_id": MASK, **arguments})
