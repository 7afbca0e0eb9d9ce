"""GPT-2: initial weights, shapes, a future that no token sees, and Hugging Face's implementation."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_checks import (
    all_nodes,
    check_language_model,
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
from minillm.errors import DtypeError, GraphError, InputError, ShapeError
from minillm.models.gpt2 import GPT2, PRESETS, GPT2Config
from minillm.optim import AdamW, decay_groups

SMALL = GPT2Config(vocab_size=11, context=8, layers=2, heads=2, channels=12)


def random_model(config: GPT2Config = SMALL, seed: int = 0, dtype: type = np.float32) -> GPT2:
    """A model with weights so large that every part of it matters."""
    return with_large_weights(GPT2(config).to(dtype), 0.5, seed)


# Size and initial weights


def number_of_weights(config: GPT2Config) -> int:
    """The number of weights, counted by hand."""
    V, T, L, C = config.vocab_size, config.context, config.layers, config.channels
    bias = 1 if config.bias else 0
    block = 12 * C * C + 2 * C + bias * (3 * C + C + 4 * C + C + 2 * C)
    return V * C + T * C + L * block + C + bias * C


@given(*(st.integers(1, 4) for _ in range(5)), st.booleans())
def test_the_count_on_paper_is_right(vocab_size, context, layers, heads, head_size, bias) -> None:
    config = GPT2Config(vocab_size, context, layers, heads, heads * head_size, bias=bias)
    assert GPT2(config).num_parameters() == number_of_weights(config)


def test_the_presets_have_the_published_numbers_of_weights() -> None:
    assert {name: number_of_weights(config) for name, config in PRESETS.items()} == {
        "nano": 34_688,
        "tiny": 809_856,
        "baby": 10_770_816,
        "gpt2": 124_439_808,
        "gpt2-medium": 354_823_168,
        "gpt2-large": 774_030_080,
        "gpt2-xl": 1_557_611_200,
    }


def test_the_names_of_parameters() -> None:
    names = [name for name, _ in GPT2(GPT2Config(11, 8, 1, 1, 4)).named_parameters()]
    assert names == [
        "wte.weight",
        "wpe.weight",
        *(f"h.0.{part}.{kind}" for part in ("ln_1", "attn.qkv", "attn.proj") for kind in ("weight", "bias")),
        *(f"h.0.{part}.{kind}" for part in ("ln_2", "mlp.fc", "mlp.proj") for kind in ("weight", "bias")),
        "ln_f.weight",
        "ln_f.bias",
    ]
    assert not any("bias" in name for name, _ in GPT2(GPT2Config(11, 8, 1, 1, 4, bias=False)).named_parameters())


def test_initial_weights() -> None:
    minillm.manual_seed(0)
    config = GPT2Config(vocab_size=300, context=200, layers=3, heads=4, channels=128)
    for name, parameter in GPT2(config).named_parameters():
        if name.endswith("proj.weight"):
            expected = 0.02 / math.sqrt(2 * 3)
        elif parameter.ndim == 2:
            expected = 0.02
        else:
            assert (parameter.data == (0 if name.endswith("bias") else 1)).all(), name
            continue
        assert parameter.data.std() == pytest.approx(expected, rel=0.03), name
        assert abs(parameter.data.mean()) < 0.05 * expected, name
        assert parameter.dtype == np.float32


@pytest.mark.parametrize("V", [11, 500])
def test_the_initial_loss_is_nearly_that_of_a_uniform_guess(rng: np.random.Generator, V: int) -> None:
    model = GPT2(GPT2Config(V, 16, 2, 2, 32))
    ids, targets = rng.integers(0, V, (2, 8, 16))
    assert model.loss(ids, targets).item() == pytest.approx(math.log(V), abs=0.05)


def test_the_output_layer_is_the_token_table(rng: np.random.Generator) -> None:
    model = random_model()
    model.loss(np.array([[1, 2, 3]]), np.array([[2, 3, 4]])).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.shape == (11, 12)] == ["wte.weight"]
    gradient = model.wte.weight.grad
    assert (gradient != 0).all()  # also for tokens that are not inputs, through the logits
    model.wte.weight.data[5] = 0
    assert not model(np.array([[1, 2]])).data[..., 5].any()
    x = np.full((1, 1), 5)
    model.wpe.weight.data[0] = 0
    before = model(x).data
    model.wpe.weight.data[0] = rng.normal(size=12)
    assert (model(x).data != before).any()  # row 5 of the table is the input, too, and was zero


@pytest.mark.parametrize("change", [{"vocab_size": 0}, {"context": 0}, {"layers": -1}, {"heads": 0}, {"channels": 0}])
def test_a_config_names_the_field_that_is_too_small(change) -> None:
    [(field, value)] = change.items()
    with pytest.raises(InputError, match=f"^GPT2Config: {field} is {value}; give 1 or more$"):
        GPT2Config(**change)


def test_a_config_checks_heads_and_dropout() -> None:
    with pytest.raises(InputError, match="channels=10 is not a multiple of heads=4"):
        GPT2Config(heads=4, channels=10)
    for dropout in (-0.1, 1.0, math.nan):
        with pytest.raises(InputError, match=f"^GPT2Config: dropout is {dropout}"):
            GPT2Config(dropout=dropout)


# Plain loops


def plain_logits(weights: dict[str, np.ndarray], config: GPT2Config, ids: np.ndarray) -> np.ndarray:
    """The logits (T, V) of one sequence, a vector at a time: no batch and no operation of minillm."""
    C, D = config.channels, config.channels // config.heads
    activations = {
        "gelu_tanh": lambda z: z / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))),
        "gelu": lambda z: z / 2 * (1 + np.array([math.erf(one / math.sqrt(2)) for one in z])),
        "relu": lambda z: z * (z > 0),
        "silu": lambda z: z / (1 + np.exp(-z)),
    }

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        scaled = (x - x.mean()) / np.sqrt(((x - x.mean()) ** 2).mean() + config.norm_eps)
        return scaled * weights[f"{name}.weight"] + weights.get(f"{name}.bias", 0)

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return weights[f"{name}.weight"] @ x + weights.get(f"{name}.bias", 0)

    stream = [weights["wte.weight"][token] + weights["wpe.weight"][t] for t, token in enumerate(ids)]
    for i in range(config.layers):
        qkv = [linear(f"h.{i}.attn.qkv", norm(f"h.{i}.ln_1", x)) for x in stream]
        after = []
        for t, x in enumerate(stream):
            found = []
            for head in range(config.heads):
                q, k, v = (slice(n * C + head * D, n * C + (head + 1) * D) for n in range(3))
                scores = np.array([np.exp(qkv[t][q] @ qkv[s][k] / np.sqrt(D)) for s in range(t + 1)])
                found.append(sum(w * qkv[s][v] for s, w in enumerate(scores / scores.sum())))
            x = x + linear(f"h.{i}.attn.proj", np.concatenate(found))
            hidden = activations[config.activation](linear(f"h.{i}.mlp.fc", norm(f"h.{i}.ln_2", x)))
            after.append(x + linear(f"h.{i}.mlp.proj", hidden))
        stream = after
    table = weights["wte.weight" if config.tied else "lm_head.weight"]
    return np.array([table @ norm("ln_f", x) for x in stream])


@pytest.mark.parametrize(
    "changes",
    [{}, {"bias": False, "tied": False}, {"activation": "gelu", "hidden": 7}, {"activation": "relu", "norm_eps": 0.1}],
)
def test_logits_and_loss_are_those_of_plain_loops(rng: np.random.Generator, changes: dict) -> None:
    config = replace(SMALL, **changes)
    model = with_large_weights(GPT2(config)).to(np.float64)
    ids, targets = rng.integers(0, 11, (2, 7)), rng.integers(0, 11, (2, 7))
    targets[0, 2:4] = -100
    expected = np.array([plain_logits(model.state_dict(), config, row) for row in ids])
    assert relative_error(model(ids).data, expected) < 1e-13
    picked = expected - np.log(np.exp(expected).sum(-1, keepdims=True))
    losses = [-picked[b, t, targets[b, t]] for b, t in np.argwhere(targets >= 0)]
    assert model.loss(ids, targets).item() == pytest.approx(np.mean(losses), rel=1e-13)
    assert model.loss(ids, targets, "sum").item() == pytest.approx(np.sum(losses), rel=1e-13)


# Ids in, logits out


def test_ids_may_be_lists_arrays_or_tensors() -> None:
    model = random_model()
    ids = [[1, 2, 10], [0, 4, 4]]
    expected = model(np.array(ids)).data
    assert expected.shape == (2, 3, 11)
    assert expected.dtype == np.float32
    forms = [ids, minillm.tensor(ids), *(np.array(ids, dtype) for dtype in (np.int8, np.uint16, np.int32, np.uint64))]
    for form in forms:
        np.testing.assert_array_equal(model(form).data, expected)


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([1, 2], ShapeError, r"^GPT2: ids have shape \(2,\); give \(B, T\)"),
        (np.zeros((1, 2, 3), int), ShapeError, r"^GPT2: ids have shape \(1, 2, 3\)"),
        (3, ShapeError, r"^GPT2: ids have shape \(\)"),
        (np.zeros((1, 9), int), ShapeError, r"^GPT2: ids have T=9, but the context is 8; give at most 8$"),
        ([[0.0, 1.0]], DtypeError, "token id must be integers, but the array has dtype float64"),
        ([[True]], DtypeError, "dtype bool"),
        ([["a"]], DtypeError, "dtype <U1"),
        ([[0, 11]], InputError, "token id 11 is out of range; expected 0 to 10"),
        ([[-1, 10]], InputError, "token id -1 is out of range; expected 0 to 10"),
    ],
)
def test_ids_that_cannot_be_used(ids, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        GPT2(SMALL)(ids)


def test_targets_that_cannot_be_used() -> None:
    model, ids = GPT2(SMALL), np.zeros((2, 3), int)
    with pytest.raises(ShapeError, match=r"logits of shape \(2, 3, 11\) need targets of shape \(2, 3\), not \(2, 2\)"):
        model.loss(ids, np.zeros((2, 2), int))
    with pytest.raises(InputError, match="target 11 is out of range"):
        model.loss(ids, np.full((2, 3), 11))


@pytest.mark.parametrize(("B", "T"), [(0, 3), (2, 0), (1, 1), (1, 8)])
def test_corner_shapes(B: int, T: int) -> None:
    model = random_model()
    assert model(np.zeros((B, T), int)).shape == (B, T, 11)
    if B * T:
        model.loss(np.zeros((B, T), int), np.ones((B, T), int)).backward()
        assert all(np.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_the_loss_counts_no_ignored_targets(rng: np.random.Generator) -> None:
    model = random_model()
    ids, targets = rng.integers(0, 11, (2, 3, 8))
    targets[0, 3:] = targets[2] = -100
    shifted = model(ids).data - model(ids).data.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    losses = [-log_p[b, t, targets[b, t]] for b, t in np.argwhere(targets != -100)]
    assert len(losses) == 3 + 8
    assert model.loss(ids, targets).item() == pytest.approx(np.mean(losses), rel=1e-5)
    assert model.loss(ids, targets, reduction="sum").item() == pytest.approx(np.sum(losses), rel=1e-5)


# The future


def test_no_position_sees_a_later_token(rng: np.random.Generator) -> None:
    model = random_model(GPT2Config(11, 8, 3, 3, 12))
    ids = rng.integers(0, 11, (2, 8))
    before = model(ids).data
    for t in range(8):
        changed = ids.copy()
        changed[:, t] = (ids[:, t] + 1 + rng.integers(0, 10, 2)) % 11
        after = model(changed).data
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        assert (after[:, t:] != before[:, t:]).any(axis=-1).all()  # and all later tokens see it


def test_no_gradient_comes_from_a_later_position() -> None:
    model = random_model()
    for t in range(8):
        model.zero_grad()
        model(np.arange(8)[None])[0, t].sum().backward()
        moved = (model.wpe.weight.grad != 0).any(axis=-1)
        assert moved.tolist() == [True] * (t + 1) + [False] * (7 - t)


def test_sequences_of_a_batch_do_not_see_each_other(rng: np.random.Generator) -> None:
    model = random_model(dtype=np.float64)
    ids = rng.integers(0, 11, (3, 6))
    together = model(ids).data
    for b in range(3):
        np.testing.assert_allclose(model(ids[b : b + 1]).data[0], together[b], rtol=1e-12, atol=1e-12)


# Dropout and scopes


def test_dropout_acts_in_every_place_while_training_only(rng: np.random.Generator) -> None:
    ids = rng.integers(0, 11, (2, 8))
    model = random_model(GPT2Config(11, 8, 2, 2, 12, dropout=0.5))
    found = {node.scope for node in all_nodes(model(ids)) if node.op.name == "dropout"}
    assert found == {"drop", "h.0.attn.dropout", "h.0.mlp.dropout", "h.1.attn.dropout", "h.1.mlp.dropout"}
    attention = [node for node in all_nodes(model(ids)) if node.op.name == "attention"]
    assert [node.saved.dropout.p for node in attention] == [0.5, 0.5]
    assert (model(ids).data != model(ids).data).any()
    np.testing.assert_array_equal(model.eval()(ids).data, random_model()(ids).data)


def test_nodes_know_their_layer() -> None:
    scopes = {(node.op.name, node.scope) for node in all_nodes(GPT2(SMALL)([[1, 2]]))}
    assert {
        ("embedding", "wte"),
        ("embedding", "wpe"),
        ("layernorm", "h.0.ln_1"),
        ("linear", "h.1.attn.qkv"),
        ("attention", "h.1.attn"),
        ("gelu", "h.0.mlp"),
        ("add", "h.1"),
        ("layernorm", "ln_f"),
        ("linear", ""),
    } <= scopes


# Learning


def test_it_learns_one_batch_by_heart(rng: np.random.Generator) -> None:
    minillm.manual_seed(0)
    model = GPT2(SMALL)
    optimizer = AdamW(decay_groups(model.parameters(), 0.1), 1e-2)
    ids = rng.integers(0, 11, (2, 8))
    targets = rng.integers(0, 11, (2, 8))
    for _ in range(80):
        optimizer.zero_grad()
        loss = model.loss(ids, targets)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    np.testing.assert_array_equal(model(ids).data.argmax(-1), targets)


def test_every_gradient_equals_central_differences(rng: np.random.Generator) -> None:
    """Gradients against central differences along a random direction through all weights, in float64."""
    model = random_model(dtype=np.float64)
    ids, targets = rng.integers(0, 11, (2, 3, 8))
    check_slopes(model, lambda: model.loss(ids, targets), rng)


# Hugging Face's GPT-2


@pytest.mark.oracle
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-10)])
def test_logits_gradients_and_a_step_equal_hugging_faces(rng: np.random.Generator, dtype, tolerance: float) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    reference = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=61,
            n_positions=16,
            n_embd=24,
            n_layer=3,
            n_head=4,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            attn_implementation="eager",
        )
    ).to(getattr(torch, np.dtype(dtype).name))
    model = twin(GPT2(GPT2Config(61, 16, 3, 4, 24)).to(dtype), enlarge(reference, 0.5))
    assert len(dict(reference.named_parameters())) == len(model.parameters())  # tied in transformers, too

    ids, targets = rng.integers(0, 61, (2, 3, 16))
    targets[1, 5:] = -100
    expected = reference(torch.tensor(ids)).logits
    assert relative_error(model(ids).data, expected.detach().numpy()) < tolerance

    optimizer, theirs_optimizer = optimizers(model, reference)
    loss = model.loss(ids, targets)
    loss.backward()
    expected_loss = torch.nn.functional.cross_entropy(expected.flatten(0, 1), torch.tensor(targets).flatten())
    expected_loss.backward()
    assert loss.item() == pytest.approx(expected_loss.item(), rel=tolerance)
    check_parameters("grad", model, reference, tolerance)
    optimizer.step()
    theirs_optimizer.step()
    check_parameters("data", model, reference, tolerance)
    assert relative_error(model(ids).data, reference(torch.tensor(ids)).logits.detach().numpy()) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-5)])
@pytest.mark.parametrize("pieces", [[1] * 12, [12], [5, 1, 1, 1, 4], [7, 5]])
def test_cached_logits_are_those_without_a_cache(dtype, tolerance, pieces, rng):
    """Logits do not depend on the pieces of a text: a prompt at once, then token by token."""
    minillm.manual_seed(3)
    model = GPT2(GPT2Config(vocab_size=19, context=12, layers=3, heads=2, channels=16)).to(dtype).eval()
    for parameter in model.parameters():  # with initial weights attention is nearly uniform, which hides mistakes
        parameter.data[...] = rng.normal(size=parameter.shape) / 2
    ids = rng.integers(0, 19, (3, 12))
    expected = model(ids).data
    with no_grad():
        cache, start = model.new_cache(batch=3), 0
        for size in pieces:
            logits = model.next_logits(ids[:, start : start + size], cache).data
            start += size
            np.testing.assert_allclose(logits, expected[:, start - 1], rtol=tolerance, atol=tolerance)
        assert [layer.length for layer in cache] == [12] * 3
        with pytest.raises(ShapeError, match="ids have T=13 with the cache, but the context is 12"):
            model.next_logits(ids[:, :1], cache)
    with pytest.raises(GraphError, match="KVCache: cached keys and values have no gradient; call the model"):
        model.next_logits(ids[:, :1], model.new_cache(batch=3))


VARIANTS = {
    "untied": GPT2Config(19, 16, 2, 2, 16, tied=False),
    "narrow": GPT2Config(19, 16, 2, 2, 16, hidden=10, norm_eps=1e-3),
    **{name: GPT2Config(19, 16, 2, 2, 16, hidden=40, activation=name) for name in ("gelu", "relu", "silu")},
    "dropouts": GPT2Config(19, 16, 2, 2, 16, 0.3, embedding_dropout=0.2, attention_dropout=0.1),
}


@pytest.mark.oracle
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-10)])
@pytest.mark.parametrize("name", VARIANTS)
def test_variants_equal_hugging_faces(name, dtype, tolerance, rng, tmp_path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = random_model(VARIANTS[name], dtype=dtype).eval()
    model.save_pretrained(tmp_path)
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=getattr(torch, np.dtype(dtype).name), attn_implementation="eager"
    )
    assert reference.num_parameters() == model.num_parameters()
    assert reference.config.embd_pdrop == (0.2 if name == "dropouts" else 0.0)
    ids, targets = rng.integers(0, 19, (2, 3, 16))
    check_language_model(model, reference, ids, targets, tolerance)
    assert minillm.load(tmp_path).config == model.config


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_have_their_gradients_and_caches(name, rng) -> None:
    model = random_model(VARIANTS[name], dtype=np.float64).eval()
    ids, targets = rng.integers(0, 19, (2, 2, 9))
    check_slopes(model, lambda: model.loss(ids, targets), rng)
    with no_grad():
        cache = model.new_cache(batch=2)
        for t in range(9):
            logits = model.next_logits(ids[:, t : t + 1], cache).data
            np.testing.assert_allclose(logits, model(ids[:, : t + 1]).data[:, -1], rtol=1e-9, atol=1e-12)


def test_each_dropout_has_its_place() -> None:
    model = GPT2(VARIANTS["dropouts"])
    assert (model.drop.p, model.h[0].attn.dropout.p, model.h[0].mlp.dropout.p) == (0.2, 0.3, 0.3)
    assert model.h[0].attn.attention_dropout == 0.1
    assert GPT2(GPT2Config(19, 16, 1, 2, 16, 0.3)).h[0].attn.attention_dropout == 0.3
    with pytest.raises(InputError, match=r"GPT2Config: activation is 'gelo'; did you mean 'gelu'\?"):
        GPT2Config(activation="gelo")
