"""The work of `minillm data build`: sources, and the settings of the stages, from a .toml or from options.

    seed = 0                        # of the order of mixed sources

    [[sources]]
    path = "raw/books/**/*.txt"     # a file, a folder or a pattern, seen from the folder where the command is given
    name = "books"                  # by default the name of the folder
    weight = 3                      # share of the bytes of the training part; give it to all sources, or to none
    epochs = 1.5                    # how often a document comes; with weights, the most that it may
    licence = "CC0-1.0"             # noted in each document

    [extract]                       # a table for each stage, with its settings; an empty table means its defaults
    [clean]
    rules = ["gopher_repetition", "gopher_quality"]
    [dedup]
    [split]
    validation = 0.01
    [shards]
    tokenizer = "bpe"

`extract` and `split` always run, the other stages where they have a table.
"""

from __future__ import annotations

import dataclasses
import glob
import importlib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minillm.errors import InputError, did_you_mean
from minillm.files import check_is_file

STAGES = {  # in their order: the file, and the class of its settings
    "extract": ("minillm.corpus.readers.extract", "Extract"),
    "clean": ("minillm.corpus.rules", "Clean"),
    "dedup": ("minillm.corpus.duplicates.options", "Dedup"),
    "decontaminate": ("minillm.corpus.decontamination", "Decontaminate"),
    "split": ("minillm.corpus.split", "Split"),
    "shards": ("minillm.corpus.shards", "Shards"),
}
ALWAYS = ("extract", "split")
KINDS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple: "a list",
}


@dataclass(frozen=True)
class Source:
    """Raw files, under a name."""

    path: str
    name: str = ""
    weight: float | None = None
    epochs: float | None = None
    licence: str = ""

    def __post_init__(self) -> None:
        for what in ("weight", "epochs"):
            number = getattr(self, what)
            if number is not None and not (isinstance(number, int | float) and 0 < number < float("inf")):
                raise InputError(f"data build: the {what} of source {self.path!r} is {number!r}; give a number above 0")
        if not self.name:
            object.__setattr__(self, "name", self._folder())

    @property
    def mixed(self) -> tuple[float | None, float | None]:
        """The weight and the epochs."""
        return self.weight, self.epochs

    def _folder(self) -> str:
        """The name of the folder, or of that of the file or the pattern; the file's own name where it has none."""
        path = Path(self.path)
        while not path.is_dir() and path.parent.name:
            path = path.parent
            if not glob.has_magic(str(path)):
                break
        return path.name.partition(".")[0] or "all"


@dataclass(frozen=True)
class Config:
    """The sources, and the settings of each stage that runs."""

    sources: tuple[Source, ...]
    stages: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.sources:
            raise InputError("data build: there is no source; give files, or a [[sources]] table with a path")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0:
            raise InputError(f"data build: seed is {self.seed!r}; give a whole number of 0 or more")
        mixed: dict[str, tuple[float | None, float | None]] = {}
        for source in self.sources:
            if mixed.setdefault(source.name, source.mixed) != source.mixed:
                raise InputError(
                    f"data build: the sources called {source.name!r} have several weights or epochs; give each a name "
                    "of its own"
                )
        for source in self.sources:
            if self.weights and source.weight is None:
                raise InputError(
                    f"data build: source {source.name!r} has no weight, but others have; give all sources one, or none"
                )
        whole = {name: self.stages.get(name) for name in STAGES if name in ALWAYS or name in self.stages}
        stages = {name: settings_class(name)() if given is None else given for name, given in whole.items()}
        object.__setattr__(self, "stages", stages)

    @property
    def weights(self) -> dict[str, float]:
        """The weights of the sources that have one."""
        return {source.name: float(source.weight) for source in self.sources if source.weight is not None}

    @property
    def epochs(self) -> dict[str, float]:
        """The epochs of the sources for which they are given."""
        return {source.name: float(source.epochs) for source in self.sources if source.epochs is not None}


