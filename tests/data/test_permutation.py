"""Orders of reading: which tokens are predicted, and that none of them is seen too early, also through a model."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minillm
from minillm import random
from minillm.autograd import no_grad
from minillm.data import PermutedTokens, permute_tokens
from minillm.errors import DtypeError, InputError, ShapeError
from minillm.models.xlnet import XLNetConfig, XLNetLMHeadModel

SEP, CLS = 1, 2


def check_share(count: int, of: int, expected: float) -> None:
    """A count of independent events lies within five standard deviations: by chance outside once in two million."""
    assert abs(count - of * expected) < 5 * math.sqrt(of * expected * (1 - expected)), f"{count / of} for {expected}"


def targets_of(batch: PermutedTokens) -> np.ndarray:
    """(B, T), whether a token is predicted."""
    return batch.target_mapping.any(1)


def runs_of(row: np.ndarray) -> list[tuple[int, int]]:
    """(start, length) of every run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], row, [False]])))
    return [(int(start), int(stop - start)) for start, stop in edges.reshape(-1, 2)]


@st.composite
def calls(draw: st.DrawFn) -> tuple[np.ndarray, dict]:
    """Ids, and the arguments of permute_tokens."""
    B, T = draw(st.integers(1, 4)), draw(st.integers(1, 20))
    ids = np.random.default_rng(draw(st.integers(0, 99))).integers(1, 9, (B, T))
    return ids, {
        "special_ids": draw(st.sets(st.integers(1, 8), max_size=3)),
        "lengths": draw(st.none() | st.lists(st.integers(0, T), min_size=B, max_size=B)),
        "one_in": draw(st.integers(1, 7)),
        "max_span": draw(st.integers(1, 6)),
        "reuse_len": draw(st.none() | st.integers(1, 21)),
        "generator": random.Generator(draw(st.integers(0, 999))),
    }


# What is predicted


@given(calls())
@settings(max_examples=200)
def test_labels_are_the_tokens_at_the_places_that_the_mapping_names(call) -> None:
    ids, how = call
    before = ids.copy()
    batch = permute_tokens(ids, **how)
    np.testing.assert_array_equal(ids, before)
    np.testing.assert_array_equal(batch.ids, ids)
    assert batch.ids.dtype == batch.labels.dtype == np.int64
    assert batch.perm_mask.dtype == batch.target_mapping.dtype == bool
    (B, T), P = ids.shape, batch.labels.shape[1]
    assert batch.perm_mask.shape == (B, T, T)
    assert batch.target_mapping.shape == (B, P, T)
    count = batch.target_mapping.any(2).sum(1)
    assert max(1, count.max()) == P
    for b in range(B):
        places = [int(np.flatnonzero(row)[0]) for row in batch.target_mapping[b, : count[b]]]
        assert places == sorted(set(places))
        assert batch.target_mapping[b].sum() == count[b]
        assert batch.labels[b].tolist() == ids[b, places].tolist() + [-100] * (P - count[b])
    assert not np.isin(batch.labels, list(how["special_ids"])).any()
    if how["lengths"] is not None:
        assert not targets_of(batch)[np.arange(T) >= np.array(how["lengths"])[:, None]].any()


