"""`minillm train --boundaries`: a document in a row is computed as if it stood alone, and a run resumes exactly."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minillm.checkpoint import load_checkpoint
from minillm.cli import main
from minillm.data import write_shards
from minillm.errors import InputError
from minillm.models.gpt2 import GPT2Config
from minillm.models.llama_config import LlamaConfig
from minillm.tokenizers import BPETokenizer, Tokenizer
from minillm.training import TrainConfig, train
from minillm.training.config import config_class
from minillm.training.tasks.causal import CausalOptions, CausalTask, bounded

END = 256  # of a byte-level BPE without merges
MODELS = {
    "gpt2": GPT2Config(vocab_size=257, context=24, layers=2, heads=2, channels=16),
    "llama": LlamaConfig(vocab_size=257, context=24, layers=2, heads=2, kv_heads=1, channels=16, hidden=24),
    "gemma": config_class("gemma")(
        vocab_size=257, context=24, layers=2, heads=2, kv_heads=1, channels=16, hidden=24, head_size=8
    ),
}


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Documents of 1 to 40 bytes, so that some windows hold several and some documents take several windows."""
    rng = np.random.default_rng(0)
    tokenizer = BPETokenizer.train("ab", 257)
    assert tokenizer.eos_id == END
    tokenizer.save(tmp_path / "tokenizer")
    for part, count in (("train", 120), ("validation", 40)):
        ids = [i for _ in range(count) for i in [*rng.integers(97, 123, rng.integers(1, 41)).tolist(), END]]
        write_shards(tmp_path / "shards", part, ids, 257, tokenizer.fingerprint())
    return tmp_path / "shards"


def settings(shards: Path, architecture: str = "gpt2", out: str = "run", **changes: Any) -> TrainConfig:
    config = TrainConfig(
        data=str(shards),
        tokenizer=str(shards.parent / "tokenizer"),
        out=shards.parent / out,
        architecture=architecture,
        model=MODELS[architecture],
        task=CausalOptions(boundaries=True),
        steps=6,
        batch_size=4,
        warmup=1,
        eval_every=3,
        sample_every=0,
        threads=1,
    )
    return dataclasses.replace(config, **changes)


def pieces_of(row: np.ndarray) -> list[tuple[int, int]]:
    """The first position of each document of a row, and the position after its last."""
    ends = (np.flatnonzero(row == END) + 1).tolist()
    marks = sorted({0, *ends, len(row)})
    return list(itertools.pairwise(marks))


def test_starts_and_targets_by_a_loop():
    ids = np.array([[5, END, END, 7, 8], [1, 2, 3, 4, 5], [END, 1, 2, END, 3]])
    targets = np.array([[END, END, 7, 8, 9], [2, 3, 4, 5, END], [1, 2, END, 3, END]])
    batch = bounded(ids, targets, END)
    starts, kept = np.zeros_like(ids), targets.copy()
    for b, row in enumerate(ids.tolist()):
        start = 0
        for t, token in enumerate(row):
            starts[b, t] = start
            if token == END:
                start, kept[b, t] = t + 1, -100
    np.testing.assert_array_equal(batch["starts"], starts)
    np.testing.assert_array_equal(batch["targets"], kept)
    assert batch["ids"] is ids


def test_windows_hold_several_documents_and_no_target_of_another(shards):
    task, plain = CausalTask(settings(shards)), CausalTask(settings(shards, task=CausalOptions()))
    batches = [(task.batch(step), plain.batch(step)) for step in range(20)]
    batches += zip(task.evaluation_batches(3), plain.evaluation_batches(3), strict=True)
    documents = 0
    for batch, without in batches:
        np.testing.assert_array_equal(batch["ids"], without["ids"])
        for b, row in enumerate(batch["ids"]):
            documents += len(pieces_of(row))
            for first, last in pieces_of(row):
                assert (batch["starts"][b, first:last] == first).all()
        differ = batch["targets"] != without["targets"]
        np.testing.assert_array_equal(differ, batch["ids"] == END)
        assert (batch["targets"][differ] == -100).all()
        assert (batch["targets"] == END).any()  # documents learn to end
    assert documents > 1.5 * 23 * 4


