"""BERT: sizes, padding that no token sees, learning, and Hugging Face's implementation."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import islice

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
from minillm.data.masking import mask_tokens
from minillm.errors import CheckpointError, DtypeError, InputError, ShapeError
from minillm.models import bert
from minillm.models.bert import PRESETS, BertConfig, BertForMaskedLM, BertForPreTraining, BertModel
from minillm.optim import AdamW, decay_groups

SMALL = BertConfig(19, context=12, layers=2, heads=2, channels=16, hidden=24, dropout=0.0, attention_dropout=0.0)


def random_model(config: BertConfig = SMALL, seed: int = 0, dtype: type = np.float32) -> BertForPreTraining:
    """A model with weights so large that every part of it matters."""
    return with_large_weights(BertForPreTraining(config).to(dtype), seed=seed)


def some_labels(rng: np.random.Generator, shape: tuple[int, int], vocab_size: int, lengths=None) -> np.ndarray:
    """Labels at about every third real token, and at the first token of the first text."""
    labels = np.where(rng.random(shape) < 1 / 3, rng.integers(0, vocab_size, shape), -100)
    labels[0, 0] = 3
    if lengths is not None:
        labels[np.arange(shape[1]) >= np.array(lengths)[:, None]] = -100
    return labels


# Size and initial weights


def number_of_weights(config: BertConfig, heads: bool = True) -> int:
    """The number of weights, counted by hand."""
    V, T, L, C, F = config.vocab_size, config.context, config.layers, config.channels, config.hidden
    norm, square = 2 * C, C * C + C
    block = 4 * square + (C * F + F) + (F * C + C) + 2 * norm
    model = (V + T + config.token_types) * C + norm + L * block + square
    return model + heads * (square + norm + V + 2 * C + 2)


@given(*(st.integers(1, 4) for _ in range(7)))
@settings(max_examples=30)
def test_the_count_on_paper_is_right(vocab_size, context, layers, heads, head_size, hidden, types) -> None:
    config = BertConfig(vocab_size, context, layers, heads, heads * head_size, hidden, types)
    assert BertForPreTraining(config).num_parameters() == number_of_weights(config)
    assert BertModel(config).num_parameters() == number_of_weights(config, heads=False)


def test_the_presets_have_the_published_numbers_of_weights() -> None:
    assert {name: number_of_weights(config, heads=False) for name, config in PRESETS.items()} == {
        "nano": 35_808,
        "bert-tiny": 4_385_920,
        "bert-mini": 11_170_560,
        "bert-small": 28_763_648,
        "bert-medium": 41_373_184,
        "bert-base-uncased": 109_482_240,
        "bert-base-cased": 108_310_272,
        "bert-large-uncased": 335_141_888,
        "bert-large-cased": 333_579_264,
    }
    assert number_of_weights(PRESETS["bert-base-uncased"]) == 110_106_428
    assert number_of_weights(PRESETS["bert-large-uncased"]) == 336_226_108


def test_the_names_of_parameters() -> None:
    def both(*names: str) -> list[str]:
        return [f"{name}.{kind}" for name in names for kind in ("weight", "bias")]

    config = replace(SMALL, layers=1)
    body = ["wte.weight", "wpe.weight", "wse.weight", *both("ln")]
    body += both(*(f"h.0.{part}" for part in ("attn.qkv", "attn.proj", "ln_1", "mlp.fc", "mlp.proj", "ln_2")))
    assert list(BertModel(config).state_dict()) == [*body, *both("pooler")]
    heads = {*both("head.fc", "head.ln", "next_sentence"), "head.bias"}
    assert set(BertForPreTraining(config).state_dict()) == {*body, *both("pooler"), *heads}


def test_initial_weights() -> None:
    minillm.manual_seed(0)
    config = BertConfig(vocab_size=300, context=200, layers=2, heads=4, channels=128, hidden=256, token_types=20)
    for name, parameter in BertForPreTraining(config).named_parameters():
        if parameter.ndim == 2:
            rows = parameter.data[1:]  # the first of the tokens is padding
            assert rows.std() == pytest.approx(0.02, rel=0.05 if rows.size > 2000 else 0.2), name
            assert abs(rows.mean()) < 0.003, name
        else:
            assert (parameter.data == (1 if name.endswith("weight") else 0)).all(), name
        assert parameter.dtype == np.float32
        assert (name == "wte.weight") == (parameter.ndim == 2 and not parameter.data[0].any())


def test_the_initial_loss_is_nearly_that_of_a_uniform_guess(rng: np.random.Generator) -> None:
    model = BertForPreTraining(replace(SMALL, vocab_size=500)).eval()
    ids, labels = rng.integers(0, 500, (2, 8, 12))
    uniform = math.log(500) + math.log(2)
    assert model.loss(ids, labels, next_sentence=[0, 1] * 4).item() == pytest.approx(uniform, abs=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(({field: 0}, f"^BertConfig: {field} is 0; give 1 or more$") for field in ("vocab_size", "context", "layers")),
        *(({field: -1}, f"^BertConfig: {field} is -1; give 1") for field in ("heads", "channels", "hidden")),
        ({"token_types": 0}, "^BertConfig: token_types is 0; give 1 or more$"),
        ({"heads": 3}, "channels=16 is not a multiple of heads=3"),
        ({"dropout": 1.0}, "^BertConfig: dropout is 1.0; give a probability"),
        ({"attention_dropout": -0.1}, "^BertConfig: attention_dropout is -0.1; give a probability"),
        ({"dropout": math.nan}, "^BertConfig: dropout is nan"),
        ({"norm_eps": 0.0}, "^BertConfig: norm_eps is 0.0; give a number above 0$"),
        ({"padding_id": 19}, "^BertConfig: padding_id is 19; give a token id, 0 to 18$"),
    ],
)
def test_a_config_says_what_is_wrong(change, message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(SMALL, **change)


# Plain loops


def plain_outputs(
    weights: dict[str, np.ndarray], config: BertConfig, ids: np.ndarray, types: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Logits (T, V) of the tokens and (2,) of the sentences of one text, a vector at a time, without minillm."""
    C, D = config.channels, config.channels // config.heads

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        scaled = (x - x.mean()) / np.sqrt(((x - x.mean()) ** 2).mean() + config.norm_eps)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]

    def gelu(x: np.ndarray) -> np.ndarray:
        return x / 2 * (1 + np.array([math.erf(one / math.sqrt(2)) for one in x]))

    tables = [weights[f"{table}.weight"] for table in ("wte", "wpe", "wse")]
    stream = [
        norm("ln", sum(table[i] for table, i in zip(tables, (ids[t], t, types[t]), strict=True)))
        for t in range(len(ids))
    ]
    for i in range(config.layers):
        qkv = [linear(f"h.{i}.attn.qkv", x) for x in stream]
        after = []
        for t, x in enumerate(stream):
            found = []
            for head in range(config.heads):
                q, k, v = (slice(n * C + head * D, n * C + (head + 1) * D) for n in range(3))
                scores = np.array([np.exp(qkv[t][q] @ other[k] / np.sqrt(D)) for other in qkv])
                found.append(sum(w * other[v] for w, other in zip(scores / scores.sum(), qkv, strict=True)))
            x = norm(f"h.{i}.ln_1", x + linear(f"h.{i}.attn.proj", np.concatenate(found)))
            after.append(norm(f"h.{i}.ln_2", x + linear(f"h.{i}.mlp.proj", gelu(linear(f"h.{i}.mlp.fc", x)))))
        stream = after
    logits = [tables[0] @ norm("head.ln", gelu(linear("head.fc", x))) + weights["head.bias"] for x in stream]
    return np.array(logits), linear("next_sentence", np.tanh(linear("pooler", stream[0])))


