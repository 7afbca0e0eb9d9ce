"""RoBERTa: sizes, positions, padding that no token sees, and Hugging Face's implementation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_checks import check_parameters, check_slopes, enlarge, optimizers, relative_error, twin, with_large_weights

import minillm
from minillm.autograd import no_grad
from minillm.data.masking import mask_tokens
from minillm.errors import InputError, ShapeError
from minillm.models import roberta
from minillm.models.roberta import PRESETS, RobertaConfig, RobertaForMaskedLM, RobertaModel
from minillm.optim import AdamW

SMALL = RobertaConfig(19, context=12, layers=2, heads=2, channels=16, hidden=24, dropout=0.0, attention_dropout=0.0)


def random_model(config: RobertaConfig = SMALL, seed: int = 0, dtype: type = np.float32) -> RobertaForMaskedLM:
    """A model with weights so large that every part of it matters."""
    return with_large_weights(RobertaForMaskedLM(config).to(dtype), seed=seed)


# Size and initial weights


def number_of_weights(config: RobertaConfig) -> int:
    """The number of weights, counted by hand."""
    V, L, C, F = config.vocab_size, config.layers, config.channels, config.hidden
    norm, square = 2 * C, C * C + C
    block = 4 * square + (C * F + F) + (F * C + C) + 2 * norm
    rows = V + (config.context + config.padding_id + 1) + config.token_types
    return rows * C + norm + L * block + (square + norm + V)


@given(*(st.integers(1, 4) for _ in range(7)), st.integers(0, 3))
@settings(max_examples=30)
def test_the_count_on_paper_is_right(vocab_size, context, layers, heads, head_size, hidden, types, padding) -> None:
    config = RobertaConfig(vocab_size + 3, context, layers, heads, heads * head_size, hidden, types, padding_id=padding)
    assert RobertaForMaskedLM(config).num_parameters() == number_of_weights(config)


def test_the_presets_have_the_published_numbers_of_weights() -> None:
    assert {name: number_of_weights(config) for name, config in PRESETS.items()} == {
        "nano": 36_160,
        "distilroberta-base": 82_170_201,
        "roberta-base": 124_697_433,
        "roberta-large": 355_412_057,
        "xlm-roberta-base": 278_295_186,
        "xlm-roberta-large": 560_142_482,
    }


def test_initial_weights() -> None:
    minillm.manual_seed(0)
    model = RobertaForMaskedLM(replace(SMALL, layers=1, channels=64, vocab_size=300))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            is_empty = ~parameter.data.any(axis=1)
            assert is_empty.nonzero()[0].tolist() == ([1] if name in ("wte.weight", "wpe.weight") else [])
            assert parameter.data[~is_empty].std() == pytest.approx(0.02, rel=0.25), name
        else:
            assert (parameter.data == (1 if name.endswith("weight") else 0)).all(), name
    with pytest.raises(InputError, match=r"^RobertaConfig: heads is 0; give 1 or more$"):
        replace(SMALL, heads=0)


# Positions and padding


def test_positions_start_after_padding_and_pass_over_it() -> None:
    model = RobertaModel(SMALL)
    assert model.position_ids(np.array([[5, 7, 1, 9, 1], [1, 1, 3, 4, 5]])).tolist() == [
        [2, 3, 1, 4, 1],
        [1, 1, 2, 3, 4],
    ]
    model = RobertaModel(replace(SMALL, padding_id=0))
    assert model.position_ids(np.array([[5, 7, 0]])).tolist() == [[1, 2, 0]]
    assert model.wpe.weight.shape == (13, 16)


def test_the_context_can_be_filled_and_no_more(rng: np.random.Generator) -> None:
    model = random_model()
    assert model(rng.integers(2, 19, (2, 12))).shape == (2, 12, 19)
    with pytest.raises(ShapeError, match=r"^RobertaForMaskedLM: ids have T=13; give 1 to 12, the context$"):
        model(rng.integers(2, 19, (2, 13)))


def test_padding_in_front_changes_nothing(rng: np.random.Generator) -> None:
    model = random_model(dtype=np.float64)
    ids = rng.integers(2, 19, (1, 7))
    padded = np.concatenate([np.ones((1, 4), int), ids], axis=1)
    alone, shifted = model(ids).data, model(padded, attention_mask=padded != 1).data
    np.testing.assert_allclose(shifted[:, 4:], alone, rtol=1e-12, atol=1e-12)


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_what_stands_at_a_padded_place_changes_nothing_at_a_real_one(data: st.DataObject) -> None:
    B, T = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 12))
    lengths = data.draw(st.lists(st.integers(1, T), min_size=B, max_size=B))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    real = np.arange(T) < np.array(lengths)[:, None]
    model = random_model()
    ids = np.where(real, rng.integers(2, 19, (B, T)), 1)
    other = np.where(real, ids, rng.integers(0, 19, (B, T)))
    with no_grad():
        expected = model(ids, lengths=lengths).data[real]
        np.testing.assert_array_equal(model(other, lengths=lengths).data[real], expected)
        np.testing.assert_array_equal(model(other, attention_mask=real).data[real], expected)


# Learning


def test_the_loss_is_that_of_the_labels(rng: np.random.Generator) -> None:
    model = random_model(dtype=np.float64)
    ids, lengths = rng.integers(2, 19, (3, 12)), [12, 7, 2]
    labels = np.where(rng.random((3, 12)) < 0.3, rng.integers(0, 19, (3, 12)), -100)
    log_p = model(ids, lengths=lengths).log_softmax(-1).data
    expected = -np.mean([log_p[b, t, labels[b, t]] for b, t in np.argwhere(labels != -100)])
    assert model.loss(ids, labels, lengths=lengths).item() == pytest.approx(expected, rel=1e-12)


def test_every_gradient_equals_central_differences(rng: np.random.Generator) -> None:
    """Gradients against central differences along a random direction in each parameter, in float64."""
    model = random_model(dtype=np.float64)
    ids, lengths = rng.integers(2, 19, (3, 12)), [12, 4, 9]
    labels = np.where(rng.random((3, 12)) < 0.3, rng.integers(0, 19, (3, 12)), -100)
    check_slopes(model, lambda: model.loss(ids, labels, lengths=lengths), rng)


def test_it_learns_texts_by_heart_though_other_tokens_are_hidden_each_time(rng: np.random.Generator) -> None:
    minillm.manual_seed(0)
    model = RobertaForMaskedLM(replace(SMALL, channels=32, hidden=64))
    optimizer = AdamW(model.parameters(), 1e-2)
    ids, lengths = rng.integers(4, 19, (4, 12)), np.array([12, 12, 8, 12])
    ids[2, 8:] = 1
    ids, lengths = np.tile(ids, (4, 1)), np.tile(lengths, 4)
    for step in range(300):
        optimizer.zero_grad()
        optimizer.lr = 1e-2 * min(1, (step + 1) / 30, 2 * (1 - step / 300))
        seen, labels = mask_tokens(ids, 19, 3, [0, 1, 2])
        model.loss(seen, labels, lengths=lengths).backward()
        optimizer.step()
    right = []
    for _ in range(10):
        seen, labels = mask_tokens(ids, 19, 3, [0, 1, 2])
        guesses = model(seen, lengths=lengths).data.argmax(-1)
        right += (guesses == labels)[labels != -100].tolist()
    print(f"{np.mean(right):.1%} of the hidden tokens are found")
    assert np.mean(right) > 0.95


# Hugging Face's RoBERTa


CASES = {
    "plain": (SMALL, None),
    "lengths": (replace(SMALL, layers=3, heads=4), "lengths"),
    "mask": (replace(SMALL, padding_id=4, token_types=2, norm_eps=1e-12), "mask"),
    "padding 0": (replace(SMALL, padding_id=0, hidden=40), "lengths"),
}


@pytest.mark.oracle
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-10)])
def test_logits_gradients_and_a_step_equal_hugging_faces(rng, case: str, dtype, tolerance: float) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config, padding = CASES[case]
    torch.manual_seed(0)
    values = roberta.config_to_hugging_face(config)
    reference = transformers.RobertaForMaskedLM(transformers.RobertaConfig(**values, attn_implementation="eager"))
    reference = enlarge(reference.to(getattr(torch, np.dtype(dtype).name)))
    model = twin(RobertaForMaskedLM(config).to(dtype), reference)
    assert sum(p.numel() for p in reference.parameters()) == model.num_parameters()  # tied in transformers, too

    real, how = np.ones((4, 12), bool), {}
    if padding == "lengths":
        lengths = [12, 5, 1, 8]
        real, how = np.arange(12) < np.array(lengths)[:, None], {"lengths": lengths}
    elif padding == "mask":  # padding in front and inside, too, which positions skip
        real = rng.random((4, 12)) < 0.6
        real[:, 5] = True
        how = {"attention_mask": real}
    ids = rng.integers(0, 19, (4, 12))
    ids[ids == config.padding_id] = 7  # the two treat the gradient of visible padding differently
    ids[~real] = config.padding_id
    types = rng.integers(0, config.token_types, (4, 12))
    labels = np.where(real & (rng.random((4, 12)) < 0.5), rng.integers(0, 19, (4, 12)), -100)
    labels[0, real[0].nonzero()[0][0]] = 3
    theirs = [torch.tensor(x) for x in (ids, real.astype(int), types)]

    for kinds, their_kinds in ((types, theirs[2]), (None, None)):
        expected = reference(theirs[0], theirs[1], their_kinds).logits.detach().numpy()
        assert relative_error(model(ids, kinds, **how).data[real], expected[real]) < tolerance

    optimizer, their_optimizer = optimizers(model, reference)
    their_loss = reference(*theirs, labels=torch.tensor(labels)).loss
    their_loss.backward()
    loss = model.loss(ids, labels, types, **how)
    loss.backward()
    assert loss.item() == pytest.approx(their_loss.item(), rel=tolerance)
    check_parameters("grad", model, reference, tolerance)
    optimizer.step()
    their_optimizer.step()
    check_parameters("data", model, reference, tolerance)
    after = reference(*theirs).logits.detach().numpy()
    assert relative_error(model(ids, types, **how).data[real], after[real]) < 2 * tolerance


def test_a_config_comes_back_from_hugging_faces_form() -> None:
    for config in (*PRESETS.values(), *(config for config, _ in CASES.values())):
        values = roberta.config_to_hugging_face(config)
        assert values["max_position_embeddings"] == config.context + config.padding_id + 1
        assert roberta.config_from_hugging_face(values) == config


def test_what_a_config_leaves_out_is_what_transformers_takes() -> None:
    """XLM-R's defaults in transformers are not those of the published models."""
    assert roberta.config_from_hugging_face({}) == RobertaConfig(context=510, token_types=2, norm_eps=1e-12)
