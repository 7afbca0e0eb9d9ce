"""A page of HTML in which a person walks through a traced step: `write_page(trace, Path("step.html"))`.

The page is one file without a network (minillm/page). page.html is the body, page.css the style, and the script
consists of

    page_arrays.js    reads the numbers, writes them as text, and draws heat maps
    page_scope.js     what a line of source can read
    page_formula.js   evaluates the lines of source for one element (see formulas.py); page_written.js writes them down
    page_figures.js   an array with its heat map, its cursor and its numbers
    page_element.js   the element that is chosen: where it comes from, and its central difference
    page_panels.js    why now, sums of gradients, the residual stream, a parameter through the step
    page_compare.js   another trace beside this one
    page_graph.js     the graph at the left
    page_keys.js      addresses, keys and search
    page.js           the walk: where a person is, and what is shown there

`document_of` has what the page knows of the trace as plain data, without the numbers, which store.py packs.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from pathlib import Path
from typing import Any

from minillm.files import check_folder_of, writing
from minillm.page import assemble
from minillm.study.step.compare import Comparison
from minillm.study.step.formulas import formulas
from minillm.study.step.records import ParameterStop, Sent, Source, StepTrace, Stop, Value
from minillm.study.step.residual import residual_stream
from minillm.study.step.samples import checked_samples
from minillm.study.step.store import Level, Store
from minillm.study.step.vocabulary import vocabulary_stops

LARGEST_PAGE = 4_800_000  # letters of the data; the script and the style have 100,000
RECORD = 80  # bytes, compressed, of what the page knows of an array beside its numbers
PARTS = "arrays scope formula written figures element panels compare graph keys".split()
SCRIPTS = (*(f"page_{name}.js" for name in PARTS), "page.js")


def write_page(trace: StepTrace, out: Path, *, compare: Comparison | None = None) -> Path:
    """Write the page of a trace, and return where it is.

    compare: a comparison of this trace with another, which stands beside it on the page.
    Raises: InputError where the page cannot be written.
    """
    out = Path(out)
    check_folder_of("step", "--out", out)
    store = Store()
    document = document_of(trace, store) | {"checks": checked_samples(trace)}
    if compare is not None:
        document["compare"] = compare_of(compare, document, store)
    room = LARGEST_PAGE * 3 // 4 - len(compressed(document)) - RECORD * len(store)  # base64 makes 4 letters of 3 bytes
    document["arrays"], numbers, level = store.packed(room)
    document["notes"] = [*trace.notes, *notes_on(level, document["arrays"])]
    with writing("step", out) as unfinished:
        unfinished.write_text(page_of(document, numbers), encoding="utf-8")
    return out


def compressed(document: dict[str, Any]) -> bytes:
    """The document as JSON, compressed."""
    text = json.dumps(finite(document), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return zlib.compress(text.encode(), 9)


def finite(value: Any) -> Any:
    """The value with None in place of every NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def page_of(document: dict[str, Any], numbers: bytes) -> str:
    """The text of the page for a document and its packed numbers."""
    return assemble(
        __package__,
        "page.html",
        ["page.css"],
        SCRIPTS,
        f"One training step of {document['model']}, line by line",
        DOCUMENT=base64.b64encode(compressed(document)).decode(),
        NUMBERS=base64.b64encode(numbers).decode(),
    )


def notes_on(level: Level, arrays: list[dict[str, Any]]) -> list[str]:
    """The note for a reader on how arrays are stored."""
    rounded = sum("exponent" in array and "image" not in array for array in arrays)
    images = sum("image" in array for array in arrays)
    found = []
    if rounded:
        found.append(
            f"{rounded} of {len(arrays)} arrays, those of more than {level.exact:,} numbers, are stored in 16 bits: "
            "three digits are right. Their statistics are those of the exact numbers."
        )
    if images:
        found.append(
            f"{images} of {len(arrays)} arrays, those of more than {level.half:,} numbers, are stored as pictures of "
            f"{level.side} x {level.side} blocks. Their statistics are those of the exact numbers."
        )
    return found or ["Every number is stored exactly."]


