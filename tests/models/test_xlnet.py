"""XLNet: sizes, scores against plain loops, masks, memory, learning, and Hugging Face's implementation."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_checks import (
    all_nodes,
    check_parameters,
    check_slopes,
    enlarge,
    in_float64,
    optimizers,
    relative_error,
    twin,
    with_large_weights,
)

import minillm
from minillm.autograd import Tensor, no_grad
from minillm.data.permutation import permute_tokens
from minillm.errors import DtypeError, InputError, ShapeError
from minillm.models import xlnet
from minillm.models.xlnet import PRESETS, XLNetConfig, XLNetLMHeadModel, XLNetModel
from minillm.models.xlnet_attention import relative_shift, sinusoids
from minillm.optim import AdamW

SMALL = XLNetConfig(19, layers=2, heads=2, channels=16, hidden=24, dropout=0.0)


def random_model(config: XLNetConfig = SMALL, seed: int = 0, dtype: type = np.float32) -> XLNetLMHeadModel:
    """A model with weights so large that every part of it matters."""
    return with_large_weights(XLNetLMHeadModel(config).to(dtype), seed=seed)


def some_order(rng: np.random.Generator, B: int, T: int, P: int) -> dict[str, np.ndarray]:
    """Masks that predict the last P tokens of a random order, independent of data/permutation.py."""
    perm_mask, target_mapping = np.zeros((B, T, T), bool), np.zeros((B, P, T), bool)
    for b in range(B):
        predicted = rng.permutation(T)[:P]
        for p, t in enumerate(predicted):
            target_mapping[b, p, t] = True
            perm_mask[b, [s for s in range(T) if s not in predicted[p + 1 :]], t] = True
    return {"perm_mask": perm_mask, "target_mapping": target_mapping}


# Size and initial weights


def number_of_weights(config: XLNetConfig, head: bool = True) -> int:
    """The number of weights, counted by hand."""
    V, L, C, F = config.vocab_size, config.layers, config.channels, config.hidden
    block = 5 * C * C + 3 * C + 2 * C + (C * F + F) + (F * C + C) + 2 * (2 * C)
    return V * C + C + L * block + head * V


@given(*(st.integers(1, 4) for _ in range(5)))
@settings(max_examples=20)
def test_the_count_on_paper_is_right(vocab_size, layers, heads, head_size, hidden) -> None:
    config = XLNetConfig(vocab_size, layers, heads, 2 * heads * head_size, hidden)
    assert XLNetLMHeadModel(config).num_parameters() == number_of_weights(config)
    assert XLNetModel(config).num_parameters() == number_of_weights(config, head=False)


def test_the_presets_have_the_published_numbers_of_weights() -> None:
    assert {name: number_of_weights(config, head=False) for name, config in PRESETS.items()} == {
        "nano": 35_744,
        "xlnet-base-cased": 116_718_336,
        "xlnet-large-cased": 360_268_800,
    }


def test_the_names_of_parameters() -> None:
    assert set(XLNetModel(SMALL).state_dict()) == set(XLNetLMHeadModel(SMALL).state_dict()) - {"bias"}


def test_initial_weights() -> None:
    minillm.manual_seed(0)
    for name, parameter in XLNetLMHeadModel(XLNetConfig(300, 2, 4, 128, 256)).named_parameters():
        drawn = parameter.ndim == 2 or "_bias" in name or name == "mask_emb"
        if drawn:
            assert parameter.data.std() == pytest.approx(0.02, rel=0.05 if parameter.numel() > 2000 else 0.3), name
            assert abs(parameter.data.mean()) < 0.008, name
        else:
            assert (parameter.data == (1 if name.endswith("weight") else 0)).all(), name
        assert parameter.dtype == np.float32


def test_the_initial_loss_is_nearly_that_of_a_uniform_guess(rng: np.random.Generator) -> None:
    model = XLNetLMHeadModel(replace(SMALL, vocab_size=500))
    batch = permute_tokens(rng.integers(0, 500, (8, 24)))
    assert model.loss(**batch._asdict()).item() == pytest.approx(math.log(500), abs=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(({field: 0}, f"^XLNetConfig: {field} is 0; give 1 or more$") for field in ("vocab_size", "layers", "heads")),
        *(({field: -1}, f"^XLNetConfig: {field} is -1; give 1 or more$") for field in ("channels", "hidden")),
        *(({field: 0}, f"^XLNetConfig: {field} is 0; give 1 or more, or None") for field in ("mem_len", "reuse_len")),
        ({"heads": 3}, "channels=16 is not a multiple of heads=3"),
        ({"heads": 3, "channels": 15}, "channels=15 is odd"),
        ({"dropout": 1.0}, "^XLNetConfig: dropout is 1.0; give a probability"),
        ({"norm_eps": 0.0}, "^XLNetConfig: norm_eps is 0.0; give a number above 0$"),
    ],
)
def test_a_config_says_what_is_wrong(change, message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(SMALL, **change)


# Plain loops


@given(*(st.integers(1, 5) for _ in range(3)), st.integers(0, 6))
@settings(max_examples=40)
def test_the_shift_is_one_of_columns(B, H, T, M) -> None:
    Tk = M + T
    x = np.random.default_rng(0).normal(size=(B, H, T, T + Tk))
    out = relative_shift(Tensor(x)).data
    assert out.shape == (B, H, T, Tk)
    for t in range(T):
        for s in range(Tk):
            distance = M + t - s
            np.testing.assert_array_equal(out[:, :, t, s], x[:, :, t, Tk - distance])


def test_sinusoids() -> None:
    table = sinusoids(np.array([[3, -1]]), 6)
    for row, d in zip(table[0], (3, -1), strict=True):
        angles = [d / 10000 ** (2 * i / 6) for i in range(3)]
        assert row.tolist() == pytest.approx([*map(math.sin, angles), *map(math.cos, angles)], rel=1e-12)


def plain_features(state: dict, config: XLNetConfig, ids, types, perm_mask, predict, mems, real) -> np.ndarray:
    """Features (B, P, C) at positions `predict`, by appendix A.2, one text, head, query and key at a time."""
    C, H = config.channels, config.heads
    D = C // H
    M = 0 if mems is None else mems[0].shape[1]
    out = []
    for b, text in enumerate(ids):

        def position(distance: int, b: int = b) -> np.ndarray:
            if config.clamp_len > 0:
                distance = max(-config.clamp_len, min(config.clamp_len, distance))
            if config.bi_data and b >= len(ids) // 2:
                distance = -distance
            angles = [distance / 10000 ** (2 * i / C) for i in range(C // 2)]
            return np.array([*map(math.sin, angles), *map(math.cos, angles)])

        h = [state["wte.weight"][token] for token in text]
        g = dict.fromkeys(predict[b], state["mask_emb"])
        kinds = None if types is None else [0] * M + list(types[b])
        for i in range(config.layers):
            w = {name.removeprefix(f"h.{i}."): x for name, x in state.items() if name.startswith(f"h.{i}.")}
            seen = [*(mems[i][b] if M else []), *h]
            wk, wv = w["attn.kv.weight"][:C], w["attn.kv.weight"][C:]

            def norm(x, name, w=w):
                x = x - x.mean()
                return x / math.sqrt((x**2).mean() + config.norm_eps) * w[f"{name}.weight"] + w[f"{name}.bias"]

            def block(x, t, sees_itself, w=w, seen=seen, wk=wk, wv=wv, b=b, kinds=kinds, norm=norm, position=position):
                heads = []
                for head in range(H):
                    part = slice(head * D, head * D + D)
                    q = (w["attn.q.weight"] @ x)[part]
                    scores, values = [], []
                    for s in range(len(seen)):
                        hides = s >= M and (not real[b][s - M] or (perm_mask is not None and perm_mask[b, t, s - M]))
                        if hides and not (s - M == t and sees_itself):
                            continue
                        r = (w["attn.r.weight"] @ position(M + t - s))[part]
                        score = (q + w["attn.r_w_bias"][part]) @ (wk @ seen[s])[part]
                        score += (q + w["attn.r_r_bias"][part]) @ r
                        if kinds is not None:
                            e = w["attn.seg_embed"][int(kinds[M + t] != kinds[s])][part]
                            score += (q + w["attn.r_s_bias"][part]) @ e
                        scores.append(score / math.sqrt(D))
                        values.append((wv @ seen[s])[part])
                    weights = np.exp(np.array(scores) - max(scores)) if scores else np.zeros(0)
                    heads.append(
                        sum((p / weights.sum() * v for p, v in zip(weights, values, strict=True)), np.zeros(D))
                    )
                x = norm(x + w["attn.proj.weight"] @ np.concatenate(heads), "ln_1")
                inner = w["mlp.fc.weight"] @ x + w["mlp.fc.bias"]
                inner = inner * np.array([0.5 * (1 + math.erf(z / math.sqrt(2))) for z in inner])
                return norm(x + w["mlp.proj.weight"] @ inner + w["mlp.proj.bias"], "ln_2")

            new_h = [block(x, t, True) for t, x in enumerate(h)]
            g = {t: block(x, t, False) for t, x in g.items()}
            h = new_h
        out.append([g[t] for t in predict[b]] if predict[b] else h)
    return np.array(out)


LOOPS = {
    "fine-tuning": {},
    "padding": {"padding": True},
    "segments": {"types": True},
    "memory": {"types": True, "M": 3},
    "two streams": {"order": True},
    "two streams, all": {"order": True, "types": True, "padding": True, "M": 3},
    "clamped": {"order": True, "M": 2, "clamp_len": 3},
    "both directions": {"order": True, "M": 2, "bi_data": True},
}


@pytest.mark.parametrize("case", LOOPS)
def test_features_equal_those_of_plain_loops(rng, case: str) -> None:
    how = LOOPS[case]
    config = replace(SMALL, clamp_len=how.get("clamp_len", -1), bi_data=how.get("bi_data", False))
    model = random_model(config, dtype=np.float64)
    B, T, M = 2, 6, how.get("M", 0)
    ids, types, lengths = rng.integers(0, 19, (B, T)), rng.integers(0, 3, (B, T)), [6, 4]
    given = {"token_types": types} if how.get("types") else {}
    order = some_order(rng, B, T, 6 if how.get("order") else 0)  # all of them, so the first sees nothing
    mems = [rng.normal(size=(B, M, 16)) for _ in range(2)] if M else None
    real = np.arange(T) < np.array(lengths if how.get("padding") else [T, T])[:, None]
    given |= {"attention_mask": real} if how.get("padding") else {}
    given |= order if how.get("order") else {}
    predict = [[int(row.argmax()) for row in text] for text in order["target_mapping"]]
    expected = plain_features(
        model.state_dict(), config, ids, given.get("token_types"), given.get("perm_mask"), predict, mems, real
    )
    received = model.features(ids, mems=mems, **given).data
    np.testing.assert_allclose(received, expected, rtol=1e-10, atol=1e-10)
    logits = model(ids, mems=mems, **given).data
    np.testing.assert_allclose(logits, expected @ model.wte.weight.data.T + model.bias.data, rtol=1e-9, atol=1e-9)
    if how.get("padding"):
        by_length = {key: value for key, value in given.items() if key != "attention_mask"}
        again = model.features(ids, lengths=lengths, mems=mems, **by_length).data
        np.testing.assert_array_equal(again, received)


def test_every_gradient_equals_central_differences(rng: np.random.Generator) -> None:
    """Gradients against central differences, in float64, with two streams, memory, segments and padding."""
    model = random_model(dtype=np.float64)
    ids, types = rng.integers(0, 19, (2, 8)), rng.integers(0, 2, (2, 8))
    given = {"token_types": types, "lengths": [8, 6], "mems": [rng.normal(size=(2, 3, 16)) for _ in range(2)]}
    labels = rng.integers(0, 19, (2, 5))
    labels[1, 2] = -100
    given |= some_order(rng, 2, 8, 5)
    check_slopes(model, lambda: model.loss(ids, labels, **given), rng)


# Masks


@given(st.integers(1, 9), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_a_prediction_does_not_depend_on_its_own_token_and_the_later_ones(T, seed) -> None:
    rng = np.random.default_rng(seed)
    model = random_model(replace(SMALL, layers=3))
    ids, order = rng.integers(0, 19, (1, T)), some_order(rng, 1, T, T)
    places = order["target_mapping"][0].argmax(1)
    with no_grad():
        before = model(ids, **order).data[0]
        assert np.isfinite(before).all()
        for n, t in enumerate(places):
            changed = ids.copy()
            changed[0, t] = (ids[0, t] + 1 + rng.integers(18)) % 19
            moved = (model(changed, **order).data[0] != before).any(-1)
            assert moved.tolist() == [p > n for p in range(T)]


def test_who_sees_nothing_finds_zero_and_passes_no_gradient() -> None:
    """The prediction then depends on the position's query alone, and not on the text."""
    model = random_model(dtype=np.float64)
    order = {"perm_mask": np.ones((1, 3, 3), bool), "target_mapping": np.eye(3, dtype=bool)[None]}
    logits = [model(ids, **order) for ids in ([[1, 2, 3]], [[4, 5, 6]])]
    np.testing.assert_array_equal(logits[0].data, logits[1].data)
    model.loss([[1, 2, 3]], [[7, 8, 9]], **order).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert not any(grad.any() for name, grad in gradients.items() if ".attn." in name)
    assert all(np.isfinite(grad).all() for grad in gradients.values())
    assert gradients["mask_emb"].any()


