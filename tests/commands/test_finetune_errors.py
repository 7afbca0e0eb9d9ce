"""Errors speak of the command that a person typed and of options that it has, and tell of what would do nothing."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import numpy as np
import pytest

import minillm
from minillm import cli
from minillm.cli import main
from minillm.commands.plan import Plan
from minillm.errors import InputError
from minillm.options import in_units, options_of, read
from minillm.training.config import TrainConfig
from minillm.training.tasks import TASKS, task_class

WORDS = ["the", "model", "reads", "text", "and", "then", "it", "writes"]
SIZE = "--context 32 --layers 1 --heads 2 --channels 16 --vocab-size 270".split()
SHORT = "--steps 2 --batch-size 4 --warmup 0 --eval-batches 1 --sample-every 0".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run of each of some families, and data."""
    here = tmp_path_factory.mktemp("errors")
    rng = np.random.default_rng(0)
    (here / "text.txt").write_text(" ".join(rng.choice(WORDS, 600)))
    pairs = [{"prompt": f"{i}:", "chosen": "yes", "rejected": "no"} for i in range(20)]
    (here / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    reviews = [{"text": f"{WORDS[i % 8]} film", "label": ("bad", "good")[i % 2]} for i in range(40)]
    (here / "reviews.jsonl").write_text("".join(json.dumps(review) + "\n" for review in reviews))
    main(["train", "--data", str(here / "text.txt"), *SIZE, *SHORT, "--out", str(here / "gpt")])
    (here / "other.txt").write_text("the model reads Ω")
    chars = [*SIZE[:-2], "--tokenizer", "char"]
    main(["train", "--data", str(here / "text.txt"), *chars, *SHORT, "--out", str(here / "characters")])
    bert = ["--model", "bert", *SIZE, "--hidden", "24"]
    main(["train", "--data", str(here / "text.txt"), *bert, *SHORT, "--no-next-sentence", "--out", str(here / "bert")])
    return here


@pytest.fixture
def error(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The one sentence with which a command ends."""
    monkeypatch.chdir(folder)

    def of(words: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as raised:
            main(words.split())
        assert raised.value.code == 2
        text = capsys.readouterr().err
        assert text.count("\n") == 1, text
        return text

    return of


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("finetune dpo gpt --data none.jsonl", "none.jsonl"),
        ("finetune sft gpt --data pairs.jsonl --lr -1", "lr is -1.0; give 0 or more"),
        ("finetune dpo gpt --data pairs.jsonl --micro-batches 99", "micro_batches=99 parts"),
        ("finetune dpo gpt --data pairs.jsonl --lora 0", "--lora is 0; give a whole number of 1 or more"),
        ("finetune dpo gpt --data pairs.jsonl --lora 4 --lora-alpha nan", "--lora-alpha is nan; give a number above 0"),
        ("finetune dpo bert --data pairs.jsonl", "does not train a model of the family bert; it trains gpt2, llama"),
        ("finetune grpo gpt --data builtin --batch-size 9", "batch_size=9 answers"),
        ("finetune reward gpt --data pairs.jsonl --out gpt", "continue that run with `minillm train --resume gpt`"),
        ("finetune classify gpt --data reviews.jsonl", "does not train a model of the family gpt2; it trains bert"),
        ("finetune classify bert --data reviews.jsonl --vocab-size 400", "--vocab-size does nothing here, as bert has"),
        ("finetune dpo gpt --data pairs.jsonl --zero 9", "zero is 9; choose 0 (off), 1 (shard moments), 2 (also"),
        ("finetune dpo gpt --data pairs.jsonl --zero 1", "--zero 1 divides what several ranks keep"),
        ("finetune dpo gpt --data pairs.jsonl --timeout 0", "timeout is 0.0; give a number of seconds above 0"),
        ("finetune dpo gpt --data pairs.jsonl --gamma 3", "--gamma does nothing here"),
        ("finetune dpo gpt --data pairs.jsonl --warmup 9 --steps 9", "warmup=9 leaves none of steps=9"),
        (
            "finetune translate bart-nano --data text.txt --targets text.txt --source-field en",
            "source_field='en' names a field of a .jsonl, and --targets text.txt is a file beside text.txt",
        ),
        ("finetune dpo gpt2 --data pairs.jsonl", "gpt2 is a preset, whose weights are random"),
        ("sample characters --prompt Ω", "leave it out of the text, or train the tokenizer on text that has it"),
        ("sample gpt2", "gpt2 is a preset, which has a configuration and random weights"),
        ("eval characters --data other.txt", "character 'Ω' (U+03A9) is not among the"),
        ("eval nothing --data text.txt", "nothing is no preset, and no folder or file of this name is there"),
    ],
)
def test_an_error_begins_with_the_command_and_names_its_options(error, words: str, text: str) -> None:
    told = error(words)
    command = " ".join(words.split()[: 2 if words.startswith("finetune") else 1])
    assert told.startswith(f"{command}: "), told
    assert text in told
    without = re.sub("`.*?`", "", told)  # another command, named with its options
    names = {option.name for option in options_of(cli.options_of(command), before_of(command))}
    assert set(re.findall(r"--[a-z][a-z-]*[a-z]", without)) <= names


def before_of(command: str) -> object:
    """Settings that say which options a finetune command has."""
    from minillm.commands import finetune_translate

    group, _, task = command.partition(" ")
    if group != "finetune":
        return None
    objective = {"dpo": "preference", "translate": "pairs"}.get(task, task)
    family = next(iter(task_class(objective).models))
    settings = TrainConfig().with_model(family, objective)
    kind = cli.options_of(command)
    assert finetune_translate.FinetuneTranslate.no_options
    return kind(objective=objective, architecture=family, model=settings.model)


FILES = {
    "sft": ["sft"],
    "dpo": ["preference", "answer_pairs"],
    "reward": ["reward", "answer_pairs"],
    "grpo": ["grpo"],
    "classify": ["classify", "heads"],
    "qa": ["qa", "heads"],
    "translate": ["pairs"],
}
COMMON = ["config", "run", "saving", "trainer", "tasks/task", "tasks/families"]


@pytest.mark.parametrize("task", FILES)
def test_every_option_in_an_error_of_a_task_is_one_of_its_command(task: str) -> None:
    options = list(options_of(cli.options_of(f"finetune {task}"), before_of(f"finetune {task}")))
    names = {option.name for option in options}
    names |= {f"--no-{option.name[2:]}" for option in options if option.kind is bool}
    root = Path(minillm.__file__).parent / "training"
    found = 0
    for file in [*COMMON, *(f"tasks/{name}" for name in FILES[task])]:
        for node in ast.walk(ast.parse((root / f"{file}.py").read_text())):
            if isinstance(node, ast.Raise) and node.exc is not None:
                parts = [one.value for one in ast.walk(node.exc) if isinstance(one, ast.Constant)]
                text = re.sub("`.*?`", "", "".join(part for part in parts if isinstance(part, str)))
                named = set(re.findall(r"--[a-z][a-z-]*[a-z]", text))
                found += len(named)
                assert named <= names, (file, text)
    assert found > 10
    assert set(TASKS) >= {"sft", "preference", "pairs"}


def test_a_resumed_run_whose_steps_end_in_its_warmup(error, folder: Path) -> None:
    options = "--steps 6 --warmup 3 --batch-size 4 --eval-batches 1 --sample-every 0".split()
    main(["train", "--data", str(folder / "text.txt"), *SIZE, *options, "--out", str(folder / "warm")])
    told = error("train --resume warm --steps 3")
    assert told == (
        "train: --steps is 3, but the schedule of warm has 3 steps of warmup, which do not change when a run is "
        "resumed; give --steps 4 or more, or start a new run\n"
    )
    assert "has done 6 already; give --steps above that" in error("train --resume warm --steps 4")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("--tokenizer char --vocab-size 300", "--vocab-size does nothing here, as the tokenizer of characters sets"),
        ("--tokenizer gpt/tokenizer --vocab-size 300", "--vocab-size does nothing here, as the tokenizer in gpt/tok"),
        ("--preset bert-nano --init gpt", "--preset bert-nano is for a bert, but --init gpt is a gpt2; leave --preset"),
        ("--zero -1", "zero is -1; choose 0 (off)"),
    ],
)
def test_what_a_training_would_ignore_is_refused(error, words: str, text: str) -> None:
    assert f"train: {text}" in error(f"train --data text.txt {words}")


def test_a_rate_of_zero_is_said(folder: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(folder)
    main(["train", "--data", "text.txt", *SIZE, *SHORT, "--lr", "0", "--out", "still"])
    assert "lr is 0, so the weights stay as they are\n" in capsys.readouterr().out


def test_a_head_that_has_no_place_is_named(folder: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(folder)
    main(["finetune", "reward", "gpt", "--data", "pairs.jsonl", *SHORT, "--out", "reward"])
    assert "left out" not in capsys.readouterr().out.replace("0 left out", "")
    main(["train", "--init", "reward", "--data", "text.txt", *SHORT, "--out", "again"])
    said = "reward is a GPT2ForSequenceClassification, whose score has no place in a GPT2 and is left out\n"
    assert said in capsys.readouterr().out
    main(["finetune", "classify", "bert", "--data", "reviews.jsonl", *SHORT, "--out", "classes"])
    capsys.readouterr()
    main(["train", "--init", "classes", "--data", "text.txt", *SHORT, "--no-next-sentence", "--out", "masked"])
    assert "whose pooler, classifier has no place in a" in capsys.readouterr().out


# Units


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("80GB", 80e9),
        ("80 GiB", 80 * 2**30),
        ("80g", 80e9),
        ("3.35TB/s", 3.35e12),
        ("989TFLOPS", 989e12),
        ("8e10", 8e10),
        ("512", 512),
        ("1.5kb", 1500),
    ],
)
def test_numbers_with_units(text: str, number: float) -> None:
    assert float(in_units(text)) == number


def test_options_with_units() -> None:
    given = read(Plan, "plan", ["--memory", "80GiB", "--flops", "312T", "--link-bandwidth", "300GB/s"])
    assert (given.memory, given.flops, given.link_bandwidth) == (80 * 2**30, 312e12, 300e9)
    for words, text in (
        (["--memory", "80 apples"], "--memory has the invalid value '80 apples'; give a number of bytes, such as 80GB"),
        (["--flops", "fast"], "--flops has the invalid value 'fast'; give a number of FLOP/s, such as 989T"),
        (["--price", "2USD"], "--price has the invalid value '2USD'; give a number$"),
    ):
        with pytest.raises(InputError, match=text):
            read(Plan, "plan", words)
