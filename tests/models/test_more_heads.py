"""The heads of XLNet and BART, a new head on a pretrained body, and the names of classes in config.json."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from model_checks import check_parameters, check_slopes, in_float64, optimizers, relative_error, with_large_weights

import minillm
from minillm.errors import InputError
from minillm.models import bart, bert, distilbert, gpt2, roberta, xlnet
from minillm.models.bart import BartConfig
from minillm.models.heads import binary_cross_entropy, with_head
from minillm.models.xlnet import XLNetConfig
from minillm.pretrained import BART_HEADS, HEADS, XLNET_HEADS

FAMILIES: dict[str, tuple[Any, str, Any]] = {
    "xlnet": (xlnet, "XLNet", XLNetConfig(19, 2, 2, 16, 24, dropout=0.0, classifier_dropout=0.0, labels=3)),
    "bart": (bart, "Bart", BartConfig(19, 14, 2, 2, 2, 2, 16, 24, 20, dropout=0.0, init_std=0.3)),
}
CASES = [*(("xlnet", head) for head in XLNET_HEADS), *(("bart", head) for head in BART_HEADS)]


def built(family: str, head: str, dtype: Any = np.float64, **changes: Any) -> Any:
    """A model with weights so large that every part of it matters."""
    file, prefix, config = FAMILIES[family]
    if head.startswith(HEADS[2]):
        changes = {"labels": 2} | changes
    return with_large_weights(getattr(file, prefix + head)(replace(config, **changes)).to(dtype), std=0.3)


def drawn(rng: np.random.Generator, family: str, lengths: list[int]) -> np.ndarray:
    """Texts of these lengths, padding after them; those for BART have an end token at their ends, and one before."""
    T = max(lengths)
    ids = rng.integers(6, 19, (len(lengths), T))
    for row, length in zip(ids, lengths, strict=True):
        row[length:] = 1 if family == "bart" else 5
        if family == "bart":
            row[length // 2] = row[length - 1] = 2
    return ids


def targets_for(rng: np.random.Generator, head: str, real: np.ndarray) -> dict[str, np.ndarray]:
    B = len(real)
    if head == HEADS[0]:
        return {"labels": rng.integers(0, 3, B)}
    if head == HEADS[1]:
        return {"labels": np.where(real, rng.integers(0, 3, real.shape), -100)}
    return {"start_positions": rng.integers(0, 4, B), "end_positions": np.array([4, 99, 5, 4])[:B]}


@pytest.mark.parametrize(("family", "head"), CASES)
def test_padding_changes_nothing(family, head, rng) -> None:
    model, lengths = built(family, head), [9, 5, 7]
    ids = drawn(rng, family, lengths)
    together = model(ids, lengths=lengths)
    for number, length in enumerate(lengths):
        alone = model(ids[number : number + 1, :length])
        pairs = zip(together, alone, strict=True) if isinstance(together, tuple) else [(together, alone)]
        for one, other in pairs:
            row = one.data[number] if head == HEADS[0] else one.data[number, :length]
            np.testing.assert_allclose(row, other.data[0], rtol=1e-9, atol=1e-9)


def test_xlnet_reads_the_last_real_token(rng) -> None:
    model, lengths = built("xlnet", HEADS[0]), np.array([9, 5, 7])
    ids = drawn(rng, "xlnet", list(lengths))
    features, weights = model.features(ids, lengths=lengths).data, model.state_dict()
    last = features[np.arange(3), lengths - 1]
    hidden = np.tanh(last @ weights["summary.weight"].T + weights["summary.bias"])
    expected = hidden @ weights["logits_proj.weight"].T + weights["logits_proj.bias"]
    np.testing.assert_allclose(model(ids, lengths=lengths).data, expected, rtol=1e-10)
    left = np.stack([np.roll(row, 9 - n) for row, n in zip(ids, lengths, strict=True)])  # padding before the text
    real = np.arange(9) >= 9 - lengths[:, None]
    np.testing.assert_allclose(model(left, attention_mask=real).data, expected, rtol=1e-9)


def test_bart_reads_the_last_end_token(rng) -> None:
    model = built("bart", HEADS[0])
    ids = drawn(rng, "bart", [9, 5, 7])
    with pytest.raises(InputError, match="text 1 has no end token, eos_id=2; put it at the end of each text"):
        model(np.where(np.arange(3)[:, None] == 1, 7, ids))
    with pytest.raises(InputError, match="token_types were given, but a BART has none"):
        model(ids, token_types=ids * 0)
    with pytest.raises(InputError, match=r"attention_mask was given; give lengths"):
        model(ids, attention_mask=ids != 1)
    assert built("bart", HEADS[2], labels=3).config.labels == 2


@pytest.mark.parametrize(("family", "head"), CASES)
def test_every_gradient_equals_central_differences(family, head, rng) -> None:
    model, lengths = built(family, head), [9, 5, 7]
    ids = drawn(rng, family, lengths)
    targets = targets_for(rng, head, np.arange(9) < np.array(lengths)[:, None])

    def loss() -> Any:
        types = np.arange(9) // 4 % 2 + np.zeros((3, 1), int) if family == "xlnet" else None
        return model.loss(ids, *targets.values(), lengths=lengths, token_types=types)

    if family == "xlnet":
        model.mask_emb.requires_grad_(False)  # the query stream is for learning from text alone
    check_slopes(model, loss, rng)


@pytest.mark.parametrize(("family", "head"), [*CASES, ("bert", HEADS[0])])
def test_the_sum_of_losses_is_the_mean_times_their_number(family, head, rng) -> None:
    if family == "bert":
        model = with_large_weights(bert.BertForSequenceClassification(replace(bert.PRESETS["nano"], labels=3)))
    else:
        model = built(family, head)
    ids = drawn(rng, family, [9, 5, 7])
    targets = targets_for(rng, head, np.ones((3, 9), bool))
    if head.startswith(HEADS[2]):
        targets["end_positions"][1] = 3
    count = sum(np.size(one) for one in targets.values())
    mean, total = (model.loss(ids, *targets.values(), reduction=reduction).item() for reduction in ("mean", "sum"))
    assert total == pytest.approx(mean * count, rel=1e-5)


def test_the_sum_of_losses_of_numbers(rng) -> None:
    config = replace(bert.PRESETS["nano"], labels=3)
    ids, wanted = rng.integers(1, 99, (4, 7)), rng.random((4, 3))
    for problem in ("regression", "multi_label_classification"):
        model = bert.BertForSequenceClassification(replace(config, problem_type=problem))
        mean, total = (model.loss(ids, wanted, reduction=reduction).item() for reduction in ("mean", "sum"))
        assert total == pytest.approx(12 * mean, rel=1e-5)
        with pytest.raises(InputError, match=r"loss: reduction is 'some'; choose one of: mean, sum"):
            model.loss(ids, wanted, reduction="some")


def test_logits_of_zero_have_the_gradient_of_the_sigmoid(rng) -> None:
    """A head whose weights are zero, as the first step may find it: a formula with |x| has a kink there."""
    logits = minillm.tensor(np.array([0.0, 0.0, 1.5, -800.0, 800.0]), requires_grad=True)
    wanted = np.array([1.0, 0.0, 1.0, 0.0, 0.0])
    losses = binary_cross_entropy(logits, minillm.tensor(wanted))
    losses.sum().backward()
    np.testing.assert_allclose(losses.data, [np.log(2), np.log(2), np.log1p(np.exp(-1.5)), 0, 800], atol=1e-12)
    np.testing.assert_allclose(logits.grad, [-0.5, 0.5, 1 / (1 + np.exp(-1.5)) - 1, 0, 1], atol=1e-12)


# Files


@pytest.mark.parametrize(("family", "head"), CASES)
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


def test_what_is_not_here_is_refused_by_name(tmp_path) -> None:
    built("xlnet", XLNET_HEADS[2], np.float32).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())

    def change(**changes: Any) -> None:
        (tmp_path / "config.json").write_text(json.dumps(values | changes))

    change(architectures=["XLNetForQuestionAnswering"])
    with pytest.raises(InputError, match="XLNetForQuestionAnswering cannot be loaded: its head chooses the end of an"):
        minillm.load(tmp_path)
    change(architectures=["XLNetForSequenceClassification"], summary_type="first")
    with pytest.raises(InputError, match="summary_type='first'; here it can only be 'last'"):
        minillm.load(tmp_path)
    change(summary_type="first")  # of no effect without a head for texts
    assert isinstance(minillm.load(tmp_path), xlnet.XLNetForQuestionAnsweringSimple)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_names_of_classes_are_kept(count, tmp_path) -> None:
    names = ("no", "yes", "maybe", "näh")[:count]
    for file, kind in ((bert, "BertFor"), (bart, "BartFor"), (distilbert, "DistilBertFor"), (xlnet, "XLNetFor")):
        config = replace(file.PRESETS["nano"], labels=count, label_names=names)
        getattr(file, f"{kind}SequenceClassification")(config).save_pretrained(tmp_path / kind)
        values = json.loads((tmp_path / kind / "config.json").read_text(encoding="utf-8"))
        assert values["id2label"] == {str(number): name for number, name in enumerate(names)}
        assert values["label2id"] == {name: number for number, name in enumerate(names)}
        assert minillm.load(tmp_path / kind).config == config
    with pytest.raises(InputError, match=r"BertConfig: label_names has 1 names, but labels is 2; give a name for each"):
        replace(bert.PRESETS["nano"], label_names=("one",))
    with pytest.raises(InputError, match=r"id2label=\{'0': 'a', '2': 'b'\}; give each number from 0 to 1 a name"):
        bert.config_from_hugging_face({"model_type": "bert", "id2label": {"0": "a", "2": "b"}})


# A new head


BODIES = {
    "bert": (bert, "BertForMaskedLM"),
    "roberta": (roberta, "RobertaForMaskedLM"),
    "distilbert": (distilbert, "DistilBertForMaskedLM"),
    "xlnet": (xlnet, "XLNetLMHeadModel"),
    "bart": (bart, "Bart"),
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", BODIES)
def test_a_pretrained_body_gets_a_new_head(family, head, rng, tmp_path) -> None:
    file, name = BODIES[family]
    body = with_large_weights(getattr(file, name)(file.PRESETS["nano"]))
    if (family, head) == ("bart", HEADS[1]):
        with pytest.raises(InputError, match="with_head: Bart has no ForTokenClassification here; give a BERT"):
            with_head(body, head)
        return
    made = with_head(body, head, labels=("a", "b"))
    before, after = body.state_dict(), made.state_dict()
    kept = before.keys() & after.keys()
    assert all(before[name].tobytes() == after[name].tobytes() for name in kept)
    assert {name for name in before if name not in kept} <= {
        *(f"head.{part}" for part in ("fc.weight", "fc.bias", "ln.weight", "ln.bias", "bias")),
        *("bias", "final_logits_bias"),
    }
    before["wte.weight"][...] = 0  # a copy: what was given stays apart from what was made
    assert after["wte.weight"].any()
    assert made.config.label_names == ("a", "b")
    assert made(drawn(rng, family, [6, 6])) is not None


def test_a_new_head_replaces_an_old_one(tmp_path) -> None:
    minillm.manual_seed(0)
    config = replace(bert.PRESETS["nano"], labels=3, label_names=("x", "y", "z"), problem_type="regression")
    old = with_large_weights(bert.BertForSequenceClassification(config)).to(np.float64)
    old.save_pretrained(tmp_path / "old")
    old = minillm.load(tmp_path / "old", dtype="float64")
    made = with_head(old, HEADS[0], labels=3)
    assert not made.training
    assert made.pooler.weight.data.tobytes() == old.pooler.weight.data.tobytes()
    assert np.abs(made.classifier.weight.data).max() < 0.2 < np.abs(old.classifier.weight.data).max()
    assert made.classifier.weight.dtype == np.float64
    two = with_head(old, HEADS[0])
    two.save_pretrained(tmp_path / "two")
    values = json.loads((tmp_path / "two" / "config.json").read_text())
    assert "id2label" not in values
    assert values["problem_type"] is None
    with pytest.raises(InputError, match="with_head: there is no head 'ForTokenClasification'; did you mean"):
        with_head(old, "ForTokenClasification")
    with pytest.raises(InputError, match="with_head: GPT2 has no ForTokenClassification here"):
        with_head(gpt2.GPT2(gpt2.PRESETS["nano"]), HEADS[1])


# Hugging Face's


@pytest.mark.oracle
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-10)])
@pytest.mark.parametrize(("family", "head"), CASES)
def test_logits_gradients_and_a_step_equal_hugging_faces(family, head, dtype, tolerance, rng, tmp_path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = built(family, head, dtype)
    model.save_pretrained(tmp_path)
    from safetensors.torch import load_file

    name = np.dtype(dtype).name
    reference, report = getattr(transformers, FAMILIES[family][1] + head).from_pretrained(
        tmp_path, dtype=getattr(torch, name), attn_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    if (family, dtype) == ("xlnet", np.float64):  # from_pretrained leaves some of its matrices in float32
        reference.double().load_state_dict(load_file(tmp_path / "model.safetensors"))
        reference.transformer.relative_positional_encoding = in_float64(torch, model.config)
    is_answer = head.startswith(HEADS[2])
    T = 12
    lengths = np.array([T] * 4 if is_answer or (family, head) == ("xlnet", HEADS[0]) else [T, 6, 9, T])
    real = np.arange(T) < lengths[:, None]
    ids = drawn(rng, family, list(lengths))
    targets = targets_for(rng, head, real)
    theirs = {name: torch.tensor(x) for name, x in targets.items()}
    expected = reference(torch.tensor(ids), attention_mask=torch.tensor(real.astype(dtype)), **theirs)
    expected.loss.backward()
    received = model(ids, lengths=lengths)
    logits = [expected.start_logits, expected.end_logits] if is_answer else [expected.logits]
    where = slice(None) if head == HEADS[0] else real
    for ours, one in zip(received if is_answer else [received], logits, strict=True):
        assert relative_error(ours.numpy()[where], one.detach().numpy()[where]) < tolerance
    loss = model.loss(ids, *targets.values(), lengths=lengths)
    loss.backward()
    assert loss.item() == pytest.approx(expected.loss.item(), rel=tolerance)
    floor = 100 * float(np.finfo(dtype).eps)
    unused = ("mask_emb", *(f"h.{i}.attn.{part}" for i in (0, 1) for part in ("r_s_bias", "seg_embed")))
    check_parameters("grad", model, reference, tolerance, floor, unused)
    if is_answer or family == "xlnet":
        return  # AdamW's step for a gradient that is rounding error alone
    optimizer, their_optimizer = optimizers(model, reference)
    optimizer.step()
    their_optimizer.step()
    check_parameters("data", model, reference, tolerance * 10, floor)


@pytest.mark.oracle
@pytest.mark.parametrize(("family", "head"), CASES)
def test_what_transformers_writes_is_read(family, head, rng, tmp_path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    built(family, head, np.float32).save_pretrained(tmp_path / "ours")
    reference = getattr(transformers, FAMILIES[family][1] + head).from_pretrained(tmp_path / "ours")
    reference.save_pretrained(tmp_path / "theirs")
    ids = drawn(rng, family, [7, 7])
    ours = minillm.load(tmp_path / "theirs")(ids)
    with torch.no_grad():
        theirs = reference(torch.tensor(ids))[0]
    ours = ours[0] if isinstance(ours, tuple) else ours
    assert relative_error(ours.numpy(), theirs.numpy()) < 1e-5
