"""Write a model that was opened as Hugging Face's files, with its tokenizer, chat template and generation settings."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from minillm.checksums import CHECKSUMS, listing
from minillm.device import to_host
from minillm.errors import CheckpointError, InputError
from minillm.pretrained import GENERATION, pieces_in_hugging_face
from minillm.resolver import ADAPTER, OpenedModel, folder_of
from minillm.stored import CONFIG, INDEX, WEIGHTS, read, read_json, stored_arrays, write_json

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
)


def save(opened: OpenedModel, folder: str | Path, max_shard_bytes: int = 5 * 10**9) -> str:
    """Write a model as Hugging Face's files: weights, configuration, generation settings and tokenizer.

    Files of a published tokenizer are copied as they are; a tokenizer that was made here is written in their form.
    Returns the reason why there is no tokenizer among the files, or an empty text.
    Raises: as `save_pretrained`.
    """
    folder = Path(folder)
    opened.model.save_pretrained(folder, max_shard_bytes=max_shard_bytes)
    files, reason = _published_tokenizer(opened), ""
    for file in files:
        if not (folder / file.name).exists() or not file.samefile(folder / file.name):
            shutil.copyfile(file, folder / file.name)
    kept = {file.name for file in files}
    if not files:
        try:
            opened.needed_tokenizer("save").save_hugging_face(folder, **_tokenizer_settings(opened))
            kept = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
        except InputError as error:
            if isinstance(error.__context__, OSError):  # it can be written, but not on this disk
                raise
            reason = str(error)
    for name in TOKENIZER_FILES:  # files of a model that was saved here before
        if name not in kept:
            (folder / name).unlink(missing_ok=True)
    beside = [folder / name for name in (CONFIG, GENERATION, INDEX, *TOKENIZER_FILES)]
    write_json("save", folder / CHECKSUMS, listing(beside))
    return reason


def check_place(model: Any, folder: Path, adapter: bool = False) -> None:
    """Raise InputError for a folder with the files of another model, or of any where an adapter is to be written.

    A model that was written there before may be written again.
    """
    there = [name for name in (CONFIG, WEIGHTS, INDEX, ADAPTER) if (folder / name).exists()]
    if there and (adapter or ADAPTER in there or not _are_of(model, folder)):
        raise InputError(
            f"convert: {folder} has {', '.join(there)} of another model, which is never written over; choose another "
            "folder, or remove that one first"
        )


def _are_of(model: Any, folder: Path) -> bool:
    """True if the files in a folder are those of a model, as far as the first row of each array tells."""
    try:
        stored = stored_arrays(folder)
    except CheckpointError:
        return False
    found = [piece for piece in pieces_in_hugging_face(model) if piece.name in stored]
    for piece in found:
        if stored[piece.name].shape != piece.shape:
            return False
        ours = to_host((piece.rows.T if piece.transposed else piece.rows).reshape(piece.shape)[:1]).astype(np.float32)
        theirs = np.empty(ours.shape, np.float32)
        read(stored[piece.name].rows(0, 1), theirs, False)
        if not np.allclose(ours, theirs, rtol=1e-2, atol=1e-3):  # another dtype may be asked for now
            return False
    return bool(found)


def _published_tokenizer(opened: OpenedModel) -> list[Path]:
    """The files of a tokenizer in Hugging Face's form beside a model; none if it has another form, or is not there."""
    place = opened.place
    if place.kind not in ("folder", "safetensors", "adapter"):
        return []
    folder = folder_of(place)
    files = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if not files and opened.base is not None:
        return _published_tokenizer(opened.base)
    ours = (folder / "tokenizer.json").is_file() and read_json(folder / "tokenizer.json").get("format") is not None
    return [] if ours else files


def _tokenizer_settings(opened: OpenedModel) -> dict[str, Any]:
    """The keys of a tokenizer_config.json that depend on the model: its longest text, its inputs, its chat template."""
    config = opened.model.config
    typed = getattr(config, "token_types", 0) > 1
    settings = {
        "model_input_names": ["input_ids", *(["token_type_ids"] if typed else []), "attention_mask"],
        "model_max_length": getattr(config, "context", None),
        "chat_template": opened.chat_text or None,
    }
    return {key: value for key, value in settings.items() if value is not None}