def test_a_row_of_zeros_predicts_nothing_and_changes_nothing(rng: np.random.Generator) -> None:
    model = random_model(dtype=np.float64)
    ids, order = rng.integers(0, 19, (2, 6)), some_order(rng, 2, 6, 3)
    more = np.concatenate([order["target_mapping"], np.zeros((2, 2, 6), bool)], 1)
    longer = model(ids, perm_mask=order["perm_mask"], target_mapping=more)
    assert np.isfinite(longer.data).all()
    np.testing.assert_allclose(longer.data[:, :3], model(ids, **order).data, rtol=1e-12)
    labels = rng.integers(0, 19, (2, 3))
    padded = np.concatenate([labels, np.full((2, 2), -100)], 1)
    loss = model.loss(ids, padded, perm_mask=order["perm_mask"], target_mapping=more).item()
    assert loss == pytest.approx(model.loss(ids, labels, **order).item(), rel=1e-12)


def test_a_padded_text_has_the_features_of_the_text_alone(rng: np.random.Generator) -> None:
    model = random_model(dtype=np.float64)
    ids, lengths = rng.integers(0, 19, (3, 9)), [9, 1, 5]
    found = model.features(ids, lengths=lengths).data
    for b, length in enumerate(lengths):
        alone = model.features(ids[b : b + 1, :length]).data[0]
        np.testing.assert_allclose(found[b, :length], alone, rtol=1e-11, atol=1e-11)


