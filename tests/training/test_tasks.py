"""Every pretraining task in the loop: its loss in parts, exact resume after a stop and a kill, what a run leaves, and
what it shows."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minillm
from minillm.autograd import Tensor
from minillm.checkpoint import load_checkpoint
from minillm.cli import main
from minillm.errors import InputError
from minillm.parallel.objective import NEXT_TOKENS, micro_batches_of, next_token_batch, number_of_rows
from minillm.resolver import described, presets
from minillm.training import Run, TrainConfig, train, trainer, whole_model
from minillm.training.config import preset
from minillm.training.overfitting import parted
from minillm.training.prepare import make_model
from minillm.training.tasks import TASKS, task_class
from minillm.training.whole_model import accumulate_gradients
from tests.training.task_runs import RUNS, run_of, without_dropout, write_data

PRETRAINING = {"causal", "masked", "permutation", "denoising", "pairs"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    write_data(path)
    return path


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, Run]:
    """A whole run of every kind, made when it is first asked for."""

    class Made(dict):
        def __missing__(self, name: str) -> Run:
            self[name] = train(run_of(name, folder, f"whole-{name}"))
            return self[name]

    return Made()


def arrays_of(run: Run) -> dict[str, np.ndarray]:
    checkpoint = load_checkpoint(run.checkpoint("last"))
    place = checkpoint.state["random"]
    moments = {f"optimizer.{name}": array for name, array in checkpoint.optimizer.items()}
    return {**checkpoint.model, **moments, "random": np.array([place["seed"], place["counter"]])}


def without_validation(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if not name.startswith("val_")}


def assert_same_run(one: Run, other: Run) -> None:
    """Bit for bit: weights, moments, random stream, and all that metrics.jsonl says, except of time."""
    expected, found = arrays_of(one), arrays_of(other)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    times = {"tokens_per_s", "seconds"}
    records = [[{k: v for k, v in r.items() if k not in times} for r in run.metrics()] for run in (one, other)]
    for record, wanted in zip(*reversed(records), strict=True):
        assert record == wanted or record["val_loss"] != wanted["val_loss"]  # a stop validates where it stops
        assert {k: v for k, v in record.items() if "val" not in k} == {
            k: v for k, v in wanted.items() if "val" not in k
        }


def test_there_is_a_run_of_every_pretraining_task() -> None:
    assert {TrainConfig(**{**RUNS[name], "data": ""}).objective for name in RUNS} == PRETRAINING
    assert set(TASKS) >= PRETRAINING
    with pytest.raises(InputError, match="there is no objective 'mask'; did you mean 'masked'"):
        task_class("mask")


# A step


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("parts", [2, 3, 5])
def test_micro_batches_give_the_loss_and_the_gradient_of_the_batch(folder: Path, name: str, parts: int) -> None:
    config = without_dropout(run_of(name, folder))
    task = task_class(config.objective)(config)
    minillm.manual_seed(0)
    model = make_model(config, task.tokenizer).to(np.float64)
    batch = task.batch(3)
    counts = task.counts(batch)
    unequal = len({tuple(task.counts(part).values()) for part in micro_batches_of(batch, parts)}) > 1
    assert unequal or name in ("gpt2", "llama", "bart")  # unequal numbers of targets, or a mean of means would do
    loss = sum(total * (1 / counts[term]) for term, total in task.sums(model, batch).items())
    assert isinstance(loss, Tensor)
    loss.backward()
    expected = {key: parameter.grad for key, parameter in model.named_parameters()}
    assert sum(gradient is not None and np.abs(gradient).max() > 0 for gradient in expected.values()) > 5
    model.zero_grad()
    total = accumulate_gradients(model, batch, parts, task)
    assert total == pytest.approx(loss.item(), rel=1e-12)
    for key, parameter in model.named_parameters():
        if expected[key] is None:
            assert parameter.grad is None
        else:
            np.testing.assert_allclose(parameter.grad, expected[key], rtol=1e-12, atol=1e-12, err_msg=key)


def test_batches_of_11_and_101_targets_are_not_averaged_as_equals(rng: np.random.Generator) -> None:
    """transformers' issue 34191: the mean of two means is another loss than the mean."""
    model = make_model(without_dropout(run_of("gpt2", Path())), _tokens(290)).to(np.float64)
    ids = rng.integers(0, 290, (20, 12))
    targets = np.full((20, 12), -100)
    targets[0, 1:], targets[10:19] = ids[0, 1:], ids[10:19]  # 11 targets in the first half, 108 less 7 in the second
    targets[18, :7] = -100
    halves = micro_batches_of(next_token_batch(ids, targets), 2)
    assert [NEXT_TOKENS.counts(half)["loss"] for half in halves] == [11, 101]
    whole = accumulate_gradients(model, next_token_batch(ids, targets))
    expected = {key: parameter.grad.copy() for key, parameter in model.named_parameters()}
    for parts in (2, 4, 20):  # of 20, some have no target at all
        model.zero_grad()
        assert accumulate_gradients(model, next_token_batch(ids, targets), parts) == pytest.approx(whole, rel=1e-12)
        for key, parameter in model.named_parameters():
            np.testing.assert_allclose(parameter.grad, expected[key], rtol=1e-12, atol=1e-14)
    means = [accumulate_gradients(model, half) for half in halves]
    assert abs(np.mean(means) - whole) > 1e-3