def settings_class(stage: str) -> type:
    """The dataclass of a stage's settings."""
    module, name = STAGES[stage]
    return getattr(importlib.import_module(module), name)


def read_config(path: Path) -> Config:
    """The settings in a .toml file.

    Raises: InputError for a file that cannot be read, and for an unknown name, with the nearest known one.
    """
    check_is_file("data build", path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"data build: {path} cannot be read ({error}); give a .toml file with [[sources]]") from None
    known = ["sources", "seed", *STAGES]
    for name, value in content.items():
        if name not in known:
            raise InputError(f"data build: {path} has {name!r}, which is no setting{did_you_mean(name, known)}")
        if name in STAGES and not isinstance(value, dict):
            raise InputError(f"data build: {name} is {value!r} in {path}; write a table, [{name}]")
    sources = content.get("sources", [])
    if not isinstance(sources, list) or not all(isinstance(one, dict) for one in sources):
        raise InputError(f"data build: sources is no list of tables in {path}; write [[sources]] above each")
    return Config(
        tuple(settings_from(Source, source, f"[[sources]] of {path}") for source in sources),
        {name: settings_from(settings_class(name), content[name], f"[{name}] of {path}") for name in ordered(content)},
        content.get("seed", 0),
    )


def ordered(names: Iterable[str]) -> list[str]:
    """The stages among some names, in the order in which they run."""
    given = set(names)
    return [name for name in STAGES if name in given]


def settings_from(kind: Any, table: Mapping[str, Any], where: str) -> Any:
    """A dataclass of settings from a table. The fields of a dataclass in it stand in a table of their own, or beside.

    A list of texts may stand for a text with commas.
    Raises: InputError for an unknown name, with the nearest known one, a missing one, or a value of another type.
    """
    defaults = defaults_of(kind)
    inner = {name: defaults_of(type(value)) for name, value in defaults.items() if dataclasses.is_dataclass(value)}
    owners = {name: outer for outer, fields in inner.items() for name in fields}
    given: dict[str, Any] = {}
    tables: dict[str, dict[str, Any]] = {}
    for name, value in table.items():
        if name in inner and isinstance(value, dict):
            tables.setdefault(name, {}).update(value)
        elif name in defaults:
            given[name] = fitting(name, value, defaults[name], where)
        elif name in owners:
            tables.setdefault(owners[name], {})[name] = value
        else:
            known = [*defaults, *owners]
            raise InputError(f"data build: {where} has {name!r}, which is no setting{did_you_mean(name, known)}")
    for outer, inside in tables.items():
        given[outer] = settings_from(type(defaults[outer]), inside, f"{where}, {outer}")
    if missing := [name for name, default in defaults.items() if default is dataclasses.MISSING and name not in given]:
        raise InputError(f"data build: {where} has no {missing[0]!r}; write {missing[0]} = ...")
    try:
        return kind(**given)
    except TypeError as error:  # of a setting whose default is None
        raise InputError(f"data build: a setting in {where} has a value of another type ({error})") from None


def defaults_of(kind: Any) -> dict[str, Any]:
    """The default of each field of a dataclass; MISSING for one that has none."""
    missing = dataclasses.MISSING
    return {
        one.name: one.default if one.default_factory is missing else one.default_factory()
        for one in dataclasses.fields(kind)
    }


def fitting(name: str, value: Any, default: Any, where: str) -> Any:
    """The value as the setting with this default takes it. Raises: InputError for one of another type."""
    if isinstance(value, list) and all(isinstance(one, str) for one in value) and isinstance(default, str):
        return ", ".join(value)
    value = tuple(value) if isinstance(value, list) else value
    value = float(value) if isinstance(default, float) and type(value) is int else value
    if default not in (None, dataclasses.MISSING) and type(value) is not type(default):
        wanted = KINDS.get(type(default), "a table")
        raise InputError(f"data build: {name} is {value!r} in {where}; give {wanted}, such as {default!r}")
    return value
