"""Small GPT-2s whose scores are known or easily computed, and tokenizers made by `tokenizers`, for the tests beside."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minillm.models.gpt2 import GPT2, GPT2Config

TEXTS = [
    "The cat sat on the mat, and the dog sat on the cat.",
    "Wo wohnt der Bär? In der Höhle über dem Fluß, sagte Zoë naïvely.",
    "東京は日本の首都です。猫が好きです。",
    "Numbers: 1, 2, 3; words in a row  with  double spaces.\nAnd a new line.",
]


def small_gpt2(vocab_size: int, context: int = 24, seed: int = 0) -> GPT2:
    """A GPT-2 with weights so large that its predictions differ from place to place."""
    rng = np.random.default_rng(seed)
    model = GPT2(GPT2Config(vocab_size=vocab_size, context=context, layers=2, heads=2, channels=16))
    for parameter in model.parameters():
        parameter.data[...] = rng.normal(0, 0.4, parameter.shape)
    return model.eval()


def uniform_gpt2(vocab_size: int, context: int = 24) -> GPT2:
    """A GPT-2 that gives every id the probability 1 / V, since its table is zero."""
    model = GPT2(GPT2Config(vocab_size=vocab_size, context=context, layers=1, heads=1, channels=8))
    model.wte.weight.data[...] = 0
    return model.eval()


def hugging_face_tokenizer(kind: str) -> Any:
    """A byte-level BPE as GPT-2's, or a BPE with Metaspace and <s> before a text as Llama 2's, trained on TEXTS."""
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    models, pre, decoders = tokenizers.models, tokenizers.pre_tokenizers, tokenizers.decoders
    if kind == "bytes":
        made = tokenizers.Tokenizer(models.BPE())
        made.pre_tokenizer, made.decoder = pre.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=330,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre.ByteLevel.alphabet(),
            show_progress=False,
        )
    else:
        made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
        made.pre_tokenizer, made.decoder = pre.Metaspace(), decoders.Metaspace()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=260, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
        )
    made.train_from_iterator(TEXTS * 3, trainer)
    if kind != "bytes":
        made.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))]
        )
    return made
