"""Schedules: between 0 and the peak, rising in the warmup, never rising after it, and without jumps."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm.optim.lr_scheduler import cosine_schedule, wsd_schedule


@st.composite
def settings_of(draw: st.DrawFn) -> dict[str, float]:
    """Settings that `cosine_schedule` takes, down to a training of one step."""
    total = draw(st.integers(1, 300))
    peak = draw(st.floats(1e-8, 10))
    return {
        "peak": peak,
        "floor": peak * draw(st.floats(0, 1)),
        "warmup": draw(st.integers(0, total - 1)),
        "total": total,
    }


@st.composite
def wsd_settings_of(draw: st.DrawFn) -> dict[str, float]:
    """Settings that `wsd_schedule` takes."""
    settings = draw(settings_of())
    return settings | {"decay": draw(st.integers(0, settings["total"] - max(settings["warmup"], 1)))}


def check_shape(rates: list[float], warmup: int, total: int, peak: float, lowest: float, steepest: float) -> None:
    """Check the bounds, both monotone parts, and that no step changes the rate by more than `steepest`."""
    slack = 1e-12 * peak
    assert all(0 < rate <= peak + slack for rate in rates[:warmup])
    assert all(lowest - slack <= rate <= peak + slack for rate in rates[warmup:])
    assert all(after > before for before, after in pairwise(rates[:warmup]))
    after_warmup = rates[warmup:]
    assert all(after <= before + slack for before, after in pairwise(after_warmup))
    assert all(abs(after - before) <= steepest + slack for before, after in pairwise(rates[: total + 3]))


@given(settings=settings_of())
def test_cosine(settings: dict) -> None:
    peak, floor, warmup, total = (settings[name] for name in ("peak", "floor", "warmup", "total"))
    rates = [cosine_schedule(step, **settings) for step in range(total + 5)]
    curve = (peak - floor) * math.pi / 2 / max(1, total - 1 - warmup)  # the steepest slope of half a cosine
    # The last step of the warmup has the peak, and so has the step after it. With one step left there is no curve.
    steepest = max(peak / max(1, warmup), curve, peak - floor if total - 1 - warmup < 1 else 0.0)
    check_shape(rates, warmup, total, peak, floor, steepest)
    assert max(rates) == pytest.approx(peak)
    assert rates[total:] == pytest.approx([floor] * 5)
    if total > 1:
        assert rates[total - 1] == pytest.approx(floor)


@given(settings=wsd_settings_of())
def test_warmup_stable_decay(settings: dict) -> None:
    peak, floor, warmup, total, decay = (settings[name] for name in ("peak", "floor", "warmup", "total", "decay"))
    rates = [wsd_schedule(step, **settings) for step in range(total + 5)]
    steepest = max(peak / max(1, warmup), (peak - floor) / max(1, decay))
    check_shape(rates, warmup, total, peak, floor, steepest)
    assert rates[warmup : total - decay] == [peak] * (total - decay - warmup)
    assert rates[total - 1 :] == pytest.approx([floor if decay else peak] * 6) or not decay
