"""What the tests of the doctor are made of: small healthy trainings of every kind, and their data."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from minillm.data.arithmetic import make_problems, write_problems
from minillm.lora import LoraConfig
from minillm.models import bert
from minillm.models.gpt2 import GPT2Config
from minillm.study.doctor import Finding, case_of, examine
from minillm.tokenizers import BPETokenizer
from minillm.training import TrainConfig
from minillm.training.tasks.classify import ClassifyOptions
from minillm.training.tasks.grpo import GRPOOptions, GRPOTask
from minillm.training.tasks.preference import PreferenceOptions
from minillm.training.tasks.qa import QAOptions
from minillm.training.tasks.sft import SFTOptions
from tests.training.task_runs import run_of
from tests.training.test_head_tasks import questions

LETTERS = "etaoinshrdlucmfwyp"
TINY = GPT2Config(vocab_size=290, context=64, layers=2, heads=2, channels=32)


def words(rng: np.random.Generator, number: int = 400) -> list[str]:
    """Made-up words."""
    return ["".join(rng.choice([*LETTERS], rng.integers(2, 8))) for _ in range(number)]


def prose(seed: int, sentences: int = 1500) -> list[str]:
    """Sentences of words, the first of which are frequent, in paragraphs."""
    rng = np.random.default_rng(seed)
    known = words(np.random.default_rng(0))
    shares = 1 / np.arange(1, len(known) + 1)
    shares /= shares.sum()
    return [" ".join(rng.choice(known, rng.integers(4, 12), p=shares)).capitalize() + "." for _ in range(sentences)]


def write_data(folder: Path) -> None:
    """Text and records of every kind that the trainings below read."""
    sentences = prose(1)
    paragraphs = [" ".join(sentences[i : i + 6]) for i in range(0, len(sentences), 6)]
    (folder / "text.txt").write_text("\n\n".join(paragraphs))
    lines = [{"source": one, "target": " ".join(one.split()[::-1])} for one in (s[:9] for s in prose(2, 120))]
    write(folder / "pairs.jsonl", lines)
    answers = [s.rstrip(".").lower() for s in prose(3, 240)]
    asked = [{"instruction": f"say {a}", "output": b} for a, b in zip(answers[::2], answers[1::2], strict=True)]
    write(folder / "sft.jsonl", asked)
    rng = np.random.default_rng(4)
    both = [
        {"prompt": f"{a}:", "chosen": b.upper(), "rejected": c} for a, b, c in zip(*[iter(answers)] * 3, strict=True)
    ]
    write(folder / "preferences.jsonl", both)
    marks = [" good ", " bad "]
    texts = [f"{s[:12]}{marks[i % 2]}{s[12:30]}" for i, s in enumerate(prose(5, 160))]
    write(folder / "classes.jsonl", [{"text": t, "label": marks[i % 2].strip()} for i, t in enumerate(texts)])
    (folder / "squad.json").write_text(json.dumps(questions(60)))
    write_problems(folder / "sums.jsonl", make_problems(60, 2))
    BPETokenizer.train("0123456789+=", 257, ("<|endoftext|>",)).save(folder / "digits")
    BPETokenizer.train(" ".join(words(rng)) + " ", 270, ("<|endoftext|>",)).save(folder / "tokenizer")


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


class Digits(GRPOTask):
    """A reward that an untrained model meets now and then: the share of digits in what it writes."""

    def reward(self, instruction: Any, written: str) -> float:
        return sum(letter.isdigit() for letter in written) / 4


EVERY = dict(steps=12, batch_size=6, warmup=1, eval_every=4, eval_batches=2, sample_every=0, threads=1)


def settings(name: str, folder: Path, **changes: Any) -> TrainConfig:
    """The settings of a small healthy training, by its name: those of tests/training/task_runs.py, and these."""
    tokenizer = dict(tokenizer=str(folder / "tokenizer"), model=TINY, out=folder / "run")
    if name == "sft":
        task = SFTOptions(template="alpaca", packing=changes.pop("packing", True))
        config = TrainConfig(data=str(folder / "sft.jsonl"), objective="sft", task=task, **EVERY, **tokenizer)
        config = dataclasses.replace(config, model=dataclasses.replace(TINY, context=256))
    elif name == "dpo":
        options = PreferenceOptions(**{key: changes.pop(key) for key in ("loss", "beta") if key in changes})
        data = str(folder / "preferences.jsonl")
        config = TrainConfig(data=data, objective="preference", task=options, **EVERY, **tokenizer)
        config = dataclasses.replace(config, model=dataclasses.replace(TINY, context=128))
    elif name == "reward":
        config = TrainConfig(data=str(folder / "preferences.jsonl"), objective="reward", **EVERY, **tokenizer)
        config = dataclasses.replace(config, model=dataclasses.replace(TINY, context=128))
    elif name == "grpo":
        own = dict(tokenizer=str(folder / "digits"), batch_size=16, eval_batches=1, data=str(folder / "sums.jsonl"))
        options = GRPOOptions(group_size=4, answer_length=4)
        config = TrainConfig(objective="grpo", task=options, **{**EVERY, **tokenizer, **own})
    elif name == "classify":
        model = dataclasses.replace(bert.PRESETS["nano"], labels=2, label_names=("bad", "good"), context=64)
        own = dict(architecture="bert", model=model, tokenizer="wordpiece", out=folder / "run")
        options = ClassifyOptions(vocab_size=300)
        config = TrainConfig(data=str(folder / "classes.jsonl"), objective="classify", task=options, **EVERY, **own)
    elif name == "qa":
        model = dataclasses.replace(bert.PRESETS["nano"], labels=2, context=64)
        own = dict(architecture="bert", model=model, tokenizer="wordpiece", out=folder / "run")
        options = QAOptions(vocab_size=300, stride=12, max_question=8, length=30)
        config = TrainConfig(data=str(folder / "squad.json"), objective="qa", task=options, **EVERY, **own)
    elif name == "lora":
        config = run_of("gpt2", folder, lora=LoraConfig(rank=2))
    else:
        config = run_of(name, folder)
    return dataclasses.replace(config, **{"threads": 1, **changes})


def prepared(name: str, folder: Path, **changes: Any) -> tuple[Any, Any, bool]:
    """The task and the model of a healthy training."""
    config = settings(name, folder, **changes)
    task, model, trained = case_of(config)
    if name == "grpo":
        task = Digits(config)
    return task, model, trained


def found(task: Any, model: Any, trained: bool = False) -> dict[str, Finding]:
    """What the doctor finds, by name."""
    return {one.name: one for one in examine(task, model, trained)}


def alarms(findings: Any) -> list[str]:
    """The causes of all errors and warnings."""
    return [f"{one.name}: {one.cause}" for one in findings if one.is_alarm]
