"""`minillm train --watch`: what happens in every layer, at some steps of a training.

For each layer: the size (root mean square) of its output and of the gradient of that, the largest element of the
output, the share of zeros in it; and of its own weights the size, the size of their gradient (before it is clipped),
and that of the step that the optimiser took, alone and over the size of the weights:

    ratio = |w_after - w_before| / |w_before|        |.| is the root of the sum of squares

A run keeps it in watch.jsonl, a JSON object for each step that was watched, with the seconds that this took; at its end
it draws watch.png. The steps in between are not slower; one that is watched takes about a tenth longer in the default
preset. In a loop of one's own:

    from minillm.training.watch import Watch, plot, remarks

    watch = Watch(model, every=20)
    for step in range(1, 201):
        with watch.step(step):  # from the forward to the end of the optimiser's step
            ...
    print(*remarks(watch.records), sep="\\n")
    plot(watch.records, Path("watch.png"))

Nothing is changed by being watched: a run with and one without end with the same weights, bit for bit.
"""

from __future__ import annotations

import contextlib
import math
import re
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minillm.autograd import Tensor, observe
from minillm.backend import Array
from minillm.device import to_host
from minillm.files import writing
from minillm.nn import Module
from minillm.optim.clip import sum_of_squares
from minillm.training.config import WATCH_EVERY

# Where a remark begins.
FAST, SLOW = 0.1, 1e-6  # update / weights
FLAT = 1e-3  # the size of a gradient in one block beside the largest of the same layer in other blocks
HUGE = 1e4  # size of an output
DEAD = 0.95  # share of zeros in an output


class Watch:
    """Watches a model; what is found in a step is a dict.

    every: step 1 is watched, and every step whose number this divides; None for no step.
    on_record: called with each new dict; without it, `records` gathers them.
    """

    def __init__(
        self, model: Module, every: int | None = WATCH_EVERY, on_record: Callable[[dict[str, Any]], Any] | None = None
    ):
        self.model, self.every = model, every
        self.records: list[dict[str, Any]] = []
        self.on_record = on_record or self.records.append
        self._layers: dict[str, dict[str, Any]] = {}
        self._seconds = 0.0

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Watch a step, from its forward to the end of the optimiser's step, if it is the turn of this number."""
        if self.every is None or (number != 1 and number % self.every):
            yield
            return
        self._layers, self._seconds = {}, 0.0
        started = time.perf_counter()
        before = {name: _numbers(x.data).copy() for name, x in self.model.named_parameters() if x.requires_grad}
        self._seconds += time.perf_counter() - started
        with observe(on_module=self._look):
            yield
        started = time.perf_counter()
        layers = {name: _finished(sums) for name, sums in self._layers.items()}
        for name, found in self._weights(before).items():
            layers.setdefault(name, {}).update(found)
        self._seconds += time.perf_counter() - started
        self.on_record({"step": number, "seconds": self._seconds, "layers": _without_nan(layers)})

    def _look(self, module: Module, inputs: tuple, output: Any) -> None:
        """An observer of modules: add what a layer returns to its sums, and its gradient when that comes."""
        started = time.perf_counter()
        y = output[0] if isinstance(output, tuple) and output else output
        if isinstance(y, Tensor) and module.name and y.dtype.kind not in "iub" and y.numel():
            sums = self._layers.setdefault(module.name, dict(squares=0.0, size=0, largest=0.0, zeros=0))
            array = _numbers(y.data)
            sums["squares"] += _squares(array)
            sums["size"] += array.size
            sums["largest"] = max(sums["largest"], float(abs(array).max()))
            sums["zeros"] += array.size - int((array != 0).sum())
            if y.requires_grad:
                y.register_hook(lambda gradient: self._look_back(sums, gradient))
        self._seconds += time.perf_counter() - started

    def _look_back(self, sums: dict[str, Any], gradient: Array) -> None:
        started = time.perf_counter()
        sums["gradient_squares"] = sums.get("gradient_squares", 0.0) + _squares(gradient)
        sums["gradient_size"] = sums.get("gradient_size", 0) + gradient.size
        self._seconds += time.perf_counter() - started

    def _weights(self, before: dict[str, Array]) -> dict[str, dict[str, float]]:
        """The sizes of each layer's own weights, gradients and updates."""
        sums: dict[str, dict[str, float]] = {}
        for name, parameter in self.model.named_parameters():
            if name not in before:
                continue
            own = sums.setdefault(name.rpartition(".")[0] or name, dict(weight=0.0, gradient=0.0, update=0.0, size=0))
            own["size"] += parameter.numel()
            own["weight"] += _squares(before[name])
            own["update"] += _squares(np.subtract(_numbers(parameter.data), before[name], out=before[name]))
            own["gradient"] += 0.0 if parameter.grad is None else _squares(parameter.grad)
        return {
            name: {
                "weight": math.sqrt(own["weight"] / own["size"]),
                "weight_gradient": math.sqrt(own["gradient"] / own["size"]),
                "update": math.sqrt(own["update"] / own["size"]),
                "ratio": math.sqrt(own["update"] / own["weight"]) if own["weight"] else math.nan,
            }
            for name, own in sums.items()
        }


def _numbers(array: Array) -> Array:
    """The array itself; of bfloat16, which has hardly any arithmetic, its numbers in float32 on the host."""
    return array if array.dtype.kind == "f" else to_host(array).astype(np.float32)