def test_logits_are_those_of_plain_loops(rng: np.random.Generator) -> None:
    model = random_model(dtype=np.float64)
    lengths = [6, 4]
    ids, types = rng.integers(0, model.config.vocab_size, (2, 6)), rng.integers(0, 2, (2, 6))
    logits, sentences = model(ids, types, lengths)
    for b, length in enumerate(lengths):
        expected = plain_outputs(model.state_dict(), model.config, ids[b, :length], types[b, :length])
        assert relative_error(logits.data[b, :length], expected[0]) < 1e-13
        assert relative_error(sentences.data[b], expected[1]) < 1e-13


# Ids in, logits out


def test_what_goes_in_may_be_lists_arrays_or_tensors(rng: np.random.Generator) -> None:
    model = random_model()
    ids, types, mask = rng.integers(1, 19, (2, 5)), rng.integers(0, 2, (2, 5)), rng.integers(0, 2, (2, 5))
    mask[:, 0] = 1
    tokens, sentences = model(ids, types, attention_mask=mask)
    assert (tokens.shape, sentences.shape) == ((2, 5, 19), (2, 2))
    assert tokens.dtype == sentences.dtype == np.float32
    for form in (np.ndarray.tolist, minillm.tensor, lambda x: x.astype(np.uint8)):
        again = model(form(ids), form(types), attention_mask=form(mask))
        np.testing.assert_array_equal(again[0].data, tokens.data)
        np.testing.assert_array_equal(again[1].data, sentences.data)
    labels = some_labels(rng, (2, 5), 19)
    losses = [model.loss(f(ids), f(labels), next_sentence=[1, 0]).item() for f in (np.array, list, minillm.tensor)]
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"ids": [1, 2]}, ShapeError, r"^BertForPreTraining: ids have shape \(2,\); give \(B, T\)"),
        ({"ids": np.zeros((1, 13), int)}, ShapeError, "^BertForPreTraining: ids have T=13; give 1 to 12, the context$"),
        ({"ids": np.zeros((1, 0), int)}, ShapeError, "^BertForPreTraining: ids have T=0; give 1 to 12"),
        ({"ids": [[0.5]]}, DtypeError, "token id must be integers"),
        ({"ids": [[19]]}, InputError, "token id 19 is out of range; expected 0 to 18"),
        ({"token_types": [[0, 2, 0]]}, InputError, "token type 2 is out of range; expected 0 to 1"),
        ({"token_types": [[0, 1]]}, ShapeError, "token_types has T=2, but ids has T=3"),
        ({"attention_mask": [[1, 1]]}, ShapeError, "attention_mask has T=2, but ids has T=3"),
        ({"attention_mask": [[1.0, 1.0, 0.0]]}, DtypeError, "attention_mask has dtype float64; give bool"),
        ({"attention_mask": [[1, 1, 0]], "lengths": [2]}, InputError, "lengths and attention_mask both"),
        ({"lengths": [4]}, InputError, "lengths 4 is out of range; expected 0 to 3"),
        ({"lengths": [2, 2]}, ShapeError, "lengths has B=2"),
    ],
)
def test_what_cannot_be_used(arguments, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        BertForPreTraining(SMALL)(**{"ids": [[1, 2, 3]], **arguments})


def test_labels_that_cannot_be_used() -> None:
    model = BertForPreTraining(SMALL)
    with pytest.raises(ShapeError, match="loss: labels has T=2, but features has T=3"):
        model.loss([[1, 2, 3]], [[1, 2]])
    with pytest.raises(InputError, match="target 19 is out of range"):
        model.loss([[1, 2, 3]], [[1, 2, 19]])


def test_the_loss_is_that_of_the_labels_and_of_the_sentences(rng: np.random.Generator) -> None:
    """The loss, from the logits of all positions; the model computes only some of them."""
    model = random_model(dtype=np.float64)
    ids, types = rng.integers(0, 19, (3, 12)), rng.integers(0, 2, (3, 12))
    lengths, sentences = [12, 7, 1], np.array([1, 0, 1])
    labels = some_labels(rng, (3, 12), 19, lengths)
    tokens, kinds = (out.log_softmax(-1).data for out in model(ids, types, lengths))
    expected = -np.mean([tokens[b, t, labels[b, t]] for b, t in np.argwhere(labels != -100)])
    assert model.loss(ids, labels, types, lengths).item() == pytest.approx(expected, rel=1e-12)
    expected -= np.mean(kinds[np.arange(3), sentences])
    assert model.loss(ids, labels, types, lengths, sentences).item() == pytest.approx(expected, rel=1e-12)


def test_without_a_label_the_loss_is_zero_and_so_are_the_gradients(rng: np.random.Generator) -> None:
    model = random_model()
    loss = model.loss(rng.integers(0, 19, (2, 5)), np.full((2, 5), -100))
    loss.backward()
    assert loss.item() == 0
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


def test_the_features_are_those_of_a_model_without_heads(rng: np.random.Generator) -> None:
    full, body = random_model(), BertModel(SMALL)
    state = full.state_dict()
    body.load_state_dict({name: state[name] for name in body.state_dict()})
    ids = rng.integers(0, 19, (2, 6))
    np.testing.assert_array_equal(body(ids, lengths=[6, 2]).data, full.features(ids, lengths=[6, 2]).data)
    pooled = body.pool(body(ids))
    assert pooled.shape == (2, 16)
    np.testing.assert_array_equal(full.next_sentence(pooled).data, full(ids)[1].data)


def test_the_output_layer_is_the_token_table(rng: np.random.Generator) -> None:
    model = random_model()
    model.loss([[1, 2, 3]], [[-100, 3, -100]]).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.shape == (19, 16)] == ["wte.weight"]
    assert (model.wte.weight.grad != 0).all()  # also for tokens that are not inputs, through the logits