def _tokens(count: int) -> Any:
    from types import SimpleNamespace

    return SimpleNamespace(vocab_size=count)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_targets_are_shifted_once(folder: Path, name: str) -> None:
    """A model that knows the next token has loss 0 with the targets as they are, and not if they were shifted again."""
    config = run_of(name, folder)
    task = task_class("causal")(config)
    batch = task.batch(0)
    np.testing.assert_array_equal(batch["ids"][:, 1:], batch["targets"][:, :-1])

    class Copies:
        """It gives all probability to a token that it is told."""

        def loss(self, ids: Any, targets: Any, reduction: str) -> Tensor:
            assert reduction == "sum"
            known = np.concatenate([ids[:, 1:], targets[:, -1:]], axis=1)
            return Tensor(np.array(100.0 * (known != targets).sum()))

    assert task.sums(Copies(), batch)["loss"].item() == 0
    shifted = {**batch, "targets": np.roll(batch["targets"], -1, axis=1)}
    assert task.sums(Copies(), shifted)["loss"].item() > 0


@pytest.mark.parametrize("name", RUNS)
def test_a_batch_is_a_function_of_seed_and_step(folder: Path, name: str) -> None:
    config = run_of(name, folder)
    one, other = (task_class(config.objective)(config) for _ in range(2))
    later = other.batch(40)
    for step in (0, 7, 40, 1):
        first, again = one.batch(step), other.batch(step)
        assert first.keys() == again.keys()
        for key, array in first.items():
            np.testing.assert_array_equal(array, again[key])
            assert len(array) == number_of_rows(first)
    assert any(later[key].shape != array.shape or (later[key] != array).any() for key, array in one.batch(0).items())
    seeds = task_class(config.objective)(dataclasses.replace(config, seed=1))
    key = "target" if "target" in later else "ids"
    different = [seeds.batch(step)[key] for step in range(3)]
    assert any(
        a.shape != b[key].shape or (a != b[key]).any() for a, b in zip(different, map(one.batch, range(3)), strict=True)
    )
    assert one.fingerprint() == other.fingerprint()
    validation = [list(one.evaluation_batches(3)) for _ in range(2)]
    for batch, same in zip(*validation, strict=True):
        for key, array in batch.items():
            np.testing.assert_array_equal(array, same[key])
    assert one.tokens(later) > 0


# A run


