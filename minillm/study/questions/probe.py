"""`probe(x, "name")`: look at an intermediate tensor, its values and its gradient, without changing anything.

h = probe(self.ln_1(x), "after ln_1")      # h has the values of ln_1(x); gradients pass as they are
...
loss.backward()
print(minillm.study.probes)                # name, calls, statistics of the values and of the gradient
minillm.study.probes["after ln_1"].gradient.rms
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minillm.autograd import Op, Tensor
from minillm.errors import DtypeError, InputError, check_array
from minillm.study.questions.statistics import Statistics
from minillm.study.questions.text import aligned


@dataclass
class Probe:
    """The latest look at a tensor; `calls` counts the forwards since the name was new or `probes` was cleared."""

    name: str
    calls: int
    value: Statistics
    gradient: Statistics | None = None  # None until a backward has come here


class Probes(dict[str, Probe]):
    """The latest look of each probe by name, in the order in which the names came; `clear()` forgets all."""

    def __repr__(self) -> str:
        if not self:
            return "no probe has run yet; put y = minillm.study.probe(y, 'a name') into the forward"
        head = ["probe", "calls", "values", "gradient"]
        rows = [
            [probe.name, str(probe.calls), str(probe.value), "none yet" if not probe.gradient else _short(probe)]
            for probe in self.values()
        ]
        return aligned(head, rows, right=(1,))


def _short(probe: Probe) -> str:
    return str(probe.gradient).removeprefix(f"{probe.value.shape} {probe.value.dtype}, ")


probes = Probes()


def probe_forward(x, *, name):
    before = probes.get(name)
    probes[name] = now = Probe(name, 1 + (before.calls if before else 0), Statistics.of(x))
    return x.view(), now


def probe_backward(dy, saved):
    saved.gradient = Statistics.of(dy)
    return (dy,)


PROBE = Op("probe", probe_forward, probe_backward, aliases=True)


def probe(x: Any, name: str) -> Tensor:
    """x itself; `minillm.study.probes[name]` then has the statistics of its values, and later of its gradient.

    The gradient is the whole dL/dx that comes from what is computed of the result. A name that is used again keeps the
    latest look. The result has the memory of x.
    Shapes: x of any; result like x.
    Raises: DtypeError for a name that is no text.
    """
    if not isinstance(name, str):
        raise DtypeError(f"probe: name is a {type(name).__name__}; give a text, such as 'after ln_1'")
    if not name:
        raise InputError("probe: name is empty; give a text, such as 'after ln_1'")
    check_array("probe", "x", x)
    return PROBE(x if isinstance(x, Tensor) else Tensor(x), name=name)