def _squares(array: Array) -> float:
    return float(sum_of_squares([_numbers(array).reshape(-1)]))


def _finished(sums: dict[str, Any]) -> dict[str, float]:
    found = {
        "activation": math.sqrt(sums["squares"] / sums["size"]),
        "largest": sums["largest"],
        "zeros": sums["zeros"] / sums["size"],
    }
    if "gradient_size" in sums:
        found["gradient"] = math.sqrt(sums["gradient_squares"] / sums["gradient_size"])
    return found


def _without_nan(layers: dict[str, dict[str, float]]) -> dict[str, dict[str, float | None]]:
    """The same, with None for what is not finite, which JSON has no number for."""
    return {
        layer: {name: value if math.isfinite(value) else None for name, value in found.items()}
        for layer, found in layers.items()
    }


# --- in words ------------------------------------------------------------------------------------------------------


class Rule(NamedTuple):
    """A number that is unusual in a layer, and what to say then; `most` is the largest of this layer in all blocks."""

    what: str
    is_unusual: Callable[[float, float], bool]  # of the number and the most
    sentence: str


RULES = (
    Rule(
        "ratio",
        lambda x, most: x > FAST,
        "a step moves the weights by {x:.0%} of their size; 0.1% is usual, and 10% or more means that a few steps "
        "replace them: lower --lr",
    ),
    Rule(
        "ratio",
        lambda x, most: x < SLOW,
        "a step moves the weights by {x:.0e} of their size, and they hardly learn: raise --lr, or ask "
        "minillm.study.why if a gradient reaches them",
    ),
    Rule(
        "gradient",
        lambda x, most: x < FLAT * most,
        "the gradient of the output is {x:.0e}, less than a thousandth of what it is in another block: it vanishes on "
        "its way; look for saturation, or for a residual connection or normalisation that is missing",
    ),
    Rule(
        "activation",
        lambda x, most: x > HUGE,
        "the output has a size of {x:.1e}, where 0.01 to 100 is usual: lower --lr, or normalise what comes in",
    ),
    Rule(
        "zeros",
        lambda x, most: x > DEAD,
        "{x:.0%} of the outputs are 0, which no gradient passes: dead units; lower --lr, or use gelu in place of relu",
    ),
)


def remarks(records: list[dict[str, Any]]) -> list[str]:
    """The unusual things in the later half of the records, each with its number, what is usual, and what to do.

    A model that learns well gives no remark; the first records are left out, as sizes settle there.
    """
    later, found = records[len(records) // 2 :], []
    for rule in RULES:
        numbers = _medians(later, rule.what)
        most: dict[str, float] = {}
        for layer, number in numbers.items():
            most[_kind(layer)] = max(number, most.get(_kind(layer), 0.0))
        layers = [layer for layer, number in numbers.items() if rule.is_unusual(number, most[_kind(layer)])]
        if layers:
            found.append(f"{_some(layers)}: {rule.sentence.format(x=numbers[layers[0]])}")
    return found


def _medians(records: list[dict[str, Any]], what: str) -> dict[str, float]:
    """The median of a number of each layer over these records."""
    values: dict[str, list[float]] = {}
    for record in records:
        for layer, found in record["layers"].items():
            if found.get(what) is not None:
                values.setdefault(layer, []).append(found[what])
    return {layer: statistics.median(own) for layer, own in values.items()}


def _kind(layer: str) -> str:
    """The name of a layer for all blocks: h.*.attn for h.3.attn."""
    return re.sub(r"\d+", "*", layer)


def _some(layers: list[str]) -> str:
    return ", ".join(layers[:3]) + (f" and {len(layers) - 3} more layers" if len(layers) > 3 else "")


# --- the picture ---------------------------------------------------------------------------------------------------

PANELS = {
    "activation": "size of the output",
    "gradient": "size of the output's gradient",
    "ratio": "update / weights (usual: about 0.001)",
}


def plot(records: list[dict[str, Any]], path: Path) -> None:
    """Draw the records as PNG: for each layer and each step that was watched, three numbers as colours."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure  # no pyplot: it would look for a display

    names = list(dict.fromkeys(layer for record in records for layer in record["layers"]))
    rows = {what: [name for name in names if _has(records, name, what)] for what in PANELS}
    tallest = max(1, *(len(layers) for layers in rows.values()))
    figure = Figure(figsize=(15, 2.2 + 0.17 * tallest), dpi=110, layout="constrained")
    for axes, (what, title) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        table = np.array(
            [[record["layers"].get(layer, {}).get(what) or np.nan for record in records] for layer in rows[what]], float
        )
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
        if not np.isfinite(table).any():
            continue
        low, high = float(np.nanmin(table)), float(np.nanmax(table))
        image = axes.imshow(
            table, aspect="auto", interpolation="nearest", cmap="viridis", norm=LogNorm(low, max(high, low * 10))
        )
        axes.set_yticks(range(len(rows[what])), rows[what], fontsize=7, parse_math=False)
        shown = np.unique(np.linspace(0, len(records) - 1, min(len(records), 6)).astype(int))
        axes.set_xticks(shown, [str(records[i]["step"]) for i in shown])
        figure.colorbar(image, ax=axes)
    with writing("train", path) as unfinished:
        figure.savefig(unfinished, format="png")


def _has(records: list[dict[str, Any]], layer: str, what: str) -> bool:
    return any(record["layers"].get(layer, {}).get(what) is not None for record in records)