@pytest.mark.parametrize("architecture", MODELS)
def test_a_document_has_the_logits_that_it_has_alone(shards, architecture):
    config = settings(shards, architecture)
    task = CausalTask(config)
    model = task.make_model(config, task.tokenizer).eval()
    batch, several = task.batch(0), 0
    logits = model(batch["ids"], batch["starts"]).data
    across = model(batch["ids"]).data
    for b, row in enumerate(batch["ids"]):
        for first, last in pieces_of(row):
            alone = model(row[None, first:last]).data[0]
            np.testing.assert_allclose(logits[b, first:last], alone, rtol=0, atol=1e-6 * max(1, np.abs(alone).max()))
            if first:
                several += 1
                assert np.abs(across[b, first:last] - alone).max() > 1e-4
    assert several >= 3


@pytest.mark.parametrize("architecture", MODELS)
def test_loss_and_gradients_are_those_of_separate_documents(shards, architecture):
    config = settings(shards, architecture)
    task = CausalTask(config)
    model = task.make_model(config, task.tokenizer).eval()
    batch = task.batch(1)
    together = task.sums(model, batch)["loss"]
    together.backward()
    gradients = {name: parameter.grad.copy() for name, parameter in model.named_parameters()}
    model.zero_grad()
    apart, targets = 0.0, 0
    for b, row in enumerate(batch["ids"]):
        for first, last in pieces_of(row):
            loss = model.loss(row[None, first:last], batch["targets"][b, None, first:last], "sum")
            loss.backward()
            apart += loss.item()
            targets += int((batch["targets"][b, first:last] != -100).sum())
    assert targets == task.counts(batch)["loss"] < batch["ids"].size
    assert together.item() == pytest.approx(apart, rel=1e-6)
    for name, parameter in model.named_parameters():
        scale = np.abs(gradients[name]).max()
        assert scale > 0
        np.testing.assert_allclose(gradients[name], parameter.grad, rtol=0, atol=2e-6 * scale, err_msg=name)


def test_a_run_that_is_resumed_ends_with_the_same_bits(shards):
    whole = train(settings(shards, out="whole"))
    train(settings(shards, out="cut", steps=3, schedule="wsd", decay_steps=0))
    first = train(settings(shards, out="long", schedule="wsd", decay_steps=0))
    second = train(
        dataclasses.replace(settings(shards, schedule="wsd", decay_steps=0), out=None), resume=shards.parent / "cut"
    )
    one, two = (load_checkpoint(run.checkpoint("last")) for run in (first, second))
    for name, array in one.model.items():
        np.testing.assert_array_equal(array, two.model[name], err_msg=name)
    assert Tokenizer.load(whole.folder / "tokenizer").eos_id == END
    assert whole.config.task.boundaries


def test_without_boundaries_a_run_learns_something_else(shards):
    one = load_checkpoint(train(settings(shards, out="one")).checkpoint("last")).model
    two = load_checkpoint(train(settings(shards, out="two", task=CausalOptions())).checkpoint("last")).model
    assert any((array != two[name]).any() for name, array in one.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(tp=2), r"--tp 2 --pp 1 divide a model that reads one text in each row; leave --boundaries out"),
        (dict(pp=2), r"--tp 1 --pp 2 divide"),
    ],
)
def test_a_divided_model_is_refused(shards, changes, message):
    with pytest.raises(InputError, match=message):
        CausalTask(settings(shards, **changes))


def test_a_text_without_ends_is_refused(shards, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("a long text " * 100)
    with pytest.raises(InputError, match="has none; make shards of documents with `minillm data shards`"):
        CausalTask(settings(text, tokenizer=str(tmp_path / "tokenizer")))
    with pytest.raises(InputError, match="has none; make shards"):
        CausalTask(settings(text, tokenizer="char"))


def test_another_model_is_refused(shards, capsys):
    with pytest.raises(SystemExit):
        main(["train", "--model", "bert", "--data", str(shards), "--boundaries"])
    assert "--boundaries is for models of the next token (gpt2, llama, gemma), and the bert" in capsys.readouterr().err
