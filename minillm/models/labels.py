"""The classes that a head tells apart: their number and their names, in a configuration and in a config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minillm.errors import InputError, did_you_mean
from minillm.models.config import Config, table, whole_number

PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")
# The keys of a config.json that belong to a head.
KEYS_OF_HEAD = ("id2label", "label2id", "num_labels", "problem_type", "finetuning_task")


def check_labels(config: Any) -> None:
    """Check the fields `labels`, `label_names` and `problem_type` of a configuration.

    Raises: InputError that names the field.
    """
    name = type(config).__name__
    config.check_least(1, "labels")
    if config.label_names and len(config.label_names) != config.labels:
        raise InputError(
            f"{name}: label_names has {len(config.label_names)} names, but labels is {config.labels}; give a name for "
            "each class, or none"
        )
    if config.problem_type is not None and config.problem_type not in PROBLEMS:
        hint = did_you_mean(config.problem_type, PROBLEMS)
        raise InputError(f"{name}: problem_type is {config.problem_type!r}{hint}")


def names_of_labels(config: Config) -> tuple[str, ...]:
    """The names of the classes; LABEL_0, LABEL_1 and so on where none were given."""
    return config.label_names or _generic(config.labels)


def _generic(count: int) -> tuple[str, ...]:
    return tuple(f"LABEL_{number}" for number in range(count))


def labels_from(values: Mapping[str, Any], missing: int = 2) -> dict[str, Any]:
    """The fields `labels` and `label_names` in the values of a config.json: `id2label`, or else `num_labels`.

    missing: the number of classes of a file that has neither key.
    Raises: InputError that names the key if its value has the wrong type.
    """
    names = {str(number): name for number, name in table(values, "id2label").items()}
    if not names:
        return {"labels": whole_number(values, "num_labels", missing)}
    found = tuple(names.get(str(number)) for number in range(len(names)))
    if not all(isinstance(name, str) for name in found):
        raise InputError(f"load: config.json has id2label={names}; give each number from 0 to {len(names) - 1} a name")
    return {"labels": len(found), "label_names": () if found == _generic(len(found)) else found}


def labels_to(config: Config, missing: int = 2) -> dict[str, Any]:
    """The keys of a config.json that name the classes; none if a file without these keys means the same."""
    if config.labels == missing and not config.label_names:
        return {}
    names = names_of_labels(config)
    return {
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }


def classifier_from(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a head for texts on a decoder, in the values of a config.json; none without it."""
    if "ForSequenceClassification" not in str(values.get("architectures")):
        return {}
    problem = {"problem_type": values.get("problem_type"), "padding_id": values.get("pad_token_id")}
    return labels_from(values) | problem


def classifier_to(config: Any) -> dict[str, Any]:
    """The keys of a config.json for a head for texts on a decoder; none if the configuration says nothing of one."""
    problem = {} if config.problem_type is None else {"problem_type": config.problem_type}
    padding = {} if config.padding_id is None else {"pad_token_id": config.padding_id}
    return labels_to(config) | problem | padding
