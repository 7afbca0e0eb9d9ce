"""Measures of classification, of texts or tokens: accuracy, and precision, recall and F1 of each class, with intervals.

    precision = of those said to be of the class, the share that is      recall = of those of the class, the share found
    F1 = 2 precision recall / (precision + recall) = 2 both / (said + there)

A class that never occurs and is never said has no F1, and is left out of the mean over classes (macro F1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minillm.errors import InputError
from minillm.evaluation.intervals import Measure, bootstrap, share

UNKNOWN = -100  # class of a text or token that does not count


def classification_scores(
    predictions: Sequence[int] | np.ndarray,
    classes: Sequence[int] | np.ndarray,
    names: Sequence[str],
    seed: int = 0,
    unit: str = "texts",
) -> dict[str, Measure]:
    """Accuracy (Wilson's interval), macro F1, and for each class precision, recall and F1 (bootstrapped).

    Shapes: predictions and classes (N,), numbers from 0 to the number of names, less one; a class of -100 leaves the
        item out.
    Raises: InputError for numbers of another kind, or nothing to count.
    """
    said, there = np.asarray(predictions), np.asarray(classes)
    if said.shape != there.shape or said.ndim != 1:
        raise InputError(
            f"classification_scores: predictions have shape {said.shape} and classes {there.shape}; give (N,) for both"
        )
    said, there = said[there != UNKNOWN], there[there != UNKNOWN]
    K = len(names)
    for what, numbers in (("predictions", said), ("classes", there)):
        if len(numbers) and not (numbers.dtype.kind in "iu" and 0 <= numbers.min() <= numbers.max() < K):
            raise InputError(f"classification_scores: {what} go beyond the {K} classes; give numbers from 0 to {K - 1}")
    measures = {"accuracy": share(said == there, unit)}
    classes_there, classes_said = np.eye(K)[there], np.eye(K)[said]  # (N, K)
    rows = np.concatenate([classes_there * classes_said, classes_said, classes_there], axis=1)  # (N, 3 K)
    settings: dict[str, Any] = {"denominator": len(said), "unit": unit, "item": unit.removesuffix("s"), "seed": seed}
    measures["macro_f1"] = bootstrap(rows, lambda sums: np.nanmean(f1_of(sums, K), axis=-1), **settings)
    for number, name in enumerate(names):
        for measure, parts in (("precision", (0, 1)), ("recall", (0, 2)), ("f1", (0, 1, 2))):
            chosen = rows[:, [part * K + number for part in parts]]
            found = bootstrap(chosen, lambda sums: share_of(sums), **settings)
            measures[f"{measure} of {name}"] = found
    return measures


def share_of(sums: np.ndarray) -> np.ndarray:
    """The first sum divided by the second, or twice the first by the second and third together; 0 if these are 0."""
    whole = sums[..., 1:].sum(-1)
    return (sums.shape[-1] - 1) * sums[..., 0] / np.maximum(whole, 1)


def f1_of(sums: np.ndarray, K: int) -> np.ndarray:
    """F1 of each class (..., K) from sums (..., 3 K): both, said, there; NaN for a class that never occurs."""
    both, said, there = np.split(sums, 3, axis=-1)
    whole = said + there
    return np.where(whole > 0, 2 * both / np.maximum(whole, 1), np.nan)


def confusion(predictions: np.ndarray, classes: np.ndarray, count: int) -> np.ndarray:
    """The confusion matrix: how often class k, the row, was said to be class j, the column: (count, count).

    Shapes: predictions and classes (N,).
    """
    known = classes != UNKNOWN
    return np.bincount(classes[known] * count + predictions[known], minlength=count * count).reshape(count, count)
