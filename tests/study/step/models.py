"""Small models of every family, each with a loss, for the tests of the stepper."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

import minillm
from minillm.models import bart, bert, distilbert, gemma, gpt2, llama, roberta, xlnet
from minillm.optim import AdamW, decay_groups
from minillm.study.describe.abstract_step import loss_of, training_batch
from minillm.study.step.trace import StepTrace, trace_step

BERT = dict(vocab_size=19, context=12, layers=1, heads=2, channels=8, hidden=12, dropout=0.0, attention_dropout=0.0)
FAMILIES: dict[str, tuple[Any, Any]] = {
    "gpt2": (gpt2.GPT2, gpt2.GPT2Config(11, 8, 2, 2, 12, dropout=0.1)),
    "llama": (llama.Llama, llama.LlamaConfig(19, 16, 2, 4, 2, 16, 24, tied=True)),
    "gemma": (gemma.Gemma, gemma.GemmaConfig(19, 16, 2, 4, 2, 16, 24, 4, window=3, full_blocks=(1,))),
    "bert": (bert.BertForPreTraining, bert.BertConfig(**BERT)),
    "distilbert": (distilbert.DistilBertForMaskedLM, distilbert.DistilBertConfig(**BERT, classifier_dropout=0.0)),
    "roberta": (roberta.RobertaForMaskedLM, roberta.RobertaConfig(**BERT)),
    "bart": (bart.Bart, bart.BartConfig(19, 12, 1, 1, 2, 4, 16, 24, 20, dropout=0.0)),
    "xlnet": (xlnet.XLNetLMHeadModel, xlnet.XLNetConfig(19, 2, 2, 8, 12, dropout=0.0)),
}


def small_model(family: str = "gpt2") -> Any:
    """A small model with random weights, none of which is 0."""
    kind, config = FAMILIES[family]
    minillm.manual_seed(0)
    model, draw = kind(config), np.random.default_rng(1)
    for parameter in model.parameters():
        parameter.data += draw.normal(0, 0.1, parameter.shape).astype(np.float32)
    return model


def small_batch(model: Any) -> dict[str, Any]:
    """Random ids for two short sequences, with what else the loss of the family reads."""
    batch, draw = training_batch(model, 2, 6), np.random.default_rng(2)
    for name in batch.keys() & {"ids", "source", "targets", "labels", "target"}:
        batch[name][...] = draw.integers(0, model.config.vocab_size, batch[name].shape)
    return batch


def optimizer_of(model: Any) -> AdamW:
    """AdamW as `minillm train` has it."""
    return AdamW(decay_groups(model.parameters(), 0.1), lr=1e-2, betas=(0.9, 0.99))


def traced(family: str = "gpt2", **options: Any) -> StepTrace:
    """The trace of one step of a small model."""
    model = small_model(family)
    batch = small_batch(model)
    return trace_step(model, lambda one: loss_of(one)(**batch), optimizer_of(model), clip=0.5, batch=batch, **options)


@functools.cache
def cached(family: str) -> StepTrace:
    """That trace, made once for all tests that only read it."""
    return traced(family)
