"""Supervised fine-tuning: what is learned and held out, equal losses however rows are cut, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minillm
from minillm.autograd import Tensor
from minillm.chat import TEMPLATES, Conversation
from minillm.checkpoint import load_checkpoint
from minillm.cli import main
from minillm.data.instructions import Example, encode_prompt, targets_of
from minillm.data.packing import rows_of
from minillm.errors import InputError
from minillm.generate import generate
from minillm.models.gpt2 import GPT2, GPT2Config
from minillm.parallel.objective import loss_of_rows
from minillm.resolver import open_model
from minillm.tokenizers import BPETokenizer
from minillm.training import Run, TrainConfig, train
from minillm.training.tasks.sft import SFTOptions, SFTTask
from minillm.training.whole_model import accumulate_gradients

COLOURS = ("red", "green", "blue", "white", "black", "brown")
THINGS = ("apple", "leaf", "sky", "snow", "coal", "bark", "rose", "grass", "sea", "milk", "night", "tree")
NANO = GPT2Config(vocab_size=320, context=64, layers=2, heads=2, channels=32)


def records(count: int = 12) -> list[dict[str, Any]]:
    """Questions with short answers, in all kinds of records; question and answer in no template make rows short."""
    made: list[dict[str, Any]] = []
    for number in range(count):
        thing, colour = THINGS[number % 12], COLOURS[number * 5 % 6]
        asked = f"Colour of {thing} {number // 12}?"
        if number % 4 == 0:
            made.append({"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": colour}]})
        else:
            made.append({"prompt": asked, "completion": f" {colour}"})
    return made


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "records.jsonl"
    path.write_text("\n".join(map(json.dumps, records(40))))
    return path


def settings(data: Path, out: str = "run", task: SFTOptions | None = None, **changes: Any) -> TrainConfig:
    config = TrainConfig(
        data=str(data),
        out=data.parent / out,
        objective="sft",
        task=task,
        model=NANO,
        steps=6,
        batch_size=4,
        warmup=1,
        eval_every=3,
        sample_every=0,
        sample_tokens=4,
        validation_fraction=0.2,
        threads=1,
    )
    return dataclasses.replace(config, **changes)


def arrays(run: Run) -> dict[str, np.ndarray]:
    checkpoint = load_checkpoint(run.checkpoint("last"))
    return {**checkpoint.model, **{f"optimizer.{name}": array for name, array in checkpoint.optimizer.items()}}


def assert_same_bits(one: Run, other: Run) -> None:
    first, second = arrays(one), arrays(other)
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)


# What is learned


def test_rows_have_every_example_once_and_held_out_ones_never(data):
    task = SFTTask(settings(data))
    learned, out = ({number for row in rows for number in row} for rows in task.rows)
    assert learned | out == set(range(40))
    assert not learned & out
    assert 6 <= len(out) <= 10
    epoch = -(-len(task.rows[0]) // 4)
    seen = [tuple(row) for step in range(epoch * 4) for row in task.batch(step)["ids"].tolist()]
    held = {tuple(row) for batch in task.evaluation_batches(100) for row in batch["ids"].tolist()}
    assert not held & set(seen)
    assert (task.batch(3)["ids"] == SFTTask(settings(data)).batch(3)["ids"]).all()
    assert {len(row) for row in task.rows[0]} - {1}  # some rows are shared
    other = SFTTask(settings(data, seed=5))
    assert other.fingerprint() == task.fingerprint()
    assert other.rows == task.rows


def test_a_model_learns_to_answer_and_to_end_its_answers(data, capsys):
    """The end of text pads rows too, and is learned all the same, so that answers end."""
    run = train(settings(data, steps=220, lr=6e-3, eval_every=220, validation_fraction=0.1, sample_every=220))
    task = SFTTask(run.config, run.tokenizer)
    model = open_model(run.folder).model
    end = run.tokenizer.eos_id
    assert task.batch(0)["ids"].max() == end
    learned = [task.records.items[number] for number in np.flatnonzero(~task.is_out)]
    right = 0
    for instruction in learned:
        prompt = encode_prompt(instruction, run.tokenizer, task.template)
        ids = list(generate(model, prompt, 8, temperature=0, stop=[end]))
        assert end in ids
        right += run.tokenizer.decode(ids[: ids.index(end)]) == instruction.messages[-1].content
    assert right >= 0.8 * len(learned)
    shown = capsys.readouterr().out
    assert shown.count("step 0/220  validation") == 1
    asked = task.shown[0].messages[-2].content
    assert shown.count(asked) == 2  # before the first step, and at the end
    assert f"minillm chat {run.folder}" in shown
    first, last = run.metrics()[0], run.metrics()[-1]
    assert (first["step"], first["loss"]) == (0, None)
    assert first["val_loss"] > last["loss"]


def test_training_asks_with_the_ids_that_chat_gives(data, monkeypatch):
    run = train(settings(data, steps=2, eval_every=2))
    task = SFTTask(run.config, run.tokenizer)
    opened = open_model(run.folder)
    assert opened.template is task.template
    conversation = Conversation(opened.model, opened.tokenizer, opened.template)
    given: list[list[int]] = []
    monkeypatch.setattr("minillm.chat.generate", lambda model, ids, *rest, **more: given.append(ids) or iter(()))
    for number, instruction in enumerate(task.records.items):
        if not instruction.raw:
            list(conversation.say(instruction.messages[0].content))
            conversation.messages.clear()
            example = task.examples[number].ids
            assert example[: len(given[-1])].tolist() == given[-1]
    assert len(given) == 10


# Every target counts alike


def lone_example(rng: np.random.Generator, prompt: int, answer: int) -> Example:
    return targets_of(rng.integers(0, 320, prompt + answer), np.arange(prompt + answer) >= prompt)


def test_the_loss_is_that_of_all_answer_tokens_not_a_mean_of_means(rng, data):
    """Answers of 11 and of 101 tokens, and a row in which nothing is learned: in one part, or in three."""
    minillm.manual_seed(0)
    model = GPT2(dataclasses.replace(NANO, context=128)).to("float64")
    task = SFTTask(settings(data))
    empty = Example(np.arange(9), np.full(9, -100))
    rows = [[lone_example(rng, 4, 11)], [empty], [lone_example(rng, 9, 101)]]
    batch = rows_of(rows)
    found = []
    for parts in (1, 3):
        model.zero_grad()
        loss = accumulate_gradients(model, batch, parts, task)
        found.append((float(loss), {name: p.grad.copy() for name, p in model.named_parameters()}))
    assert task.counts(batch) == {"loss": 112.0}
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-12)
    for name, gradient in found[0][1].items():
        np.testing.assert_allclose(gradient, found[1][1][name], rtol=0, atol=1e-12, err_msg=name)
    separate = [model.loss(*(array[None] for array in row[0]), "sum").item() for row in (rows[0], rows[2])]
    np.testing.assert_allclose(found[0][0], sum(separate) / 112, rtol=1e-12)
    assert abs(found[0][0] - (separate[0] / 11 + separate[1] / 101) / 2) > 1e-4  # the mean of means is another number


def test_packed_rows_have_the_loss_of_padded_ones(data):
    minillm.manual_seed(0)
    model = GPT2(NANO).to("float64")
    packed, padded = (SFTTask(settings(data, task=SFTOptions(packing=packing))) for packing in (True, False))
    losses = []
    for task in (packed, padded):
        batches = list(task.evaluation_batches(100))
        counts = {"loss": sum(task.counts(batch)["loss"] for batch in batches)}
        losses.append(sum(loss_of_rows(task, model, batch, counts).item() for batch in batches))
    assert len(packed.rows[1]) < len(padded.rows[1]) == packed.is_out.sum()
    np.testing.assert_allclose(*losses, rtol=1e-12)
    assert "starts" not in padded.batch(0)


class NextIsOneMore:
    """A model that says of each id that the next is one more, and is sure of it."""

    def features(self, ids, starts):
        return Tensor(ids[..., None].astype(np.float64))

    def logits(self, features):
        ids = features.data.astype(int)
        logits = np.full((len(ids), 320), -50.0)
        np.put_along_axis(logits, ids + 1, 50.0, axis=-1)
        return Tensor(logits)


def test_targets_are_shifted_once(data):
    """Ids that count upwards cost a model nothing that counts too; twice shifted, or not at all, they cost 100 each."""
    task = SFTTask(settings(data))
    batch = rows_of(
        [[targets_of(np.arange(5, 20), np.arange(15) >= 6), targets_of(np.arange(90, 99), np.arange(9) >= 2)]]
    )
    assert task.sums(NextIsOneMore(), batch)["loss"].item() < 1e-6
    for wrong in (np.roll(batch["targets"], 1), np.roll(batch["targets"], -1)):
        assert task.sums(NextIsOneMore(), {**batch, "targets": wrong})["loss"].item() > 100


# Runs


@pytest.mark.parametrize("packing", [True, False])
def test_a_resumed_run_is_bitwise_the_same(data, packing):
    options = SFTOptions(packing=packing)
    model = dataclasses.replace(NANO, dropout=0.1)
    whole = train(settings(data, "whole", options, model=model))
    half = train(settings(data, "half", options, model=model, steps=3, schedule="wsd", decay_steps=0))
    again = train(settings(data, "again", options, model=model, schedule="wsd", decay_steps=0))
    resumed = train(dataclasses.replace(half.config, steps=6), half.folder)
    assert_same_bits(again, resumed)
    assert [record["step"] for record in resumed.metrics()] == [0, 1, 2, 3, 4, 5, 6]
    assert not all((arrays(whole)[name] == array).all() for name, array in arrays(again).items())


KILLED = """
import os, signal, sys
from minillm.training import run
add = run.Run.add_metrics
def killed(self, record):
    add(self, record)
    if record["step"] == 5:
        os.kill(os.getpid(), signal.SIGKILL)
