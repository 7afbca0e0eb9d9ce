"""Save models in Hugging Face's format; with the table of the supported architectures.

`model.save_pretrained(folder)` writes config.json and model.safetensors, in one piece or in shards, which
transformers' `from_pretrained` reads. hub.py reads them. Each model file defines the mapping of its parameters:

- `HUGGING_FACE`: Hugging Face's name for each of ours, or several names whose rows are joined in ours;
- `TRANSPOSED`: our names whose matrix is (in, out) there (GPT-2's Conv1D);
- `PREFIX`: the beginning of the names of the body, which may be missing in a file;
- `IGNORED`: endings of names that hold no weights (masks, rotary tables, a second copy of a tied matrix);
- `TIED`: for each such copy, the name of the original, if the files are those of a tied model;
- `config_from_hugging_face` and `config_to_hugging_face`; `rows_in_hugging_face` if joined arrays have unequal numbers
  of rows; `joined_in_hugging_face` if one array there holds several of those names (Phi-3); `shape_in_hugging_face` if
  the array has another shape there, with its elements in the same order (XLNet's heads).
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from minillm.backend import Array
from minillm.device import to_host
from minillm.errors import InputError
from minillm.stored import CONFIG, INDEX, WEIGHTS, write_arrays, write_json
from minillm.weights import Piece, pieces

HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
BART_HEADS = (HEADS[0], HEADS[2])
XLNET_HEADS = (*HEADS[:2], "ForQuestionAnsweringSimple")
# Classes that are refused although their family is here, each with the reason.
REFUSED = {
    "XLNetForQuestionAnswering": "its head chooses the end of an answer by a beam of starts; "
    "train an XLNetForQuestionAnsweringSimple"
}
# For each model type in a config.json, the file in minillm/models and the class for each architecture.
FAMILIES = {
    "bart": (
        "bart",
        {"BartForConditionalGeneration": "Bart", **{f"Bart{name}": f"Bart{name}" for name in ("Model", *BART_HEADS)}},
    ),
    "bert": ("bert", {f"Bert{name}": f"Bert{name}" for name in ("ForPreTraining", "ForMaskedLM", "Model", *HEADS)}),
    "distilbert": (
        "distilbert",
        {f"DistilBert{name}": f"DistilBert{name}" for name in ("ForMaskedLM", "Model", *HEADS)},
    ),
    "gemma2": ("gemma", {"Gemma2ForCausalLM": "Gemma"}),
    "gemma3_text": ("gemma", {"Gemma3ForCausalLM": "Gemma"}),
    "gpt2": ("gpt2", {"GPT2LMHeadModel": "GPT2", f"GPT2{HEADS[0]}": f"GPT2{HEADS[0]}"}),
    **{
        name.lower(): ("llama", {f"{name}ForCausalLM": "Llama", f"{name}{HEADS[0]}": f"Llama{HEADS[0]}"})
        for name in ("Llama", "Mistral", "Phi3", "Qwen2", "Qwen3")
    },
    "roberta": ("roberta", {f"Roberta{name}": f"Roberta{name}" for name in ("ForMaskedLM", "Model", *HEADS)}),
    "xlm-roberta": ("roberta", {f"XLMRoberta{name}": f"Roberta{name}" for name in ("ForMaskedLM", "Model", *HEADS)}),
    "xlnet": ("xlnet", {f"XLNet{name}": f"XLNet{name}" for name in ("LMHeadModel", "Model", *XLNET_HEADS)}),
}
GENERATION = "generation_config.json"
FORCED_EOS = "forced_eos_token_id"
ID_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")
# For each model type, the default end-of-text token if its config.json has no such key; other types have none.
EOS_IDS = {"bart": 2, "gemma2": 1, "gemma3_text": 1, "gpt2": 50256, "llama": 2, "mistral": 2, "phi3": 32000, "xlnet": 2}
# Keys of config.json that are written from our configuration, under these names or others.
SAID_ANEW = ("architectures", "dtype", "torch_dtype", "rope_theta", "rope_scaling", "rope_local_base_freq")


class SavedWith(NamedTuple):
    """Values that the files of a model hold beside its weights."""

    config: dict[str, Any]  # the values of config.json
    generation: dict[str, Any]  # the values of generation_config.json; empty if there is none

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The ids of the tokens that end a text: one, several or none."""
        by_default = EOS_IDS.get(self.config.get("model_type", ""))
        found = self.generation.get("eos_token_id", self.config.get("eos_token_id", by_default))
        found = [] if found is None else found if isinstance(found, list) else [found]
        return tuple(one for one in found if isinstance(one, int))