def test_a_text_written_backwards_is_the_same_text(rng: np.random.Generator) -> None:
    """With bi_data, the second half of a batch may be written backwards; without it, the model gives another result."""
    ids = rng.integers(0, 19, (2, 7))
    both = np.concatenate([ids, ids[:, ::-1]])
    for bi_data in (True, False):
        found = random_model(replace(SMALL, bi_data=bi_data), dtype=np.float64).features(both).data
        same = np.allclose(found[2:, ::-1], found[:2], rtol=1e-11, atol=1e-11)
        assert same == bi_data


# Memory


def test_what_is_remembered(rng: np.random.Generator) -> None:
    ids = rng.integers(0, 19, (2, 5))
    whole = random_model()
    _, first = whole.logits_and_mems(ids)
    _, second = whole.logits_and_mems(ids, mems=first)
    assert [x.shape for x in first] == [(2, 5, 16)] * 2
    np.testing.assert_array_equal(first[0].data, whole.wte.weight.data[ids])
    np.testing.assert_array_equal(second[1].data[:, :5], first[1].data)
    assert [x.shape for x in second] == [(2, 10, 16)] * 2
    assert not any(x.requires_grad for x in first)
    for mem_len, reuse_len in ((3, None), (None, 2), (3, 2), (8, 4)):
        model = random_model(replace(SMALL, mem_len=mem_len, reuse_len=reuse_len))
        _, mems = model.logits_and_mems(ids)
        kept = first[1].data[:, : reuse_len or 5]
        np.testing.assert_array_equal(mems[1].data, kept[:, -(mem_len or 5) :])
        _, more = model.logits_and_mems(ids, mems=mems)
        assert more[1].shape[1] == min(mem_len or 99, mems[1].shape[1] + (reuse_len or 5))


