"""Adapters in PEFT's format: a folder with adapter_config.json and adapter_model.safetensors.

PEFT reads what is written here, and what PEFT writes is read here, with equal logits. The arrays have the names of
Hugging Face's modules:

    base_model.model.<name>.lora_A.weight            A (r, in), also for GPT-2, whose own weights are (in, out) there
    base_model.model.<name>.lora_B.weight            B (out, r)
    base_model.model.<name>.lora_embedding_A, _B     A (r, V), B (C, r) of a table
    base_model.model.<parameter>                     what is trained as a whole

Every array of a file must find its place, and every place its arrays: an adapter that would do nothing is refused.
What is written here also carries a checksum of the frozen weights, so that it is refused on a model of equal shapes and
other weights; PEFT's own files have none.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minillm.backend import Array
from minillm.checksums import CHECKSUMS, listing
from minillm.device import like, to_host
from minillm.errors import CheckpointError, InputError
from minillm.lora.config import LoraConfig
from minillm.lora.model import add_lora, frozen_checksum, is_lora, record_of
from minillm.lora.places import Chosen, Names, choose, is_body, names_of, narrowed
from minillm.nn import Decoder, Module
from minillm.stored import Stored, metadata_of, read, read_json, stored_arrays, write_arrays, write_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
BASE = "minillm_base"  # the key of the checksum among the texts of WEIGHTS
# The settings that both have, under our names and PEFT's.
KEYS = {
    "rank": "r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "targets": "target_modules",
    "exclude": "exclude_modules",
    "modules_to_save": "modules_to_save",
    "layers_to_transform": "layers_to_transform",
    "layers_pattern": "layers_pattern",
    "rank_pattern": "rank_pattern",
    "alpha_pattern": "alpha_pattern",
    "rslora": "use_rslora",
}
# PEFT's settings that change what an adapter computes, each with the only value that is understood here.
ONLY: dict[str, Any] = {
    "peft_type": "LORA",
    "bias": "none",
    **dict.fromkeys(("use_dora", "use_qalora", "lora_bias", "ensure_weight_tying"), False),
    **dict.fromkeys(("layer_replication", "target_parameters", "trainable_token_indices", "alora_invocation_tokens")),
    **dict.fromkeys(("use_bdlora", "arrow_config", "kasa_config", "velora_config", "monteclora_config")),
}
INITIAL = (True, False, None, "gaussian", "orthogonal", "eva", "mica")  # first values that leave the model as it was
# Those that say nothing about the result.
WITHOUT_EFFECT = (
    *("auto_mapping", "base_model_name_or_path", "fan_in_fan_out", "inference_mode", "megatron_config"),
    *("megatron_core", "peft_version", "revision", "runtime_config", "task_type", "qalora_group_size"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "init_lora_weights"),
)
TASKS = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}
SHOWN = 4  # names of each kind that an error lists


class Entry(NamedTuple):
    """An array of a file, and the parameter here that holds it."""

    parameter: str
    shape: tuple[int, ...]
    rows: slice = slice(None)  # of the parameter
    transposed: bool = False


def is_adapter(folder: str | Path) -> bool:
    """True for a folder that PEFT or `save_lora` wrote."""
    return (Path(folder) / CONFIG).is_file()


def base_of(folder: str | Path) -> str | None:
    """The model that an adapter was trained on, as its file names it: a path or a name; None where it has none.

    Raises: CheckpointError for a file that is missing or damaged.
    """
    return read_json(Path(folder) / CONFIG).get("base_model_name_or_path") or None


def base_folder(folder: str | Path) -> Path:
    """The files of the model that an adapter was trained on: a path as it stands, or as seen from the folder.

    Raises: CheckpointError for a base that is no path here.
    """
    folder, base = Path(folder), base_of(folder)
    for path in (Path(str(base)), folder / str(base)):
        if base and path.exists():
            return path
    raise CheckpointError(
        f"load: the adapter in {folder} belongs to the base model {base!r}, which is no path here, seen from "
        f"{Path.cwd()} or from that folder; put the path of its folder in base_model_name_or_path of {folder / CONFIG}"
    )


def save_lora(model: Module, folder: str | Path, base: str | Path | None = None) -> None:
    """Write the adapters of a model, merged or not, as PEFT's files. A file appears whole or not at all.

    base: the path or name of the model that the adapters belong to, for those who open the folder.
    Raises: InputError for a model without adapters, CheckpointError if a file cannot be written.
    """
    record, folder = record_of(model, "save_lora"), Path(folder)
    parameters = dict(model.named_parameters())
    for wrapper_path, wrapper in record.wrappers.items():  # of merged adapters, which are not in the model
        parameters |= {f"{wrapper_path}.{name}": parameter for name, parameter in wrapper.named_parameters()}
    arrays: dict[str, Array] = {}
    for key, entry in _entries(record.config, record.chosen, record.names).items():
        array = to_host(parameters[entry.parameter].data)[entry.rows]
        arrays[key] = np.ascontiguousarray(array.T if entry.transposed else array).reshape(entry.shape)
    folder.mkdir(parents=True, exist_ok=True)
    checksum = frozen_checksum(model)
    write_arrays("save_lora", folder / WEIGHTS, arrays, {"format": "pt"} | ({BASE: checksum} if checksum else {}))
    write_json("save_lora", folder / CONFIG, _to_peft(model, record.config, record.chosen, base))
    write_json("save_lora", folder / CHECKSUMS, listing([folder / CONFIG]))


def load_lora(model: Module, folder: str | Path) -> Any:
    """Put the adapters of a folder, which PEFT or `save_lora` wrote, on a model; returns the model.

    They can be trained further. A warning tells of adapters that change nothing, because every B is zero.
    Raises: CheckpointError for files that are missing or damaged, and one that lists the arrays without a place and the
    places without arrays, with the nearest names; InputError for a setting of PEFT that is not supported, by its name.
    """
    folder = Path(folder)
    values = read_json(folder / CONFIG)
    if is_lora(model):
        raise InputError("load_lora: the model has adapters already; merge them first, or load the model again")
    names = names_of(model)
    config = narrowed(_from_peft(folder, values), names)
    chosen = choose(config, model, names)
    entries = _entries(config, chosen, names)
    found = _arrays(folder)
    base = {key: array for key, array in found.items() if key.endswith(".base_layer.weight")}
    _check(folder, model, entries, {key: x.shape for key, x in found.items() if key not in base})
    _check_base(folder, model, names, base)
    add_lora(model, config)
    _check_frozen(folder, model)
    parameters, changes = dict(model.named_parameters()), not chosen.places
    for key, entry in entries.items():
        array = _read(found[key])
        changes = changes or (".lora_A" not in key and ".lora_embedding_A" not in key and bool(array.any()))
        target = parameters[entry.parameter].data[entry.rows]
        array = array.reshape(target.shape[::-1] if entry.transposed else target.shape)
        target[...] = like((array.T if entry.transposed else array).astype(target.dtype), target)
    if not changes:
        warnings.warn(f"load_lora: the adapters in {folder} change nothing: every B is zero", stacklevel=2)
    return model


def _entries(config: LoraConfig, chosen: Chosen, names: Names) -> dict[str, Entry]:
    """The arrays of a file by their names."""
    entries = {}
    for place in chosen.places:
        rank, (out, inside) = config.rank_of(place.name), place.shape[::-1] if place.is_table else place.shape
        here, there = f"{place.path}.lora.{place.name.rpartition('.')[2]}", PREFIX + place.name
        a, b = ("lora_embedding_A", "lora_embedding_B") if place.is_table else ("lora_A.weight", "lora_B.weight")
        entries[f"{there}.{a}"] = Entry(f"{here}.A", (rank, inside))
        entries[f"{there}.{b}"] = Entry(f"{here}.B", (out, rank))
    for name in chosen.saved:
        for one in names.parameters[name]:
            entries[PREFIX + one.name] = Entry(name, one.shape, one.rows, one.transposed)
    return entries


def _to_peft(model: Module, config: LoraConfig, chosen: Chosen, base: str | Path | None) -> dict[str, Any]:
    """The values of adapter_config.json."""
    name = type(model).__name__
    task = next((task for kind, task in TASKS.items() if name.endswith(kind)), None)
    if isinstance(model, Decoder):
        task = "CAUSAL_LM"
    elif name == "Bart":
        task = "SEQ_2_SEQ_LM"
    elif is_body(model):
        task = "FEATURE_EXTRACTION"
    ours = {theirs: getattr(config, name) for name, theirs in KEYS.items()}
    listed = {key: list(value) if isinstance(value, tuple) else value for key, value in ours.items()}
    values = ONLY | dict.fromkeys(WITHOUT_EFFECT) | listed
    values |= {
        "target_modules": chosen.targets if isinstance(chosen.targets, str) else sorted(chosen.targets),
        "modules_to_save": list(chosen.modules_to_save) or None,
        "lora_alpha": config.alpha_of(""),
        "exclude_modules": listed["exclude_modules"] or None,
        "layers_pattern": listed["layers_pattern"] or None,
        "rank_pattern": dict(config.rank_pattern),
        "alpha_pattern": dict(config.alpha_pattern),
        "base_model_name_or_path": None if base is None else str(base),
        "fan_in_fan_out": any(place.transposed for place in chosen.places),
        "inference_mode": True,
        "init_lora_weights": True,
        "loftq_config": {},
        "megatron_core": "megatron.core",
        "task_type": task,
    }
    left_out = ("peft_version", "runtime_config", "qalora_group_size")
    return {key: values[key] for key in sorted(values) if key not in left_out}


def _from_peft(folder: Path, values: Mapping[str, Any]) -> LoraConfig:
    """The settings in the values of an adapter_config.json.

    Raises: InputError that names a setting which changes the result and is not supported, or has a wrong type.
    """
    file = folder / CONFIG
    for key, only in ONLY.items():
        value = values.get(key, only)
        if value != only and value not in (None, [], {}):
            raise InputError(f"load_lora: {file} has {key}={value!r}, which is not supported; {only!r} is")
    if values.get("init_lora_weights") not in INITIAL:
        raise InputError(
            f"load_lora: {file} has init_lora_weights={values['init_lora_weights']!r}, which also changes the model "
            "itself; convert it with PEFT to a usual adapter first"
        )
    known = {*KEYS.values(), *ONLY, *WITHOUT_EFFECT}
    if unknown := sorted(key for key in values if key not in known):
        warnings.warn(f"load_lora: {file} has settings that are ignored: {', '.join(unknown)}", stacklevel=3)
    given: dict[str, Any] = {name: values[key] for name, key in KEYS.items() if values.get(key) is not None}
    if isinstance(given.get("layers_to_transform"), int):
        given["layers_to_transform"] = (given["layers_to_transform"],)
    missing: dict[str, Any] = {"rank": 8, "alpha": 8, "modules_to_save": ()}
    try:
        return LoraConfig(**(missing | given))
    except (TypeError, InputError) as error:
        raise InputError(f"load_lora: {file} cannot be used: {error}") from None


def _arrays(folder: Path) -> dict[str, Stored]:
    """The places of the arrays in a folder's file."""
    if not (folder / WEIGHTS).exists() and (folder / "adapter_model.bin").exists():
        raise CheckpointError(
            f"load_lora: {folder} has adapter_model.bin, a pickle, which may run code; save it as {WEIGHTS} with PEFT"
        )
    return stored_arrays(folder / WEIGHTS)


