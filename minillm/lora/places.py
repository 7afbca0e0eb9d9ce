"""The layers of a model that an adapter can be put on, by the names that Hugging Face's models and PEFT give them.

One layer here may be several there: `attn.qkv` holds the rows of `q_proj`, `k_proj` and `v_proj`, one below the other.
Each of them is a place of its own, with its own rows. The table of names is that of the model's weights
(`HUGGING_FACE` in its file); a model without one, such as a person's own, has its own paths as names.

Targets are matched by PEFT's rules: a list of names fits where a place's name is one of them, or ends with "." and one
of them; one text is a regular expression for the whole name.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from minillm.errors import InputError, did_you_mean
from minillm.lora.config import ALL_LINEAR, LoraConfig
from minillm.nn import Embedding, Linear, Module
from minillm.pretrained import joined_names, pieces_in_hugging_face

# PEFT's default targets (utils/constants.py); it has none for the last three. XLNet's attention has no modules there.
TARGETS = {
    "gpt2": ("c_attn",),
    "llama": ("q_proj", "v_proj", "qkv_proj"),  # the last for Phi-3
    "gemma": ("q_proj", "v_proj"),
    "bert": ("query", "value"),
    "roberta": ("query", "value"),
    "bart": ("q_proj", "v_proj"),
    "distilbert": ("q_lin", "v_lin"),
    "xlnet": ("layer_1", "layer_2"),
}
# The modules that PEFT saves whole for a model that classifies, or finds answers.
HEADS = {
    "ForSequenceClassification": ("classifier", "score"),
    "ForTokenClassification": ("classifier", "score"),
    "ForQuestionAnswering": ("qa_outputs",),
}
OUTPUT = "lm_head"


class Place(NamedTuple):
    """A layer of Hugging Face's model, and where it is here."""

    name: str  # there, such as model.layers.0.self_attn.v_proj
    path: str  # of the layer here, such as h.0.attn.qkv
    start: int  # first of its rows
    shape: tuple[int, int]  # (out, in) of a linear layer, (V, C) of a table
    is_table: bool
    transposed: bool = False  # True where the weight is (in, out) there: Conv1D
    twin: str = ""  # for a tied table the name of the output layer, for a tied output layer that of the table


class InFile(NamedTuple):
    """Some rows of a parameter in files: their name and shape there, and True if they are transposed."""

    name: str
    shape: tuple[int, ...]
    rows: slice
    transposed: bool = False

    @property
    def module(self) -> str:
        """The name of the module that the parameter belongs to."""
        return self.name.rpartition(".")[0]


class Names(NamedTuple):
    """The names of a model's layers and parameters there.

    A model whose output layer is the token table has names for both, though it has one weight.
    """

    places: dict[str, Place]
    parameters: dict[str, list[InFile]]  # each parameter here, in one array there or in several
    divided: set[str]  # modules there that are several layers here, which no adapter can be put on
    can_untie: bool  # True if the model can have an output layer of its own

    @property
    def modules(self) -> set[str]:
        """Every module that has parameters, at any depth."""
        names = [*(one.module for some in self.parameters.values() for one in some), *self.places, *self.divided]
        parts = [name.split(".") for name in names if name]
        return {".".join(part[:end]) for part in parts for end in range(1, len(part) + 1)}


def names_of(model: Module) -> Names:
    """The names of a model without adapters."""
    module = sys.modules[type(model).__module__]
    if not hasattr(module, "HUGGING_FACE"):
        return _own_names(model)
    prefix, layers = module.PREFIX if is_body(model) else "", dict(model.named_modules())
    places: dict[str, Place] = {}
    parameters: dict[str, list[InFile]] = {}
    for piece in pieces_in_hugging_face(model):
        path, _, kind = piece.parameter.rpartition(".")
        name, before = piece.name.removeprefix(prefix), parameters.setdefault(piece.parameter, [])
        start = before[-1].rows.stop if before else 0
        before.append(InFile(name, piece.shape, slice(start, start + len(piece.rows)), piece.transposed))
        if kind == "weight" and name.endswith(".weight") and isinstance(layers[path], (Linear, Embedding)):
            name, shape = name.removesuffix(".weight"), (len(piece.rows), piece.rows.shape[1])
            places[name] = Place(name, path, start, shape, isinstance(layers[path], Embedding), piece.transposed)
    divided = _join(joined_names(module, model.config), places, parameters)
    ties = {copy: original.removeprefix(prefix) for copy, original in module.TIED.items()}
    can_untie = hasattr(model.config, "tied")
    for copy, original in ties.items() if getattr(model.config, "tied", True) else ():
        copy, original = copy.removesuffix(".weight"), original.removesuffix(".weight")
        if original in places and (can_untie or _has(copy, prefix, parameters)):
            table = places[original]
            places[original] = table._replace(twin=copy)
            if can_untie:
                places[copy] = Place(copy, copy, 0, table.shape, is_table=False, twin=original)
                parameters[f"{copy}.weight"] = [InFile(f"{copy}.weight", table.shape, slice(0, table.shape[0]))]
    return Names(places, parameters, divided, can_untie)