def test_every_token_sees_every_other_and_no_other_text(rng: np.random.Generator) -> None:
    model = random_model(dtype=np.float64)
    ids = rng.integers(0, 19, (2, 8))
    before = model(ids)[0].data
    for t in range(8):
        changed = ids.copy()
        changed[0, t] = (ids[0, t] + 1 + rng.integers(0, 18)) % 19
        after = model(changed)[0].data
        assert (after[0] != before[0]).any(axis=-1).all()
        np.testing.assert_array_equal(after[1], before[1])


# Padding


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_what_stands_at_a_padded_place_changes_nothing_at_a_real_one(data: st.DataObject) -> None:
    B, T = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 12))
    lengths = data.draw(st.lists(st.integers(1, T), min_size=B, max_size=B))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    if data.draw(st.booleans()):
        real, how = np.arange(T) < np.array(lengths)[:, None], {"lengths": lengths}
    else:
        real = rng.random((B, T)) < 0.5  # anywhere
        real[:, 0] = True
        how = {"attention_mask": real}
    model = random_model()
    ids, types = rng.integers(0, 19, (B, T)), rng.integers(0, 2, (B, T))
    labels = np.where(real, rng.integers(0, 19, (B, T)), -100)
    other_ids, other_types = np.where(real, ids, (ids + 7) % 19), np.where(real, types, 1 - types)
    with no_grad():
        tokens, sentences = model(ids, types, **how)
        other_tokens, other_sentences = model(other_ids, other_types, **how)
    np.testing.assert_array_equal(other_tokens.data[real], tokens.data[real])
    np.testing.assert_array_equal(other_sentences.data, sentences.data)
    gradients = []
    for some, kinds in ((ids, types), (other_ids, other_types)):
        model.zero_grad()
        model.loss(some, labels, kinds, next_sentence=[0] * B, **how).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for name, one, other in zip(model.state_dict(), *gradients, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-6, err_msg=name)


