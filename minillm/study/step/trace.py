"""A training step in the plain engine, as data: every op, every line, every gradient, every parameter's update.

    model = GPT2(GPT2Config.preset("nano"))
    trace = trace_step(model, lambda model: model.loss(ids, targets), AdamW(model.parameters()))
    trace.find("layernorm backward in h.0.ln_2").lines[3].made["dweight"]

The step is the step that it would be without being watched, bit for bit. records.py says what a trace is made of.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from minillm import random as drawing
from minillm.autograd import Tensor
from minillm.backend import Array
from minillm.counted import counted
from minillm.device import to_host
from minillm.engine import current_engine
from minillm.engine import engine as using_engine
from minillm.errors import InputError
from minillm.nn import Module
from minillm.optim import Optimizer
from minillm.study.step.recorder import OnLine, Recorder, leaf_name, place
from minillm.study.step.records import (
    Line,
    ModuleEntry,
    ParameterStop,
    Sent,
    Source,
    StepTrace,
    Stop,
    Value,
)

__all__ = [
    "Line",
    "ModuleEntry",
    "ParameterStop",
    "Sent",
    "Source",
    "StepTrace",
    "Stop",
    "Value",
    "trace_backward",
    "trace_step",
]

LARGEST = 1 << 21  # elements of an array that is kept


def trace_step(
    model: Module,
    compute_loss: Callable[[Any], Tensor],
    optimizer: Optimizer | None = None,
    *,
    engine: str = "plain",
    clip: float | None = None,
    batch: Mapping[str, Array] | None = None,
    tokens: Mapping[str, list[list[str]]] | None = None,
    seed: int = 0,
    largest: int = LARGEST,
    mutations: Mapping[str, Callable] | None = None,
    on_line: OnLine | None = None,
) -> StepTrace:
    """Run one training step of a model, and return everything that it made.

    compute_loss: given the model, computes the loss, a tensor with one element. optimizer: moves the parameters;
    without one, the step ends with the gradients. clip: the largest norm of all gradients together. batch: arrays that
    the loss reads, by name. tokens: for those that hold ids, the text of each, row by row. seed: of the random numbers
    for dropout. largest: elements of an array that is kept. mutations: backwards that run in place of an operation's
    own, by its name. on_line: called after each line with its stop, the line, and the frame.
    Raises: InputError for a loss that is no single number that depends on a parameter.
    """
    recorder = Recorder(largest, on_line, mutations)
    recorder.add(_tokens_stop(recorder, batch or {}))
    model.zero_grad()
    with using_engine(engine), drawing.using(drawing.Generator(seed)), recorder.recording(engine == "plain"):
        loss = compute_loss(model)
        _check_loss(loss)
        recorder.add(_loss_stop(recorder, loss))
        loss.backward(np.ones_like(loss.data))
    trace = _trace_of(recorder, loss, engine)
    trace.modules, trace.tokens, trace.model = _modules(model), dict(tokens or {}), type(model).__name__
    trace.seed, trace.rerun = seed, (model, compute_loss)
    if optimizer is not None:
        _update(trace, recorder, optimizer, clip)
    _finish(trace, recorder)
    return trace


def trace_backward(
    loss: Tensor | Callable[[], Tensor],
    gradient: Any = None,
    *,
    largest: int = LARGEST,
    on_line: OnLine | None = None,
) -> StepTrace:
    """Run `loss.backward(gradient)`, and return everything that it made, with the lines of the functions that ran.

    loss: a tensor, or a function that computes it in the plain engine, whose forward is traced too.
    Raises: as `backward`; InputError for a function that returns no tensor that needs a gradient.
    """
    recorder = Recorder(largest, on_line)
    engine = current_engine() if isinstance(loss, Tensor) else "plain"
    with using_engine(engine), recorder.recording(lines=True):
        if not isinstance(loss, Tensor):
            loss = loss()
            if not isinstance(loss, Tensor) or not loss.requires_grad:
                raise InputError(f"step: the function returned {loss!r}; return a tensor that depends on a parameter")
            recorder.add(_loss_stop(recorder, loss))
        loss.backward(gradient)
    trace = _trace_of(recorder, loss, engine)
    _finish(trace, recorder)
    return trace


def _check_loss(loss: Any) -> None:
    if not isinstance(loss, Tensor) or loss.data.size != 1 or not loss.requires_grad:
        raise InputError(f"trace_step: the loss is {loss!r}; compute one number that depends on a parameter")


def _trace_of(recorder: Recorder, loss: Tensor, engine: str) -> StepTrace:
    value = float(loss.data.item()) if loss.data.size == 1 else float("nan")
    return StepTrace(recorder.stops, recorder.watcher.reader.sources, [], {}, value, engine)


def _finish(trace: StepTrace, recorder: Recorder) -> None:
    recorder.link()
    if recorder.keeper.left_out:
        largest = recorder.keeper.largest
        large = counted(recorder.keeper.left_out, "array")
        trace.notes.append(f"left out: {large} of more than {counted(largest, 'element')}")


def _tokens_stop(recorder: Recorder, batch: Mapping[str, Array]) -> Stop:
    """The first stop: the arrays of the batch."""
    stop = Stop(0, "tokens", "tokens", "", "")
    for name, array in batch.items():
        kept = recorder.keeper.keep(array)
        stop.outputs.append(Value(name, kept, np.shape(array), str(np.asarray(array).dtype), data=name))
        recorder.batch[id(kept)] = name
    return stop


def _loss_stop(recorder: Recorder, loss: Tensor) -> Stop:
    """The stop between forward and backward."""
    kept = recorder.keeper.keep(loss.data)
    made = recorder.forward_of(loss)
    value = Value("loss", kept, loss.shape, str(loss.dtype), stop=made, output=loss.index if made else 0)
    return Stop(0, "loss", "loss", "", "", inputs=[value], outputs=[value], partner=made)


def _modules(model: Module) -> list[ModuleEntry]:
    """The tree of the model; a shared parameter is named where it is found first."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    entries = []
    for path, module in model.named_modules():
        own = [child for _, child in module.named_children() if id(child) in names]
        entries.append(ModuleEntry(path, type(module).__name__, tuple(names[id(child)] for child in own)))
    return entries


