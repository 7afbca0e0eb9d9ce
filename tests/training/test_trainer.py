"""The training loop: gradients in parts, exact resume after every kind of stop, checkpoints, metrics, and learning."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minillm
from minillm import random
from minillm.checkpoint import load_checkpoint, save_checkpoint
from minillm.cli import main
from minillm.data import Batches
from minillm.errors import CheckpointError, InputError
from minillm.generate import generate
from minillm.models.gpt2 import GPT2, GPT2Config
from minillm.optim import AdamW, cosine_schedule, wsd_schedule
from minillm.parallel.objective import next_token_batch
from minillm.tokenizers import BPETokenizer, CharacterTokenizer
from minillm.training import Run, TrainConfig, prepare, train, trainer, whole_model
from minillm.training.config import preset
from minillm.training.corpus import Corpus, load_corpus, make_batches
from minillm.training.tasks import causal
from minillm.training.tasks.causal import CausalTask
from minillm.training.trainer import evaluate, learning_rate
from minillm.training.whole_model import WholeModel, accumulate_gradients

TINY = GPT2Config(vocab_size=256, context=8, layers=1, heads=2, channels=16, dropout=0.2)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A few thousand characters with some order in them."""
    words = ["the", "model", "reads", "text", "and", "then", "it", "writes", "what", "has", "been", "read"]
    path = tmp_path / "text.txt"
    path.write_text(" ".join(np.random.default_rng(0).choice(words, 800)))
    return path


def settings(text: Path, out: str, **changes: Any) -> TrainConfig:
    """A run of 12 steps with dropout that takes a tenth of a second, saving after 5, 10 and 12."""
    config = TrainConfig(
        data=str(text),
        out=text.parent / out,
        tokenizer="char",
        model=TINY,
        steps=12,
        batch_size=4,
        warmup=3,
        eval_every=5,
        eval_batches=2,
        sample_every=0,
        sample_tokens=8,
    )
    return dataclasses.replace(config, **changes)


def last_arrays(run: Run) -> dict[str, np.ndarray]:
    """Weights and moments of the last checkpoint, and the place in the random stream."""
    checkpoint = load_checkpoint(run.checkpoint("last"))
    place = checkpoint.state["random"]
    return {
        **{f"model.{name}": array for name, array in checkpoint.model.items()},
        **{f"optimizer.{name}": array for name, array in checkpoint.optimizer.items()},
        "random": np.array([place["seed"], place["counter"]]),
    }


TIMES = ("tokens_per_s", "seconds")


def without_times(run: Run) -> list[dict[str, Any]]:
    return [
        {
            name: value
            for name, value in record.items()
            if name not in ("tokens_per_s", "seconds", "val_loss", "val_bits_per_byte")
        }
        for record in run.metrics()
    ]


def assert_same_run(one: Run, other: Run) -> None:
    """Bit for bit: weights, moments, random stream, and each step's loss, norm, rate and count of tokens."""
    expected = last_arrays(one)
    arrays = last_arrays(other)
    assert arrays.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)
    assert without_times(other) == without_times(one)


def signal_at(monkeypatch: pytest.MonkeyPatch, step: int, number: int = signal.SIGINT, times: int = 1) -> None:
    """Make this process send itself a signal in the middle of a step (counted from 1, in each `train`)."""
    original = whole_model.accumulate_gradients
    calls = iter(range(1, 10**6))

    def interrupted(*arguments: Any) -> float:
        if next(calls) == step:
            for _ in range(times):
                os.kill(os.getpid(), number)
        return original(*arguments)

    monkeypatch.setattr(whole_model, "accumulate_gradients", interrupted)


# Gradient accumulation


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (np.float64, 1e-12)])
@pytest.mark.parametrize("parts", [2, 3, 4, 7])
def test_parts_of_a_batch_give_the_gradient_of_the_batch(
    rng: np.random.Generator, dtype, tolerance: float, parts: int
) -> None:
    minillm.manual_seed(0)
    model = GPT2(dataclasses.replace(TINY, vocab_size=13, dropout=0.0)).to(dtype)
    ids, targets = rng.integers(0, 13, (2, 7, 8))
    targets[0, :7] = targets[1, ::2] = targets[4, 3:] = targets[6] = -100  # the last part may hold nothing that counts
    loss = model.loss(ids, targets)
    loss.backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    total = accumulate_gradients(model, next_token_batch(ids, targets), parts)
    assert total == pytest.approx(loss.item(), rel=tolerance)
    for name, parameter in model.named_parameters():
        error = np.abs(parameter.grad - expected[name]).max() / np.abs(expected[name]).max()
        assert error < tolerance, f"{name}: {error:.1e}"