def keep(model: Any, saved_with: SavedWith) -> None:
    """Keep the other values of a model's files with the model, for `save_pretrained` to write again."""
    vars(model)["saved_with"] = saved_with
    if hasattr(model, "eos_ids"):
        vars(model)["eos_ids"] = saved_with.eos_ids


def save_pretrained(model: Any, folder: str | Path, max_shard_bytes: int = 5 * 10**9) -> None:
    """Write config.json and model.safetensors; the method `save_pretrained` of every model calls this.

    Other keys of config.json and generation_config.json that a loaded model came with are written too.
    Weights of more than `max_shard_bytes` go to several files with an index. A file appears whole or not at all.
    Raises: InputError for a model without a Hugging Face format, CheckpointError if a file cannot be written.
    """
    module, lora = sys.modules[type(model).__module__], vars(model).get("lora")
    if lora is not None and lora.merged is None:
        raise InputError(
            "save_pretrained: the model has adapters; minillm.lora.merge(model) makes a plain model of it, and "
            "minillm.lora.save_lora writes the adapters alone"
        )
    if not hasattr(module, "HUGGING_FACE"):
        raise InputError(f"save_pretrained: {type(model).__name__} has no form in Hugging Face's format")
    folder, ours = Path(folder), module.config_to_hugging_face(model.config)
    arrays = _arrays_to_write(model, module)
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, Array]] = [{}]
    for name, array in arrays.items():
        if shards[-1] and sum(a.nbytes for a in shards[-1].values()) + array.nbytes > max_shard_bytes:
            shards.append({})
        shards[-1][name] = array
    _write_shards(folder, shards)
    said, generation = vars(model).get("saved_with") or SavedWith({}, {})
    values = ours | {
        key: value
        for key, value in said.items()
        if key not in SAID_ANEW and (ours.get(key) is None or key == FORCED_EOS)  # our FORCED_EOS is only a guess
    }
    if said:  # an id that the files leave to the default stays absent: null would mean no id
        values = {key: value for key, value in values.items() if key not in ID_KEYS or value is not None or key in said}
    classes = FAMILIES[values["model_type"]][1]
    architectures = [theirs for theirs, name in classes.items() if name == type(model).__name__]
    dtype = next(iter(arrays.values())).dtype.name
    write_json("save_pretrained", folder / CONFIG, values | {"architectures": architectures, "dtype": dtype})
    if generation:
        write_json("save_pretrained", folder / GENERATION, generation)
    stale = [INDEX if len(shards) == 1 else WEIGHTS, *([] if generation else [GENERATION])]
    for file in stale:  # files of a model that was saved here before
        (folder / file).unlink(missing_ok=True)


def _arrays_to_write(model: Any, module: ModuleType) -> dict[str, Array]:
    """The weights under Hugging Face's names and in its shapes."""
    arrays: dict[str, Array] = {}
    for piece in pieces_in_hugging_face(model):
        rows = to_host(piece.rows)
        arrays[piece.name] = np.ascontiguousarray(rows.T if piece.transposed else rows).reshape(piece.shape)
    for whole, parts in joined_names(module, model.config).items():
        arrays[whole] = np.concatenate([arrays.pop(part) for part in parts])
    return arrays


def _write_shards(folder: Path, shards: list[dict[str, Array]]) -> None:
    """Write each shard as a file, and an index where there are several."""
    files = (
        [WEIGHTS]
        if len(shards) == 1
        else [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    )
    for file, shard in zip(files, shards, strict=True):
        write_arrays("save_pretrained", folder / file, shard, {"format": "pt"})
    if len(shards) > 1:
        weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        total = sum(array.nbytes for shard in shards for array in shard.values())
        write_json("save_pretrained", folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def pieces_in_hugging_face(model: Any) -> list[Piece]:
    """The pieces of a model's parameters in Hugging Face's files."""
    module = sys.modules[type(model).__module__]
    return pieces(
        model,
        module.HUGGING_FACE,
        getattr(module, "rows_in_hugging_face", None),
        getattr(module, "TRANSPOSED", ()),
        getattr(module, "shape_in_hugging_face", None),
    )


def joined_names(module: ModuleType, config: Any) -> dict[str, tuple[str, ...]]:
    """The arrays in a file that replace several of Hugging Face's names, with the names whose rows they hold."""
    patterns = module.joined_in_hugging_face(config) if hasattr(module, "joined_in_hugging_face") else {}
    return {
        whole.format(i=i): tuple(part.format(i=i) for part in parts)
        for whole, parts in patterns.items()
        for i in range(config.layers)
    }