run.Run.add_metrics = killed
from minillm.cli import main
main(sys.argv[1:])
"""


def test_a_tuning_that_was_killed_goes_on_bitwise(data, tmp_path):
    base = train(settings(data, "base", steps=2, eval_every=2))
    words = ["finetune", "sft", str(base.folder), "--data", str(data), *"--steps 7 --eval-every 3 --threads 1".split()]
    main([*words, "--out", str(tmp_path / "whole"), "--sample-every", "0"])
    command = [sys.executable, "-c", KILLED, *words, "--out", str(tmp_path / "killed"), "--sample-every", "0"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == -signal.SIGKILL, result.stderr
    main(["train", "--resume", str(tmp_path / "killed")])
    assert_same_bits(Run.open(tmp_path / "whole"), Run.open(tmp_path / "killed"))


def test_the_command_starts_from_the_weights_of_a_model(data, tmp_path, capsys):
    base = train(settings(data, "base", steps=5, eval_every=5, lr=3e-3))
    model = open_model(base.folder).model
    model.save_pretrained(tmp_path / "hugging-face")
    base.tokenizer.save(tmp_path / "hugging-face")
    words = ["--data", str(data), "--steps", "2", "--lr", "0", "--threads", "1", "--sample-every", "0"]
    for number, path in enumerate((base.folder, tmp_path / "hugging-face")):
        main(
            ["finetune", "sft", str(path), *words, "--validation-fraction", "0.2", "--out", str(tmp_path / f"{number}")]
        )
        run = Run.open(tmp_path / f"{number}")
        assert run.metrics()[0]["val_loss"] == pytest.approx(base.metrics()[-1]["val_loss"], rel=1e-6)
        assert (run.config.objective, run.config.init, run.config.architecture) == ("sft", str(path), "gpt2")
        for name, array in open_model(run.folder).model.state_dict().items():
            np.testing.assert_array_equal(array, model.state_dict()[name])
    assert "to talk to it:" in capsys.readouterr().out


def test_early_stopping(data, capsys):
    run = train(settings(data, steps=40, eval_every=2, patience=2, lr=0.0, min_lr=0.0))
    assert run.metrics()[-1]["step"] == 6
    assert "-" * 40 not in capsys.readouterr().out  # no preview where none is asked for


# Input that cannot be used


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_faulty_records_are_counted_and_the_rest_is_learned(data, capsys):
    faulty = [{"instruction": "a"}, {"prompt": "b", "completion": ""}, {"messages": [{"role": "x", "content": "y"}]}]
    long = {"prompt": "long " * 300, "completion": "x"}
    cut = {"prompt": "Say it.", "completion": "word " * 300}
    data.write_text("\n".join(map(json.dumps, [*records(40), *faulty, long, cut])))
    task = SFTTask(settings(data))
    assert (
        "42 records; 3 left out (line 41: there is no field 'output' among instruction; line 42: the" in task.summary()
    )
    assert "11 cut to 64 tokens, of which 1 had no answer left and were dropped" in task.summary()
    assert len(task.examples) == 41
    train(settings(data, steps=2, eval_every=2))
    assert "3 left out (line 41" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"instruction": "a"}], "its one record cannot be used; line 1: there is no field 'output'"),
        ([{"prompt": "a", "completion": ""}], "line 1: the field 'completion' is empty, so there is nothing to learn"),
        ([{"prompt": "a", "completion": "b"}] * 3, "held_out: all 3 records ask one thing"),
        (
            [{"prompt": f"{i} " * 90, "completion": "b"} for i in range(5)],
            "leaves no example to be trained on: 5 records; 5 cut to 64 tokens, of which 5 had no answer left",
        ),
    ],
)
def test_data_without_a_usable_record(data, lines, message):
    data.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        train(settings(data))
    assert not (data.parent / "run").exists()


def with_gemma(data: Path) -> TrainConfig:
    tokenizer = BPETokenizer.train(
        "Colour of the apple? red", 266, ("<|endoftext|>", *TEMPLATES["gemma"].special_tokens)
    )
    tokenizer.save(data.parent / "tokenizer")
    return settings(data, task=SFTOptions(template="gemma"), tokenizer=str(data.parent / "tokenizer"))


def test_settings_that_do_not_fit(data):
    with pytest.raises(InputError, match="max_length=65 is more than the model's context of 64"):
        SFTTask(settings(data, task=SFTOptions(max_length=65)))
    with pytest.raises(InputError, match="max_length is 1; give 2 or more"):
        SFTOptions(max_length=1)
    with pytest.raises(InputError, match=r"there is no template 'chatm'; did you mean 'chatml'\?"):
        SFTTask(settings(data, task=SFTOptions(template="chatm")))
    tokenizer = BPETokenizer.train("Colour of the apple? red", 262)
    with pytest.raises(InputError, match=r"the template 'chatml' needs the special token '<\|im_start\|>'"):
        SFTTask(settings(data, task=SFTOptions(template="chatml")), tokenizer)
    system = [{"messages": [{"role": r, "content": "a"} for r in ("system", "user", "assistant")]}]
    data.write_text("\n".join(map(json.dumps, [*system, *records(20)])))
    assert "line 1: ChatTemplate: message 0 has the role 'system', which" in SFTTask(with_gemma(data)).summary()


def test_the_command_says_what_is_missing(data, tmp_path, capsys):
    assert said(["finetune"], capsys).startswith(
        "minillm: finetune is not told what to do; choose one of: finetune sft"
    )
    assert "finetune sft: MODEL is missing; write minillm finetune sft runs/mine" in said(["finetune", "sft"], capsys)
    base = train(settings(data, "base", steps=2, eval_every=2))
    assert "--data is missing" in said(["finetune", "sft", str(base.folder)], capsys)
    rest = ["--data", str(data), "--out", str(tmp_path / "out")]
    assert "gpt2-nano is a preset, whose weights are random" in said(["finetune", "sft", "gpt2-nano", *rest], capsys)
    assert "is no preset, and no folder" in said(["finetune", "sft", str(tmp_path / "absent"), *rest], capsys)
    lines = ["--data", str(tmp_path / "absent.jsonl")]
    assert "cannot read" in said(["finetune", "sft", str(base.folder), *lines], capsys)
    assert not (tmp_path / "out").exists()
