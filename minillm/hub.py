"""Models in and out of Hugging Face's format: config.json and model.safetensors, in one piece or in shards.

`load(folder)` builds the model that config.json describes and fills it; `model.save_pretrained(folder)` writes what
transformers reads. Neither needs torch. Each model file says how its parameters are called there:

- `HUGGING_FACE`: of each of our names the other one, or several whose rows lie below each other in ours;
- `TRANSPOSED`: our names whose matrix is (in, out) there (GPT-2's Conv1D);
- `PREFIX`: what precedes the names of the body, and may be missing in a file;
- `IGNORED`: endings of names that hold no weights (masks, rotary tables, a second copy of a tied matrix);
- `TIED`: of each such copy the name whose numbers it has, if the files are those of a tied model;
- `config_from_hugging_face`, `config_to_hugging_face`, `rows_in_hugging_face` where joined rows are not alike,
  `joined_in_hugging_face` where an array there is several of those names (Phi-3), and `shape_in_hugging_face` where the
  same numbers in the same order have another shape there (XLNet's heads).

What files say beside the model, such as the ids that begin and end a text, stays with it as `model.saved_with`, and is
written again; `model.eos_ids` of a model of the next token are those that end one.

Weights are read from their place in the files into the parameter's memory, a piece at a time (stored.py), so that
loading takes the memory of the weights and little more. Everything is checked before the first of them is read: a model
is loaded whole or not at all.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from minillm.backend import Array, as_dtype
from minillm.device import to_host
from minillm.errors import CheckpointError, InputError, MinillmError
from minillm.nn import Module, uninitialized
from minillm.stored import CONFIG, INDEX, WEIGHTS, Stored, are_same, read, read_json, stored_arrays, write_json

if TYPE_CHECKING:
    from minillm.tokenizers import Tokenizer

HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
# Of each model type in a config.json: the file in minillm/models and the class for an architecture.
FAMILIES = {
    "bart": ("bart", {"BartForConditionalGeneration": "Bart", "BartModel": "BartModel"}),
    "bert": ("bert", {f"Bert{name}": f"Bert{name}" for name in ("ForPreTraining", "ForMaskedLM", "Model", *HEADS)}),
    "distilbert": (
        "distilbert",
        {f"DistilBert{name}": f"DistilBert{name}" for name in ("ForMaskedLM", "Model", *HEADS)},
    ),
    "gemma2": ("gemma", {"Gemma2ForCausalLM": "Gemma"}),
    "gemma3_text": ("gemma", {"Gemma3ForCausalLM": "Gemma"}),
    "gpt2": ("gpt2", {"GPT2LMHeadModel": "GPT2"}),
    "llama": ("llama", {"LlamaForCausalLM": "Llama"}),
    "mistral": ("llama", {"MistralForCausalLM": "Llama"}),
    "phi3": ("llama", {"Phi3ForCausalLM": "Llama"}),
    "qwen2": ("llama", {"Qwen2ForCausalLM": "Llama"}),
    "qwen3": ("llama", {"Qwen3ForCausalLM": "Llama"}),
    "roberta": ("roberta", {f"Roberta{name}": f"Roberta{name}" for name in ("ForMaskedLM", "Model", *HEADS)}),
    "xlm-roberta": ("roberta", {f"XLMRoberta{name}": f"Roberta{name}" for name in ("ForMaskedLM", "Model", *HEADS)}),
    "xlnet": ("xlnet", {"XLNetLMHeadModel": "XLNetLMHeadModel", "XLNetModel": "XLNetModel"}),
}
GENERATION = "generation_config.json"
FORCED_EOS = "forced_eos_token_id"
ID_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Of each model type the token that ends a text where its config.json has no such key; others have none.
EOS_IDS = {"bart": 2, "gemma2": 1, "gemma3_text": 1, "gpt2": 50256, "llama": 2, "mistral": 2, "phi3": 32000, "xlnet": 2}
# Of a config.json, what is said anew when it is written, under this name or another.
SAID_ANEW = ("architectures", "dtype", "torch_dtype", "rope_theta", "rope_scaling", "rope_local_base_freq")


class SavedWith(NamedTuple):
    """What files say beside the model's weights and configuration."""

    config: dict[str, Any]  # the values of config.json
    generation: dict[str, Any]  # those of generation_config.json, empty where there is none

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The tokens that end a text: one, several or none."""
        by_default = EOS_IDS.get(self.config.get("model_type", ""))
        found = self.generation.get("eos_token_id", self.config.get("eos_token_id", by_default))
        found = [] if found is None else found if isinstance(found, list) else [found]
        return tuple(one for one in found if isinstance(one, int))


class Described(NamedTuple):
    """What a config.json describes."""

    module: ModuleType  # the model's file
    kind: Callable[[Any], Any]  # its class there
    config: Any
    values: dict[str, Any]


def load(path: str | Path, dtype: Any = "float32") -> Any:
    """The model in a folder with config.json and model.safetensors (or its shards), of such a file, or of a .gguf file.

    The model is in evaluation mode. Weights are converted to `dtype`.
    Memory: the weights, and a few megabytes.
    Raises: CheckpointError for files that are missing, cut short or no such files, and one that lists every missing,
    unexpected and misshapen weight; InputError for an architecture that is not here, with those that are.
    """
    path = Path(path)
    if path.suffix == ".gguf":
        from minillm.gguf import load_gguf

        return load_gguf(path, dtype)
    folder = path.parent if path.suffix == ".safetensors" else path
    module, kind, config, values = described(folder / CONFIG)
    generation = read_json(folder / GENERATION) if (folder / GENERATION).exists() else {}
    stored = stored_arrays(path)
    config, stored = _untied(path, module, config, stored)
    _check_layers(path, config, stored)
    with uninitialized():
        model = built(path, kind, config)
        if as_dtype(dtype) != np.float32:
            with np.errstate(all="ignore"):  # of what the memory happens to hold
                model.to(dtype)
    expected, joined = dict(_expected(model, module, stored)), _joined(module, config)
    parts = {part: expected.pop(part) for names in joined.values() for part in names}
    for whole, names in joined.items():
        expected[whole] = (sum(parts[name][0] for name in names), *parts[names[0]][1:])
    found = {name: array.shape for name, array in stored.items()}
    check_weights(path, CONFIG, expected, found, getattr(module, "IGNORED", ()))
    for whole, names in joined.items():
        edges = itertools.pairwise(itertools.accumulate((parts[name][0] for name in names), initial=0))
        stored |= {name: stored[whole].rows(*edge) for name, edge in zip(names, edges, strict=True)}
    for target, sources in _pairs(model, module, stored):
        for rows, source in sources:
            read(source, target.parameter[rows], target.transposed)
    keep(model, SavedWith(values, generation))
    return model.eval()


def described(path: str | Path) -> Described:
    """What the config.json in a folder describes, or such a file; no weight is read.

    Raises: CheckpointError for a file that is missing or damaged; InputError for an architecture that is not here, and
    for values that cannot be, with the file's name.
    """
    values, path = read_config(path), Path(path)
    file = path / CONFIG if path.is_dir() else path
    try:
        module, name = family(values)
        if values.get("quantization_config"):
            raise InputError("load: config.json has a quantization_config; get the weights as floats")
        return Described(module, getattr(module, name), module.config_from_hugging_face(values), values)
    except InputError as error:
        raise InputError(str(error).replace("load: config.json", f"load: {file}", 1)) from None


def built(path: str | Path, kind: Callable[[Any], Any], config: Any) -> Any:
    """A model of such a configuration, which came from a file.

    Raises: InputError for sizes that no memory has room for.
    """
    try:
        return kind(config)
    except MinillmError:
        raise
    except (MemoryError, OverflowError, ValueError) as error:
        raise InputError(
            f"load: a model as the configuration of {path} says does not fit into memory ({error}); look at its sizes"
        ) from None


def _check_layers(path: Path, config: Any, stored: Mapping[str, Any]) -> None:
    """Raise CheckpointError for more layers than arrays, before each of them is built."""
    for name, number in vars(config).items():
        if name.endswith("layers") and number > len(stored):
            raise CheckpointError(
                f"load: by its {CONFIG} {path} has {name}={number}, but there are {len(stored)} arrays; get the files "
                "again, or those of one model"
            )


def keep(model: Any, saved_with: SavedWith) -> None:
    """Have a model remember what its files say beside it; `save_pretrained` writes it again."""
    vars(model)["saved_with"] = saved_with
    if hasattr(model, "eos_ids"):
        vars(model)["eos_ids"] = saved_with.eos_ids


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer that lies beside a model: of a folder with tokenizer.json, such a file, or a .gguf file.

    Raises: InputError for a file that is missing or damaged, or that has a part which is not known here.
    """
    from minillm.tokenizers import Tokenizer  # here, because `import minillm` is to stay quick

    path = Path(path)
    if path.suffix == ".gguf":
        from minillm.gguf import load_gguf_tokenizer

        return load_gguf_tokenizer(path)
    return Tokenizer.from_file(path.parent if path.suffix == ".safetensors" else path)