def test_a_padded_text_has_the_features_of_the_text_alone(rng: np.random.Generator) -> None:
    model = random_model(dtype=np.float64)
    ids, lengths = rng.integers(0, 19, (4, 12)), [12, 1, 5, 11]
    mask = np.arange(12) < np.array(lengths)[:, None]
    by_length, by_mask = model.features(ids, lengths=lengths).data, model.features(ids, attention_mask=mask).data
    for b, length in enumerate(lengths):
        alone = model.features(ids[b : b + 1, :length]).data[0]
        np.testing.assert_allclose(by_length[b, :length], alone, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(by_mask[b, :length], alone, rtol=1e-12, atol=1e-12)


# Dropout and scopes


def test_dropout_acts_in_every_place_while_training_only(rng: np.random.Generator) -> None:
    ids = rng.integers(0, 19, (2, 8))
    model = random_model(replace(SMALL, dropout=0.5, attention_dropout=0.25))
    nodes = all_nodes(model(ids)[0])
    found = {(node.scope, node.edges[0][0].op.name) for node in nodes if node.op.name == "dropout"}
    branches = {(f"h.{i}.{part}.dropout", "linear") for i in range(2) for part in ("attn", "mlp")}
    assert found == {("drop", "layernorm"), *branches}  # each scope with the input of its dropout
    assert [node.saved.p for node in nodes if node.op.name == "dropout"] == [0.5] * 5
    assert [node.saved.dropout.p for node in nodes if node.op.name == "attention"] == [0.25] * 2
    assert (model(ids)[0].data != model(ids)[0].data).any()
    np.testing.assert_array_equal(model.eval()(ids)[0].data, random_model()(ids)[0].data)


# Learning


def test_every_gradient_equals_central_differences(rng: np.random.Generator) -> None:
    """Gradients against central differences along a random direction in each parameter, in float64."""
    model = random_model(dtype=np.float64)
    ids, types, lengths = rng.integers(0, 19, (3, 12)), rng.integers(0, 2, (3, 12)), [12, 4, 9]
    given = ids, some_labels(rng, (3, 12), 19, lengths), types, lengths, [1, 0, 0]
    check_slopes(model, lambda: model.loss(*given), rng)


def test_it_learns_to_fill_gaps_better_than_by_counting() -> None:
    """On unseen text, with tokens hidden anew each time, the loss falls well below the entropy of the letters.

    0.17 under it can be had from the hidden place alone: a fifth of the time a letter stands there, and half of those
    are right, which leaves log 2 + entropy / 2. More takes the neighbours.
    """
    topics = pytest.importorskip("pydoc_data.topics").topics
    text = " ".join(" ".join(topics[name].split()) for name in islice(sorted(topics), 30)).lower()
    letters, row = np.unique(np.frombuffer(text.encode("ascii", "replace"), np.uint8), return_inverse=True)
    padding, mask, V = len(letters), len(letters) + 1, len(letters) + 2
    train, test = row[: len(row) * 9 // 10], row[len(row) * 9 // 10 :]
    shares = np.bincount(test) / len(test)
    entropy = -(shares[shares > 0] * np.log(shares[shares > 0])).sum()

    minillm.manual_seed(1)
    config = BertConfig(V, 8, 2, 4, 64, 256, 1, dropout=0.0, attention_dropout=0.0, padding_id=padding)
    model = BertForPreTraining(config)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data *= 3  # 0.02 suits 768 channels; with 64, training starts slowly from it
    optimizer = AdamW(decay_groups(model.parameters(), 0.01), 4e-3)
    rng = np.random.default_rng(0)

    def batch(row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        starts = rng.integers(0, len(row) - 8, 64)
        return mask_tokens(row[starts[:, None] + np.arange(8)], V, mask, [padding])

    steps = 400
    for step in range(steps):
        optimizer.zero_grad()
        optimizer.lr = 4e-3 * min(1, (step + 1) / 50, 3 * (1 - step / steps))
        model.loss(*batch(train)).backward()
        optimizer.step()
    with no_grad():
        loss = np.mean([model.loss(*batch(test)).item() for _ in range(20)])
    print(f"loss {loss:.3f}, entropy of the letters {entropy:.3f} nats")
    assert loss < entropy - 0.4


# Hugging Face's BERT


CASES = {
    "plain": (SMALL, None),
    "lengths": (replace(SMALL, layers=3, heads=4, norm_eps=1e-5), "lengths"),
    "mask": (replace(SMALL, token_types=3, padding_id=4, hidden=40), "mask"),
    "one head": (replace(SMALL, heads=1, layers=1), "lengths"),
}


def random_transformers_model(transformers, torch, config: BertConfig, dtype: type):
    """A small model of transformers with its own random weights, enlarged, and ours with the same weights."""
    torch.manual_seed(0)
    values = bert.config_to_hugging_face(config)
    theirs = transformers.BertForPreTraining(transformers.BertConfig(**values, attn_implementation="eager"))
    theirs = enlarge(theirs.to(getattr(torch, np.dtype(dtype).name)))
    return twin(BertForPreTraining(config).to(dtype), theirs), theirs


@pytest.mark.oracle
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-10)])
def test_logits_gradients_and_a_step_equal_hugging_faces(rng, case: str, dtype, tolerance: float) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config, padding = CASES[case]
    model, reference = random_transformers_model(transformers, torch, config, dtype)
    assert sum(p.numel() for p in reference.parameters()) == model.num_parameters()  # tied in transformers, too

    lengths = [12, 5, 1, 8]
    real = np.ones((4, 12), bool)
    how = {}
    if padding == "lengths":
        real = np.arange(12) < np.array(lengths)[:, None]
        how = {"lengths": lengths}
    elif padding == "mask":
        real = rng.random((4, 12)) < 0.6
        how = {"attention_mask": real}
        real[:, 0] = [True, True, True, False]  # [CLS] itself may be missing
    ids = rng.integers(0, 19, (4, 12))
    ids[ids == config.padding_id] = 7  # the two treat the gradient of padding differently
    ids[~real] = config.padding_id
    types = rng.integers(0, config.token_types, (4, 12))
    labels = np.where(real & (rng.random((4, 12)) < 0.5), rng.integers(0, 19, (4, 12)), -100)
    labels[0, real[0].nonzero()[0][0]] = 3
    sentences = np.array([1, 0, 0, 1])
    if not real[:, 0].all():
        sentences[3] = -100  # [CLS] is padding, whose gradient transformers leaves out

    theirs = [torch.tensor(x) for x in (ids, real.astype(int), types)]
    for kinds, their_kinds in ((types, theirs[2]), (None, None)):
        expected = reference(theirs[0], theirs[1], their_kinds)
        tokens, followed = model(ids, kinds, **how)
        their_tokens = expected.prediction_logits.detach().numpy()
        assert relative_error(tokens.data[real], their_tokens[real]) < tolerance
        assert relative_error(followed.data, expected.seq_relationship_logits.detach().numpy()) < tolerance

    def check(kind: str) -> None:
        check_parameters(kind, model, reference, tolerance, unused=("pooler", "next_sentence"))

    # Without sentences, then with them, then after a step.
    expected = reference(*theirs)
    cross_entropy = torch.nn.functional.cross_entropy
    their_loss = cross_entropy(expected.prediction_logits.flatten(0, 1), torch.tensor(labels).flatten())
    their_loss.backward()
    loss = model.loss(ids, labels, types, **how)
    loss.backward()
    assert loss.item() == pytest.approx(their_loss.item(), rel=tolerance)
    check("grad")
    reference.zero_grad()
    model.zero_grad()

    optimizer, their_optimizer = optimizers(model, reference)
    expected = reference(*theirs, labels=torch.tensor(labels), next_sentence_label=torch.tensor(sentences))
    expected.loss.backward()
    loss = model.loss(ids, labels, types, next_sentence=sentences, **how)
    loss.backward()
    assert loss.item() == pytest.approx(expected.loss.item(), rel=tolerance)
    check("grad")
    optimizer.step()
    their_optimizer.step()
    check("data")
    after = reference(*theirs).prediction_logits.detach().numpy()
    assert relative_error(model(ids, types, **how)[0].data[real], after[real]) < 2 * tolerance