def test_gradients_add_up_over_calls(rng: np.random.Generator) -> None:
    model = GPT2(dataclasses.replace(TINY, vocab_size=13, dropout=0.0)).to(np.float64)
    ids, targets = rng.integers(0, 13, (2, 4, 8))
    assert isinstance(accumulate_gradients(model, next_token_batch(ids, targets)), float)
    once = model.wte.weight.grad.copy()
    accumulate_gradients(model, next_token_batch(ids, targets))
    np.testing.assert_allclose(model.wte.weight.grad, 2 * once, rtol=1e-12)


def test_a_batch_in_which_nothing_counts(rng: np.random.Generator) -> None:
    model = GPT2(dataclasses.replace(TINY, vocab_size=13))
    assert accumulate_gradients(model, next_token_batch(rng.integers(0, 13, (4, 8)), np.full((4, 8), -100)), 2) == 0
    assert not any(parameter.grad.any() for parameter in model.parameters())


# Evaluation and the learning rate


def task_of(batches: Batches) -> CausalTask:
    """A task that has validation batches, and nothing else."""
    task = CausalTask.__new__(CausalTask)
    task.validation = batches
    task.bytes_per_token = 2.0
    return task


def test_evaluation_is_the_mean_over_its_batches_and_touches_nothing(rng: np.random.Generator) -> None:
    model = GPT2(dataclasses.replace(TINY, vocab_size=13))
    batches = Batches(rng.integers(0, 13, 200), 3, 8, 0, shuffle=False)
    task = task_of(batches)
    place = random.default.state()
    result = evaluate(WholeModel(model), task, 4)
    assert random.default.state() == place
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    model.eval()
    expected = [model.loss(ids, targets).item() for ids, targets in batches.evaluation_batches(4)]
    assert len(expected) == 4
    assert result["val_loss"] == pytest.approx(np.mean(expected), rel=1e-6)
    assert result["val_bits_per_byte"] == pytest.approx(result["val_loss"] / (2 * math.log(2)), rel=1e-12)
    assert result.keys() == {"val_loss", "val_bits_per_byte"}
    assert evaluate(WholeModel(model), task, 4) == result


def test_evaluating_and_sampling_more_often_changes_no_weight(text: Path) -> None:
    often = train(settings(text, "often", eval_every=1, sample_every=1))
    seldom = train(settings(text, "seldom", eval_every=100, sample_every=0))
    assert_same_run(often, seldom)
    assert len([r for r in often.metrics() if r["val_loss"] is not None]) == 12


def test_the_learning_rate_follows_the_chosen_schedule() -> None:
    config = TrainConfig(steps=50, warmup=5, lr=0.3, min_lr=0.1, decay_steps=20)
    wsd = dataclasses.replace(config, schedule="wsd")
    shape = {"peak": 0.3, "floor": 0.1, "warmup": 5, "total": 50}
    for step in range(50):
        assert learning_rate(config, step) == cosine_schedule(step, **shape)
        assert learning_rate(wsd, step) == wsd_schedule(step, **shape, decay=20)
    assert learning_rate(config, 49) == learning_rate(wsd, 49) == 0.1


# What a run leaves behind


