"""Small models in files, and a text, for the ledger."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import minillm
from minillm.data import read_text
from minillm.models import bart, bart_config, bert, gpt2, llama, xlnet

SIZES = dict(vocab_size=128, context=32, layers=2, heads=2, channels=16)
DROPOUT = dict(dropout=0.1, attention_dropout=0.1)
ENCODER = bert.BertConfig(**SIZES, hidden=24, **DROPOUT)
MODELS = {
    "gpt2": lambda: gpt2.GPT2(gpt2.GPT2Config(**SIZES, dropout=0.1)),
    "llama": lambda: llama.Llama(llama.LlamaConfig(**SIZES, kv_heads=2, hidden=24, window=5)),
    "bert": lambda: bert.BertForPreTraining(ENCODER),
    "bart": lambda: bart.Bart(
        bart.BartConfig(128, 32, channels=16, **bart_config.both_sides(2, 2, 24), activation_dropout=0.1)
    ),
    "xlnet": lambda: xlnet.XLNetLMHeadModel(xlnet.XLNetConfig(128, layers=2, heads=2, channels=16, hidden=24)),
    "classifier": lambda: bert.BertForSequenceClassification(replace(ENCODER, labels=3)),
    "answers": lambda: bert.BertForQuestionAnswering(ENCODER),
    "tags": lambda: bert.BertForTokenClassification(replace(ENCODER, labels=5)),
    "reward": lambda: llama.LlamaForSequenceClassification(
        llama.LlamaConfig(**SIZES, kv_heads=1, hidden=24, labels=1, problem_type="regression", padding_id=0)
    ),
    "body": lambda: bert.BertModel(ENCODER),
}


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of text, of some 90 different characters."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(read_text("builtin")[:30_000])
    return path


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of each kind, in Hugging Face's format; biases and norms are no zeros and ones."""
    place = tmp_path_factory.mktemp("models")
    for name, build in MODELS.items():
        minillm.manual_seed(3)
        model = build()
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = minillm.random.default.numpy().normal(0, 0.2, parameter.shape)
                parameter.data += noise.astype(parameter.dtype)
        model.save_pretrained(place / name)
    return place