def document_of(trace: StepTrace, store: Store) -> dict[str, Any]:
    """The data of the page about a trace; arrays are numbers in `store`."""
    derivations: list[str] = []
    sizes = vocabulary_stops(trace) if trace.vocabulary else {}
    return {
        "model": trace.model,
        "engine": trace.engine,
        "seed": trace.seed,
        "loss": trace.loss,
        "gradNorm": trace.grad_norm,
        "clipFactor": trace.clip_factor,
        "tokens": trace.tokens,
        "vocabulary": trace.vocabulary,
        "modules": [{"path": one.path, "kind": one.kind} for one in trace.modules],
        "stops": [stop_of(stop, store) | {"vocabulary": sizes.get(stop.index, 0)} for stop in trace.stops],
        "sources": {key: source_of(key, source, derivations) for key, source in trace.sources.items()},
        "derivations": derivations,
        "residual": [{**one._asdict(), "backward": trace.stops[one.stop].partner} for one in residual_stream(trace)],
        "words": [one._asdict() for one in trace.readings],
    }


def compare_of(comparison: Comparison, document: dict[str, Any], store: Store) -> dict[str, Any]:
    """A comparison with the stops of its second trace; what functions ran there joins the sources."""
    other = document_of(comparison.b, store)
    shift = len(document["derivations"])
    document["derivations"] += other["derivations"]
    for key, source in other["sources"].items():
        document["sources"].setdefault(key, source | {"derivation": source["derivation"] + shift})
    return {**comparison.to_json(), "stops": other["stops"]}


def source_of(key: str, source: Source, derivations: list[str]) -> dict[str, Any]:
    """The text of a function with the formulas of its lines."""
    if source.derivation not in derivations:
        derivations.append(source.derivation)
    file = Path(source.file).as_posix()
    _, inside, short = file.rpartition("/minillm/")
    return {
        "file": f"minillm/{short}" if inside else Path(file).name,
        "first": source.first,
        "lines": list(source.lines),
        "derivation": derivations.index(source.derivation),
        "formulas": formulas(key, source),
    }


def stop_of(stop: Stop, store: Store) -> dict[str, Any]:
    """A stop with its lines."""
    found: dict[str, Any] = {
        "kind": stop.kind,
        "op": stop.op,
        "scope": stop.scope,
        "where": stop.where,
        "title": stop.title,
        "function": stop.function,
        "partner": stop.partner,
        "settings": stop.settings,
        "inputs": [value_of(one, store) for one in stop.inputs],
        "outputs": [value_of(one, store) for one in stop.outputs],
        "waited": [[sent_of(one, store) for one in group] for group in stop.waited],
        "hooked": stop.hooked,
        "lines": [
            {
                "function": line.function,
                "number": line.number,
                "depth": line.depth,
                "made": {name: store.number(array) for name, array in line.made.items()},
                "values": line.values,
                "error": line.error,
            }
            for line in stop.lines
        ],
    }
    if isinstance(stop, ParameterStop):
        found["update"] = {
            "value": store.number(stop.before),
            "gradient": store.number(stop.grad),
            **{f"{name} before": store.number(array) for name, array in stop.moments_before.items()},
            **{f"{name} after": store.number(array) for name, array in stop.moments_after.items()},
            "update": store.number(stop.update),
            "new value": store.number(stop.after),
        }
    return found


def value_of(value: Value, store: Store) -> dict[str, Any]:
    """An array at the edge of an op, with what made it or where it goes."""
    return {
        "name": value.name,
        "array": store.number(value.array),
        "shape": None if value.shape is None else list(value.shape),
        "dtype": value.dtype,
        "stop": value.stop,
        "output": value.output,
        "parameter": value.parameter,
        "data": value.data,
    }


def sent_of(sent: Sent, store: Store) -> dict[str, Any]:
    """A gradient that arrived, with who sent it."""
    return {"stop": sent.stop, "input": sent.input, "name": sent.name, "array": store.number(sent.array)}
