"""Heads that classify texts or tokens or find answers, DistilBERT, XLM-R: by formula, and in Hugging Face's code."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from model_checks import check_parameters, check_slopes, optimizers, relative_error, with_large_weights

import minillm
from minillm.errors import InputError, ShapeError
from minillm.models import bert, distilbert, roberta
from minillm.models.bert import BertConfig
from minillm.models.distilbert import DistilBertConfig
from minillm.models.roberta import RobertaConfig
from minillm.optim import AdamW

SIZES: dict[str, Any] = dict(vocab_size=19, context=12, layers=2, heads=2, channels=16, hidden=24, labels=3)
NO_DROPOUT: dict[str, Any] = dict(dropout=0.0, attention_dropout=0.0)
FAMILIES: dict[str, tuple[Any, str, Any]] = {
    "bert": (bert, "Bert", BertConfig(**SIZES, **NO_DROPOUT)),
    "roberta": (roberta, "Roberta", RobertaConfig(**SIZES, **NO_DROPOUT)),
    "xlm-roberta": (roberta, "Roberta", RobertaConfig(**SIZES, **NO_DROPOUT, kind="xlm-roberta", padding_id=3)),
    "distilbert": (distilbert, "DistilBert", DistilBertConfig(**SIZES, **distilbert.NO_DROPOUT)),
}
HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")


def built(family: str, head: str, dtype: Any = np.float64, **changes: Any) -> Any:
    """A model with weights so large that every part of it matters."""
    file, prefix, config = FAMILIES[family]
    changes = {"labels": 2} | changes if head == HEADS[2] else changes
    return with_large_weights(getattr(file, prefix + head)(replace(config, **changes)).to(dtype))


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) - x.max(-1, keepdims=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_is_told_by_its_first_token(family, rng) -> None:
    model = built(family, HEADS[0])
    ids, classes = rng.integers(4, 19, (4, 9)), np.array([2, 0, -100, 1])
    first, weights = model.features(ids).data[:, 0], model.state_dict()

    def layer(x: np.ndarray, name: str) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    expected = {
        "bert": lambda: layer(np.tanh(layer(first, "pooler")), "classifier"),
        "distilbert": lambda: layer(np.maximum(layer(first, "pre_classifier"), 0), "classifier"),
    }.get(family, lambda: layer(np.tanh(layer(first, "classifier_fc")), "classifier_proj"))()
    np.testing.assert_allclose(model(ids).data, expected, rtol=1e-10)
    right = [log_softmax(row)[k] for row, k in zip(expected, classes, strict=True) if k >= 0]
    assert model.loss(ids, classes).item() == pytest.approx(-np.mean(right), rel=1e-10)


def test_a_text_may_have_a_number_or_several_classes(rng) -> None:
    ids, model = rng.integers(4, 19, (4, 9)), built("bert", HEADS[0], labels=1)
    numbers = rng.normal(size=4)
    expected = np.mean((model(ids).data[:, 0] - numbers) ** 2)
    for given in (numbers, numbers[:, None]):
        assert model.loss(ids, given).item() == pytest.approx(expected, rel=1e-10)
    several = built("bert", HEADS[0])
    yes, logits = rng.integers(0, 2, (4, 3)), several(ids).data * 40  # some of them far from 0
    several.classifier.weight.data *= 40
    several.classifier.bias.data *= 40
    expected = np.where(yes, np.logaddexp(0, -logits), np.logaddexp(0, logits)).mean()
    assert several.loss(ids, yes.astype(float)).item() == pytest.approx(float(expected), rel=1e-10)
    asked = built("bert", HEADS[0], problem_type="multi_label_classification")
    asked.load_state_dict(several.state_dict())
    assert asked.loss(ids, yes).item() == pytest.approx(float(expected), rel=1e-10)
    asked = built("bert", HEADS[0], problem_type="regression")
    wanted = rng.normal(size=(4, 3))
    assert asked.loss(ids, wanted).item() == pytest.approx(np.mean((asked(ids).data - wanted) ** 2), rel=1e-10)
    with pytest.raises(ShapeError, match="loss: classes has shape"):
        several.loss(ids, np.zeros(4))
    with pytest.raises(InputError, match=r"BertConfig: problem_type is 'regresion'; did you mean 'regression'\?"):
        replace(FAMILIES["bert"][2], problem_type="regresion")


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_and_answers(family, rng) -> None:
    ids = rng.integers(4, 19, (3, 9))
    model = built(family, HEADS[1])
    logits = model(ids).data
    assert logits.shape == (3, 9, 3)
    labels = np.where(rng.random((3, 9)) < 0.5, rng.integers(0, 3, (3, 9)), -100)
    labels[0, 0] = 1
    expected = -np.take_along_axis(log_softmax(logits), labels[..., None] % 3, -1)[..., 0][labels >= 0].mean()
    assert model.loss(ids, labels).item() == pytest.approx(expected, rel=1e-10)
    model = built(family, HEADS[2])
    start, end = (one.data for one in model(ids))
    assert start.shape == end.shape == (3, 9)
    assert np.abs(start - end).max() > 0.1
    starts, ends = np.array([2, 0, 8]), np.array([5, 40, 8])  # the second answer ends beyond the text
    expected = np.mean([log_softmax(start)[i, k] for i, k in enumerate(starts)])
    expected = (expected + np.mean([log_softmax(end)[i, ends[i]] for i in (0, 2)])) / 2
    assert model.loss(ids, starts, ends).item() == pytest.approx(-expected, rel=1e-10)
    with pytest.raises(InputError, match="loss: positions have dtype float64; give whole numbers"):
        model.loss(ids, starts * 1.0, ends)
    with pytest.raises(InputError, match="ForQuestionAnswering: labels is 3; give 2, for the start and the end"):
        built(family, HEADS[2], labels=3)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_gradient_equals_central_differences(family, head, rng) -> None:
    model = built(family, head)
    ids = rng.integers(4, 19, (3, 8))
    targets = {HEADS[0]: [[0, 2, 1]], HEADS[1]: [rng.integers(0, 3, (3, 8))], HEADS[2]: [[1, 7, 3], [2, 7, 0]]}[head]
    check_slopes(model, lambda: model.loss(ids, *(np.array(x) for x in targets), lengths=[8, 8, 8]), rng)


def test_it_learns_which_texts_have_a_token(rng) -> None:
    minillm.manual_seed(0)
    model = distilbert.DistilBertForSequenceClassification(FAMILIES["distilbert"][2])
    optimizer = AdamW(model.parameters(), 3e-3)
    ids = rng.integers(5, 19, (32, 10))
    ids[::2, 1:][ids[::2, 1:] == 7] = 8
    ids[1::2, 4] = 7
    classes = np.arange(32) % 2
    for _ in range(60):
        optimizer.zero_grad()
        loss = model.loss(ids, classes)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


def test_dropout_is_where_the_family_has_it() -> None:
    model = distilbert.DistilBertForSequenceClassification(DistilBertConfig(**SIZES))
    assert [block.attn.dropout.p for block in model.h] == [0.0, 0.0]
    assert model.drop_features.p == 0.2
    assert distilbert.DistilBertForQuestionAnswering(DistilBertConfig(**SIZES | {"labels": 2})).drop_features.p == 0.1
    assert bert.BertForTokenClassification(BertConfig(**SIZES, classifier_dropout=0.3)).drop_features.p == 0.3
    assert bert.BertForTokenClassification(BertConfig(**SIZES)).drop_features.p == 0.1


def test_a_distilbert_has_no_kinds_of_sentences() -> None:
    model = distilbert.DistilBertModel(FAMILIES["distilbert"][2])
    assert not [name for name in model.state_dict() if "wse" in name]
    with pytest.raises(InputError, match="DistilBertModel: token_types were given, but this model has none"):
        model(np.zeros((1, 3), int), token_types=np.zeros((1, 3), int))
    with pytest.raises(InputError, match="token_types=1 and norm_eps=1e-12; give 0 and 1e-12"):
        replace(FAMILIES["distilbert"][2], token_types=1)


# Files


@pytest.mark.parametrize("head", [*HEADS, "ForMaskedLM", "Model"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_round_trip(family, head, tmp_path) -> None:
    model = built(family, head, np.float32)
    model.save_pretrained(tmp_path / "a")
    loaded = minillm.load(tmp_path / "a")
    assert type(loaded) is type(model)
    assert loaded.config == model.config
    for name, array in model.state_dict().items():
        assert loaded.state_dict()[name].tobytes() == array.tobytes(), name
    loaded.save_pretrained(tmp_path / "b")
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "ab"]
    assert files[0] == files[1]


def test_the_number_of_classes_is_that_of_their_names() -> None:
    values = {"model_type": "bert", "id2label": {"0": "no", "1": "yes", "2": "?", "3": "!"}, "num_labels": 2}
    assert bert.config_from_hugging_face(values).labels == 4
    assert bert.config_from_hugging_face({"model_type": "bert", "num_labels": 5}).labels == 5
    for change in ({"num_labels": 0}, {"num_labels": "3"}, {"id2label": ["a"]}):
        with pytest.raises(InputError, match=f"config.json has {next(iter(change))}="):
            bert.config_from_hugging_face({"model_type": "bert"} | change)


# Hugging Face's


@pytest.mark.oracle
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-10)])
@pytest.mark.parametrize("head", [*HEADS, "ForMaskedLM"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_gradients_and_a_step_equal_hugging_faces(family, head, dtype, tolerance, rng, tmp_path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = built(family, head, dtype)
    model.save_pretrained(tmp_path)
    prefix = {"xlm-roberta": "XLMRoberta"}.get(family, FAMILIES[family][1])
    reference, report = getattr(transformers, prefix + head).from_pretrained(
        tmp_path, dtype=getattr(torch, np.dtype(dtype).name), attn_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    lengths = [12, 12, 12, 12] if head == HEADS[2] else [12, 5, 9, 12]  # transformers counts the logits of padding
    real = np.arange(12) < np.array(lengths)[:, None]
    floor = 0.0 if head != HEADS[2] else 100 * float(np.finfo(dtype).eps)  # adding a constant has no effect
    ids = np.where(real, rng.integers(4, 19, (4, 12)), model.config.padding_id)
    targets: dict[str, np.ndarray] = {
        HEADS[0]: {"labels": rng.integers(0, 3, 4)},
        HEADS[1]: {"labels": np.where(real, rng.integers(0, 3, (4, 12)), -100)},
        HEADS[2]: {"start_positions": np.array([1, 4, 0, 7]), "end_positions": np.array([5, 99, 3, 7])},
        "ForMaskedLM": {"labels": np.where(real, rng.integers(0, 19, (4, 12)), -100)},
    }[head]
    their_targets = {name: torch.tensor(x) for name, x in targets.items()}
    expected = reference(torch.tensor(ids), torch.tensor(real.astype(int)), **their_targets)
    expected.loss.backward()
    received = model(ids, lengths=real.sum(1))
    logits = [expected.start_logits, expected.end_logits] if head == HEADS[2] else [expected.logits]
    where = real if received[0].ndim and head != HEADS[0] else slice(None)
    for ours, theirs in zip(received if head == HEADS[2] else [received], logits, strict=True):
        assert relative_error(ours.numpy()[where], theirs.detach().numpy()[where]) < tolerance
    loss = model.loss(ids, *targets.values(), lengths=real.sum(1))
    loss.backward()
    assert loss.item() == pytest.approx(expected.loss.item(), rel=tolerance)
    check_parameters("grad", model, reference, tolerance, floor)
    if head == HEADS[2]:
        return  # AdamW's step for a gradient that is rounding error alone
    optimizer, their_optimizer = optimizers(model, reference)
    optimizer.step()
    their_optimizer.step()
    check_parameters("data", model, reference, tolerance)


@pytest.mark.oracle
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-10)])
@pytest.mark.parametrize("problem", ["regression", "multi_label_classification", "answers"])
def test_other_losses_equal_hugging_faces(problem, dtype, tolerance, rng, tmp_path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    head = HEADS[2] if problem == "answers" else HEADS[0]
    model = built("bert", head, dtype, labels={"regression": 1, "answers": 2}.get(problem, 3))
    model.save_pretrained(tmp_path)
    name = np.dtype(dtype).name
    reference = getattr(transformers, "Bert" + head).from_pretrained(tmp_path, dtype=getattr(torch, name))
    ids = rng.integers(4, 19, (4, 12))
    targets = {
        "regression": {"labels": rng.normal(size=4).astype(dtype)},
        "multi_label_classification": {"labels": rng.integers(0, 2, (4, 3)).astype(dtype)},
        "answers": {"start_positions": np.array([1, 4, 0, 7]), "end_positions": np.array([5, 99, 3, 7])},
    }[problem]
    expected = reference(torch.tensor(ids), **{name: torch.tensor(x) for name, x in targets.items()})
    expected.loss.backward()
    loss = model.loss(ids, *targets.values())
    loss.backward()
    assert loss.item() == pytest.approx(expected.loss.item(), rel=tolerance)
    check_parameters("grad", model, reference, tolerance, floor=100 * float(np.finfo(dtype).eps))


@pytest.mark.oracle
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_writes_is_read(family, head, rng, tmp_path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    built(family, head, np.float32).save_pretrained(tmp_path / "ours")
    prefix = {"xlm-roberta": "XLMRoberta"}.get(family, FAMILIES[family][1])
    reference = getattr(transformers, prefix + head).from_pretrained(tmp_path / "ours")
    reference.save_pretrained(tmp_path / "theirs")
    ids = rng.integers(4, 19, (2, 7))
    ours = minillm.load(tmp_path / "theirs")(ids)
    with torch.no_grad():
        theirs = reference(torch.tensor(ids))[0]
    ours = ours[0] if isinstance(ours, tuple) else ours
    assert relative_error(ours.numpy(), theirs.numpy()) < 1e-5


def test_the_presets_have_the_published_numbers_of_weights() -> None:
    counts = {
        name: distilbert.DistilBertForMaskedLM(config).num_parameters()
        for name, config in distilbert.PRESETS.items()
        if name == "nano"
    }
    assert counts == {"nano": 36_064}
