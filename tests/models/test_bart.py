"""BART: every layer against plain loops, its masks, generation with a cache, and Hugging Face's implementation."""

from __future__ import annotations

import json
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
    optimizers,
    relative_error,
    twin,
    with_large_weights,
)

import minillm
from minillm.autograd import no_grad
from minillm.beam_search import beam_search
from minillm.errors import CheckpointError, DtypeError, InputError, ShapeError
from minillm.generate import generate, generate_batch
from minillm.models import bart
from minillm.models.bart import PRESETS, Bart, BartConfig, BartModel, shift_right
from minillm.models.bart_conditioned import SourceCache
from minillm.optim import AdamW

SMALL = BartConfig(19, 12, 2, 3, 2, 4, 16, 24, 20, dropout=0.0)


def random_model(config: BartConfig = SMALL, seed: int = 0, dtype: type = np.float32) -> Bart:
    """A model with weights so large that every part of it matters, including the bias of the logits."""
    return with_large_weights(Bart(config).to(dtype), seed=seed)


def some_targets(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Targets of several lengths, padded with -100; none is the padding id, whose gradient is a special case."""
    targets = rng.integers(3, 19, shape)
    targets[np.arange(shape[1]) >= rng.integers(1, shape[1] + 1, shape[0])[:, None]] = -100
    return targets


# Size and initial weights


def number_of_weights(config: BartConfig) -> int:
    """The number of weights, counted by hand, without the bias of the logits, which is not trained."""
    V, T, C = config.vocab_size, config.context, config.channels
    norm, square = 2 * C, C * C + C
    encoder, decoder = (2 * C * F + F + C for F in (config.encoder_hidden, config.decoder_hidden))
    sides = 2 * ((T + 2) * C + norm)
    blocks = config.encoder_layers * (4 * square + encoder + 2 * norm)
    return V * C + sides + blocks + config.decoder_layers * (8 * square + decoder + 3 * norm)


@given(*(st.integers(1, 3) for _ in range(7)))
@settings(max_examples=20)
def test_the_count_on_paper_is_right(context, layers, more, heads, head_size, hidden, wider) -> None:
    config = BartConfig(5, context, layers, more, heads, 1, heads * head_size, hidden, wider)
    assert BartModel(config).num_parameters() == number_of_weights(config)
    assert Bart(config).num_parameters() == number_of_weights(config) + 5


def test_the_presets_have_the_published_numbers_of_weights() -> None:
    assert {name: number_of_weights(config) for name, config in PRESETS.items()} == {
        "nano": 53_248,
        "multi30k": 2_126_848,
        "bart-base": 139_420_416,
        "bart-large": 406_291_456,
    }


def test_the_names_of_parameters() -> None:
    names = Bart(SMALL).state_dict()
    assert set(names) - set(BartModel(SMALL).state_dict()) == {"final_logits_bias"}
    for name, parameter in Bart(SMALL).named_parameters():
        assert parameter.name == name
        assert parameter.requires_grad == (name != "final_logits_bias")


def test_initial_weights() -> None:
    minillm.manual_seed(0)
    config = BartConfig(300, 200, 2, 2, 4, 4, 128, 256, 256, init_std=0.05, padding_id=7)
    for name, parameter in Bart(config).named_parameters():
        if name == "final_logits_bias":
            assert not parameter.data.any()
        elif parameter.ndim == 2:
            assert parameter.data.std() == pytest.approx(0.05, rel=0.05), name
            assert abs(parameter.data.mean()) < 0.003, name
        else:
            assert (parameter.data == (1 if name.endswith("weight") else 0)).all(), name
        assert parameter.dtype == np.float32
        if name == "wte.weight":
            assert (parameter.data == 0).all(axis=1).nonzero()[0].tolist() == [7]


def test_the_initial_loss_is_nearly_that_of_a_uniform_guess(rng: np.random.Generator) -> None:
    model = Bart(replace(SMALL, vocab_size=500)).eval()
    source, target = rng.integers(0, 500, (2, 8, 12))
    assert model.loss(source, target).item() == pytest.approx(math.log(500), abs=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(({field: 0}, f"^BartConfig: {field} is 0; give 1 or more$") for field in ("vocab_size", "context")),
        *(({field: -1}, f"^BartConfig: {field} is -1; give 1") for field in ("encoder_heads", "decoder_layers")),
        ({"encoder_hidden": 0}, "^BartConfig: encoder_hidden is 0"),
        ({"decoder_heads": 3}, "^BartConfig: channels=16 is not a multiple of decoder_heads=3$"),
        ({"dropout": 1.0}, "^BartConfig: dropout is 1.0; give a probability"),
        ({"activation_dropout": -0.1}, "^BartConfig: activation_dropout is -0.1; give a probability"),
        ({"attention_dropout": math.nan}, "^BartConfig: attention_dropout is nan"),
        ({"activation": "silu"}, "^BartConfig: activation is 'silu'; give 'gelu' or 'relu'$"),
        ({"init_std": -1.0}, "^BartConfig: init_std is -1.0; give 0 or more$"),
        ({"padding_id": 19}, "^BartConfig: padding_id is 19; give a token id, 0 to 18$"),
        ({"decoder_start_id": -1}, "^BartConfig: decoder_start_id is -1; give a token id"),
    ],
)
def test_a_config_says_what_is_wrong(change, message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(SMALL, **change)


# Plain loops


def plain_logits(config: BartConfig, weights: dict, source: list[int], target_in: list[int]) -> np.ndarray:
    """The logits (T, V) of one pair, a vector at a time: no batch, no padding, no operation of minillm."""

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        z = (x - x.mean()) / math.sqrt(((x - x.mean()) ** 2).mean() + 1e-5)
        return z * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def activation(x: np.ndarray) -> np.ndarray:
        if config.activation == "relu":
            return np.array([max(0.0, number) for number in x])
        return np.array([number * 0.5 * (1 + math.erf(number / math.sqrt(2))) for number in x])

    def mlp(name: str, x: np.ndarray) -> np.ndarray:
        return linear(f"{name}.proj", activation(linear(f"{name}.fc", x)))

    def attend(heads: int, q: np.ndarray, keys: list[np.ndarray], values: list[np.ndarray]) -> np.ndarray:
        size = len(q) // heads
        out = np.zeros(len(q))
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            weight = [math.exp(float(q[part] @ key[part]) / math.sqrt(size)) for key in keys]
            for one, value in zip(weight, values, strict=True):
                out[part] += one / sum(weight) * value[part]
        return out

    def embed(side: str, ids: list[int]) -> list[np.ndarray]:
        scale = math.sqrt(config.channels) if config.scale_embedding else 1.0
        table, positions = weights["wte.weight"], weights[f"{side}.wpe.weight"]
        return [norm(f"{side}.ln", table[token] * scale + positions[t + 2]) for t, token in enumerate(ids)]

    def self_attention(name: str, heads: int, x: list[np.ndarray], causal: bool) -> list[np.ndarray]:
        q, k, v = zip(*(np.split(linear(f"{name}.qkv", one), 3) for one in x), strict=True)
        seen = [t + 1 if causal else len(x) for t in range(len(x))]
        return [linear(f"{name}.proj", attend(heads, q[t], k[: seen[t]], v[: seen[t]])) for t in range(len(x))]

    memory = embed("encoder", source)
    for i in range(config.encoder_layers):
        block = f"encoder.h.{i}"
        mixed = self_attention(f"{block}.attn", config.encoder_heads, memory, causal=False)
        memory = [norm(f"{block}.ln_1", a + b) for a, b in zip(memory, mixed, strict=True)]
        memory = [norm(f"{block}.ln_2", one + mlp(f"{block}.mlp", one)) for one in memory]

    x = embed("decoder", target_in)
    for i in range(config.decoder_layers):
        block = f"decoder.h.{i}"
        mixed = self_attention(f"{block}.attn", config.decoder_heads, x, causal=True)
        x = [norm(f"{block}.ln_1", a + b) for a, b in zip(x, mixed, strict=True)]
        keys, values = zip(*(np.split(linear(f"{block}.cross.kv", one), 2) for one in memory), strict=True)
        for t, one in enumerate(x):
            read = attend(config.decoder_heads, linear(f"{block}.cross.q", one), keys, values)
            x[t] = norm(f"{block}.ln_2", one + linear(f"{block}.cross.proj", read))
        x = [norm(f"{block}.ln_3", one + mlp(f"{block}.mlp", one)) for one in x]
    return np.stack([weights["wte.weight"] @ one + weights["final_logits_bias"][0] for one in x])


@pytest.mark.parametrize("change", [{}, {"activation": "relu", "scale_embedding": True, "decoder_heads": 1}])
def test_logits_equal_plain_loops(change, rng: np.random.Generator) -> None:
    config = replace(SMALL, **change)
    model = random_model(config, dtype=np.float64)
    source, target_in, lengths = rng.integers(0, 19, (3, 9)), rng.integers(0, 19, (3, 7)), [9, 1, 5]
    logits = model(source, target_in, lengths).data
    for b, length in enumerate(lengths):
        expected = plain_logits(config, model.state_dict(), source[b, :length].tolist(), target_in[b].tolist())
        assert relative_error(logits[b], expected) < 1e-12


# Ids in, logits out


def test_what_goes_in_may_be_lists_arrays_or_tensors(rng: np.random.Generator) -> None:
    model = random_model()
    source, target = rng.integers(1, 19, (2, 5)), some_targets(rng, (2, 4))
    shifted = shift_right(target, 2, 1)
    logits = model(source, shifted, [3, 5])
    assert logits.shape == (2, 4, 19)
    assert logits.dtype == np.float32
    loss = model.loss(source, target, [3, 5]).item()
    for form in (np.ndarray.tolist, minillm.tensor):
        np.testing.assert_array_equal(model(form(source), form(shifted), form(np.array([3, 5]))).data, logits.data)
        assert model.loss(form(source), form(target), form(np.array([3, 5]))).item() == loss
        view = model.conditioned(form(source), form(np.array([3, 5])))
        np.testing.assert_array_equal(view(form(shifted)).data, logits.data)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"source": [1, 2]}, ShapeError, r"^Bart: source has shape \(2,\); give \(B, T\)"),
        ({"target_in": [1, 2]}, ShapeError, r"^Bart: target_in has shape \(2,\); give \(B, T\)"),
        ({"source": np.zeros((1, 13), int)}, ShapeError, "^Bart: source has T=13; give 1 to 12, the context$"),
        ({"target_in": np.zeros((1, 13), int)}, ShapeError, "^Bart: target_in has T=13; give 1 to 12"),
        ({"target_in": np.zeros((1, 0), int)}, ShapeError, "^Bart: target_in has T=0; give 1 to 12"),
        ({"target_in": [[1], [2]]}, ShapeError, "^Bart: target_in has B=2, but source has B=1$"),
        ({"source": [[0.5]]}, DtypeError, "token id must be integers"),
        ({"target_in": [[19]]}, InputError, "token id 19 is out of range; expected 0 to 18"),
        ({"source_lengths": [4]}, InputError, "lengths 4 is out of range; expected 0 to 3"),
        ({"source_lengths": [2, 2]}, ShapeError, "lengths has B=2"),
    ],
)
def test_what_cannot_be_used(arguments, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Bart(SMALL)(**{"source": [[1, 2, 3]], "target_in": [[1, 2]], **arguments})


def test_targets_that_cannot_be_used() -> None:
    model = Bart(SMALL)
    with pytest.raises(ShapeError, match=r"targets has shape \(2,\)"):
        model.loss([[1, 2, 3]], [1, 2])
    with pytest.raises(InputError, match="target 19 is out of range"):
        model.loss([[1, 2, 3]], [[1, 19]])


def test_shifting_right() -> None:
    targets = np.array([[5, 6, 7, 8], [9, 2, -100, -100], [-100, 4, -100, -100]])
    before = targets.copy()
    assert shift_right(targets, 3, 1).tolist() == [[3, 5, 6, 7], [3, 9, 2, 1], [3, 1, 4, 1]]
    np.testing.assert_array_equal(targets, before)
    assert shift_right(np.array([[5]]), 3, 1).tolist() == [[3]]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_that_of_the_logits(rng: np.random.Generator, smoothing: float) -> None:
    model = random_model(replace(SMALL, decoder_start_id=4, padding_id=0), dtype=np.float64)
    source, targets, lengths = rng.integers(0, 19, (3, 8)), some_targets(rng, (3, 6)), [8, 3, 5]
    seen = np.concatenate([np.full((3, 1), 4), np.where(targets == -100, 0, targets)[:, :-1]], axis=1)
    logs = model(source, seen, lengths).log_softmax(-1).data
    each = np.zeros((3, 6))
    for b, t in np.argwhere(targets != -100):
        each[b, t] = -(1 - smoothing) * logs[b, t, targets[b, t]] - smoothing * logs[b, t].mean()
    given = source, targets, lengths, smoothing
    assert model.loss(*given).item() == pytest.approx(each.sum() / (targets != -100).sum(), rel=1e-12)
    assert model.loss(*given, reduction="sum").item() == pytest.approx(each.sum(), rel=1e-12)
    np.testing.assert_allclose(model.loss(*given, reduction="none").data, each, rtol=1e-12)


# Masks


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_a_later_target_changes_nothing_before_it(data: st.DataObject) -> None:
    B, S, T = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 12)), data.draw(st.integers(2, 12))
    place = data.draw(st.integers(1, T - 1))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    model = random_model(dtype=np.float64)
    source, target_in = rng.integers(0, 19, (B, S)), rng.integers(0, 19, (B, T))
    before = model(source, target_in).data
    target_in[0, place:] = (target_in[0, place:] + rng.integers(1, 19)) % 19
    after = model(source, target_in).data
    np.testing.assert_array_equal(after[0, :place], before[0, :place])
    np.testing.assert_array_equal(after[1:], before[1:])
    assert (after[0, place:] != before[0, place:]).any(axis=-1).all()


def test_every_token_of_the_source_is_seen_at_every_place_of_its_own_target(rng: np.random.Generator) -> None:
    model = random_model(dtype=np.float64)
    source, target_in = rng.integers(0, 19, (2, 8)), rng.integers(0, 19, (2, 6))
    before, memory = model(source, target_in).data, model.encode(source).data
    for s in range(8):
        changed = source.copy()
        changed[0, s] = (source[0, s] + 1 + rng.integers(0, 18)) % 19
        after = model(changed, target_in).data
        assert (after[0] != before[0]).any(axis=-1).all()
        assert (model.encode(changed).data[0] != memory[0]).any(axis=-1).all()
        np.testing.assert_array_equal(after[1], before[1])


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_what_stands_at_a_padded_place_of_the_source_changes_nothing(data: st.DataObject) -> None:
    B, S, T = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    lengths = data.draw(st.lists(st.integers(1, S), min_size=B, max_size=B))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    real = np.arange(S) < np.array(lengths)[:, None]
    model = random_model()
    source, targets = rng.integers(0, 19, (B, S)), some_targets(rng, (B, T))
    other = np.where(real, source, (source + 7) % 19)
    seen = shift_right(targets, 2, 1)
    with no_grad():
        logits, others = (model(some, seen, lengths).data for some in (source, other))
        np.testing.assert_array_equal(others, logits)
        views = [model.conditioned(some, lengths) for some in (source, other)]
        np.testing.assert_array_equal(*(view.next_logits(seen, view.new_cache(B)).data for view in views))
    gradients = []
    for some in (source, other):
        model.zero_grad()
        model.loss(some, targets, lengths).backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for one, two in zip(*gradients, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-5 * np.abs(one).max())


# Dropout


def test_dropout_acts_in_every_place_while_training_only(rng: np.random.Generator) -> None:
    source, target_in = rng.integers(0, 19, (2, 2, 8))
    config = replace(SMALL, dropout=0.5, attention_dropout=0.25, activation_dropout=0.125)
    model = random_model(config)
    nodes = all_nodes(model(source, target_in))
    drops = [node for node in nodes if node.op.name == "dropout"]
    found = {node.scope: (node.saved.p, node.edges[0][0].op.name) for node in drops}
    expected: dict[str, tuple[float, str]] = {}
    for side, layers, parts in (("encoder", 2, ("attn", "mlp")), ("decoder", 3, ("attn", "cross", "mlp"))):
        expected[f"{side}.drop"] = 0.5, "layernorm"
        expected |= {f"{side}.h.{i}.{part}.dropout": (0.5, "linear") for i in range(layers) for part in parts}
        expected |= {f"{side}.h.{i}.mlp.inner_dropout": (0.125, "gelu") for i in range(layers)}
    assert found == expected
    assert len(drops) == len(found)
    assert [node.saved.dropout.p for node in nodes if node.op.name == "attention"] == [0.25] * (2 + 2 * 3)
    assert (model(source, target_in).data != model(source, target_in).data).any()
    np.testing.assert_array_equal(model.eval()(source, target_in).data, random_model()(source, target_in).data)


# Learning


def test_every_gradient_equals_central_differences(rng: np.random.Generator) -> None:
    """Gradients against central differences along a random direction in each parameter, in float64."""
    model = random_model(replace(SMALL, scale_embedding=True), dtype=np.float64)
    given = rng.integers(0, 19, (3, 8)), some_targets(rng, (3, 10)), [8, 4, 1], 0.1
    check_slopes(model, lambda: model.loss(*given), rng)


def test_it_learns_to_turn_a_sequence_round() -> None:
    """The model learns to reverse sequences that it has not seen: greedily, by beam search, and in a batch."""
    minillm.manual_seed(0)
    rng = np.random.default_rng(0)
    config = BartConfig(14, 10, 1, 2, 4, 4, 48, 96, 96, dropout=0.0, init_std=0.1)
    model, optimizer = Bart(config), None
    optimizer = AdamW(model.parameters(), 3e-3, weight_decay=0.0)

    def batch(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        lengths = rng.integers(2, 8, size)
        source, target = np.full((size, 8), 1), np.full((size, 8), -100)
        for b, length in enumerate(lengths):
            source[b, :length] = rng.integers(3, 14, length)
            target[b, : length + 1] = [*source[b, :length][::-1], 2]
        return source, target, lengths

    steps = 450
    for step in range(steps):
        optimizer.zero_grad()
        optimizer.lr = 4e-3 * min(1, (step + 1) / 50, 2 * (1 - step / steps))
        loss = model.loss(*batch(64))
        loss.backward()
        optimizer.step()
    source, target, lengths = batch(50)  # of sequences of 4 or more, hardly one was among the 28,800
    expected = [row[row != -100].tolist() for row in target]
    view = model.conditioned(source, lengths)
    written = generate_batch(view, [[2]] * 50, 9, stop=[2], temperature=0)
    right = sum(one == other for one, other in zip(written, expected, strict=True))
    print(f"loss {loss.item():.4f}, {right} of 50 reversed")
    assert right >= 48
    found = beam_search(view, [[2]] * 50, 9, beams=3, stop=[2])
    assert sum(best[0].ids == other for best, other in zip(found, expected, strict=True)) >= 48
    for b in range(5):
        alone = model.conditioned(source[b : b + 1, : lengths[b]])
        assert list(generate(alone, [2], 9, stop=[2], temperature=0)) == written[b]


# Generation with a cache


@given(st.data())
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_cached_logits_are_those_of_the_whole(dtype, tolerance: float, data: st.DataObject) -> None:
    """Rows grow, are dropped, repeated and change places; each still equals the row computed alone and at once."""
    S, k = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    width = data.draw(st.integers(1, 12))
    lengths = data.draw(st.none() | st.lists(st.integers(1, width), min_size=S, max_size=S))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    model = random_model(dtype=dtype)
    source = rng.integers(0, 19, (S, width))
    view = model.conditioned(source, lengths)
    cache = view.new_cache(S * k)
    rows = [(s, []) for s in range(S) for _ in range(k)]
    while len(rows[0][1]) < 12 and (not rows[0][1] or data.draw(st.integers(0, 4))):
        new = rng.integers(0, 19, (len(rows), data.draw(st.integers(1, 12 - len(rows[0][1])))))
        rows = [(s, [*seen, *some.tolist()]) for (s, seen), some in zip(rows, new, strict=True)]
        with no_grad():
            received = view.next_logits(new, cache).data
            assert received.dtype == dtype
            for logits, (s, seen) in zip(received, rows, strict=True):
                alone = source[s : s + 1, : lengths[s] if lengths else width]
                expected = model(alone, np.array([seen])).data[0, -1]
                assert relative_error(logits, expected) < tolerance
        chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=6))
        for entry in cache:
            entry.select(np.array(chosen))
        rows = [rows[row] for row in chosen]


def test_rows_of_different_lengths_are_as_alone(rng: np.random.Generator) -> None:
    """Prompts with their ends aligned and padding in front, as in generate_batch."""
    model = random_model(dtype=np.float64)
    source, lengths, ids = rng.integers(0, 19, (3, 6)), [6, 2, 4], rng.integers(0, 19, (3, 9))
    view = model.conditioned(source, lengths)
    padding = np.array([0, 3, 1])
    cache = view.new_cache(3, padding)
    with no_grad():
        view.next_logits(ids[:, :5], cache)
        for entry in cache:
            entry.select(np.array([2, 1]))
        received = view.next_logits(ids[[2, 1], 5:], cache).data
        for logits, b in zip(received, (2, 1), strict=True):
            expected = model(source[b : b + 1, : lengths[b]], ids[b : b + 1, padding[b] :]).data[0, -1]
            assert relative_error(logits, expected) < 1e-12


def test_sources_are_read_once_and_follow_without_a_copy_where_none_moves(rng: np.random.Generator) -> None:
    model = random_model()
    calls = []
    model.encoder.h[0].attn.proj.forward, before = (
        lambda x: calls.append(1) or before(x),
        (model.encoder.h[0].attn.proj.forward),
    )
    view = model.conditioned(rng.integers(0, 19, (2, 5)))
    cache = view.new_cache(2)
    assert all(isinstance(entry, SourceCache) for entry in cache)
    assert cache[0].keys_and_values[0].data is view.memory[0][0].data
    for rows in ([0, 0, 1, 1, 1], [1, 0, 2, 4, 3]):
        for entry in cache:
            entry.select(np.array(rows))
    held = cache[0].keys_and_values[0].data
    assert held.shape == (5, 4, 5, 4)
    cache[0].select(np.array([1, 1, 4, 3, 2]))
    assert cache[0].keys_and_values[0].data is held
    with no_grad():
        view.next_logits([[1], [2]], view.new_cache(2))
    assert len(calls) == 1


def test_sources_are_read_without_dropout_and_the_mode_is_the_models(rng: np.random.Generator) -> None:
    source, ids = rng.integers(0, 19, (2, 7)), rng.integers(0, 19, (2, 3))
    model = random_model(replace(SMALL, dropout=0.5))
    view = model.conditioned(source)
    assert model.training
    assert view.training
    assert all(module.training for _, module in model.named_modules())
    view.eval()
    assert not any(module.training for _, module in model.named_modules())
    np.testing.assert_array_equal(view(ids).data, model(source, ids).data)
    model.train()
    assert view.training
    assert (view(ids).data != view(ids).data).any()
    assert all(not tensor.requires_grad for pair in view.memory for tensor in pair)


def test_a_view_gives_each_source_its_rows(rng: np.random.Generator) -> None:
    model = random_model(dtype=np.float64)
    source, ids, lengths = rng.integers(0, 19, (2, 7)), rng.integers(0, 19, (6, 3)), np.array([7, 4])
    view = model.conditioned(source, lengths)
    expected = model(np.repeat(source, 3, axis=0), ids, np.repeat(lengths, 3))
    assert relative_error(view(ids).data, expected.data) < 1e-12
    assert view.config is model.config
    assert view.loss(ids, ids).item() == pytest.approx(minillm.ops.cross_entropy(expected, ids).item(), rel=1e-12)
    for rows in (1, 3):
        with pytest.raises(ShapeError, match=f"^Bart: there are 2 sources for {rows} rows; give each source the same"):
            view.new_cache(rows)
    with pytest.raises(ShapeError, match="there are 2 sources for 5 rows"):
        view(ids[:5])
    with pytest.raises(ShapeError, match="ids have T=13, but the context is 12"):
        view(np.zeros((2, 13), int))


def test_beams_are_those_of_each_source_alone(rng: np.random.Generator) -> None:
    model = random_model(dtype=np.float64)
    source, lengths = rng.integers(0, 19, (4, 7)), [7, 2, 5, 1]
    together = beam_search(model.conditioned(source, lengths), [[2]] * 4, 8, beams=3, stop=[0, 1, 2, 3, 4])
    for b, found in enumerate(together):
        alone = model.conditioned(source[b : b + 1, : lengths[b]])
        [expected] = beam_search(alone, [[2]], 8, beams=3, stop=[0, 1, 2, 3, 4])
        assert [one.ids for one in found] == [one.ids for one in expected]
        np.testing.assert_allclose([one.score for one in found], [one.score for one in expected], rtol=1e-12)


# Files


def test_the_body_is_the_whole_without_its_bias(tmp_path) -> None:
    """A config.json may say BartModel, as that of facebook/bart-base does; files that hold more are refused."""
    whole = random_model()
    whole.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"architectures": ["BartModel"]}))
    with pytest.raises(CheckpointError, match="unexpected final_logits_bias"):
        minillm.load(tmp_path)
    body = BartModel(SMALL)
    body.load_state_dict({name: array for name, array in whole.state_dict().items() if name != "final_logits_bias"})
    np.testing.assert_array_equal(body([[3, 4]], [[2, 5]]).data, whole.features([[3, 4]], [[2, 5]]).data)


# Hugging Face's BART


CASES = {
    "plain": SMALL,
    "scaled relu": replace(SMALL, scale_embedding=True, activation="relu", decoder_start_id=0, context=20),
    "one layer": replace(SMALL, encoder_layers=1, decoder_layers=1, encoder_heads=1, padding_id=4),
    "deep decoder": replace(SMALL, decoder_layers=4, encoder_hidden=7, decoder_heads=8),
}


def random_transformers_model(transformers, torch, config: BartConfig, dtype: type):
    """A small model of transformers with its own random weights, enlarged, and ours with the same weights.

    transformers' computes in float64, because its gradients in float32 are up to 2e-5 off.
    """
    torch.manual_seed(0)
    values = bart.config_to_hugging_face(config)
    theirs = transformers.BartForConditionalGeneration(transformers.BartConfig(**values, attn_implementation="eager"))
    theirs = enlarge(theirs.to(getattr(torch, np.dtype(dtype).name)))
    theirs.final_logits_bias.add_(torch.randn_like(theirs.final_logits_bias))
    return twin(Bart(config).to(dtype), theirs), theirs.double()


@pytest.mark.oracle
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("with_lengths", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-10)])
def test_logits_gradients_and_a_step_equal_hugging_faces(rng, case, with_lengths, dtype, tolerance: float) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = CASES[case]
    model, reference = random_transformers_model(transformers, torch, config, dtype)
    assert sum(p.numel() for p in reference.parameters()) == number_of_weights(config)  # tied in transformers, too

    lengths = [9, 5, 1, 8] if with_lengths else None
    real = np.arange(9) < np.array(lengths or [9] * 4)[:, None]
    source = np.where(real, rng.integers(5, 19, (4, 9)), config.padding_id)
    targets = some_targets(rng, (4, 12))
    targets[targets == config.padding_id] = 7  # the two treat the gradient of padding differently
    theirs = {"input_ids": torch.tensor(source), "attention_mask": torch.tensor(real.astype(int))}

    seen = shift_right(targets, config.decoder_start_id, config.padding_id)
    memory = reference.get_encoder()(**theirs)[0].detach().numpy()
    assert relative_error(model.encode(source, lengths).data[real], memory[real]) < tolerance
    expected = reference(**theirs, decoder_input_ids=torch.tensor(seen)).logits.detach().numpy()
    assert relative_error(model(source, seen, lengths).data, expected) < tolerance

    optimizer, their_optimizer = optimizers(model, reference)
    bias = model.final_logits_bias.data.copy()
    their_loss = reference(**theirs, labels=torch.tensor(targets)).loss
    their_loss.backward()
    loss = model.loss(source, targets, lengths)
    loss.backward()
    assert loss.item() == pytest.approx(their_loss.item(), rel=tolerance)
    check_parameters("grad", model, reference, tolerance)
    optimizer.step()
    their_optimizer.step()
    check_parameters("data", model, reference, tolerance)
    np.testing.assert_array_equal(model.final_logits_bias.data, bias)  # a buffer in transformers
    after = reference(**theirs, decoder_input_ids=torch.tensor(seen)).logits.detach().numpy()
    assert relative_error(model(source, seen, lengths).data, after) < 2 * tolerance


@pytest.mark.oracle
@pytest.mark.parametrize("beams", [1, 3])
def test_what_is_written_is_what_transformers_writes(rng, beams: int) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model, reference = random_transformers_model(transformers, torch, replace(SMALL, context=30), np.float64)
    lengths = np.array([9, 5, 1, 8])
    real = np.arange(9) < lengths[:, None]
    source = np.where(real, rng.integers(3, 19, (4, 9)), 1)
    written = (
        reference.eval()
        .generate(
            torch.tensor(source),
            attention_mask=torch.tensor(real.astype(int)),
            max_new_tokens=14,
            num_beams=beams,
            do_sample=False,
            eos_token_id=[2, 5, 9],
            forced_eos_token_id=None,
            early_stopping=False,
            length_penalty=1.0,
        )
        .tolist()
    )
    found = beam_search(model.conditioned(source, lengths), [[2]] * 4, 14, beams=beams, stop=[2, 5, 9])
    for [best, *_], [start, *theirs] in zip(found, written, strict=True):
        assert start == 2
        assert best.ids == theirs[: len(best.ids)]
        assert set(theirs[len(best.ids) :]) <= {1}


@given(
    *(st.integers(1, 5) for _ in range(4)),
    st.sampled_from([0.0, 0.1, 0.5]),
    st.sampled_from(["gelu", "relu"]),
    st.booleans(),
    st.integers(0, 4),
)
def test_a_config_comes_back_from_hugging_faces_form(layers, more, heads, hidden, drop, activation, scale, id) -> None:
    config = BartConfig(
        *(5, 6, layers, more, heads, 2 * heads, 2 * heads, hidden, 7, drop, drop / 2, drop / 4),
        *(activation, scale, drop / 3 + 0.01, id, (id + 1) % 5, (id + 2) % 5, (id + 3) % 5),
    )
    assert bart.config_from_hugging_face(bart.config_to_hugging_face(config)) == config


def test_what_a_config_leaves_out_is_what_transformers_takes() -> None:
    assert bart.config_from_hugging_face({}) == BartConfig()
    assert bart.config_from_hugging_face({"model_type": "bart", "pad_token_id": None}) == BartConfig()


@pytest.mark.oracle
def test_our_defaults_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    assert bart.config_from_hugging_face(transformers.BartConfig().to_dict()) == BartConfig()