def test_hidden_tokens_alone(rng, tmp_path) -> None:
    """BertForMaskedLM gives the token logits of BertForPreTraining, and loads its files, such as Google's."""
    whole = random_model()
    whole.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"architectures": ["BertForMaskedLM"]}))
    model = minillm.load(tmp_path)
    assert type(model) is BertForMaskedLM
    ids = rng.integers(0, 19, (3, 12))
    labels = np.where(rng.random((3, 12)) < 0.4, ids, -100)
    np.testing.assert_array_equal(model(ids, lengths=[12, 4, 7]).data, whole(ids, lengths=[12, 4, 7])[0].data)
    mean, total = (model.loss(ids, labels, reduction=reduction) for reduction in ("mean", "sum"))
    assert mean.item() == pytest.approx(whole.loss(ids, labels).item(), rel=1e-6)
    assert total.item() == pytest.approx(mean.item() * (labels != -100).sum(), rel=1e-5)
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"missing bert\.pooler\.dense\.weight"):
        minillm.load(tmp_path)


@given(
    *(st.integers(1, 5) for _ in range(3)),
    st.sampled_from([0.0, 0.1, 0.5]),
    st.sampled_from([1e-12, 1e-5]),
    st.integers(0, 4),
)
def test_a_config_comes_back_from_hugging_faces_form(layers, heads, types, dropout, eps, padding) -> None:
    config = BertConfig(5, 6, layers, heads, 2 * heads, 7, types, dropout, dropout / 2, eps, padding)
    assert bert.config_from_hugging_face(bert.config_to_hugging_face(config)) == config


def test_what_a_config_leaves_out_is_what_transformers_takes() -> None:
    assert bert.config_from_hugging_face({}) == BertConfig()
    assert bert.config_from_hugging_face({"model_type": "bert", "pad_token_id": None}) == BertConfig()
