"""`minillm convert`: write a model as Hugging Face's files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from minillm.beside import is_run
from minillm.errors import InputError
from minillm.export import check_place, save
from minillm.lora import base_of, save_lora
from minillm.options import Positional, read
from minillm.resolver import open_model


@dataclass(frozen=True)
class Convert:
    """Write a model as Hugging Face's files: weights, configuration, generation settings and tokenizer."""

    model: Positional[Path]
    """A run directory, whose best checkpoint counts, a folder with config.json, a .safetensors, a .gguf, or a folder
    with a LoRA adapter; adapters are merged into the weights."""
    out: Positional[Path]
    """Folder to write."""
    dtype: Literal["float32", "float64", "float16", "bfloat16"] = "float32"
    """Dtype of the weights in the files."""
    max_shard_bytes: int = field(default=5 * 10**9, metadata={"unit": "bytes"})
    """Size from which on weights go to several files, such as 5GB."""
    adapter: bool = False
    """Write the adapters of a run with --lora alone, as PEFT reads them, in place of a model with these merged in."""


def convert(arguments: list[str]) -> None:
    """Write a model as Hugging Face's files."""
    given = read(Convert, "convert", arguments)
    if given.max_shard_bytes < 1:
        raise InputError(f"convert: max_shard_bytes is {given.max_shard_bytes}; give 1 or more")
    if is_run(given.out):  # its config.json would be written over
        raise InputError(f"convert: {given.out} is a run directory and is never written over; choose another folder")
    opened = open_model(given.model)
    model = opened.model
    if given.adapter and "lora" not in vars(model):
        raise InputError(
            f"convert: {given.model} has no adapters, which --adapter would write; leave --adapter out, or give a run "
            "that was trained with --lora"
        )
    check_place(model, given.out, given.adapter)
    if given.adapter:
        base = opened.run.config.init if opened.run else base_of(opened.place.path)
        save_lora(model, given.out, None if base is None else Path(base).resolve())
        print(f"adapters of {base or 'a model with random weights'}, for PEFT: {given.out}")
        return
    if given.dtype != "float32":
        model.to(given.dtype)
    reason = save(opened, given.out, given.max_shard_bytes)
    print(f"{type(model).__name__} with {model.num_parameters():,} weights in {given.dtype}: {given.out}")
    if reason:
        print(f"these are weights without a tokenizer: {reason}")