def _join(
    joined: Mapping[str, tuple[str, ...]], places: dict[str, Place], parameters: dict[str, list[InFile]]
) -> set[str]:
    """Put one name in the place of several for a layer that is one there and here; return what is several here."""
    divided = set()
    for whole, parts in joined.items():
        name = whole.removesuffix(".weight")
        first, *others = (places.pop(part.removesuffix(".weight")) for part in parts)
        rows = sum(place.shape[0] for place in (first, *others))
        if any(place.path != first.path for place in others):
            divided.add(name)
            for place in (first, *others):
                del parameters[f"{place.path}.weight"]
            continue
        places[name] = first._replace(name=name, shape=(rows, first.shape[1]))
        parameters[f"{first.path}.weight"] = [InFile(whole, places[name].shape, slice(0, rows), first.transposed)]
    return divided


def _has(copy: str, prefix: str, parameters: Mapping[str, list[InFile]]) -> bool:
    """True if the model has the layer that would hold a copy of its table: its bias, or layers beside it."""
    owners = tuple(f"{owner.removeprefix(prefix)}." for owner in (copy, copy.rpartition(".")[0] or copy))
    return any(one.name.startswith(owners) for some in parameters.values() for one in some)


def _own_names(model: Module) -> Names:
    """The names of a model without a form in Hugging Face's format: its own paths."""
    layers = {path: x for path, x in model.named_modules() if isinstance(x, (Linear, Embedding))}
    places = {}
    for path, layer in layers.items():
        twin = next((other for other, x in layers.items() if x.weight is layer.weight and other != path), "")
        shape = (layer.weight.shape[0], layer.weight.shape[1])
        places[path] = Place(path, path, 0, shape, isinstance(layer, Embedding), twin=twin)
    parameters = {name: [InFile(name, x.shape, slice(None))] for name, x in model.named_parameters()}
    return Names(places, parameters, set(), False)


def is_body(model: Module) -> bool:
    """True for a model without a head, such as BertModel, whose names there lack the prefix of the body."""
    name = type(model).__name__
    return name.endswith("Model") and not name.endswith("LMHeadModel")


# --- targets -------------------------------------------------------------------------------------------------------


class Chosen(NamedTuple):
    """The layers that get an adapter, and the parameters that are trained as a whole."""

    places: list[Place]
    saved: list[str]  # names here
    tied: list[str]  # names there of layers among both that share their weight with another
    targets: str | tuple[str, ...]  # as PEFT's file has them
    modules_to_save: tuple[str, ...]


def choose(config: LoraConfig, model: Module, names: Names) -> Chosen:
    """Apply the rules of the settings to a model.

    Raises: InputError for a target, an expression or a module that fits nothing, with the nearest names; for one that
    no adapter can be put on.
    """
    to_save, saved = _saved(config, model, names)
    whole = {one.module for name in saved for one in names.parameters[name]}
    targets = _targets(config, model, names)
    kept = [place for place in names.places.values() if not _is_left_out(config, to_save, place.name)]
    if targets == ALL_LINEAR:
        found = [place for place in kept if not place.is_table and place.name not in {OUTPUT, *whole}]
        targets = tuple(sorted(place.name for place in found))
    else:
        _check(targets, names)
        found = [place for place in kept if _fits(targets, place.name) and _is_in_layers(config, targets, place.name)]
    if not found:
        raise InputError(
            f"add_lora: no layer is left of the targets {_shown(targets)} after exclude, layers_to_transform and "
            f"modules_to_save; {_known(names)}"
        )
    for place in found:
        if place.name in whole:
            raise InputError(f"add_lora: {place.name} is among targets and modules_to_save; give it in one of them")
    tied = [place.name for place in found if place.twin]
    tied += [
        place.name
        for place in names.places.values()
        if place.twin and (place.name in whole or any(_covers(one, place.twin) for one in to_save))
    ]
    return Chosen(found, saved, tied, targets, to_save)


def narrowed(config: LoraConfig, names: Names) -> LoraConfig:
    """The settings without the names that fit nothing: PEFT's files may have some, such as `score`."""
    targets, to_save = config.targets, config.modules_to_save or ()
    if isinstance(targets, tuple):
        targets = tuple(one for one in targets if any(_fits((one,), name) for name in names.modules)) or targets
    to_save = tuple(one for one in to_save if any(_covers(one, module) for module in names.modules))
    return replace(config, targets=targets, modules_to_save=to_save)


