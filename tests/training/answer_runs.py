"""Small runs that learn from answers, for the tests of preferences, rewards and GRPO: their data and their settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from minillm.tokenizers import BPETokenizer
from minillm.training import TrainConfig
from minillm.training.tasks import task_class

WORDS = ["the", "model", "reads", "text", "and", "then", "it", "writes"]


def pairs_of(prompts: list[str], seed: int = 0) -> list[dict[str, str]]:
    """A pair for each prompt, whose chosen answer is in capitals; an empty prompt becomes some words."""
    rng = np.random.default_rng(seed)

    def words() -> str:
        return " ".join(rng.choice(WORDS, rng.integers(1, 4)))

    found = []
    for prompt in prompts:
        asked, answer = prompt or f"{words()}:", words()
        found.append({"prompt": asked, "chosen": answer.upper(), "rejected": answer})
    return found


def write_records(folder: Path, records: list[dict[str, str]]) -> Path:
    """The file of the records, beside a tokenizer of their words that knows an end."""
    (folder / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    BPETokenizer.train(" ".join(WORDS) * 9, 270, ("<|endoftext|>",)).save(folder / "tokenizer")
    return folder / "pairs.jsonl"


def settings_of(objective: str, data: Path, out: str, defaults: dict[str, Any], changes: dict[str, Any]) -> TrainConfig:
    """The settings of a run beside its data; those that are options of the task go there."""
    options = task_class(objective).Options
    given = {"steps": 8, "warmup": 1, "eval_every": 4, "sample_every": 0, **defaults, **changes}
    inner = {name: given.pop(name) for name in list(given) if name in options.__dataclass_fields__}
    return TrainConfig(
        data=str(data),
        out=data.parent / out,
        tokenizer=str(data.parent / "tokenizer"),
        objective=objective,
        **{"task": options(**inner), **given},
    )