@pytest.mark.parametrize("name", RUNS)
def test_what_a_run_leaves_and_shows(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = train(run_of(name, folder, out=str(tmp_path / "run"), sample_every=8, micro_batches=2))
    shown = capsys.readouterr().out
    assert {path.name for path in run.folder.iterdir()} == {
        "config.json",
        "tokenizer",
        "metrics.jsonl",
        "loss.png",
        "checkpoints",
    }
    records = run.metrics()
    validated = [record for record in records if record["val_loss"] is not None]
    assert [record["step"] for record in validated] == [3, 6, 8]
    measures = {
        "masked": {"val_masked", "val_accuracy"},
        "permutation": {"val_accuracy"},
        "causal": {"val_bits_per_byte"},
    }.get(run.config.objective, set())
    measures |= {"val_next", "val_next_accuracy"} if name == "bert" else set()
    for record in validated:
        assert {key for key in record if key.startswith("val_")} == {"val_loss", *measures}
        assert all(math.isfinite(record[key]) for key in record)
        if name == "bert":
            assert record["val_loss"] == pytest.approx(record["val_masked"] + record["val_next"], rel=1e-12)
    assert records[-1]["loss"] < 1.5 * records[0]["loss"]
    assert "-" * 40 in shown  # a preview
    opened = Run.open(run.folder)
    assert opened.config == run.config
    assert opened.tokenizer.fingerprint() == run.tokenizer.fingerprint()
    model = minillm.load(run.folder)
    assert type(model).__name__ == task_class(run.config.objective).model_class(run.config).__name__


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    folder: Path, runs: dict[str, Run], name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = runs[name]
    original, calls = whole_model.accumulate_gradients, iter(range(1, 100))

    def interrupted(*arguments: Any) -> Any:
        if next(calls) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments)

    monkeypatch.setattr(whole_model, "accumulate_gradients", interrupted)
    stopped = train(run_of(name, folder, out=str(tmp_path / "run")))
    assert stopped.metrics()[-1]["step"] == 4
    main(["train", "--resume", str(stopped.folder)])
    assert_same_run(whole, stopped)


@pytest.mark.parametrize("name", ["bert", "pairs", "xlnet"])
def test_a_killed_run_ends_as_one_that_was_not(folder: Path, runs: dict[str, Run], name: str, tmp_path: Path) -> None:
    config = run_of(name, folder, out=str(tmp_path / "run"))
    program = (
        "import json, os, signal, sys\n"
        "from minillm.training import TrainConfig, train, trainer\n"
        "save, calls = trainer.save, []\n"
        "def killed(*arguments):\n"
        "    if calls:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    calls.append(1)\n"
        "    save(*arguments)\n"
        "trainer.save = killed\n"
        "train(TrainConfig.from_json(json.load(sys.stdin)))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(config.to_json()), text=True, capture_output=True
    )
    assert result.returncode == -signal.SIGKILL, result.stderr
    run = Run.open(tmp_path / "run")
    assert load_checkpoint(run.checkpoint("last")).state["step"] == 3
    assert run.metrics()[-1]["step"] == 6  # the kill came before the second save
    assert_same_run(runs[name], train(run.config, run.folder))


def test_training_stops_when_patience_is_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys
) -> None:
    losses = iter([3.0, 2.5, 2.6, 2.5, 2.4, 2.3])
    monkeypatch.setattr(trainer, "evaluate", lambda *arguments: {"val_loss": next(losses)})
    config = run_of("gpt2", folder, out=str(tmp_path / "run"), steps=20, eval_every=2, patience=2)
    run = train(config)
    assert run.metrics()[-1]["step"] == 8
    assert load_checkpoint(run.checkpoint("last")).state["worse"] == 2
    assert load_checkpoint(run.checkpoint("best")).state["step"] == 4
    shown = capsys.readouterr().out
    assert "stopped at step 8: the last 2 validations were not better than step 4\n" in shown
    main(["train", "--resume", str(run.folder)])  # its patience is still out
    assert run.metrics()[-1]["step"] == 8
    main(["train", "--resume", str(run.folder), "--patience", "3", "--steps", "10"])
    assert run.metrics()[-1]["step"] == 10