def test_a_text_in_two_pieces_is_read_like_one_in_that_order(rng: np.random.Generator) -> None:
    """Memory equals a mask that hides the second piece of a text from the first."""
    model = random_model(dtype=np.float64)
    ids = rng.integers(0, 19, (2, 9))
    perm_mask = np.zeros((2, 9, 9), bool)
    perm_mask[:, :4, 4:] = True
    whole = model(ids, perm_mask=perm_mask).data
    first, mems = model.logits_and_mems(ids[:, :4])
    second = model(ids[:, 4:], mems=mems).data
    np.testing.assert_allclose(np.concatenate([first.data, second], 1), whole, rtol=1e-10, atol=1e-10)


def test_no_gradient_goes_through_memory(rng: np.random.Generator) -> None:
    model = random_model()
    ids, labels = rng.integers(0, 19, (2, 2, 5))
    loss, mems = model.loss_and_mems(ids, labels)
    loss.backward()
    model.zero_grad()
    model.loss(ids, labels, mems=[x.data for x in mems]).backward()
    expected = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    model.loss(ids, labels, mems=mems).backward()  # the graph that made the memory is released, and not needed
    for parameter, grad in zip(model.parameters(), expected, strict=True):
        if grad is not None:
            np.testing.assert_array_equal(parameter.grad, grad)