def _read(stored: Stored) -> Array:
    array = np.empty(stored.shape, np.float64 if stored.dtype == np.float64 else np.float32)
    read(stored, array, False)
    return array


def _check(folder: Path, model: Module, expected: Mapping[str, Entry], found: Mapping[str, tuple[int, ...]]) -> None:
    """Raise CheckpointError for arrays without a place, places without an array, and wrong shapes."""
    problems = []
    for what, these, others, where in (
        ("nothing here for", found, expected, "here"),
        ("no array for", expected, found, "in the file"),
    ):
        alone = [key for key in these if key not in others]
        if alone:
            shown = []
            for key in alone[:SHOWN]:
                near = difflib.get_close_matches(key, others, n=1, cutoff=0.0)
                shown.append(f"{key} (nearest {where}: {near[0]})" if near else key)
            more = f" and {len(alone) - SHOWN} more" if len(alone) > SHOWN else ""
            problems.append(f"{what} {', '.join(shown)}{more}")
    problems += [
        f"{key} has shape {found[key]}, expected {entry.shape}"
        for key, entry in expected.items()
        if found.get(key, entry.shape) != entry.shape
    ]
    if problems:
        raise CheckpointError(
            f"load_lora: the adapters in {folder} do not fit this {type(model).__name__}: {'; '.join(problems)}; load "
            "them on the model that they were trained on"
        )