def test_an_epoch_of_pairs_has_every_pair_once_and_the_last_batch_too(folder: Path) -> None:
    config = run_of("pairs", folder)
    task = task_class("pairs")(config)
    rows = sum(len(task.batch(step)["source"]) for step in range(task.train.batches_per_epoch))
    assert rows == len(task.train.sources) == 72
    whole = [tuple(row) for row in task.train.sources]
    seen = [
        tuple(row[:length].tolist())
        for step in range(task.train.batches_per_epoch)
        for row, length in zip(*[task.batch(step)[key] for key in ("source", "source_lengths")], strict=True)
    ]
    assert sorted(seen) == sorted(tuple(map(int, row)) for row in whole)


def test_an_epoch_of_sentence_pairs_leaves_out_less_than_a_batch(folder: Path) -> None:
    task = task_class("masked")(run_of("bert", folder))
    pairs = task._pairs(True, 0)
    assert 0 <= len(pairs) - task.batches_per_epoch * 5 < 5
    shares = [batch["next"].mean() for batch in map(task.batch, range(2 * task.batches_per_epoch))]
    assert 0.3 < np.mean(shares) < 0.7
    batch = task.batch(0)
    types = batch["token_types"]
    assert set(np.unique(types)) == {0, 1}
    assert batch["lengths"].max() <= 20


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    write_data(tmp_path)
    path = tmp_path / "pairs.jsonl"
    long = json.dumps({"source": "what " * 60, "target": "x"})
    path.write_text(path.read_text() + "\n" + "\n".join([long] * 2 + [json.dumps({"source": "it", "target": "on"})]))
    config = run_of("pairs", tmp_path, validation_fraction=0.5)
    task = task_class("pairs")(config)
    assert "0 empty, 2 too long" in task.summary()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "bert",
            dict(validation_fraction=0.001),
            "the validation text is 1 document of 256 tokens or more, but",
        ),
        ("roberta", dict(task="length=21"), "length=21 is more than the model's context of 20; give at most that"),
        ("llama", dict(task="length=13"), "length=13 is more than the model's context of 12; give at most that"),
        (
            "pairs",
            dict(data="text.txt"),
            "alone holds no pairs; give the file of the targets with --targets",
        ),
        (
            "pairs",
            dict(task="source_field=sorce"),
            "has the fields source, target, but no 'sorce'; did you mean",
        ),
        ("pairs", dict(task="batch_tokens=3"), "pairs of .* is left .* too long.*; give others, a model with a longer"),
        ("pairs", dict(task="source_field=en"), "has the fields source, target, but no 'en'"),
    ],
)
def test_data_and_settings_that_cannot_be_used(folder: Path, name: str, changes: dict[str, Any], message: str) -> None:
    config = run_of(name, folder)
    if "task" in changes:
        field, _, value = changes["task"].partition("=")
        changes = {"task": dataclasses.replace(config.task, **{field: int(value) if value.isdigit() else value})}
    if "data" in changes:
        changes = {"data": str(folder / changes["data"])}
    with pytest.raises(InputError, match=message):
        task_class(config.objective)(dataclasses.replace(config, **changes))


def test_settings_that_do_not_go_together() -> None:
    with pytest.raises(InputError, match="causal does not train a model of the family bert; it trains gpt2, llama"):
        TrainConfig(architecture="bert")
    with pytest.raises(InputError, match="model is a GPT2Config; for llama give a LlamaConfig"):
        TrainConfig(architecture="llama")
    with pytest.raises(InputError, match="there is no model 'brt'; did you mean 'bert'"):
        TrainConfig().with_model("brt")
    with pytest.raises(InputError, match="patience is 0; give 1 or more"):
        TrainConfig(patience=0)