def _targets(config: LoraConfig, model: Module, names: Names) -> str | tuple[str, ...]:
    if isinstance(config.targets, str) and config.targets.lower() == ALL_LINEAR:
        return ALL_LINEAR
    if config.targets is not None:
        return config.targets
    usual = TARGETS.get(type(model).__module__.rpartition(".")[2], ()) if names.parameters else ()
    return tuple(one for one in usual if any(_fits((one,), name) for name in names.places)) or ALL_LINEAR


def _fits(pattern: str | tuple[str, ...], name: str) -> bool:
    """True if a name is one of those given, or ends with "." and one of them; or fits the expression as a whole."""
    if isinstance(pattern, str):
        return re.fullmatch(pattern, name) is not None
    return name in pattern or name.endswith(tuple(f".{one}" for one in pattern))


def _is_left_out(config: LoraConfig, to_save: Collection[str], name: str) -> bool:
    return _fits(config.exclude, name) or any(re.match(rf"(^|.*\.){one}($|\..*)", name) for one in to_save)


def _is_in_layers(config: LoraConfig, targets: str | tuple[str, ...], name: str) -> bool:
    """True if a name belongs to one of the blocks asked for, by the first number in it; a whole name always does."""
    if config.layers_to_transform is None or name in targets:
        return True
    lists = (config.layers_pattern,) if isinstance(config.layers_pattern, str) else config.layers_pattern
    patterns = [rf"(?:^|.*?\.){one}\.(\d+)\." for one in lists if one] or [r".*?\.[^.]*\.(\d+)\."]
    found = next((match for match in (re.match(pattern, name) for pattern in patterns) if match), None)
    return found is not None and int(found[1]) in config.layers_to_transform


def _check(targets: str | tuple[str, ...], names: Names) -> None:
    """Raise InputError for a target that fits nothing, or something else than a linear layer or a table."""
    for target in [targets] if isinstance(targets, str) else targets:
        pattern: Any = target if isinstance(targets, str) else (target,)
        fitting = [name for name in sorted(names.modules | names.places.keys()) if _fits(pattern, name)]
        if not fitting:
            parameters = [one.name for some in names.parameters.values() for one in some if _fits(pattern, one.name)]
            if parameters:
                raise InputError(
                    f"add_lora: {parameters[0]} is a parameter and no layer in Hugging Face's model, so "
                    f"PEFT has no adapter for it; {_known(names)}"
                )
            near = did_you_mean(target, sorted({name.rpartition(".")[2] for name in names.places}))
            raise InputError(f"add_lora: no layer fits the target {target!r}{near}; {_known(names)}")
        wrong = [name for name in fitting if name not in names.places]
        if wrong:
            what = "several layers here" if wrong[0] in names.divided else "no linear layer and no table"
            raise InputError(f"add_lora: the target {target!r} fits {wrong[0]}, which is {what}; {_known(names)}")


def _saved(config: LoraConfig, model: Module, names: Names) -> tuple[tuple[str, ...], list[str]]:
    """The modules to save as PEFT's file has them, and the parameters in them, by their names here."""
    given = config.modules_to_save
    if given is None:
        given = next((heads for kind, heads in HEADS.items() if type(model).__name__.endswith(kind)), ())
    saved = []
    for one in given:
        inside = []
        for name, some in names.parameters.items():
            covered = [_covers(one, part.module) for part in some]
            if any(covered) and not all(covered):
                others = ", ".join(part.module for part in some)
                raise InputError(f"add_lora: {one!r} in modules_to_save is only a part of {others}; give all of them")
            inside += [name] * any(covered)
        if any(_covers(one, name) for name in names.divided):
            raise InputError(f"add_lora: {one!r} in modules_to_save has layers that are several here; leave it out")
        if not inside and config.modules_to_save is not None:
            near = did_you_mean(one, sorted({name.rpartition(".")[2] for name in names.modules}))
            raise InputError(f"add_lora: no module that can be saved is called {one!r}{near}")
        saved += inside
    return tuple(given), list(dict.fromkeys(saved))


def _covers(one: str, module: str) -> bool:
    """True if a module, or one that it is in, has a name that ends with this; PEFT compares so, without a dot."""
    parts = module.split(".")
    return any(".".join(parts[:end]).endswith(one) for end in range(1, len(parts) + 1))


def _shown(targets: str | Iterable[str]) -> str:
    return repr(targets) if isinstance(targets, str) else ", ".join(targets)


def _known(names: Names) -> str:
    endings = {place.name.rpartition(".")[2]: None for place in names.places.values()}
    return f"the layers of this model end with {', '.join(endings)}"