def save_pretrained(model: Any, folder: str | Path, max_shard_bytes: int = 5 * 10**9) -> None:
    """Write config.json and model.safetensors, which transformers' from_pretrained reads.

    What the files of a loaded model said beside it is written too: other keys of config.json, generation_config.json.
    Weights of more than `max_shard_bytes` go to several files with an index. A file appears whole or not at all.
    Raises: InputError for a model that has no form there, CheckpointError where a file cannot be written.
    """
    module = importlib.import_module(type(model).__module__)
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
        if key not in SAID_ANEW and (ours.get(key) is None or key == FORCED_EOS)  # of the last one, ours is a guess
    }
    if said:  # an id that the files leave to the default stays so: a null would be no id
        values = {key: value for key, value in values.items() if key not in ID_KEYS or value is not None or key in said}
    classes = FAMILIES[values["model_type"]][1]
    architectures = [theirs for theirs, name in classes.items() if name == type(model).__name__]
    dtype = next(iter(arrays.values())).dtype.name
    write_json(folder / CONFIG, values | {"architectures": architectures, "dtype": dtype})
    if generation:
        write_json(folder / GENERATION, generation)
    stale = [INDEX if len(shards) == 1 else WEIGHTS, *([] if generation else [GENERATION])]
    for file in stale:  # of a model that was here before
        (folder / file).unlink(missing_ok=True)


