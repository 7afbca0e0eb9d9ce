"""All ways of dividing the work together: ranks in a grid of pp x dp x tp, and a model that is divided over it.

    rank = (p dp + d) tp + t        stage p of the pipeline, part d of the batch, part t of each matrix

Ranks that exchange most are nearest to each other: those of a tensor-parallel group, twice a block in each direction;
then come the sums of gradients, then the activations from stage to stage. Each rank is in one group of each kind. A
model is built whole and equal on all ranks, and then divided: its matrices (tensor_parallel.py), its layers
(pipeline.py), and what is left is laid out in units (data_parallel.py, zero.py). These files do not know each other.

    batch --> micro-batches --> rows of rank d --> stage 0 --> ... --> stage p - 1 --> loss --> and back

**State.** A checkpoint is what one process would write: rank 0 gets every parameter and moment whole, and any mesh
takes its parts of them. A file does not show how many ranks wrote it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from minillm import random
from minillm.autograd import Parameter, no_grad
from minillm.backend import Array
from minillm.device import like, to_host
from minillm.dtypes import as_dtype
from minillm.errors import CheckpointError, InputError
from minillm.lora import add_lora, is_lora, record_of
from minillm.nn import Decoder, uninitialized
from minillm.optim import FlatGroup, Optimizer, decay_groups
from minillm.parallel.communicator import Alone, Communicator, agree_on_weights
from minillm.parallel.data_parallel import DataParallel, Part, Unit
from minillm.parallel.objective import (
    NEXT_TOKENS,
    Batch,
    Objective,
    add_measures,
    loss_of_rows,
    micro_batches_of,
    rows_of_rank,
)
from minillm.parallel.pipeline import MicroBatch, cut
from minillm.parallel.recompute import recompute
from minillm.parallel.shard import Shard, add_part, shard, shard_specs
from minillm.parallel.tensor_parallel import tensor_parallel
from minillm.parallel.zero import ZeRO


class Mesh:
    """The groups of a rank: `world` has all ranks; `dp`, `tp` and `pp` are its rows in the grid, one for each axis.

    Raises: InputError if dp x tp x pp is not the number of ranks.
    """

    def __init__(self, world: Communicator, dp: int | None = None, tp: int = 1, pp: int = 1):
        if dp is None:
            dp = max(1, world.size // (tp * pp))  # with too few ranks, the error below says how many are needed
        if min(dp, tp, pp) < 1 or dp * tp * pp != world.size:
            raise InputError(
                f"mesh: --dp {dp} --tp {tp} --pp {pp} are {dp * tp * pp} ranks, but there are {world.size}; "
                f"start {dp * tp * pp} with --nproc, or change one of them"
            )
        self.world = world
        rank, t = divmod(world.rank, tp)
        p, d = divmod(rank, dp)
        self.tp = self._group(tp, p * dp + d)
        self.dp = self._group(dp, p * tp + t)
        self.pp = self._group(pp, d * tp + t)

    def _group(self, size: int, color: int) -> Communicator:
        if size == self.world.size:
            return self.world
        return self.world.split(color) if size > 1 else Alone(self.world.rank)

    def close(self) -> None:
        """Close the groups, but not the world."""
        for group in (self.tp, self.dp, self.pp):
            if group is not self.world:
                group.close()


class ParallelModel:
    """A model divided over a mesh, and the parts of a training step that depend on how it is divided.

        parallel = ParallelModel(model, mesh, weight_decay=0.1, zero=1)
        optimizer = AdamW(parallel.groups, lr)
        parallel.attach(optimizer)
        loss = parallel.forward_backward(next_token_batch(ids, targets))  # the whole batch, on all ranks
        optimizer.clip_grad_norm(1.0)
        optimizer.step()
        parallel.sync_parameters()

    training.WholeModel has the same methods for a model in one process.
    zero: stage 0 to 3 of ZeRO, see zero.py; with a pipeline 0 or 1. layers: numbers of the blocks that are computed
    again in the backward (recompute.py).
    Raises: InputError for a combination that is not supported, or a model that cannot be divided so; ParallelError if
    ranks begin with different weights.
    """

    def __init__(
        self,
        model: Decoder,
        mesh: Mesh,
        weight_decay: float = 0.1,
        zero: int = 0,
        schedule: str = "1f1b",
        layers: Iterable[int] = (),
    ):
        if zero not in (0, 1, 2, 3) or (zero > 1 and mesh.pp.size > 1):
            raise InputError(
                f"zero: stage {zero} with --pp {mesh.pp.size}; choose 0 or 1, or without a pipeline 2 or 3"
            )
        if mesh.tp.size * mesh.pp.size > 1:
            if not isinstance(model, Decoder):
                raise InputError(
                    f"mesh: --tp {mesh.tp.size} --pp {mesh.pp.size} divide models that predict the next token, and "
                    f"{type(model).__name__} is none; leave them out (--dp and --zero work)"
                )
            # DataParallel, which sees parts then, does so otherwise
            agree_on_weights(mesh.world, "ParallelModel", model.state_dict())
        self.mesh, self.zero = mesh, zero
        self.kind: Any = type(model)
        self.config, self.weights = model.config, model.num_parameters()
        recompute(model, layers)
        self.model = model = tensor_parallel(model, mesh.tp) if mesh.tp.size > 1 else model
        self.shards = shard_specs(model)
        self.pipeline = cut(model, mesh.pp, schedule) if mesh.pp.size > 1 else None
        groups = decay_groups(model.parameters(), weight_decay)
        self.data = ZeRO(model, mesh.dp, groups, zero) if zero else DataParallel(model, mesh.dp, groups)
        self.groups = self.data.groups

    # --- a step ------------------------------------------------------------------------------------------------------

    def num_parameters(self) -> int:
        """The number of weights of the whole model."""
        return self.weights

    def attach(self, optimizer: Optimizer) -> None:
        """Make the optimiser's gradient norm that of the whole model: summed over ranks, each gradient counted once."""
        elsewhere = self.pipeline.copies if self.pipeline else set()
        for unit, part, group in self._flat_groups(optimizer):
            counted = [
                (unit.starts[i], unit.starts[i] + parameter.numel())
                for i, parameter in enumerate(unit.parameters)
                if parameter.name not in elsewhere
                and (self.mesh.tp.rank == 0 or self.shards[parameter.name] is not None)
            ]
            if len(counted) < len(unit.parameters):
                first = unit.mine.start + part.start
                spans = [(max(a - first, 0), min(b - first, group.grad.size)) for a, b in counted]
                group.counted = [slice(a, b) for a, b in spans if a < b]
        parted = [group for group in (self.mesh.tp, self.mesh.pp) if group.size > 1]
        if self.zero and self.mesh.dp.size > 1:
            parted.append(self.mesh.dp)

        def add_over_ranks(number: Array) -> None:
            for group in parted:
                group.all_reduce(number, what="numbers").wait()

        optimizer.add_over_ranks = add_over_ranks if parted else None

    def forward_backward(
        self,
        batch: Batch,
        micro_batches: int = 1,
        objective: Objective = NEXT_TOKENS,
        counts: dict[str, float] | None = None,
    ) -> Any:
        """Replace the gradients by those of the loss of a batch, on all ranks; returns the loss.

        All ranks pass the whole batch; rank d of a data-parallel group computes the d-th part of the rows of each
        micro-batch. counts: those of the whole batch, where they are known already.
        Raises: InputError for a model in parts, where the objective is another than next tokens.
        """
        self._check_objective(objective)
        self.data.zero_grad()
        counts = objective.counts(batch) if counts is None else counts
        parts = micro_batches_of(batch, micro_batches)
        self.data.synchronise = self.zero > 1
        if self.pipeline:
            counted = max(counts["loss"], 1.0)
            total = self.pipeline.step([self._own_micro_batch(part) for part in parts], counted, self._synchronise)
        else:
            total = 0.0
            for number, part in enumerate(parts):
                self.data.begin()
                rows, place, is_counted = rows_of_rank(part, self.mesh.dp.rank, self.mesh.dp.size)
                with random.part(rows=place):
                    loss = loss_of_rows(objective, self.model, rows, counts)
                    loss = loss if is_counted else loss * 0
                if number == len(parts) - 1:
                    self._synchronise()
                loss.backward()
                total = total + loss.data.astype(np.float64)
        return self.data.finish(total)

    def sync_parameters(self) -> None:
        """After the optimiser's step: every rank gets the parameters that other ranks have updated."""
        self.data.sync_parameters()

    def measures(self, batches: Iterable[Batch], objective: Objective = NEXT_TOKENS) -> dict[str, tuple[float, float]]:
        """The objective's measures, (sum, count) each, over all batches, without gradients or dropout.

        Each data-parallel rank computes some of the batches.
        """
        self._check_objective(objective)
        given, dp = list(batches), self.mesh.dp
        rounds = -(-len(given) // dp.size)  # equal on all ranks, because ZeRO 3 gathers a block on all of them together
        mine = [dp.rank + i * dp.size for i in range(rounds)]
        total: dict[str, tuple[float, float]] = {}
        self.model.eval()
        with no_grad():
            for number, found in zip(
                mine, self._measured([given[min(i, len(given) - 1)] for i in mine], objective), strict=True
            ):
                counted = number < len(given)
                add_measures(total, ((name, pair if counted else (0.0, 0.0)) for name, pair in found.items()))
        self.model.train()
        names = sorted(total)
        numbers = dp.sum_of(*(number for name in names for number in total[name]))
        return dict(zip(names, zip(numbers[::2], numbers[1::2], strict=True), strict=True))

    def _measured(self, batches: list[Batch], objective: Objective) -> Iterator[dict[str, tuple[float, float]]]:
        """The measures of each batch on this rank."""
        if self.pipeline:
            means = self.pipeline.losses((batch["ids"], batch["targets"]) for batch in batches)
            for mean, batch in zip(means, batches, strict=True):
                count = objective.counts(batch)["loss"]
                yield {"loss": (mean * count, count)}
        else:
            for batch in batches:
                yield objective.measures(self.model, batch)

    def _check_objective(self, objective: Objective) -> None:
        """Raise InputError where the model is in parts that cannot compute this objective."""
        if self.mesh.tp.size * self.mesh.pp.size > 1 and not objective.next_tokens:
            raise InputError(
                f"train: --tp {self.mesh.tp.size} --pp {self.mesh.pp.size} divide a model that predicts next tokens "
                "alone, and this training needs the whole model on every rank; leave them out (--dp and --zero work)"
            )

    def _synchronise(self) -> None:
        self.data.synchronise = True

    def _own_micro_batch(self, batch: Batch) -> MicroBatch:
        """This rank's rows for a pipeline."""
        if others := batch.keys() - {"ids", "targets"}:
            raise InputError(
                f"train: a pipeline takes ids and targets alone, but a batch also has {', '.join(sorted(others))}; "
                "leave --pp out"
            )
        rows, place, is_counted = rows_of_rank(batch, self.mesh.dp.rank, self.mesh.dp.size)
        targets = rows["targets"] if is_counted else np.full_like(rows["targets"], -100)
        return MicroBatch(rows["ids"], targets, place)

    # --- state, in the layout of one process -------------------------------------------------------------------------

    def gather(self) -> Decoder | None:
        """The whole model with its present weights on rank 0, None on the other ranks. All ranks call this."""
        weights = self.state_dict()
        if weights is None:
            return None
        with uninitialized():
            model = self.kind(self.config)
            if is_lora(self.model):
                add_lora(model, record_of(self.model, "gather").config)
        frozen = {one.name: one.data for one in self.model.parameters() if not one.requires_grad}  # here on every rank
        kept = next(iter(self.data.units.values())).kept_data
        for name, parameter in model.named_parameters():
            parameter.data = frozen[name] if name in frozen else like(weights[name], kept)
        return model

    def state_dict(self) -> dict[str, Array] | None:
        """Every parameter, whole, on rank 0; None on the other ranks. All ranks call this."""
        weights = self._at_rank_zero(self._rows(lambda unit: self.data.whole_row(unit, unit.kept_data)))
        return None if weights is None else weights | {name: to_host(p.data) for name, p in self._frozen().items()}

    def _frozen(self) -> dict[str, Parameter]:
        """The parameters that are never trained, and are in a checkpoint all the same; every rank has them whole.

        Of a model with adapters, that is none: its checkpoint holds what is trained alone.
        """
        parameters = () if is_lora(self.model) else self.model.named_parameters()
        return {name: parameter for name, parameter in parameters if not parameter.requires_grad}

    def optimizer_state_dict(self, optimizer: Optimizer) -> dict[str, Array] | None:
        """The optimiser's state as in one process on rank 0, None on the other ranks. All ranks call this."""
        state: dict[str, Array] = {"steps": np.array(optimizer.steps, np.int64)}
        for name in _moment_names(optimizer):
            kept = self._kept(optimizer, name)
            rows = self._rows(lambda unit, kept=kept: self.data.whole_row(unit, kept[unit.name]))
            found = self._at_rank_zero(rows)
            if found is not None:
                state |= {f"{name}.{key}": array for key, array in found.items()}
        counts = self._steps(optimizer).items()
        state |= self._at_rank_zero((f"step.{key}", np.array(n)) for key, n in counts if n != optimizer.steps) or {}
        return state if self.mesh.world.rank == 0 else None

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Load this rank's parts of a whole model's state, all of them or none.

        Raises: CheckpointError that lists what is missing or of another shape.
        """
        parts = self._parts(state, "")
        for unit in self.data.units.values():
            row = unit.row_of(parts, unit.kept_data)
            unit.kept_data[...] = row[unit.mine]
        for name, parameter in self._frozen().items():
            parameter.data[...] = like(state.get(name, parameter.data), parameter.data)
        self.sync_parameters()

    def load_optimizer_state_dict(self, optimizer: Optimizer, state: Mapping[str, Array]) -> None:
        """Load this rank's parts of a whole optimiser's state, all of them or none.

        Raises: CheckpointError that lists what is missing or of another shape.
        """
        if "steps" not in state:
            raise CheckpointError("the optimiser state has no steps; use another checkpoint of the run")
        parts = {name: self._parts(state, f"{name}.") for name in _moment_names(optimizer)}
        optimizer.steps = int(state["steps"])
        for unit, part, group in self._flat_groups(optimizer):
            group.steps = [int(state.get(f"step.{piece.name}", optimizer.steps)) for piece in group.parameters]
            first = unit.mine.start + part.start
            for name, arrays in parts.items():
                moment = _moment(group, name)
                moment[...] = unit.row_of(arrays, moment)[first : first + moment.size]

    def _parts(self, state: Mapping[str, Array], prefix: str) -> dict[str, Array]:
        """This rank's part of each parameter's array."""
        parts, problems = {}, []
        for unit in self.data.units.values():
            for parameter in unit.parameters:
                name, spec = parameter.name, self.shards[parameter.name]
                whole = list(parameter.shape)
                if spec is not None:
                    whole[spec.axis] = spec.size
                if f"{prefix}{name}" not in state:
                    problems.append(f"missing {prefix}{name}")
                elif np.shape(state[f"{prefix}{name}"]) != tuple(whole):
                    shape = np.shape(state[f"{prefix}{name}"])
                    problems.append(f"{prefix}{name} has shape {shape}, expected {tuple(whole)}")
                else:
                    parts[name] = like(shard(spec, state[f"{prefix}{name}"]), unit.kept_data)
        if problems:
            raise CheckpointError(
                f"the saved state does not fit this model: {'; '.join(problems)}; "
                "build the model with the configuration that it was saved with"
            )
        return parts

    def _rows(self, row_of: Any) -> Iterator[tuple[str, Array]]:
        """Names and arrays of the parameters of this stage and tensor-parallel rank, unit by unit."""
        for unit in self.data.units.values():
            yield from unit.arrays_of(row_of(unit)).items()

    def _kept(self, optimizer: Optimizer, name: str) -> dict[str, Array]:
        """A moment of each unit by the unit's name: the optimiser's groups in one array, like `unit.kept_data`."""
        kept: dict[str, Array] = {}
        for unit, part, group in self._flat_groups(optimizer):
            moment, first = _moment(group, name), part.start
            if unit.name not in kept:
                kept[unit.name] = np.zeros_like(moment, shape=unit.kept_data.shape)
            kept[unit.name][first : first + moment.size] = moment
        for path, unit in self.data.units.items():
            if path not in kept:  # of a unit of which this rank has padding alone
                kept[path] = np.zeros_like(unit.kept_data, dtype=np.promote_types(unit.dtype, np.float32))
        return kept

    def _steps(self, optimizer: Optimizer) -> dict[str, int]:
        """The count of updates of each parameter of this stage; all ranks of a data-parallel group call this."""
        counts = {parameter.name: 0 for unit in self.data.units.values() for parameter in unit.parameters}
        for _, _, group in self._flat_groups(optimizer):
            counts |= {piece.name: steps for piece, steps in zip(group.parameters, group.steps, strict=True)}
        if self.zero and counts:  # a rank may have no piece of a parameter
            counts = {name: int(n) for name, n in zip(counts, self.mesh.dp.max_of(*counts.values()), strict=True)}
        return counts

    def _flat_groups(self, optimizer: Optimizer) -> Iterator[tuple[Unit, Part, FlatGroup]]:
        """The optimiser's groups, each with the part of a unit that it updates."""
        flat = {id(group.parameters[0]): group for group in optimizer.groups}
        for unit in self.data.units.values():
            for part in unit.parts:
                yield unit, part, flat[id(next(iter(part.pieces.values())))]

    def _at_rank_zero(self, arrays: Iterator[tuple[str, Array]]) -> dict[str, Array] | None:
        """The whole arrays of all ranks' parts on rank 0, None on the other ranks.

        Ranks send in turn, so that at most one whole model is on its way; ranks with a copy of another's part do not.
        """
        mesh = self.mesh
        given = list(arrays)  # all ranks gather each row
        if mesh.dp.rank > 0:
            return None
        copies = self.pipeline.copies if self.pipeline else set()
        mine = {
            name: to_host(array)
            for name, array in given
            if name not in copies and (mesh.tp.rank == 0 or self.shards.get(name) is not None)
        }
        header = {name: [list(array.shape), array.dtype.name, self.shards.get(name)] for name, array in mine.items()}
        if mesh.world.rank > 0:
            self._send(np.frombuffer(json.dumps(header).encode(), np.uint8).copy())
            for array in mine.values():
                self._send(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
            return None
        wholes: dict[str, Array] = {}
        for name, array in mine.items():
            add_part(wholes, name, array, self.shards.get(name))
        for source in self._first_of_each():
            header = json.loads(self._receive(source).tobytes())
            for name, (shape, dtype, spec) in header.items():
                array = self._receive(source).view(as_dtype(dtype)).reshape(shape)
                add_part(wholes, name, array, spec and Shard(spec[0], tuple(map(tuple, spec[1])), spec[2]))
        return wholes

    def _first_of_each(self) -> list[int]:
        """All ranks except 0 that are the first of their data-parallel group."""
        tp, dp, pp = self.mesh.tp.size, self.mesh.dp.size, self.mesh.pp.size
        return [p * dp * tp + t for p in range(pp) for t in range(tp) if p or t]

    def _send(self, content: Array) -> None:
        world = self.mesh.world
        size = world.host_array([content.size])
        world.send(size, 0, what="state").wait()
        world.send(like(content, size), 0, what="state").wait()

    def _receive(self, source: int) -> Array:
        world = self.mesh.world
        size = world.host_array([0])
        world.recv(size, source, what="state").wait()
        count = int(size[0])
        world.check()  # where a rank has failed, that is no size
        content = np.empty_like(size, shape=count, dtype=np.uint8)
        world.recv(content, source, what="state").wait()
        found = to_host(content)
        world.check()
        return found


def _moment_names(optimizer: Optimizer) -> list[str]:
    group = optimizer.groups[0]
    return [*group.moments, *([] if group.masters is group.data else ["master"])]


def _moment(group: FlatGroup, name: str) -> Array:
    return group.masters if name == "master" else group.moments[name]