# Ids in, logits out


def test_what_goes_in_may_be_lists_arrays_or_tensors(rng: np.random.Generator) -> None:
    model = random_model()
    order = some_order(rng, 2, 5, 3)
    ids, types, labels = rng.integers(0, 19, (2, 5)), rng.integers(0, 2, (2, 5)), rng.integers(0, 19, (2, 3))
    given = {"token_types": types, **{key: value.astype(int) for key, value in order.items()}}
    expected, loss = model(ids, **given), model.loss(ids, labels, **given).item()
    assert (expected.shape, expected.dtype) == ((2, 3, 19), np.float32)
    for form in (np.ndarray.tolist, minillm.tensor, lambda x: x.astype(np.uint8)):
        formed = {key: form(value) for key, value in given.items()}
        np.testing.assert_array_equal(model(form(ids), **formed).data, expected.data)
        assert model.loss(form(ids), form(labels), **formed).item() == loss
    whole = model(ids, token_types=types, lengths=[5, 5])
    np.testing.assert_array_equal(whole.data, model(ids, token_types=types).data)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"ids": [1, 2]}, ShapeError, r"^XLNetLMHeadModel: ids have shape \(2,\); give \(B, T\)"),
        ({"ids": np.zeros((1, 0), int)}, ShapeError, r"ids have shape \(1, 0\)"),
        ({"ids": [[19]]}, InputError, "token id 19 is out of range; expected 0 to 18"),
        ({"token_types": [[0, 1]]}, ShapeError, "token_types has T=2, but ids has T=3"),
        ({"token_types": [[0, 0.5, 1]]}, DtypeError, "token_types have dtype float64; give integers"),
        ({"attention_mask": [[1.0, 1.0, 0.0]]}, DtypeError, "attention_mask has dtype float64; give bool"),
        ({"perm_mask": np.zeros((1, 3, 3))}, DtypeError, "perm_mask has dtype float64; give bool"),
        ({"perm_mask": np.zeros((1, 3, 2), bool)}, ShapeError, "perm_mask has T=2, but ids has T=3"),
        ({"target_mapping": np.zeros((1, 4, 2), bool)}, ShapeError, "target_mapping has T=2, but ids has T=3"),
        ({"attention_mask": [[1, 1, 0]], "lengths": [2]}, InputError, "lengths and attention_mask both"),
        ({"lengths": [4]}, InputError, "lengths 4 is out of range; expected 0 to 3"),
        ({"mems": []}, ShapeError, r"mems are 0 arrays of shapes \[\]; give 2, one for each block"),
        ({"mems": [np.zeros((2, 3, 16))] * 2}, ShapeError, r"one shape \(B, M, C\) with B=1 and C=16"),
        ({"mems": [np.zeros((1, 3, 16)), np.zeros((1, 2, 16))]}, ShapeError, "mems are 2 arrays of shapes"),
    ],
)
def test_what_cannot_be_used(arguments, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        XLNetLMHeadModel(SMALL)(**{"ids": [[1, 2, 3]], **arguments})


def test_labels_and_batches_that_cannot_be_used() -> None:
    with pytest.raises(ShapeError, match="loss: labels has P=2, but features has P=3"):
        XLNetLMHeadModel(SMALL).loss([[1, 2, 3]], [[1, 2]])
    with pytest.raises(InputError, match="ids have B=1; with bi_data give an even number"):
        XLNetLMHeadModel(replace(SMALL, bi_data=True))([[1, 2, 3]])


def test_dropout_acts_in_every_place_while_training_only(rng: np.random.Generator) -> None:
    ids, order = rng.integers(0, 19, (2, 8)), some_order(rng, 2, 8, 3)
    model = random_model(replace(SMALL, layers=1, dropout=0.5))
    dropped = [(n.scope, n.edges[0][0].op.name) for n in all_nodes(model(ids)) if n.op.name == "dropout"]
    branches = [("h.0.attn.dropout", "softmax"), ("h.0.attn.dropout", "linear")]
    branches += [("h.0.mlp.dropout", "gelu"), ("h.0.mlp.dropout", "linear")]
    assert sorted(dropped) == sorted([("drop", "embedding"), ("drop", "layernorm"), *branches])
    assert (model(ids, **order).data != model(ids, **order).data).any()
    exact = random_model(replace(SMALL, layers=1))
    np.testing.assert_array_equal(model.eval()(ids, **order).data, exact(ids, **order).data)


def test_it_learns_to_predict_in_any_order() -> None:
    """In a repeated text of 12 letters, each determines the others: the loss falls far below the entropy, log 12."""
    minillm.manual_seed(1)
    model = XLNetLMHeadModel(XLNetConfig(12, 2, 4, 32, 64, dropout=0.0))
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data *= 4  # 0.02 suits 768 channels; with 32, training starts slowly from it
    optimizer = AdamW(model.parameters(), 1e-2)
    rng = np.random.default_rng(0)
    text = np.tile(rng.permutation(12), 10)
    losses = []
    for _ in range(80):
        batch = permute_tokens(text[rng.integers(0, 12, (16, 1)) + np.arange(18)])
        optimizer.zero_grad()
        loss = model.loss(**batch._asdict())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"loss {losses[0]:.2f} to {np.mean(losses[-10:]):.3f}, entropy {math.log(12):.2f} nats")
    assert losses[0] > 2
    assert np.mean(losses[-10:]) < 0.5