def _update(trace: StepTrace, recorder: Recorder, optimizer: Optimizer, clip: float | None) -> None:
    """Clip and move the parameters, with a stop for each that moves."""
    found = [
        (parameter, group, number)
        for group in optimizer.groups
        for number, parameter in enumerate(group.parameters)
        if parameter.grad is not None
    ]
    stops: dict[Any, ParameterStop] = {}
    for parameter, group, number in found:
        _, _, masters, *moments = group.parts_of(number)
        stop = ParameterStop(0, "update", type(optimizer).__name__, leaf_name(parameter), "")
        stop.before, stop.grad = recorder.keeper.keep(masters), recorder.keeper.keep(parameter.grad)
        stop.waited = [recorder.received.get(id(parameter), [])]
        stop.inputs = [Value("grad", stop.grad, parameter.shape, str(parameter.dtype), parameter=stop.scope)]
        stop.moments_before = dict(zip(group.moments, map(recorder.keeper.keep, moments), strict=True))
        stops[place(masters)] = stop
    with using_engine(trace.engine):
        if clip is not None:
            trace.grad_norm = float(optimizer.clip_grad_norm(clip))
            trace.clip_factor = float(np.asarray(to_host(optimizer.clip_factor)).item())
        with recorder.updating(optimizer, stops) if trace.engine == "plain" else contextlib.nullcontext():
            optimizer.step()
    for parameter, group, number in found:
        _, _, masters, *moments = group.parts_of(number)
        stop = stops[place(masters)]
        stop.after = recorder.keeper.keep(masters)
        stop.moments_after = dict(zip(group.moments, map(recorder.keeper.keep, moments), strict=True))
        if stop.after is not None and stop.before is not None:
            stop.update = recorder.keeper.keep(stop.after - stop.before)
        stop.outputs = [Value("w", stop.after, parameter.shape, str(masters.dtype), parameter=stop.scope)]
        if stop not in recorder.stops:
            stop.index = len(recorder.stops)
            recorder.stops.append(stop)
