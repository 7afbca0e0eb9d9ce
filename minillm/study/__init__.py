"""Tools that explain and prove: the gradient-check table, profiles, descriptions, differences, parallel reports.

Questions about a step of one's own, one call each; `loss` is a tensor whose backward has not run yet:

    graph(loss)        a picture of the graph, folded by module (SVG and DOT)
    table(loss)        every operation: where it was called, its shapes, what it keeps, its parameters
    memory(loss)       the bytes that the graph keeps for the backward, by layer
    probe(x, "name")   x itself; `probes` then has the statistics of its values and of its gradient
    why(x, loss)       the reason why x.grad is None, zero, or so large, and what to do
    nonfinite()        a context that stops at the first operation, and line, that makes a NaN or an infinity
    Watch(...)         statistics of every layer over a training, for a loop of one's own: `minillm train --watch`
"""

import importlib
import importlib.util
from typing import Any

# Where the functions are that `minillm.study` has; each is imported when it is first named.
_PLACES = {
    "graph": "minillm.study.questions.graph",
    "table": "minillm.study.questions.table",
    "memory": "minillm.study.questions.memory",
    "probe": "minillm.study.questions.probe",
    "probes": "minillm.study.questions.probe",
    "why": "minillm.study.questions.why",
    "Watch": "minillm.training.watch",
    "nonfinite": "minillm.study.questions.nonfinite",
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    if not name.startswith("_") and importlib.util.find_spec(f"minillm.study.{name}") is not None:
        return importlib.import_module(f"minillm.study.{name}")
    raise AttributeError(f"module 'minillm.study' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