# Hugging Face's XLNet


@pytest.fixture
def torch():
    """Run torch on one thread: with two, products as small as these take ten times as long."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch
    torch.set_num_threads(threads)


def random_transformers_model(transformers, torch, config: XLNetConfig, dtype: type):
    """A small model of transformers with its own random weights, enlarged, and ours with the same weights."""
    torch.manual_seed(0)
    theirs = transformers.XLNetLMHeadModel(transformers.XLNetConfig(**xlnet.config_to_hugging_face(config)))
    theirs = enlarge(theirs.to(getattr(torch, np.dtype(dtype).name)), 0.25)
    if dtype == np.float64:
        theirs.transformer.relative_positional_encoding = in_float64(torch, config)
    return twin(XLNetLMHeadModel(config).to(dtype), theirs), theirs


CASES = {
    "fine-tuning": (SMALL, ()),
    "fine-tuning, padded pairs": (replace(SMALL, heads=4), ("types", "padding")),
    "two streams": (SMALL, ("order",)),
    "two streams, padded pairs": (replace(SMALL, layers=3, norm_eps=1e-5), ("order", "types", "padding")),
    "content under a mask": (SMALL, ("mask",)),
    "memory": (replace(SMALL, mem_len=7), ("types", "memory")),
    "memory, two streams": (replace(SMALL, mem_len=7, reuse_len=5), ("order", "types", "padding", "memory")),
    "clamped, both directions": (replace(SMALL, heads=1, clamp_len=4, bi_data=True), ("order", "memory")),
}


@pytest.mark.oracle
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-10)])
def test_logits_gradients_and_a_step_equal_hugging_faces(torch, rng, case: str, dtype, tolerance: float) -> None:
    transformers = pytest.importorskip("transformers")
    config, parts = CASES[case]
    model, reference = random_transformers_model(transformers, torch, config, dtype)
    assert sum(p.numel() for p in reference.parameters()) == model.num_parameters()  # tied in transformers, too
    # The gradients of these, which have no effect, are rounding errors in both libraries.
    floor = 1e-6 if dtype == np.float32 else 1e-14

    B, T, P = 4, 10, 5
    real = np.ones((B, T), bool)
    if "padding" in parts:
        real = rng.random((B, T)) < 0.7
    real[:, 0] = True

    def some_text() -> tuple[dict, dict, np.ndarray]:
        ours, theirs = {"ids": rng.integers(0, 19, (B, T))}, {}
        theirs["input_ids"] = torch.tensor(ours["ids"])
        if "types" in parts:
            ours["token_types"] = rng.integers(0, 3, (B, T))
            theirs["token_type_ids"] = torch.tensor(ours["token_types"])
        if "padding" in parts:
            ours["attention_mask"] = real
            theirs["attention_mask"] = torch.tensor(real.astype(dtype))
        if "order" in parts:
            ours |= some_order(rng, B, T, P)
        if "mask" in parts:
            ours["perm_mask"] = rng.random((B, T, T)) < 0.4
        if "perm_mask" in ours and "memory" not in parts:
            ours["perm_mask"][:, :, 0] = False  # in transformers, a query that sees nothing sees all
        for key in ("perm_mask", "target_mapping"):
            if key in ours:
                theirs[key] = torch.tensor(ours[key].astype(dtype))
        labels = rng.integers(0, 19, (B, P if "order" in parts else T))
        labels[:, 1] = -100
        if "order" not in parts:
            labels[~real] = -100
        return ours, theirs, labels

    texts = [some_text() for _ in range(2 if "memory" in parts else 1)]
    mems = their_mems = None

    def check(kind: str) -> None:
        check_parameters(kind, model, reference, tolerance, floor, unused=("mask_emb", "h."))

    optimizer, their_optimizer = optimizers(model, reference)
    for text, theirs, labels in texts:  # gradients and a step, too
        before = their_mems
        expected = reference(**theirs, mems=before, use_mems=True, labels=torch.tensor(labels))
        their_mems = expected.mems
        logits, new_mems = model.logits_and_mems(**text, mems=mems)
        seen = slice(None) if "order" in parts else real
        assert relative_error(logits.data[seen], expected.logits.detach().numpy()[seen]) < tolerance
        loss = model.loss(labels=labels, mems=mems, **text)
        assert loss.item() == pytest.approx(expected.loss.item(), rel=tolerance)
        for one, other in zip(new_mems, their_mems, strict=True):
            assert relative_error(one.data, other.numpy().swapaxes(0, 1)) < tolerance
        expected.loss.backward()
        loss.backward()
        check("grad")
        optimizer.step()
        their_optimizer.step()
        check("data")
        optimizer.zero_grad()
        their_optimizer.zero_grad()
        after = reference(**theirs, mems=before).logits.detach().numpy()
        assert relative_error(model(**text, mems=mems).data[seen], after[seen]) < 3 * tolerance
        mems = new_mems


@given(
    *(st.integers(1, 4) for _ in range(2)),
    st.sampled_from([0.0, 0.1]),
    *(st.none() | st.integers(1, 9) for _ in range(2)),
    st.integers(-1, 5),
    st.booleans(),
)
def test_a_config_comes_back_from_hugging_faces_form(layers, heads, dropout, mem, reuse, clamp, bi_data) -> None:
    config = XLNetConfig(5, layers, heads, 4 * heads, 7, dropout, 1e-5, mem, reuse, clamp, bi_data)
    assert xlnet.config_from_hugging_face(xlnet.config_to_hugging_face(config)) == config


def test_what_a_config_leaves_out_is_what_transformers_takes() -> None:
    assert xlnet.config_from_hugging_face({}) == XLNetConfig(mem_len=512)
    assert xlnet.config_from_hugging_face({"mem_len": None, "reuse_len": 0, "d_head": 64}) == XLNetConfig()
