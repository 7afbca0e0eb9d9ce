"""The stretching of rotary angles in a config.json, and whether ops/rope.py can do it.

Old files have `rope_theta` beside `rope_scaling`, new files have both in `rope_parameters`; transformers reads the old
place first. The context that the angles were made for is given there, or beside it, or it is the longest sequence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from minillm.errors import InputError
from minillm.models.config import whole_number
from minillm.ops.rope_table import SCALINGS, RopeScaling

# The numbers that each kind must have, those that it may have, and its lists, by their names in the file.
NEEDED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("linear", "dynamic", "yarn"), ("factor",)),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
OPTIONAL = {"yarn": ("attention_factor", "beta_fast", "beta_slow"), "longrope": ("factor", "attention_factor")}
LISTS = {"longrope": ("short_factor", "long_factor")}
NAMES = {
    "low_freq_factor": "low_frequency_factor",
    "high_freq_factor": "high_frequency_factor",
    "short_factor": "short",
    "long_factor": "long",
}
LARGEST = 1e18  # bound of all these numbers
REFUSED = {"mscale": (0, 1), "mscale_all_dim": (0, 1), "truncate": (True,), "partial_rotary_factor": (1,)}


def check_scaling(scaling: RopeScaling, rotary_channels: int) -> None:
    """Raise InputError for an impossible scaling of the angles."""
    name = f"rope_scaling of kind {scaling.kind!r}"
    if scaling.kind not in SCALINGS:
        raise InputError(f"{name} is not known; choose one of {', '.join(SCALINGS)}")
    for field in ("factor", "original_context", "high_frequency_factor", "beta_fast", "beta_slow"):
        if not 0 < getattr(scaling, field) < math.inf:
            raise InputError(f"{name} has {field}={getattr(scaling, field)}; give a number above 0")
    if scaling.kind == "llama3" and not scaling.low_frequency_factor < scaling.high_frequency_factor:
        raise InputError(
            f"{name} has low_frequency_factor={scaling.low_frequency_factor} and high_frequency_factor="
            f"{scaling.high_frequency_factor}; the second must be larger"
        )
    if scaling.kind == "dynamic" and rotary_channels < 4:
        raise InputError(f"{name} needs 4 or more rotated channels in a head, but there are {rotary_channels}")
    if scaling.kind == "longrope":
        for field in ("short", "long"):
            given = getattr(scaling, field)
            if len(given) != rotary_channels // 2 or not all(0 < number < math.inf for number in given):
                raise InputError(
                    f"{name} has {len(given)} values in {field}; give {rotary_channels // 2} above 0, one a pair"
                )
        if scaling.original_context < 2:
            raise InputError(f"{name} has original_context={scaling.original_context}; give 2 or more")


def scaling_from(
    rope: Mapping[str, Any], where: str, values: Mapping[str, Any], context: int, original: int | None = None
) -> RopeScaling | None:
    """The scaling that an object in a config.json describes; errors name the object by its key, `where`.

    context: the longest sequence in the file; original: the context that the angles were made for, if the family has
    one. Raises: InputError that names an unknown kind, a missing number, or a value that is not a number.
    """
    kind = rope.get("rope_type", rope.get("type")) or "default"
    for key, only in REFUSED.items():
        if rope.get(key) is not None and rope[key] not in only:
            raise InputError(
                f"load: config.json has {where} with {key}={rope[key]!r}; here it can only be "
                f"{' or '.join(map(repr, only))}"
            )
    if kind == "default":
        return None
    if kind not in SCALINGS:
        raise InputError(
            f"load: config.json has {where} with rope_type={kind!r}; here it can only be default, {', '.join(SCALINGS)}"
        )
    found: dict[str, Any] = {}
    for key in (*NEEDED.get(kind, ()), *OPTIONAL.get(kind, ())):
        if rope.get(key) is not None:
            found[NAMES.get(key, key)] = number(rope, where, key)
        elif key in NEEDED.get(kind, ()):
            raise InputError(f"load: config.json has {where} of type {kind!r} without {key}; add its number")
    for key in LISTS.get(kind, ()):
        if not isinstance(rope.get(key), list):
            raise InputError(
                f"load: config.json has {where} of type {kind!r} with {key}={rope.get(key)!r}; give a list"
            )
        found[NAMES[key]] = tuple(number({key: one}, where, key) for one in rope[key])
    if original is None:
        original = context
        if kind != "dynamic":
            original = whole_number(rope, "original_max_position_embeddings", context)
            original = whole_number(values, "original_max_position_embeddings", original)
    found.setdefault("factor", context / original)
    return RopeScaling(kind, original_context=original, **found)


def number(rope: Mapping[str, Any], where: str, key: str, missing: float | None = None) -> float:
    """The number under a key of such an object. Raises: InputError that names the key if it is not a number."""
    value = rope.get(key)
    value = missing if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
        shown = f"{value!r:.40}"
        raise InputError(f"load: config.json has {where} with {key}={shown}; give a number of {LARGEST:g} at most")
    return float(value)


def rope_to(base: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """The object `rope_parameters` for a config.json."""
    if scaling is None:
        return {"rope_theta": base, "rope_type": "default"}
    kind = scaling.kind
    values: dict[str, Any] = {"rope_theta": base, "rope_type": kind, "factor": scaling.factor}
    if kind != "dynamic":  # whose original context is max_position_embeddings
        values["original_max_position_embeddings"] = scaling.original_context
    for key in (*NEEDED.get(kind, ()), *OPTIONAL.get(kind, ()), *LISTS.get(kind, ())):
        value = getattr(scaling, NAMES.get(key, key))
        if value is not None:
            values[key] = list(value) if isinstance(value, tuple) else value
    return values