def test_a_run_directory_holds_everything(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = settings(text, "run", sample_every=5)
    run = train(config)
    assert sorted(str(path.relative_to(run.folder)) for path in run.folder.rglob("*") if path.is_file()) == [
        "checkpoints/best.safetensors",
        "checkpoints/last.safetensors",
        "config.json",
        "loss.png",
        "metrics.jsonl",
        "tokenizer/tokenizer.json",
    ]
    assert (run.folder / "loss.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert Run.open(run.folder).config == config
    shown = capsys.readouterr().out
    assert f"minillm sample {run.folder}" in shown
    assert f"{run.folder}/loss.png" in shown
    assert shown.count("-" * 40) == 3  # samples at 5, 10 and the end


def test_metrics_hold_one_line_a_step_with_every_field(text: Path) -> None:
    config = settings(text, "run")
    run = train(config)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))
    for line in lines:
        bits = [] if line["val_loss"] is None else ["val_bits_per_byte"]
        names = ["step", "loss", "val_loss", *bits, "lr", "grad_norm", "tokens", "tokens_per_s", "seconds", "crc32"]
        assert list(line) == names
        if bits:  # all characters are of one byte
            assert line["val_bits_per_byte"] == pytest.approx(line["val_loss"] / math.log(2), rel=1e-12)
        assert line["lr"] == learning_rate(config, line["step"] - 1)
        assert line["tokens"] == line["step"] * 4 * 8
        assert (line["val_loss"] is not None) == (line["step"] in (5, 10, 12))
        assert 0 < line["loss"] < 2 * math.log(256)
        assert line["grad_norm"] > 0
        assert line["tokens_per_s"] > 0
    seconds = [0, *(line["seconds"] for line in lines)]
    assert all(before < after for before, after in itertools.pairwise(seconds))