def _check_base(folder: Path, model: Module, names: Names, found: Mapping[str, Stored]) -> None:
    """PEFT also writes a table that has an adapter. Raise CheckpointError if it is not the one here."""
    parameters = dict(model.named_parameters())
    for key, stored in found.items():
        name = key.removeprefix(PREFIX).removesuffix(".base_layer.weight")
        place = names.places.get(name)
        place = names.places[place.twin] if place is not None and f"{place.path}.weight" not in parameters else place
        if place is None or place.shape != stored.shape or not _is_here(stored, parameters[f"{place.path}.weight"]):
            raise CheckpointError(
                f"load_lora: {folder} holds another {name} than the model's; load the adapters on the model that they "
                "were trained on, with its vocabulary"
            )


def _check_frozen(folder: Path, model: Module) -> None:
    """Raise CheckpointError if the adapters were saved with other frozen weights, in this dtype."""
    said, here = metadata_of(folder / WEIGHTS).get(BASE), frozen_checksum(model)
    if said and said.partition(":")[0] == here.partition(":")[0] and said != here:
        raise CheckpointError(
            f"load_lora: the adapters in {folder} were trained on other weights than those of this "
            f"{type(model).__name__}, though the shapes are equal; give the model that they were trained on (the files "
            f"name {base_of(folder)!r})"
        )


def _is_here(stored: Stored, parameter: Any) -> bool:
    array = _read(stored)
    return bool(np.array_equal(array.astype(parameter.dtype), to_host(parameter.data)))