# The command line


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert", "roberta", "xlnet", "bart"])
def test_a_command_trains_every_family(
    folder: Path, family: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = "--channels 16 --vocab-size 290 --steps 2 --warmup 1 --batch-size 2 --eval-batches 1 --threads 1"
    sizes += " --encoder-layers 1 --decoder-layers 1" if family == "bart" else " --layers 1"
    sizes += "" if family == "xlnet" else " --context 24"
    main(["train", "--model", family, "--data", str(folder / "text.txt"), *sizes.split()])
    run = Run.open(tmp_path / "runs" / "default-1")
    assert run.config.architecture == family
    assert run.config.model.channels == 16
    assert len(run.metrics()) == 2


def test_each_family_has_options_of_its_own(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")

    def help_of(*arguments: str) -> str:
        with pytest.raises(SystemExit):
            main(["train", *arguments, "--help"])
        return capsys.readouterr().out

    headings = ["model:", "data:", "optimiser:", "schedule:", "run:", "ranks:", "display:"]
    shown = help_of()
    assert [line for line in shown.splitlines() if line in headings] == headings
    assert "--kv-heads" not in shown
    assert "--kv-heads" in help_of("--model", "llama")
    assert "--kv-heads" in help_of("--preset", "smollm2-135m")
    bert = help_of("--model=bert")
    assert "--next-sentence, --no-next-sentence" in bert
    assert "--hidden-share" in bert
    assert "--padding-id" not in bert
    assert "--smoothing" in help_of("--model", "bart", "--objective", "pairs")
    with pytest.raises(SystemExit):
        main(["train", "--kv-heads", "2"])
    assert "there is no option --kv-heads" in capsys.readouterr().err


@pytest.mark.parametrize("name", presets())
def test_a_preset_is_settings_that_fit_each_other(name: str) -> None:
    config = preset(name)
    assert config.preset == name
    assert described(name).config == config.model  # the model of this name everywhere
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


# Learning


@pytest.mark.parametrize(
    ("name", "changes", "bound"),
    [
        ("roberta", dict(steps=400, lr=4e-3, tokenizer="char"), 0.85),
        ("xlnet", dict(steps=200, lr=3e-3, tokenizer="char"), 0.5),
        ("bart", dict(steps=150, lr=5e-3, tokenizer="char"), 0.8),
        ("pairs", dict(steps=250, lr=5e-3), 0.7),
    ],
)
def test_it_learns(folder: Path, name: str, changes: dict[str, Any], bound: float, tmp_path: Path) -> None:
    """The validation loss falls below that of the frequencies of the tokens."""
    config = run_of(name, folder, out=str(tmp_path / "run"), eval_every=1000, batch_size=16, **changes)
    if name != "pairs":
        (tmp_path / "text.txt").write_text("To be, or not to be, that is the question: whether 'tis nobler. " * 60)
        model = dataclasses.replace(config.model, channels=64 if name == "roberta" else 32)
        config = dataclasses.replace(config, data=str(tmp_path / "text.txt"), model=model)
    task = task_class(config.objective)(config)
    counts = np.bincount(np.concatenate([_targets(task.batch(step)) for step in range(50)]), minlength=1)
    shares = counts[counts > 0] / counts.sum()
    frequencies = -(shares * np.log(shares)).sum()
    run = train(without_dropout(config))
    assert run.metrics()[-1]["val_loss"] < bound * frequencies


def _targets(batch: dict[str, np.ndarray]) -> np.ndarray:
    labels = batch["target"] if "target" in batch else batch["labels"]
    return labels[labels != -100]


# From a model that exists


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "bert-alone", "xlnet", "bart"])
@pytest.mark.parametrize("form", ["run", "folder"])
def test_a_run_starts_from_another_model(
    folder: Path, runs: dict[str, Run], name: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a rate of 0 nothing changes, so the weights after a step are those of the start, and so is the tokenizer."""
    monkeypatch.chdir(tmp_path)
    path = runs[name].folder
    if form == "folder":
        main(["convert", str(path), "converted"])
        path = tmp_path / "converted"
    words = "--steps 1 --warmup 0 --lr 0 --min-lr 0 --batch-size 2 --eval-batches 1 --sample-every 0 --threads 1"
    words += " --no-next-sentence" if name == "bert-alone" else ""
    words += " --length 16" if name == "xlnet" else ""
    words += " --validation-fraction 0.3"
    main(["train", "--init", str(path), "--data", str(folder / "text.txt"), "--out", "new", *words.split()])
    run = Run.open(Path("new"))
    assert run.config.init == str(path)
    assert run.config.architecture == runs[name].config.architecture
    text = "The model reads what has been read."
    assert run.tokenizer.encode(text) == runs[name].tokenizer.encode(text)
    before = load_checkpoint(runs[name].checkpoint("best")).model
    after = load_checkpoint(run.checkpoint("last")).model
    assert after.keys() == before.keys()
    for key, array in before.items():
        np.testing.assert_array_equal(after[key], array, err_msg=key)
    main(["train", "--resume", "new", "--steps", "2"])
    assert minillm.load("new").num_parameters() == sum(array.size for array in before.values())


def test_a_head_that_a_model_lacks_begins_anew(folder: Path, runs: dict[str, Run], tmp_path: Path) -> None:
    words = "--steps 1 --warmup 0 --lr 0 --min-lr 0 --batch-size 2 --eval-batches 1 --validation-fraction 0.3"
    start, out = str(runs["bert-alone"].folder), str(tmp_path / "run")
    main(["train", "--init", start, "--data", str(folder / "text.txt"), "--out", out, *words.split()])
    after = load_checkpoint(Run.open(tmp_path / "run").checkpoint("last")).model
    before = load_checkpoint(runs["bert-alone"].checkpoint("best")).model
    np.testing.assert_array_equal(after["h.0.attn.qkv.weight"], before["h.0.attn.qkv.weight"])
    assert after["next_sentence.weight"].any()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--init RUN --layers 3",
            "train: --layers would change the model that --init RUN names",
        ),
        ("--init RUN --tokenizer bpe", "train: --tokenizer would change the model that --init RUN names"),
        ("--init RUN --model bert", "train: RUN is a gpt2; leave --model bert out"),
        ("--init gpt2", "train: gpt2 is a preset, whose weights are random"),
        ("--init nowhere", "train: nowhere is no preset, and no folder or file of this name is there"),
    ],
)
def test_what_does_not_go_with_another_model(runs: dict[str, Run], words: str, message: str, capsys) -> None:
    run = str(runs["gpt2"].folder)
    with pytest.raises(SystemExit):
        main(["train", *words.replace("RUN", run).split()])
    assert message.replace("RUN", run) in capsys.readouterr().err


# Overfitting


def test_overfitting_is_told_and_drawn(folder: Path, tmp_path: Path, capsys) -> None:
    """A model that is large for its text learns it by heart."""
    text = tmp_path / "text.txt"
    text.write_text("".join(np.random.default_rng(0).choice(list("abcdefgh "), 600)))  # there is nothing to understand
    model = dataclasses.replace(RUNS["gpt2"]["model"], channels=48, dropout=0.0)
    config = run_of("gpt2", folder, out=str(tmp_path / "run"), steps=200, eval_every=20, tokenizer="char")
    config = dataclasses.replace(config, data=str(text), model=model, lr=5e-3, weight_decay=0.0, batch_size=16)
    run = train(dataclasses.replace(config, validation_fraction=0.3))
    found = parted(run.metrics())
    assert found is not None
    best = load_checkpoint(run.checkpoint("best")).state
    assert found.step == best["step"] < 200
    assert found.validation[1] > found.validation[0] == best["best_loss"]
    assert found.train[1] < found.train[0]
    assert f"overfitting: since step {found.step} the training loss has fallen from " in capsys.readouterr().out


def test_no_overfitting_is_seen_where_there_is_none() -> None:
    def records(losses: list[float], validations: dict[int, float]) -> list[dict[str, Any]]:
        return [
            {"step": step, "loss": loss, "val_loss": validations.get(step)} for step, loss in enumerate(losses, start=1)
        ]

    falling = [3.0 - 0.1 * step for step in range(12)]
    rising = {3: 2.0, 6: 2.1, 9: 2.2, 12: 2.3}
    assert parted(records(falling, rising)) is not None
    assert parted(records(falling, {3: 2.0, 6: 1.9, 9: 1.8, 12: 1.7})) is None
    assert parted(records(falling, {3: 2.0, 6: 2.1})) is None  # too early to say
    assert parted(records(falling, {3: 2.0, 6: 2.005, 9: 2.004, 12: 2.01})) is None  # a little is noise
    assert parted(records(falling[::-1], rising)) is None  # both rise: it diverges
    assert parted([]) is None
