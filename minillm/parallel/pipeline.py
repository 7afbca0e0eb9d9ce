"""Pipeline parallelism: each rank is a stage and has a range of the layers; a batch flows through in micro-batches.

With p stages and m micro-batches, a stage that has done a forward sends its activations on to the next one and turns
to the next micro-batch; gradients come back the other way. Every stage waits while the pipeline fills and empties,
p - 1 times a forward and a backward of a micro-batch, and works m times, so of its time it waits

    bubble = (p - 1) / (m + p - 1)

whichever of two schedules it follows (here p = 3, m = 4; a digit is a forward of that micro-batch, a letter, a = 0, a
backward, as long as a forward to keep the picture small):

    gpipe   0 1 2 3 . . . . a b c d         1f1b    0 1 2 . . a 3 b . c . d
            . 0 1 2 3 . . a b c d .                 . 0 1 . a 2 b 3 c . d .
            . . 0 1 2 3 a b c d . .                 . . 0 a 1 b 2 c 3 d . .

- gpipe does all forwards, then all backwards: the activations of m micro-batches live at a time (Huang et al. 2018,
  "GPipe", arXiv:1811.06965, figure 2).
- 1f1b does one forward, one backward, as soon as it can: stage s (from 0) has p - s micro-batches alive at most,
  however many there are (Narayanan et al. 2021, arXiv:2104.04473, section 2.2.1, there called PipeDream-Flush).

A stage computes what one process would: it adds the micro-batches' gradients in the same order, and dropout draws its
numbers from the places of the random stream where one process would be. One process runs a micro-batch through all
layers, then the next one; a stage finds its place because it knows how many numbers each stage uses for a micro-batch.

Where the output layer is the token table, the first and the last stage both have it, and add up its two gradients.

A stage sends in a step, of a batch of B sequences of T tokens, C channels and k bytes a number,

    activations   B T C k    but for the last stage
    gradients     B T C k    but for the first
    gradients     V C k      the first and the last, where the table of V tokens is tied
    loss          8 (p - 1)  the last, to all others

and once for each new shape of a micro-batch 16 (p - 1) bytes, where there is dropout. Sends and receives are started
one action of the schedule ahead, so they go on while a stage computes, and one more activation and a few gradients
than those above are in memory. Communicators never let a receive from a neighbour wait for a send to it; sends, like
receives, are in the order of the micro-batches.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from minillm import random
from minillm.autograd import Parameter, Tensor, no_grad
from minillm.backend import Array, contiguous
from minillm.errors import GraphError, InputError
from minillm.nn import Decoder, Module
from minillm.parallel.communicator import Communicator, Work, bounds
from minillm.parallel.wrapper import replace, unwrap

SCHEDULES = ("1f1b", "gpipe")
LAST_STAGE = ("ln_f", "lm_head")  # layers after the blocks; what else is beside them comes before
GRADIENT_SENDS = 2  # that may be under way before a stage waits for them: each holds the memory of an activation

Action = tuple[str, int]  # "forward" or "backward", and of which micro-batch


class Event(NamedTuple):
    """A forward or backward of a stage with its start and end in seconds, without the wait for other stages."""

    stage: int
    kind: str
    micro_batch: int
    start: float
    end: float


class MicroBatch(NamedTuple):
    """Some rows of a batch: ids and targets (B, T).

    rows: where other ranks have more rows of this micro-batch (data parallel), the number of rows before these, and
        of all together; see `random.part`.
    """

    ids: Array
    targets: Array
    rows: tuple[int, int] | None = None


# --- schedules -----------------------------------------------------------------------------------------------------


def schedule(kind: str, stage: int, stages: int, micro_batches: int) -> list[Action]:
    """The actions of a stage in order, each ("forward" or "backward", number of the micro-batch).

    kind: "gpipe" or "1f1b". In both, forwards are in the order of the micro-batches, and so are backwards.
    Raises: InputError for another kind.
    """
    check_schedule(kind)
    first = micro_batches if kind == "gpipe" else min(micro_batches, stages - stage - 1)  # forwards before a backward
    actions: list[Action] = [("forward", i) for i in range(first)]
    for i in range(first, micro_batches):
        actions += [("forward", i), ("backward", i - first)]
    return actions + [("backward", i) for i in range(micro_batches - first, micro_batches)]


def check_schedule(kind: str) -> None:
    """Raise InputError unless `schedule` knows this kind."""
    if kind not in SCHEDULES:
        raise InputError(f"schedule: there is no {kind!r}; choose {' or '.join(SCHEDULES)}")


def bubble_fraction(stages: int, micro_batches: int) -> float:
    """The share of the time that a stage waits, (p - 1) / (m + p - 1), in both schedules, if stages are equally fast.

    Source: Huang et al. 2018, arXiv:1811.06965, section 2.3.
    """
    return (stages - 1) / (micro_batches + stages - 1)


def simulate(
    kind: str, stages: int, micro_batches: int, forward: float = 1.0, backward: float = 2.0, sending: float = 0.0
) -> list[Event]:
    """The events of a step on ideal stages, on which a forward, a backward and sending take these seconds."""
    left = [deque(schedule(kind, stage, stages, micro_batches)) for stage in range(stages)]
    done: dict[tuple[int, str, int], Event] = {}
    clocks = [0.0] * stages
    while any(left):
        for stage, actions in enumerate(left):
            while actions:
                action, number = actions[0]
                giver = stage - 1 if action == "forward" else stage + 1
                start = clocks[stage]
                if 0 <= giver < stages:
                    if (giver, action, number) not in done:
                        break
                    start = max(start, done[giver, action, number].end + sending)
                clocks[stage] = start + (forward if action == "forward" else backward)
                done[stage, action, number] = Event(stage, action, number, start, clocks[stage])
                actions.popleft()
    return list(done.values())


def idle_fraction(events: Iterable[Event]) -> float:
    """The share of the time from the first event to the last that a stage does nothing, averaged over stages."""
    given = list(events)
    span = max(event.end for event in given) - min(event.start for event in given)
    busy = sum(event.end - event.start for event in given)
    return 1 - busy / (span * len({event.stage for event in given}))


# --- stages --------------------------------------------------------------------------------------------------------


class Identity(Module):
    """In place of a layer that another stage has: returns its input."""

    def forward(self, x: Tensor, *others: Any) -> Tensor:
        return x


def cut(model: Decoder, communicator: Communicator, kind: str = "1f1b") -> Pipeline:
    """Keep of a model only the layers of this rank's stage, in place; layers are divided as evenly as possible.

    Parameters keep their names: `h.3.attn.qkv.weight` is that of the whole model. Every rank passes the same model.
    Raises: InputError for more stages than layers, a parameter that layers of several stages share, or an unknown
    schedule.
    """
    check_schedule(kind)
    whole: Any = unwrap(model)
    blocks: list[Module] = whole.h
    stage, stages = communicator.rank, communicator.size
    if stages > len(blocks):
        raise InputError(
            f"pipeline: {stages} stages are more than the model's {len(blocks)} layers; give {len(blocks)} at most"
        )
    output = model.output_weight
    is_first, is_last = stage == 0, stage == stages - 1
    edges = bounds(len(blocks), stages)
    _check_shared(blocks, edges)
    tied: list[Parameter] = []
    for number in range(len(blocks)):
        if not edges[stage] <= number < edges[stage + 1]:
            blocks[number] = Identity()
    for name, layer in list(whole.named_children()):
        if not isinstance(layer, Module) or name.startswith("h."):
            continue
        shared = name not in LAST_STAGE and any(parameter is output for parameter in layer.parameters())
        if shared and stages > 1:
            tied = [parameter for parameter in layer.parameters() if parameter is output]
        if not (is_last if name in LAST_STAGE else is_first or (shared and is_last)):
            replace(whole, name, Identity())
    if not is_first:
        whole.embed = Identity()  # it gets activations instead of ids
    pair = None
    if tied:
        pair = communicator.split(0 if is_first or is_last else stage)
        tied = tied if is_first or is_last else []
    return Pipeline(model, communicator, kind, tied, pair)


def _check_shared(blocks: list[Module], edges: list[int]) -> None:
    """Raise InputError for a parameter that blocks of several stages share: each would have a part of its gradient."""
    stage_of: dict[int, int] = {}
    for stage, (first, stop) in enumerate(itertools.pairwise(edges)):
        for parameter in (parameter for block in blocks[first:stop] for parameter in block.parameters()):
            other = stage_of.setdefault(id(parameter), stage)
            if other != stage:
                raise InputError(
                    f"pipeline: stages {other} and {stage} share {parameter.name or 'a parameter'}, and each would "
                    "move it on its own; take fewer stages, or a copy of it"
                )


class Transfer(NamedTuple):
    """An array that is being sent or received, and must live until then."""

    work: Work
    array: Array

    def wait(self) -> Array:
        """Wait until the array may be used; returns it."""
        self.work.wait()
        return self.array


class InFlight(NamedTuple):
    """A micro-batch between its forward and its backward: its input, its output, and the sending of that."""

    x: Tensor | None
    y: Tensor
    sending: Transfer | None


class Pipeline:
    """A stage, made by `cut`: runs a model's steps together with the other stages.

    tied: parameters that both the first and the last stage have; `step` adds up their gradients.
    copies: names of the tied parameters on the last stage; a norm and a checkpoint leave these out.
    events: set it to a list to have each forward and backward recorded; on a GPU, when it was launched.
    """

    def __init__(
        self, model: Decoder, communicator: Communicator, kind: str, tied: list[Parameter], pair: Communicator | None
    ):
        self.model, self.communicator, self.kind, self.tied, self.pair = model, communicator, kind, tied, pair
        self.stage, self.stages = communicator.rank, communicator.size
        self.is_first, self.is_last = self.stage == 0, self.stage == self.stages - 1
        self.copies = set() if self.is_first else {parameter.name for parameter in tied}
        self.events: list[Event] | None = None
        self._used: dict[Any, list[int]] = {}  # by the shape of a micro-batch: random counters of each stage

    def accumulate_gradients(self, ids: Any, targets: Any, micro_batches: int = 1) -> Any:
        """Add the gradient of the mean loss of a batch to the parameters, computed in parts; returns the loss.

        All stages pass the same batch; targets of -100 do not count.
        """
        counted = np.maximum((targets != -100).sum(), 1).astype(np.float32)
        parts = zip(np.array_split(ids, micro_batches), np.array_split(targets, micro_batches), strict=True)
        return self.step([MicroBatch(*part) for part in parts], counted)

    def step(
        self,
        micro_batches: Sequence[MicroBatch],
        counted: Any,
        last_micro_batch: Callable[[], None] | None = None,
        sum_tied: bool = True,
    ) -> Any:
        """Add the gradient of a batch's loss to this stage's parameters; returns the loss, which all stages know.

        The loss is the sum of the token losses over `counted`, the number of tokens that count in the whole batch. On
        a GPU it is an array without dimensions, and nobody waits for it before `float(loss)`.

        last_micro_batch: called when the last micro-batch's backward begins, the one that completes the gradients.
        sum_tied: whether tied parameters get the whole gradient at the end; else call `sum_tied_gradients`.
        Raises: GraphError if a tied parameter has a gradient already, of which both stages would have a part.
        """
        if held := [parameter.name for parameter in self.tied if parameter.grad is not None]:
            raise GraphError(f"pipeline: {held[0]} has a gradient from the step before; call zero_grad first")
        places = self._places(micro_batches)
        loss = self._numbers(1)
        flying: dict[int, InFlight] = {}
        sends: deque[Transfer] = deque()
        actions = schedule(self.kind, self.stage, self.stages, len(micro_batches))
        coming = deque(self._receive(action, micro_batches) for action in actions[:1])
        for position, (action, number) in enumerate(actions):
            if position + 1 < len(actions):
                coming.append(self._receive(actions[position + 1], micro_batches))
            came = coming.popleft()
            array = came.wait() if came else None
            if action == "forward":
                if places:
                    random.default.counter = places[number]
                flying[number] = self._forward(number, micro_batches[number], array, counted, loss)
                continue
            if last_micro_batch and number == len(micro_batches) - 1:
                last_micro_batch()
            gradient = self._backward(number, flying.pop(number), array)
            if gradient is not None:
                _keep(sends, self._send(gradient, self.stage - 1, "gradients"))
        if places:
            random.default.counter = places[-1]
        for send in sends:
            send.wait()
        if sum_tied:
            self.sum_tied_gradients()
        return self._known_to_all(loss)[0]

    def losses(self, batches: Iterable[tuple[Any, Any]]) -> list[float]:
        """The mean loss of each batch (ids, targets), without gradients; one follows the other through the stages."""
        given = [MicroBatch(*batch) for batch in batches]
        found = self._numbers(len(given))
        sends: deque[Transfer] = deque()
        coming = deque(self._receive(("forward", number), given) for number in range(min(1, len(given))))
        with no_grad():
            for number, batch in enumerate(given):
                if number + 1 < len(given):
                    coming.append(self._receive(("forward", number + 1), given))
                came = coming.popleft()
                x = Tensor(came.wait()) if came else batch.ids
                if self.is_last:
                    found[number] = self.model.loss(x, batch.targets).data
                else:
                    _keep(sends, self._send(self.model.features(x).data, self.stage + 1, "activations"))
        for send in sends:
            send.wait()
        return self._known_to_all(found).tolist()

    def sum_tied_gradients(self) -> None:
        """Add up the gradients of tied parameters of the first and the last stage, on both."""
        works = [
            self.pair.all_reduce(parameter.grad, what="gradients")
            for parameter in self.tied
            if self.pair is not None and parameter.grad is not None
        ]
        for work in works:
            work.wait()

    def close(self) -> None:
        """Close the group that `cut` made; the communicator of the stages stays open."""
        if self.pair is not None:
            self.pair.close()

    # --- a micro-batch -----------------------------------------------------------------------------------------------

    def _forward(self, number: int, batch: MicroBatch, array: Array | None, counted: Any, total: Array) -> InFlight:
        x = None if array is None else Tensor(array, requires_grad=True)
        given = batch.ids if x is None else x
        with self._timed("forward", number), random.part(rows=batch.rows):
            if self.is_last:
                loss = self.model.loss(given, batch.targets, reduction="sum") / counted
                total += loss.data.astype(np.float64)
                return InFlight(x, loss, None)
            y = self.model.features(given)
        return InFlight(x, y, self._send(y.data, self.stage + 1, "activations"))

    def _backward(self, number: int, flight: InFlight, gradient: Array | None) -> Array | None:
        """The gradient of the stage's input, for the stage before; None on the first stage."""
        if flight.sending:
            flight.sending.wait()  # no waiting: the gradient that answers it is here
        with self._timed("backward", number):
            if flight.y.requires_grad:  # or all of this stage is frozen
                flight.y.backward(gradient)
        return None if flight.x is None else flight.x.grad

    @contextlib.contextmanager
    def _timed(self, kind: str, number: int) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self.events is not None:
            self.events.append(Event(self.stage, kind, number, start, time.perf_counter()))

    # --- between stages ----------------------------------------------------------------------------------------------

    def _send(self, array: Array, stage: int, what: str) -> Transfer:
        array = contiguous(array)
        return Transfer(self.communicator.send(array, stage, what), array)

    def _receive(self, action: Action, micro_batches: Sequence[MicroBatch]) -> Transfer | None:
        """Start to receive the input of an action from another stage; None if it has none."""
        kind, number = action
        source = self.stage - 1 if kind == "forward" else self.stage + 1
        if not 0 <= source < self.stages:
            return None
        shape = (*micro_batches[number].ids.shape, self.model.config.channels)
        array = np.empty_like(self._like, shape=shape, order="C")
        what = "activations" if kind == "forward" else "gradients"
        return Transfer(self.communicator.recv(array, source, what), array)

    @property
    def _like(self) -> Array:
        """An array with the dtype and device of the activations."""
        return next(parameter for _, parameter in self.model.named_parameters()).data

    def _numbers(self, count: int) -> Array:
        return np.zeros_like(self._like, shape=count, dtype=np.float64, order="C")

    def _known_to_all(self, numbers: Array) -> Array:
        """The last stage's numbers, on all stages."""
        self.communicator.broadcast(numbers, self.stages - 1, what="loss").wait()
        return numbers

    # --- places in the random stream ---------------------------------------------------------------------------------

    def _places(self, micro_batches: Sequence[MicroBatch]) -> list[int]:
        """Random counters that one process would have when each micro-batch comes to this stage, and at the end.

        The list is empty if nothing random happens, and with one stage. A new shape of a micro-batch costs a forward
        on zeros, by all stages at once.
        """
        if self.stages == 1 or not self.model.training or not getattr(self.model.config, "dropout", 0.0):
            return []
        place, places = random.default.counter, []
        for batch in micro_batches:
            used = self._counters_used(batch)
            places.append(place + sum(used[: self.stage]))
            place += sum(used)
        return [*places, place]

    def _counters_used(self, batch: MicroBatch) -> list[int]:
        """Number of random counters that each stage uses for a micro-batch of this shape."""
        shape = batch.ids.shape, batch.rows and batch.rows[1]
        if shape not in self._used:
            own = [0] * self.stages
            own[self.stage] = self._counters_measured(batch)
            self._used[shape] = [round(count) for count in self.communicator.sum_of(*own)]
        return self._used[shape]

    def _counters_measured(self, batch: MicroBatch) -> int:
        before = random.default.counter
        given: Any = np.zeros_like(batch.ids)
        if not self.is_first:
            given = Tensor(np.zeros_like(self._like, shape=(*batch.ids.shape, self.model.config.channels), order="C"))
        with no_grad(), random.part(rows=batch.rows):
            self.model.features(given)
        used = random.default.counter - before
        random.default.counter = before
        return used


def _keep(sends: deque[Transfer], send: Transfer) -> None:
    """Add an array to those that are being sent; wait for the oldest if there are many."""
    sends.append(send)
    if len(sends) > GRADIENT_SENDS:
        sends.popleft().wait()
