"""Pictures: the losses of a run beside the curve of its preset, and the range test of the learning rate."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from minillm.files import writing
from minillm.study.doctor.finding import Finding
from minillm.study.doctor.history import History
from minillm.study.doctor.rates import Rates
from minillm.study.doctor.reference import curve_of, differing

BLUE, RED, GREY = "#9dbbd8", "#c2452d", "#8a8a8a"


def draw_run(history: History, findings: Iterable[Finding], path: Path) -> None:
    """Write a PNG: the losses, the stretches that are compared, the curve of the preset; and what was found."""
    figure, axes = _figure()
    axes.plot(history.steps, history.losses, color=BLUE, linewidth=0.7, label="training, each batch")
    parts = history.stretches
    ends = [0, *(one.step for one in parts)]
    middles = [(first + last) / 2 for first, last in itertools.pairwise(ends)]
    axes.plot(middles, [one.loss for one in parts], color="#33658a", label="training, means")
    rows = history.validated
    axes.plot([r["step"] for r in rows], [r["val_loss"] for r in rows], color=RED, marker="o", ms=3, label="validation")
    curve = curve_of(str(history.settings.get("preset")))
    if curve is not None and not differing(history.settings, curve):
        low, high = (curve.means * (1 + sign * curve.allowed()) for sign in (-1, 1))
        axes.fill_between(curve.steps, low, high, color=GREY, alpha=0.25, label=f"usual for {curve.preset}")
    alarms = [one.name for one in findings if one.is_alarm]
    axes.set(xlabel="step", ylabel="loss", title=", ".join(dict.fromkeys(alarms)) or "no alarm")
    axes.legend(fontsize=8)
    _save(figure, path)


def draw_rates(rates: Rates, lr: float, path: Path) -> None:
    """Write a PNG: the loss over the rate, with the rate that was asked for and the one that is suggested."""
    figure, axes = _figure()
    axes.semilogx(rates.rates, rates.losses, color=BLUE, linewidth=0.7, label="each batch")
    axes.semilogx(rates.rates, rates.smooth, color="#33658a", label="smoothed")
    marked = ((lr, RED, "--", f"lr = {lr:g}"), (rates.suggested, GREY, ":", f"suggested: {rates.suggested:.1g}"))
    for at, color, style, label in marked:
        axes.axvline(at, color=color, linestyle=style, linewidth=1, label=label)
    top = 1.3 * rates.smooth[0]
    axes.set(xlabel="learning rate", ylabel="loss", ylim=(0.95 * rates.smooth.min(), top), title="range test")
    axes.legend(fontsize=8)
    _save(figure, path)


def _figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # no pyplot: it would look for a display

    figure = Figure(figsize=(7, 4.2), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.25)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    with writing("doctor", path) as unfinished:
        figure.savefig(unfinished, format="png")
