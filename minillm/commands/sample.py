"""`minillm sample`: continue a prompt with a trained model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minillm.commands.common import tell_of_a_cut
from minillm.console import print_as_it_comes
from minillm.errors import InputError
from minillm.options import Positional, read
from minillm.resolver import open_model


@dataclass(frozen=True)
class Sample:
    """Continue a prompt with a trained model."""

    model: Positional[Path]
    """A run directory, a folder with config.json and tokenizer.json, a .gguf file or a LoRA adapter."""
    prompt: str = "The "
    """Text to continue, or to translate; a token that the model expects in front of every text is added."""
    max_tokens: int = 200
    """Maximum number of new tokens; stops early at end-of-text."""
    temperature: float = 0.8
    """Divides the logits: 0 takes the likeliest token, 1 the model's own distribution."""
    top_k: int | None = None
    """Choose among the k likeliest tokens only."""
    top_p: float | None = None
    """Choose among the fewest tokens that together have this probability."""
    min_p: float | None = None
    """Choose among the tokens with at least this share of the likeliest one's probability."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that were there before become less likely."""
    seed: int = 0
    """Seed of the random choices; equal seeds give equal texts."""
    device: str = "cpu"
    """Where to compute: `cpu`, `cuda` or `cuda:1`."""


def sample(arguments: list[str]) -> None:
    """Print the prompt and what the model adds to it, as it comes."""
    from minillm.generate import end_tokens, generate_text

    given = read(Sample, "sample", arguments)
    opened = open_model(given.model, device=given.device)
    model, tokenizer = opened.model, opened.needed_tokenizer("sample")
    if opened.run is not None and given.device != "cpu":
        model.to(opened.run.config.dtype)
    try:
        ids = tokenizer.encode(given.prompt)
    except InputError as error:
        raise InputError(f"sample: give another --prompt than {given.prompt!r}: {error}") from None
    if hasattr(model, "conditioned"):  # it reads the prompt, and writes another text
        start = [model.config.decoder_start_id]
        model, begin = model.conditioned(np.array([tokenizer.build_inputs_with_special_tokens(ids)])), ""
    elif hasattr(model, "next_logits"):
        start, begin = tokenizer.before_text() + ids, tokenizer.decode(ids)
        tell_of_a_cut("sample", "the prompt", len(start), model.config.context)
    else:
        raise InputError(
            f"sample: {given.model} is a {type(model).__name__}, which does not continue a text; give a model that "
            "does, or let this one fill gaps with minillm.generate.fill_mask"
        )
    ends = end_tokens(model) or ([] if tokenizer.eos_id is None else [tokenizer.eos_id])
    pieces = generate_text(
        model,
        tokenizer,
        start,
        given.max_tokens,
        seed=given.seed,
        stop=ends,
        temperature=given.temperature,
        top_k=given.top_k,
        top_p=given.top_p,
        min_p=given.min_p,
        repetition_penalty=given.repetition_penalty,
    )
    print_as_it_comes(pieces, begin=begin)