@given(st.integers(1, 60), st.integers(1, 7), st.integers(1, 6), st.integers(0, 999))
@settings(max_examples=200)
def test_one_token_in_so_many_is_predicted_in_a_text_of_any_length(T, one_in, max_span, seed) -> None:
    """Exactly, where the length is a multiple: no span is cut, and none is left out."""
    generator = random.Generator(seed)
    lengths = np.array([T, T // one_in * one_in, 0])
    batch = permute_tokens(np.ones((3, T), int), lengths=lengths, one_in=one_in, max_span=max_span, generator=generator)
    counts = targets_of(batch).sum(1)
    assert counts[0] in (T // one_in, -(-T // one_in))
    assert counts[1:].tolist() == [T // one_in, 0]


@pytest.mark.parametrize(("T", "one_in"), [(5, 6), (8, 6), (100, 6), (7, 3)])
def test_the_share_is_right_on_average(T: int, one_in: int) -> None:
    minillm.manual_seed(0)
    count = int(targets_of(permute_tokens(np.ones((3000, T), int), one_in=one_in)).sum())
    whole = 3000 * (T // one_in)
    check_share(count - whole, 3000, T % one_in / one_in)


def test_lengths_of_spans_and_their_places_are_drawn_evenly() -> None:
    minillm.manual_seed(1)
    # One window of 12, of 2 in a row, or two of 6, each of 1: the same chance.
    rows = targets_of(permute_tokens(np.ones((12000, 12), int)))
    assert (rows.sum(1) == 2).all()
    together = [runs_of(row)[0][0] for row in rows if len(runs_of(row)) == 1]
    at = Counter(together)
    # Two spans of 1 lie together too, at 5 and 6: once in 36.
    check_share(at[5], len(rows), 1 / 2 * (1 / 11 + 1 / 36))
    for place in (*range(5), *range(6, 11)):
        check_share(at[place], len(rows), 1 / 2 / 11)
    apart = rows[[len(runs_of(row)) == 2 for row in rows]]
    for place in range(6):
        check_share(int(apart[:, place].sum()), len(apart), (6 - (place == 5)) / 35)
    rest = targets_of(permute_tokens(np.ones((12000, 5), int)))  # less than a window
    for place in range(5):
        check_share(int(rest[:, place].sum()), 12000, 1 / 6)
    # In windows of 40 a token, the first span is a run of its own, but for one time in thousands.
    lengths = [runs_of(row)[0][1] for row in targets_of(permute_tokens(np.ones((1500, 200), int), one_in=40))]
    for length in range(1, 6):
        check_share(lengths.count(length), 1500, 1 / 5)


def test_a_span_goes_on_behind_a_special_token() -> None:
    minillm.manual_seed(2)
    ids = np.tile([7, SEP], (500, 15))
    batch = permute_tokens(ids, [SEP])
    rows = targets_of(batch)
    assert not rows[:, 1::2].any()
    check_share(int(rows.sum()), 500 * 15, 1 / 6)


# The order


def plain_order(perm_mask: np.ndarray, members: list[int]) -> list[int]:
    """Members from first to last, where each sees those before it: a contradiction raises."""
    order = sorted(members, key=lambda i: sum(not perm_mask[i, j] for j in members))
    for place, i in enumerate(order):
        for other, j in enumerate(order):
            assert perm_mask[i, j] == (other >= place)  # not itself either
    return order


@given(calls())
@settings(max_examples=200)
def test_who_sees_whom(call) -> None:
    """Each rule on its own, token by token."""
    ids, how = call
    batch = permute_tokens(ids, **how)
    target, T = targets_of(batch), ids.shape[1]
    cut = T if how["reuse_len"] is None else min(T, how["reuse_len"])
    for b in range(len(ids)):
        length = T if how["lengths"] is None else how["lengths"][b]
        hidden = batch.perm_mask[b]
        assert hidden[:, length:].all()  # padding
        ordered = [t for t in range(length) if target[b, t] or int(ids[b, t]) in how["special_ids"]]
        for part in (range(min(cut, length)), range(cut, length)):
            plain_order(hidden, [t for t in ordered if t in part])
            context = [t for t in part if t not in ordered]
            for t in context:
                assert not hidden[part.start :, t].any()
                assert all(hidden[t, s] for s in part if s in ordered)
        assert hidden[:cut, cut:].all()
        assert not hidden[cut:, : min(cut, length)].any()


def test_every_order_is_as_likely() -> None:
    minillm.manual_seed(3)
    batch = permute_tokens(np.ones((6000, 3), int), one_in=1)
    orders = Counter(tuple((~rows).sum(1).tolist()) for rows in batch.perm_mask)
    assert len(orders) == 6
    for count in orders.values():
        check_share(count, 6000, 1 / 6)


# Through a model


def random_model(**changes) -> XLNetLMHeadModel:
    model = XLNetLMHeadModel(XLNetConfig(9, 3, 2, 8, 12, **{"dropout": 0.0, **changes})).to(np.float64)
    rng = np.random.default_rng(0)
    for parameter in model.parameters():
        parameter.data[...] += rng.normal(0, 0.5, parameter.shape)
    return model


@given(st.integers(1, 12), st.none() | st.integers(1, 12), st.integers(1, 4), st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_a_prediction_depends_on_what_is_before_it_in_the_order_and_on_nothing_else(T, reuse, one_in, seed) -> None:
    """Three blocks deep, so that what one token has seen of another would arrive."""
    rng = np.random.default_rng(seed)
    model = random_model(reuse_len=reuse, bi_data=bool(seed % 2))
    ids = rng.integers(0, 9, (2, T))
    ids[:, T // 2] = SEP
    lengths = [T, max(1, T - 2)]
    how = {"lengths": lengths, "one_in": one_in, "reuse_len": reuse, "generator": random.Generator(seed)}
    batch = permute_tokens(ids, [SEP], **how)
    cut = T if reuse is None else min(T, reuse)
    order = [{j: int((~batch.perm_mask[b, j]).sum()) for j in range(T)} for b in range(2)]
    given = {key: value for key, value in batch._asdict().items() if key not in ("ids", "labels")}
    mems = [rng.normal(size=(2, 3, 8)) for _ in range(3)]
    with no_grad():
        before, memory = model.logits_and_mems(ids, mems=mems, **given)
        for j in range(T):
            changed = ids.copy()
            changed[:, j] = (ids[:, j] + rng.integers(1, 9, 2)) % 9
            after, new_memory = model.logits_and_mems(changed, mems=mems, **given)
            for b in range(2):
                for p in np.flatnonzero(batch.target_mapping[b].any(1)):
                    t = int(np.flatnonzero(batch.target_mapping[b, p])[0])
                    may_see = not batch.perm_mask[b, t, j]
                    moved = bool((before.data[b, p] != after.data[b, p]).any())
                    assert moved == may_see, (b, t, j, order)
            if j >= cut:  # the memory of the first part knows nothing of the rest
                for one, other in zip(memory, new_memory, strict=True):
                    np.testing.assert_array_equal(one.data, other.data)


def test_the_text_tells_more_than_mask_tokens_would() -> None:
    """The later of two predicted tokens sees the earlier one, unlike in BERT."""
    model = random_model()
    ids = np.array([[3, 4, 5, 6]])
    batch = permute_tokens(ids, one_in=1, generator=random.Generator(5))
    last = int(np.argmin(batch.perm_mask[0].sum(1)))
    given = {key: value for key, value in batch._asdict().items() if key not in ("ids", "labels")}
    before = model(ids, **given).data
    for t in range(4):
        changed = ids.copy()
        changed[0, t] = 8
        moved = (model(changed, **given).data != before).any(-1)[0]
        assert not moved[t]
        assert moved[last] == (t != last)


def test_it_is_what_the_loss_takes() -> None:
    model = random_model()
    minillm.manual_seed(4)
    batch = permute_tokens(np.arange(48).reshape(2, 24) % 9, reuse_len=12)
    logits = model(batch.ids, perm_mask=batch.perm_mask, target_mapping=batch.target_mapping).log_softmax().data
    wanted = [logits[b, p, batch.labels[b, p]] for b, p in np.argwhere(batch.labels != -100)]
    assert model.loss(**batch._asdict()).item() == pytest.approx(-np.mean(wanted), rel=1e-12)


# The seed


def test_the_seed_decides_and_each_call_draws_anew() -> None:
    ids = np.arange(200).reshape(4, 50) % 9

    def draw(seed: int) -> list[np.ndarray]:
        minillm.manual_seed(seed)
        return [array for _ in range(2) for array in permute_tokens(ids, [SEP, CLS])]

    first, again, other = draw(5), draw(5), draw(6)
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert (first[2] != other[2]).any()
    assert (first[2] != first[6]).any()
    assert (first[2][0] != first[2][1]).any()  # an order for each text
    minillm.manual_seed(99)
    place = random.default.state()
    generator = random.Generator(5)
    np.testing.assert_array_equal(permute_tokens(ids, [SEP, CLS], generator=generator).perm_mask, first[2])
    assert random.default.state() == place
    resumed = random.Generator()
    resumed.set_state(generator.state())
    np.testing.assert_array_equal(permute_tokens(ids, [SEP, CLS], generator=resumed).perm_mask, first[6])


# What cannot be used


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"ids": [4, 5]}, ShapeError, r"^permute_tokens: ids have shape \(2,\); give \(B, T\)"),
        ({"ids": [[0.5]]}, DtypeError, "^permute_tokens: ids have dtype float64; give integers$"),
        ({"one_in": 0}, InputError, "^permute_tokens: one_in is 0; give 1 or more$"),
        ({"max_span": -1}, InputError, "^permute_tokens: max_span is -1; give 1 or more$"),
        ({"reuse_len": 0}, InputError, "^permute_tokens: reuse_len is 0; give 1 or more$"),
        ({"lengths": [3]}, InputError, "lengths 3 is out of range; expected 0 to 2"),
        ({"lengths": [1, 1]}, ShapeError, "lengths has B=2"),
    ],
)
def test_what_cannot_be_used(arguments, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        permute_tokens(**{"ids": [[4, 5]], **arguments})