Module.save_pretrained = save_pretrained  # type: ignore[attr-defined]  # here, because layers know of no files


def read_config(path: str | Path) -> dict[str, Any]:
    """The values of the config.json in a folder, or of such a file.

    Raises: CheckpointError for a file that is missing or damaged.
    """
    path = Path(path)
    return read_json(path / CONFIG if path.is_dir() else path)


def _arrays_to_write(model: Any, module: ModuleType) -> dict[str, Array]:
    """The weights by their names and in their shapes there."""
    arrays: dict[str, Array] = {}
    for name, parameter in model.named_parameters():
        array = to_host(parameter.data)
        start = 0
        for theirs, rows in _names(module, model.config, name, len(array)):
            piece = array[start : start + rows]
            piece = np.ascontiguousarray(piece.T if _is_transposed(module, name) else piece)
            arrays[theirs] = piece.reshape(_shape_there(module, model.config, name, piece.shape))
            start += rows
    for whole, parts in _joined(module, model.config).items():
        arrays[whole] = np.concatenate([arrays.pop(part) for part in parts])
    return arrays


def _write_shards(folder: Path, shards: list[dict[str, Array]]) -> None:
    """Each as a file, which appears whole or not at all, and an index of several."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    files = (
        [WEIGHTS]
        if len(shards) == 1
        else [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    )
    for file, shard in zip(files, shards, strict=True):
        unfinished = folder / f"{file}.{os.getpid()}.tmp"
        try:
            save_file(shard, unfinished, metadata={"format": "pt"})
            os.replace(unfinished, folder / file)
        except SafetensorError as error:  # what save_file makes of an error of the system
            raise CheckpointError(f"save_pretrained: cannot write {folder / file} ({error}); make room") from None
        finally:
            unfinished.unlink(missing_ok=True)
    if len(shards) > 1:
        weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        total = sum(array.nbytes for shard in shards for array in shard.values())
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


# --- names ---------------------------------------------------------------------------------------------------------


def family(values: dict[str, Any]) -> tuple[ModuleType, str]:
    """Of the values of a config.json the model file, and the name of the class in it.

    Raises: InputError for an architecture that is not here, with those that are.
    """
    kind, architectures = values.get("model_type"), values.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise InputError(f"load: config.json has architectures={architectures!r}; give a list of names")
    if not isinstance(kind, str | None):
        raise InputError(f"load: config.json has model_type={kind!r}; give a name, such as 'llama'")
    if kind in FAMILIES:
        file, classes = FAMILIES[kind]
        for architecture in architectures or [next(iter(classes))]:
            if architecture in classes:
                return importlib.import_module(f"minillm.models.{file}"), classes[architecture]
    known = ", ".join(name for _, classes in FAMILIES.values() for name in classes)
    wanted = ", ".join(architectures) or f"model_type {kind!r}"
    raise InputError(f"load: there is no {wanted} here; what can be loaded: {known}")


def names_in_file(
    names: Mapping[str, str | tuple[str, ...]], name: str, rows: int, parts: Sequence[int] | None = None
) -> list[tuple[str, int]]:
    """What a file calls a parameter of so many rows: one name, or several, each with how many of the rows it is.

    names: of each parameter, with {i} for the number of the block, one name or several whose rows lie below each other.
    parts: how many rows each of several is; the same number where it is None.
    """
    theirs = names[_general(name)]
    theirs = (theirs,) if isinstance(theirs, str) else theirs
    parts = [rows] if len(theirs) == 1 else parts or [rows // len(theirs)] * len(theirs)
    number = next((part for part in name.split(".") if part.isdigit()), "")
    return [(one.format(i=number), count) for one, count in zip(theirs, parts, strict=True)]


def _general(name: str) -> str:
    """The name, with {i} in the place of the block's number."""
    return ".".join("{i}" if part.isdigit() else part for part in name.split("."))


