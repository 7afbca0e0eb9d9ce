"""`minillm finetune translate`: an encoder-decoder learns to write a target for each source, such as a translation."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from minillm.commands.finetune_heads import FinetuneHead, finetune_model
from minillm.errors import InputError
from minillm.models.bart import BartConfig
from minillm.options import Positional
from minillm.resolver import open_model
from minillm.training.run import Run
from minillm.training.tasks.pairs import read_pairs, translate

RATES = {"new": 1e-3, "trained": 3e-5}
MOST = 1000  # held-out pairs that are translated for BLEU


@dataclass(frozen=True)
class FinetuneTranslate(FinetuneHead):
    """Teach an encoder-decoder to translate, or to write any other target for each source."""

    no_options: ClassVar[tuple[str, ...]] = (*FinetuneHead.no_options, "batch_size")  # --batch-tokens says it
    start: Positional[str] = field(default="", metadata={"name": "model"})
    """BART to start from: a Hugging Face folder, a .safetensors, a run directory, or a preset such as multi30k."""
    data: str = ""
    """File with a source on each line, beside --targets; or a .jsonl with both."""
    lr: float = RATES["trained"]
    """Peak learning rate; by default 3e-5, or 1e-3 for a preset."""
    steps: int = 3000
    """Number of optimiser steps."""
    eval_every: int = 250
    """Steps between validations, each of which also saves."""
    sample_every: int = 1000
    """Steps between previews of held-out pairs; 0 for none."""
    validation_fraction: float = 0.03
    """Share of the pairs, at their end, that is held out and never trained on."""
    vocab_size: int = 6000
    """Tokens of the vocabulary that is learned from the pairs, if the model is a preset."""
    beta2: float = 0.98
    """Decay rate of AdamW's mean of squared gradients."""
    weight_decay: float = 1e-4
    """Decay of matrices; biases and normalisation weights are not decayed."""


def finetune_translate(arguments: list[str]) -> None:
    """Pairs of texts; training/tasks/pairs.py. At the end, held-out sources are translated and measured by BLEU."""
    run = finetune_model("translate", "pairs", FinetuneTranslate, BartConfig.preset("nano"), arguments, starting)
    if run is not None:
        print(bleu_of(run))


def starting(given: Any, found: Any, is_given: Any) -> dict[str, Any]:
    """The settings that depend on the model that training starts from."""
    is_preset = found.place.kind == "preset"
    config = replace(found.config, vocab_size=given.vocab_size) if is_preset else found.config
    return {"model": config} | ({} if is_given("lr") else {"lr": RATES["new" if is_preset else "trained"]})


def bleu_of(run: Run) -> str:
    """A line with the BLEU of a run's best checkpoint on its held-out pairs, at most `MOST` of them."""
    from minillm.evaluation.bleu import bleu

    opened, pairs = open_model(run.folder), read_pairs(run.config)
    tokenizer, config = run.tokenizer, opened.model.config
    held = pairs[len(pairs) - max(1, round(len(pairs) * run.config.validation_fraction)) :][:MOST]
    sources = [[*tokenizer.encode(source)[: config.context - 1], config.eos_id] for source, _ in held]
    try:
        measure = bleu(translate(opened.model, tokenizer, sources), [target for _, target in held])
    except InputError as error:
        return f"BLEU was not measured: {error}"
    interval = "" if measure.low is None else f" (95% interval {measure.low:.1f} to {measure.high:.1f})"
    return f"BLEU of the best checkpoint on {len(held):,} held-out pairs, greedily: {measure.value:.1f}{interval}"