def test_settings_reach_the_optimiser(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(text, "run", beta1=0.8, beta2=0.7, weight_decay=0.3, clip=0.25, lr=0.02, steps=2, warmup=1)
    model, optimizer = prepare.build(config, CharacterTokenizer.train("abc"))
    assert model.config == dataclasses.replace(TINY, vocab_size=3)
    assert [group.options["weight_decay"] for group in optimizer.groups] == [0.3, 0.0]
    assert all(group.options["betas"] == (0.8, 0.7) for group in optimizer.groups)
    assert all(parameter.ndim == 2 for parameter in optimizer.groups[0].parameters)
    _, sgd = prepare.build(dataclasses.replace(config, optimizer="sgd"), CharacterTokenizer.train("abc"))
    assert [(group["momentum"], group["weight_decay"]) for group in sgd.param_groups] == [(0.9, 0.3), (0.9, 0.0)]
    seen = []
    clip = AdamW.clip_grad_norm

    def spy(optimizer: AdamW, max_norm: float) -> float:
        seen.append((optimizer.lr, max_norm))
        return clip(optimizer, max_norm)

    monkeypatch.setattr(AdamW, "clip_grad_norm", spy)
    train(config)
    assert seen == [(learning_rate(config, step), 0.25) for step in range(2)]


def test_every_step_has_a_batch_of_its_own(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    batch = Batches.batch

    def spy(batches: Batches, index: int) -> tuple[np.ndarray, np.ndarray]:
        seen.append(index)
        return batch(batches, index)

    monkeypatch.setattr(Batches, "batch", spy)
    signal_at(monkeypatch, 7)
    stopped = train(settings(text, "run"))
    train(stopped.config, stopped.folder)
    assert seen == list(range(12))


def test_the_last_and_the_best_checkpoint(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = {2: 3.0, 4: 2.5, 6: 4.0, 8: 2.5, 10: 2.0, 12: 2.25}  # an equal loss is no better
    best_after = {2: 2, 4: 4, 6: 4, 8: 4, 10: 10, 12: 10}
    scripted = iter(losses.values())
    monkeypatch.setattr(trainer, "evaluate", lambda *arguments: {"val_loss": next(scripted)})
    seen = {}
    save = trainer.save

    def spy(run: Run, *others: Any) -> None:
        save(run, *others)
        last, best = (load_checkpoint(run.checkpoint(name)).state for name in ("last", "best"))
        assert best["best_step"] == best["step"] == last["best_step"]
        seen[last["step"]] = best["step"]

    monkeypatch.setattr(trainer, "save", spy)
    run = train(settings(text, "run", eval_every=2))
    assert seen == best_after
    last, best = load_checkpoint(run.checkpoint("last")), load_checkpoint(run.checkpoint("best"))
    assert (best.state["best_loss"], last.state["best_loss"], last.state["best_step"]) == (2.0, 2.0, 10)
    assert (last.model["wte.weight"] != best.model["wte.weight"]).any()
    assert sorted(path.name for path in (run.folder / "checkpoints").iterdir()) == [
        "best.safetensors",
        "last.safetensors",
    ]


def test_a_file_system_without_links_gets_copies(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*arguments: Any) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(os, "link", no_links)
    run = train(settings(text, "run", steps=4))
    last, best = run.checkpoint("last"), run.checkpoint("best")
    assert last.read_bytes() == best.read_bytes()
    assert not last.samefile(best)


def test_the_same_seed_gives_the_same_run_and_another_one_another(text: Path) -> None:
    one, same, other = (train(settings(text, name, seed=seed)) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert_same_run(one, same)
    assert (last_arrays(one)["model.wte.weight"] != last_arrays(other)["model.wte.weight"]).any()


def test_training_on_another_thread(text: Path) -> None:
    """Where no signal handler can be set."""
    runs: list[Run] = []
    thread = threading.Thread(target=lambda: runs.append(train(settings(text, "a"))))
    thread.start()
    thread.join()
    assert_same_run(train(settings(text, "b")), runs[0])


# Stopping and going on


VARIANTS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "sgd": {"optimizer": "sgd", "lr": 0.1, "min_lr": 0.01},
    "in parts": {"micro_batches": 3, "schedule": "wsd", "decay_steps": 5, "clip": 0.3},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("stop", [1, 7, 11])
def test_a_run_that_was_stopped_and_resumed_is_bitwise_the_same(
    text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variant: str, stop: int
) -> None:
    whole = train(settings(text, "whole", **VARIANTS[variant]))
    signal_at(monkeypatch, stop)
    handler = signal.getsignal(signal.SIGINT)
    stopped = train(settings(text, "parts", **VARIANTS[variant]))
    assert signal.getsignal(signal.SIGINT) is handler
    assert [record["step"] for record in stopped.metrics()] == list(range(1, stop + 1))
    assert load_checkpoint(stopped.checkpoint("last")).state["step"] == stop
    shown = capsys.readouterr().out
    assert f"stopped and saved at step {stop}" in shown
    assert f"minillm train --resume {stopped.folder}" in shown
    resumed = train(Run.open(stopped.folder).config, stopped.folder)
    assert resumed.folder == stopped.folder
    assert_same_run(whole, resumed)


def test_dropout_is_on_and_a_lost_random_stream_would_show(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above would miss a stream that is not restored, if nothing random happened after the stop."""
    whole = train(settings(text, "whole"))
    signal_at(monkeypatch, 7)
    stopped = train(settings(text, "parts"))
    monkeypatch.setattr(random.default, "set_state", lambda state: None)
    train(Run.open(stopped.folder).config, stopped.folder)
    assert (last_arrays(whole)["model.wte.weight"] != last_arrays(stopped)["model.wte.weight"]).any()


def test_a_run_can_be_stopped_again_and_again(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(settings(text, "whole"))
    signal_at(monkeypatch, 3, signal.SIGTERM)
    run = train(settings(text, "parts"))
    for expected in (6, 9, 12):
        signal_at(monkeypatch, 3)  # on top of the one before: a new count from this train on
        run = train(run.config, run.folder)
        assert run.metrics()[-1]["step"] == expected
    assert_same_run(whole, run)


def test_a_stop_while_text_is_sampled_finishes_and_saves_a_step(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = causal.sample

    def interrupted(model: Any, corpus: Any, config: Any, step: int) -> tuple[str, str]:
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return original(model, corpus, config, step)

    monkeypatch.setattr(causal, "sample", interrupted)
    run = train(settings(text, "run", eval_every=100, sample_every=4))
    saved = load_checkpoint(run.checkpoint("last")).state["step"]
    assert saved == run.metrics()[-1]["step"] == 5


def test_a_second_interrupt_ends_at_once(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signal_at(monkeypatch, 7, times=2)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(settings(text, "run"))
    assert signal.getsignal(signal.SIGINT) is handler
    run = Run.open(text.parent / "run")
    assert load_checkpoint(run.checkpoint("last")).state["step"] == 5
    assert_same_run(train(settings(text, "whole")), train(run.config, run.folder))


def test_resume_on_the_command_line(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(settings(text, "whole"))
    stopped = text.parent / "stopped"
    options = "--tokenizer char --context 8 --layers 1 --heads 2 --channels 16 --dropout 0.2 --steps 12 --batch-size 4"
    options += " --warmup 3 --eval-every 5 --eval-batches 2 --sample-every 0 --sample-tokens 8"
    signal_at(monkeypatch, 4)
    main(["train", "--data", str(text), "--out", str(stopped), *options.split()])
    assert Run.open(stopped).metrics()[-1]["step"] == 4
    main(["train", "--resume", str(stopped), "--eval-every", "4"])
    assert_same_run(whole, Run.open(stopped))
    assert [r["step"] for r in Run.open(stopped).metrics() if r["val_loss"] is not None] == [4, 8, 12]


def test_a_finished_run_can_go_on_for_more_steps(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = train(settings(text, "run", schedule="wsd", decay_steps=0))
    before = last_arrays(run)
    train(run.config, run.folder)  # nothing to do
    for name, array in last_arrays(run).items():
        np.testing.assert_array_equal(array, before[name])
    main(["train", "--resume", str(run.folder), "--steps", "15"])
    whole = train(settings(text, "whole", schedule="wsd", decay_steps=0, steps=15))
    assert_same_run(whole, run)


def test_settings_that_change_on_resume_hold_when_it_is_resumed_again(
    text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the command that an interrupted longer run prints would find nothing left to do."""
    config = settings(text, "run", schedule="wsd", decay_steps=0)
    run = train(config)
    signal_at(monkeypatch, 2)
    main(["train", "--resume", str(run.folder), "--steps", "17"])
    assert Run.open(run.folder).metrics()[-1]["step"] == 14
    assert Run.open(run.folder).config == dataclasses.replace(config, steps=17)
    main(["train", "--resume", str(run.folder)])
    assert_same_run(train(settings(text, "whole", schedule="wsd", decay_steps=0, steps=17)), run)


def test_a_run_of_format_1_goes_on_with_its_schedule_and_data(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its settings, which today would be refused, have no format; nor has its last checkpoint counts of parameters."""
    changes = {"format": 1, "schedule": "wsd", "decay_steps": 200, "eval_every": 2}
    whole = train(settings(text, "whole", **changes))
    rates = [record["lr"] for record in whole.metrics()]
    assert rates == [*(1e-3 * n / 3 for n in (1, 2, 3)), *(1e-4 + (1e-3 - 1e-4) * n / 200 for n in range(9, 0, -1))]
    signal_at(monkeypatch, 7)
    stopped = train(settings(text, "parts", **changes))
    path = stopped.folder / "config.json"
    content = json.loads(path.read_text())
    assert content.pop("format") == 1
    del content["crc32"]
    path.write_text(json.dumps(content))
    config = Run.open(stopped.folder).config
    assert make_batches(load_corpus(config), config)[0].to_the_end is False
    main(["train", "--resume", str(stopped.folder)])
    assert_same_run(whole, Run.open(stopped.folder))
    assert Run.open(stopped.folder).config.format == 1


def test_the_rates_of_format_1() -> None:
    """A cosine that would reach min_lr at a step that does not run, and one that rises, as they were."""
    config = TrainConfig(steps=12, warmup=2, lr=1.0, min_lr=0.5, format=1)
    rates = [learning_rate(config, step) for step in range(12)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[7] == pytest.approx(0.75)
    assert rates[11] == pytest.approx(0.5 + 0.25 * (1 + math.cos(0.9 * math.pi)))
    rising = dataclasses.replace(config, lr=0.1)
    assert learning_rate(rising, 7) == pytest.approx(0.3)


def test_only_the_learning_rate_or_the_steps_on_the_command_line(text: Path) -> None:
    for number, option in enumerate((["--lr", "1e-5"], ["--steps", "3"], ["--steps", "1"])):
        out = text.parent / f"run-{number}"
        shape = (
            "--tokenizer char --context 8 --layers 1 --heads 1 --channels 8 --steps 4 --sample-every 0 --eval-batches 1"
        )
        main(["train", "--preset", "nano", "--data", str(text), "--out", str(out), *shape.split(), *option])
        run = Run.open(out)
        rates = [record["lr"] for record in run.metrics()]
        assert len(rates) == run.config.steps
        assert max(rates) == run.config.lr
        assert rates[-1] == pytest.approx(run.config.lr / 10) or run.config.steps == 1


KILLED = """
import os, signal, sys
from minillm import files
from minillm.training import trainer, run

def die():
    os.kill(os.getpid(), signal.SIGKILL)

add_metrics, sync, replace = run.Run.add_metrics, files.sync, os.replace
moment, saves = sys.argv[1], iter(range(1, 100))

def killed_in_metrics(self, record):
    add_metrics(self, record)
    if record["step"] == 8:
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write('{"step": 9, "lo')
        die()

def killed_in_checkpoint(path):
    sync(path)
    if ".safetensors." in path.name and next(saves) == 3:  # the second time that the best is written
        os.truncate(path, os.path.getsize(path) // 2)
        die()

def killed_between_checkpoints(source, target):
    replace(source, target)
    if str(target).endswith(".safetensors") and next(saves) == 3:
        die()

if moment == "in the metrics":
    run.Run.add_metrics = killed_in_metrics
elif moment == "in a checkpoint":
    files.sync = killed_in_checkpoint
else:
    os.replace = killed_between_checkpoints
from minillm.cli import main
main(sys.argv[2:])
"""


@pytest.mark.parametrize("moment", ["in the metrics", "in a checkpoint", "between the checkpoints"])
def test_a_killed_run_resumes_bitwise(text: Path, moment: str) -> None:
    whole = train(settings(text, "whole"))
    options = "--tokenizer char --context 8 --layers 1 --heads 2 --channels 16 --dropout 0.2 --steps 12 --batch-size 4"
    options += " --warmup 3 --eval-every 5 --eval-batches 2 --sample-every 0 --sample-tokens 8"
    out = text.parent / "killed"
    command = [sys.executable, "-c", KILLED, moment, "train", "--data", str(text), "--out", str(out), *options.split()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == -signal.SIGKILL, result.stderr
    run = Run.open(out)
    assert [record["step"] for record in run.metrics()] == list(range(1, 9 if moment == "in the metrics" else 11))
    assert load_checkpoint(run.checkpoint("last")).state["step"] == 5
    main(["train", "--resume", str(out)])
    assert_same_run(whole, run)
    last, best = load_checkpoint(run.checkpoint("last")).state, load_checkpoint(run.checkpoint("best")).state
    assert best["step"] == last["best_step"]
    assert run.metrics()[best["step"] - 1]["val_loss"] == last["best_loss"]


# What a run refuses


def refused(resume: Path, match: str) -> None:
    before = {path: path.read_bytes() for path in resume.rglob("*") if path.is_file()}
    with pytest.raises((CheckpointError, InputError), match=match):
        train(Run.open(resume).config, resume)
    assert {path: path.read_bytes() for path in resume.rglob("*") if path.is_file()} == before


def test_other_text_is_refused_on_resume(text: Path) -> None:
    run = train(settings(text, "run", steps=5))
    original = text.read_text()
    text.write_text(original.replace("model", "modem", 1))
    refused(run.folder, r"^train: the text or tokenizer of .*run has changed since it was saved \(.*, now .*\); put")
    text.write_text(original[:-20] + original[-20:][::-1])  # in the validation text
    refused(run.folder, "has changed since it was saved")
    text.write_text(original + " more")
    refused(run.folder, "has changed since it was saved")
    text.unlink()
    refused(run.folder, "there is no file or folder")
    text.write_text(original)
    train(run.config, run.folder)


def test_another_tokenizer_is_refused_on_resume(text: Path) -> None:
    run = train(settings(text, "run", steps=5))
    CharacterTokenizer.train(text.read_text() + "ü").save(run.folder / "tokenizer")
    refused(run.folder, "is not the tokenizer that the run was trained with")
    content = json.loads((run.folder / "config.json").read_text())
    for name in ("run", "tokenizer_fingerprint", "crc32"):  # as in an older run
        del content[name]
    (run.folder / "config.json").write_text(json.dumps(content))
    refused(run.folder, "the text or tokenizer of .* has changed")
    BPETokenizer.train(text.read_text(), 257).save(run.folder / "tokenizer")
    refused(run.folder, "the text or tokenizer of .* has changed")


def test_another_shape_is_refused_on_resume(text: Path) -> None:
    run = train(settings(text, "run", steps=5))
    content = json.loads((run.folder / "config.json").read_text())
    content["model"]["layers"] = 2
    del content["crc32"]
    (run.folder / "config.json").write_text(json.dumps(content))
    refused(run.folder, r"the weights do not fit GPT2: missing h\.1\.ln_1\.weight")
    content["model"]["layers"] = 1
    content["optimizer"] = "sgd"
    (run.folder / "config.json").write_text(json.dumps(content))
    refused(run.folder, r"^SGD: the optimiser state does not fit: missing momentum\.wte\.weight")


def test_a_damaged_checkpoint_is_refused_on_resume(text: Path) -> None:
    run = train(settings(text, "run", steps=5))
    last = run.checkpoint("last")
    content = last.read_bytes()
    last.write_bytes(content[:-4])
    refused(run.folder, "last.safetensors is damaged")
    weights = minillm.nn.Linear(2, 2)
    save_checkpoint(last, weights, AdamW(weights.parameters()), {"step": 5})
    refused(run.folder, "last.safetensors lacks best_loss, best_step, corpus, random")


def test_what_a_kill_left_unfinished_is_gone_after_a_resume(text: Path) -> None:
    run = train(settings(text, "run", steps=5))
    unfinished = run.folder / "checkpoints" / "last.safetensors.4711.tmp"
    unfinished.write_bytes(b"half of a")
    train(settings(text, "run", steps=6), run.folder)
    assert not unfinished.exists()
    assert run.checkpoint("last").exists()


@pytest.mark.parametrize("ruined", [7, 10])
def test_a_loss_that_is_no_number_stops_the_run_and_the_last_checkpoint_stays(
    text: Path, monkeypatch: pytest.MonkeyPatch, ruined: int
) -> None:
    """The update of one step ruins the weights; after step 10 they are evaluated, and would be saved."""
    monkeypatch.setattr(
        trainer, "learning_rate", lambda config, done: math.nan if done == ruined - 1 else learning_rate(config, done)
    )
    with pytest.raises(InputError, match=r"^train: at step \d+ the .*loss is nan, .* a lower --lr \(now 0\.001\) or a"):
        train(settings(text, "run"))
    run = Run.open(text.parent / "run")
    checkpoint = load_checkpoint(run.checkpoint("last"))
    assert checkpoint.state["step"] == 5
    assert all(np.isfinite(array).all() for array in {**checkpoint.model, **checkpoint.optimizer}.values())
    assert all(math.isfinite(record["loss"]) for record in run.metrics())
    monkeypatch.setattr(trainer, "learning_rate", learning_rate)
    assert_same_run(train(settings(text, "whole")), train(run.config, run.folder))


@pytest.mark.parametrize(
    ("content", "changes", "message"),
    [
        ("", {}, "is empty or has nothing but whitespace"),
        ("ab" * 40, {"model": dataclasses.replace(TINY, context=80)}, r"^train: the training text has 72 tokens, but"),
        ("ab" * 40, {}, r"^train: the validation text has 8 tokens, but a context of 8 needs at least 9; give"),
        ("ab" * 400, {"tokenizer": "bpe", "model": dataclasses.replace(TINY, vocab_size=255)}, "vocab_size is 255"),
        ("ab" * 400, {"tokenizer": "missing"}, r"Tokenizer\.load: cannot read missing/tokenizer\.json"),
        ("ab" * 400, {"field": "text"}, r"is for \.jsonl files"),
        ("ab" * 400, {"beta1": 1.0}, r"^AdamW: betas are"),
        ("ab" * 400, {"seed": 2**64}, r"seed is 18446744073709551616"),
    ],
)
def test_nothing_is_written_for_input_that_cannot_be_used(
    text: Path, content: str, changes: dict[str, Any], message: str
) -> None:
    text.write_text(content)
    with pytest.raises(InputError, match=message):
        train(settings(text, "deep/run", **changes))
    assert list(text.parent.iterdir()) == [text]


# Token shards


def make_shards(text: Path) -> tuple[Path, Path]:
    tokenizer, shards = text.parent / "tokenizer", text.parent / "shards"
    main(["tokenizer", "train", str(tokenizer), "--data", str(text), "--kind", "char"])
    main(["tokenizer", "encode", str(tokenizer), "--data", str(text), "--out", str(shards)])
    return tokenizer, shards


def test_training_on_shards_is_training_on_their_text(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, shards = make_shards(text)
    from_text = train(settings(text, "text", tokenizer=str(tokenizer)))
    from_shards = train(settings(text, "tokens", tokenizer=str(tokenizer), data=str(shards)))
    assert_same_run(from_text, from_shards)
    signal_at(monkeypatch, 4)
    stopped = train(settings(text, "stopped", tokenizer=str(tokenizer), data=str(shards)))
    assert_same_run(from_shards, train(stopped.config, stopped.folder))


def test_shards_need_the_tokenizer_that_made_them(text: Path) -> None:
    tokenizer, shards = make_shards(text)
    with pytest.raises(InputError, match=r"^train: .*shards holds tokens; say whose with --tokenizer FOLDER$"):
        train(settings(text, "run", data=str(shards)))
    CharacterTokenizer.train(text.read_text() + "ü").save(text.parent / "other")
    with pytest.raises(InputError, match=r"expected tokenizer .* encode the text again with this tokenizer"):
        train(settings(text, "run", data=str(shards), tokenizer=str(text.parent / "other")))
    next(shards.glob("validation_*.bin")).unlink()
    with pytest.raises(InputError, match=r"^train: .*shards has train_\*\.bin, but no validation_\*\.bin; make both"):
        train(settings(text, "run", data=str(shards), tokenizer=str(tokenizer)))
    assert not (text.parent / "run").exists()


# Data and samples


def test_a_bpe_learns_from_the_training_text_alone(text: Path) -> None:
    text.write_text("aaaa " * 900 + "zq" * 250)
    corpus = load_corpus(settings(text, "run", tokenizer="bpe", model=dataclasses.replace(TINY, vocab_size=300)))
    assert isinstance(corpus.tokenizer, BPETokenizer)
    assert corpus.tokenizer.merges[0] == (b"a", b"a")
    assert not any(b"z" in left + right for left, right in corpus.tokenizer.merges)
    assert corpus.tokenizer.decode(np.asarray(corpus.train)) == "aaaa " * 900
    assert corpus.tokenizer.decode(np.asarray(corpus.validation)) == "zq" * 250


def test_characters_are_those_of_the_whole_text(text: Path) -> None:
    text.write_text("abc " * 200 + "xyz")
    corpus = load_corpus(settings(text, "run"))
    assert isinstance(corpus.tokenizer, CharacterTokenizer)
    assert corpus.tokenizer.decode(range(corpus.tokenizer.vocab_size)) == " abcxyz"


def test_batches_for_training_and_validation(text: Path) -> None:
    config = settings(text, "run")
    tokens = np.arange(100) % 7
    corpus = Corpus(CharacterTokenizer.train("abc"), tokens[:80], tokens[80:])
    training, validation = make_batches(corpus, config)
    assert (training.shuffle, len(training.tokens), training.seed) == (True, 80, 1337)
    assert (validation.shuffle, len(validation.tokens)) == (False, 20)
    assert training.batch(0)[0].shape == (4, 8)


def test_a_sample_continues_the_validation_text(text: Path) -> None:
    config = settings(text, "run")
    corpus = load_corpus(config)
    model, _ = prepare.build(config, corpus.tokenizer)
    prompt, continuation = causal.sample(model, corpus, config, 3)
    assert prompt == corpus.tokenizer.decode(np.asarray(corpus.validation[:16]))
    assert len(continuation) == 8
    assert causal.sample(model, corpus, config, 3) == (prompt, continuation)
    assert causal.sample(model, corpus, config, 4)[1] != continuation


# It learns


def test_the_nano_preset_learns_from_the_builtin_text(tmp_path: Path) -> None:
    run = train(dataclasses.replace(preset("nano"), out=tmp_path / "run"))
    records = run.metrics()
    uniform = math.log(run.tokenizer.vocab_size)
    assert abs(records[0]["loss"] - uniform) < 0.1
    validations = [record["val_loss"] for record in records if record["val_loss"] is not None]
    assert validations == sorted(validations, reverse=True)
    assert validations[-1] < uniform - 1.0
    model, _ = prepare.build(run.config, run.tokenizer)
    model.load_state_dict(load_checkpoint(run.checkpoint("best")).model)
    written = run.tokenizer.decode(list(generate(model, run.tokenizer.encode("The "), 200)))
    assert 0.05 < written.count(" ") / 200 < 0.5  # it has learnt at least how often a space comes
