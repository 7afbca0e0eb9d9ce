"""Configurations of models: fields whose types are checked, sizes with a name, and values from a config.json.

A config.json comes from anywhere: a key may be missing, null, NaN, or a text instead of a number. A missing key has the
default of its family in transformers. All other values are checked by the types of the fields, as for any configuration
(`Config.__post_init__`), and the error then names the keys of the file (`config_from`).
"""

from __future__ import annotations

import functools
import numbers
import re
import sys
import typing
from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from types import NoneType
from typing import Any, ClassVar, Self

from minillm.errors import InputError, did_you_mean

LARGEST = 1e300  # so that a little arithmetic with the number does not overflow
Keys = Mapping[str, tuple[str, Any]]  # for each field: its key in a config.json, and its value if the key is missing


class ConfigType(type):
    """The type of configurations: it accepts fields under the names that they had before (see `Config.former`)."""

    def __call__(cls, *args: Any, **values: Any) -> Any:
        former: dict[str, str] = cls.former  # type: ignore[attr-defined]
        return super().__call__(*args, **{former.get(name, name): value for name, value in values.items()})


class Config(metaclass=ConfigType):
    """Base of frozen dataclasses whose file holds named sizes, `PRESETS`."""

    no_options: ClassVar[tuple[str, ...]] = ()  # fields that the data decide, and no option of a command line
    former: ClassVar[dict[str, str]] = {}  # names that fields had before, with those of today

    def __getattr__(self, name: str) -> Any:
        if name in type(self).former:
            return getattr(self, type(self).former[name])
        raise AttributeError(f"{type(self).__name__} has no field {name!r}{did_you_mean(name, vars(self))}")

    def __post_init__(self) -> None:
        """Check the type of every field. Raises: InputError that names the first wrong one."""
        check_types(type(self).__name__, self)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """A named size, with some fields changed: `GPT2Config.preset("tiny", vocab_size=65)`.

        Raises: InputError for an unknown name, with the nearest known one, and for impossible fields.
        """
        files = [vars(sys.modules[kind.__module__]) for kind in cls.__mro__]
        presets = next(file["PRESETS"] for file in files if "PRESETS" in file)
        if name not in presets:
            raise InputError(f"{cls.__name__}: no preset is called {name!r}{did_you_mean(name, presets)}")
        return replace(presets[name], **{cls.former.get(field, field): value for field, value in changes.items()})

    def check_least(self, least: float, *names: str) -> None:
        """Raise InputError for the first of these fields that is below `least`; a field that is None passes."""
        for name in names:
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{type(self).__name__}: {name} is {value}; give {least} or more")

    def check_above_zero(self, *names: str) -> None:
        """Raise InputError for the first of these fields that is not above 0; a field that is None passes."""
        for name in names:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise InputError(f"{type(self).__name__}: {name} is {value}; give a number above 0")

    def check_probabilities(self, *names: str) -> None:
        """Raise InputError for the first of these fields outside of [0, 1); a field that is None passes."""
        for name in names:
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise InputError(
                    f"{type(self).__name__}: {name} is {value}; give a probability of at least 0 and below 1"
                )

    def check_divides(self, part: str, whole: str) -> None:
        """Raise InputError if the field `part` does not divide the field `whole`."""
        parts, size = getattr(self, part), getattr(self, whole)
        if size % parts:
            raise InputError(f"{type(self).__name__}: {whole}={size} is not a multiple of {part}={parts}")


def check_types(function: str, config: Any) -> None:
    """Raise InputError for the first field of a dataclass whose value has another type than its annotation."""
    for field in fields(config):
        value, kinds = getattr(config, field.name), _types_of(config.__class__)[field.name]
        if not any(_is(value, kind) for kind in kinds):
            wanted = " or ".join(_wanted(kind) for kind in kinds)
            raise InputError(f"{function}: {field.name} is {value!r}; give {wanted}")


WANTED: dict[Any, str] = {
    int: "a whole number",
    float: "a finite number",
    bool: "True or False",
    str: "a text",
    NoneType: "None",
    tuple[int, ...]: "a tuple of whole numbers",
    tuple[str, ...]: "a tuple of texts",
}


@functools.cache
def _types_of(kind: type) -> dict[str, tuple[Any, ...]]:
    """The types that the value of each field may have."""
    found = typing.get_type_hints(kind)
    return {
        name: typing.get_args(hint) if NoneType in typing.get_args(hint) else (hint,) for name, hint in found.items()
    }


def _wanted(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return f"one of: {', '.join(typing.get_args(kind))}"
    return WANTED.get(kind, f"a {getattr(kind, '__name__', kind)}")


def _is(value: Any, kind: Any) -> bool:
    if kind is Any:
        return True
    if typing.get_origin(kind) is typing.Literal:
        return value in typing.get_args(kind)
    if kind in (tuple[int, ...], tuple[str, ...]):
        return isinstance(value, tuple) and all(_is(one, typing.get_args(kind)[0]) for one in value)
    if kind is int:
        return (
            isinstance(value, numbers.Integral) and not isinstance(value, bool) and -(1 << 63) <= int(value) < 1 << 63
        )
    if kind is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool) and bool(abs(value) <= LARGEST)  # type: ignore[operator]
    return isinstance(value, kind)


# --- from a config.json --------------------------------------------------------------------------------------------


def config_from(
    kind: type[Config], keys: Keys, values: Mapping[str, Any], /, nulls: Collection[str] = (), **computed: Any
) -> Any:
    """The configuration of this class that the values of a config.json describe.

    A null means the default value, except in the fields in `nulls`, where it means None.
    computed: fields that depend on more than their own key.
    Raises: InputError that names the keys and their values.
    """
    given = {}
    for field, (key, missing) in keys.items():
        value = values.get(key, missing)
        given[field] = missing if value is None and field not in nulls else value
    try:
        return kind(**(given | computed))
    except InputError as error:
        named = [field for field in keys if re.search(rf"\b{field}\b", str(error))]
        shown = [
            f"{keys[field][0]}={values[keys[field][0]]!r}"
            if keys[field][0] in values
            else f"{keys[field][0]}={given[field]!r} by default"
            for field in named
        ]
        raise InputError(f"load: config.json has {' and '.join(shown) or 'what cannot be'}: {error}") from None


def check_fixed(values: Mapping[str, Any], fixed: Mapping[str, tuple[Any, ...]]) -> None:
    """Check keys that this model supports with some values only; `fixed` has these for each key. A null passes.

    Raises: InputError that names the key.
    """
    for key, only in fixed.items():
        value = values.get(key)
        if value is not None and value not in only:
            raise InputError(
                f"load: config.json has {key}={value!r}; here it can only be {' or '.join(map(repr, only))}"
            )


def whole_number(values: Mapping[str, Any], key: str, missing: int | None, least: int = 1) -> Any:
    """The whole number under a key of a config.json. Raises: InputError that names the key if it is not one."""
    value = values.get(key)
    value = missing if value is None else value
    if value is not None and (not _is(value, int) or value < least):
        raise InputError(f"load: config.json has {key}={value!r}; give a whole number, {least} or more")
    return value


def table(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The object under a key of a config.json, empty if missing. Raises: InputError that names the key if not one."""
    value = values.get(key)
    if value is not None and not isinstance(value, dict):
        raise InputError(f"load: config.json has {key}={value!r}; give an object with names and values")
    return value or {}