def _names(module: ModuleType, config: Any, name: str, rows: int) -> list[tuple[str, int]]:
    """Hugging Face's names of one of our parameters, each with how many of its rows it is."""
    parts = module.rows_in_hugging_face(config, name) if hasattr(module, "rows_in_hugging_face") else None
    return names_in_file(module.HUGGING_FACE, name, rows, parts)


def _is_transposed(module: ModuleType, name: str) -> bool:
    return _general(name) in getattr(module, "TRANSPOSED", ())


def _shape_there(module: ModuleType, config: Any, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in the file of a parameter, or of its rows there; `shape` is what it would be with our axes."""
    return module.shape_in_hugging_face(config, name, shape) if hasattr(module, "shape_in_hugging_face") else shape


def _joined(module: ModuleType, config: Any) -> dict[str, tuple[str, ...]]:
    """Of each array in a file that is several of Hugging Face's names, below each other, which ones."""
    patterns = module.joined_in_hugging_face(config) if hasattr(module, "joined_in_hugging_face") else {}
    return {
        whole.format(i=i): tuple(part.format(i=i) for part in parts)
        for whole, parts in patterns.items()
        for i in range(config.layers)
    }


def _untied(path: Path, module: ModuleType, config: Any, stored: dict[str, Stored]) -> tuple[Any, dict[str, Stored]]:
    """The configuration that the weights have, and the arrays: of a tied model a file may hold both, which may differ.

    As in transformers, numbers that differ are not tied, whatever the configuration says; and if only the copy is
    there, it is what both have.
    Raises: CheckpointError where they differ and the model here can only be tied.
    """
    if not getattr(config, "tied", True):
        return config, stored
    for copy, original in module.TIED.items():
        copy, original = _found(copy, module, stored), _found(original, module, stored)
        if copy not in stored or original == copy:
            continue
        if original not in stored:
            stored = {original if name == copy else name: array for name, array in stored.items()}
        elif not are_same(stored[copy], stored[original]):
            if not hasattr(config, "tied"):
                raise CheckpointError(
                    f"load: {path} holds other numbers in {copy} than in {original}, which its config.json says are "
                    f"one (tie_word_embeddings), and a {type(config).__name__} can only be so; get the files again"
                )
            config = dataclasses.replace(config, tied=False)
    return config, stored


class Target(NamedTuple):
    """Where weights go."""

    parameter: Array
    transposed: bool


def _pairs(
    model: Any, module: ModuleType, stored: dict[str, Stored]
) -> Iterator[tuple[Target, list[tuple[slice, Stored]]]]:
    """Each parameter, with the arrays that fill its rows."""
    for name, parameter in model.named_parameters():
        start, sources = 0, []
        for theirs, rows in _names(module, model.config, name, len(parameter.data)):
            sources.append((slice(start, start + rows), stored[_found(theirs, module, stored)]))
            start += rows
        yield Target(parameter.data, _is_transposed(module, name)), sources


def _found(theirs: str, module: ModuleType, stored: dict[str, Stored]) -> str:
    """The name, or the name without the prefix where the files have that."""
    without = theirs.removeprefix(getattr(module, "PREFIX", ""))
    return without if theirs not in stored and without in stored else theirs


def _expected(model: Any, module: ModuleType, stored: dict[str, Stored]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The name and the shape there of every array that the model asks for."""
    for name, parameter in model.named_parameters():
        for theirs, rows in _names(module, model.config, name, len(parameter.data)):
            shape = (rows, *parameter.shape[1:])
            shape = shape[::-1] if _is_transposed(module, name) else shape
            yield _found(theirs, module, stored), _shape_there(module, model.config, name, shape)


def check_weights(
    path: str | Path,
    configuration: str,
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    ignored: Iterable[str] = (),
) -> None:
    """Compare the arrays in a file with those that a model asks for, both as names and shapes.

    configuration: what of the file says which model it is; ignored: endings of names that may be there.
    Raises: CheckpointError that lists all that is missing, unexpected or of another shape.
    """
    problems = [f"missing {name}" for name in expected if name not in found]
    problems += [
        f"{name} has shape {found[name]}, expected {shape}"
        for name, shape in expected.items()
        if found.get(name, shape) != shape
    ]
    problems += [f"unexpected {name}" for name in found if name not in expected and not name.endswith(tuple(ignored))]
    if problems:
        raise CheckpointError(
            f"load: the weights in {path} do not fit its {configuration}: {'; '.join(problems)}; get the files again, "
            "or those of one model"
        )
