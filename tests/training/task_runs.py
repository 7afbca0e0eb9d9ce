"""A small run of every pretraining task, for the tests of the loop, of ranks and of the command line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from minillm.models.bart_config import BartConfig, both_sides
from minillm.models.bert import BertConfig
from minillm.models.gpt2 import GPT2Config
from minillm.models.llama_config import LlamaConfig
from minillm.models.roberta import RobertaConfig
from minillm.models.xlnet_config import XLNetConfig
from minillm.training import TrainConfig
from minillm.training.tasks.causal import CausalOptions
from minillm.training.tasks.denoising import DenoisingOptions
from minillm.training.tasks.masked import MaskedOptions
from minillm.training.tasks.pairs import PairsOptions
from minillm.training.tasks.permutation import PermutationOptions

WORDS = ["the", "model", "reads", "text", "and", "then", "it", "writes", "what", "has", "been", "read", "again", "on"]
SMALL = dict(vocab_size=290, channels=16)
ENCODER = dict(context=20, layers=2, heads=2, hidden=24, **SMALL)
RUNS: dict[str, dict[str, Any]] = {
    "gpt2": dict(model=GPT2Config(context=12, layers=2, heads=2, **SMALL, dropout=0.1)),
    "llama": dict(
        architecture="llama",
        model=LlamaConfig(context=12, layers=2, heads=2, kv_heads=1, hidden=24, **SMALL),
        task=CausalOptions(length=10),
    ),
    "bert": dict(
        architecture="bert",
        model=BertConfig(**ENCODER, dropout=0.1),
        objective="masked",
        tokenizer="wordpiece",
        validation_fraction=0.3,
    ),
    "bert-alone": dict(
        architecture="bert",
        model=BertConfig(**ENCODER, dropout=0.1),
        objective="masked",
        tokenizer="wordpiece",
        task=MaskedOptions(length=14, next_sentence=False),
    ),
    "roberta": dict(architecture="roberta", model=RobertaConfig(**ENCODER, dropout=0.1), objective="masked"),
    "xlnet": dict(
        architecture="xlnet",
        model=XLNetConfig(layers=2, heads=2, hidden=24, **SMALL, dropout=0.1),
        objective="permutation",
        tokenizer="unigram",
        task=PermutationOptions(length=16),
    ),
    "bart": dict(
        architecture="bart",
        model=BartConfig(context=20, **both_sides(2, 2, 24), **SMALL, dropout=0.1, init_std=0.2),
        objective="denoising",
        task=DenoisingOptions(length=16),
    ),
    "pairs": dict(
        architecture="bart",
        model=BartConfig(context=20, **both_sides(2, 2, 24), **SMALL, dropout=0.1, init_std=0.2),
        objective="pairs",
        task=PairsOptions(batch_tokens=96, smoothing=0.1),
    ),
}
EVERY = dict(steps=8, batch_size=5, warmup=2, eval_every=3, eval_batches=3, sample_every=0, sample_tokens=6, threads=1)


def write_data(folder: Path) -> None:
    """The text and the pairs that the runs read."""
    draw = np.random.default_rng(0)
    paragraphs = []
    for _ in range(60):
        sentences = [" ".join(draw.choice(WORDS, draw.integers(3, 9))).capitalize() + "." for _ in range(8)]
        paragraphs.append(" ".join(sentences))
    (folder / "text.txt").write_text("\n\n".join(paragraphs))
    lines = []
    for _ in range(80):
        words = draw.choice(WORDS, draw.integers(1, 5)).tolist()
        lines.append(json.dumps({"source": " ".join(words), "target": " ".join(words[::-1])}))
    (folder / "pairs.jsonl").write_text("\n".join(lines))


def run_of(name: str, folder: Path, out: str = "run", **changes: Any) -> TrainConfig:
    """The settings of a run on the data of `write_data`."""
    data = folder / ("pairs.jsonl" if name == "pairs" else "text.txt")
    return TrainConfig(**{**EVERY, **RUNS[name], "data": str(data), "out": folder / out, **changes})


def without_dropout(config: TrainConfig) -> TrainConfig:
    """The same settings, for a model whose loss is a function of the weights alone."""
    names = {field.name for field in dataclasses.fields(config.model)} & {"dropout", "attention_dropout"}
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **dict.fromkeys(names, 0.0)))
