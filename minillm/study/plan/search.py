"""The division that is predicted fastest among all that the engine has, and why the others fell."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from minillm.errors import InputError
from minillm.study.describe.tables import in_bytes
from minillm.study.projection import Machine, Setting, Work, rank_bytes, tried, ways

MOST_GPUS = 16384
FEWEST_STEPS = 2000  # of a training, which bounds the batch from above

# What can make a step longer, in the words of the table; the names are those of projection.Seconds.
REASONS = {
    "compute": "compute: small micro-batches, uneven stages",
    "tensor": "communication: sums of tensor parallelism",
    "bubble": "bubble: stages of the pipeline wait",
    "data": "communication: gradients and weights of data parallelism",
    "update": "update: every GPU moves all weights",
}
MEMORY, RECOMPUTE = "memory: more than a GPU has", "recomputation: a second forward"


class Fallen(NamedTuple):
    """The settings that fell for one reason: how many, and the fastest of them."""

    reason: str
    settings: int
    fastest: Setting


class Search(NamedTuple):
    """All settings that were tried: the ones that fit, fastest first, one a division; and why the others fell."""

    tried: int
    fits: list[Setting]
    fallen: list[Fallen]

    @property
    def best(self) -> Setting:
        """The setting that is predicted fastest."""
        return self.fits[0]


def search(work: Work, machine: Machine, gpus: int, batch: int, heads: Iterable[int]) -> Search | None:
    """Try every setting of so many GPUs; None where none fits."""
    everything = sorted(tried(work, machine, gpus, batch, heads), key=lambda setting: setting.seconds.total)
    fits = [setting for setting in everything if setting.bytes <= machine.memory]
    if not fits:
        return None
    fallen: dict[str, list[Setting]] = {}
    for setting in everything:
        if setting is not fits[0]:
            fallen.setdefault(reason(setting, fits[0], machine), []).append(setting)
    rows = [Fallen(name, len(found), found[0]) for name, found in fallen.items()]
    one_each = {setting.division._replace(micro_batches=1): setting for setting in reversed(fits)}
    fastest = sorted(one_each.values(), key=lambda setting: setting.seconds.total)
    return Search(len(everything), fastest, sorted(rows, key=lambda row: -row.settings))


def reason(setting: Setting, best: Setting, machine: Machine) -> str:
    """Why a setting fell behind the best one: it does not fit, or the part of its step that is longest beside it."""
    if setting.bytes > machine.memory:
        return MEMORY
    longer = {name: getattr(setting.seconds, name) - getattr(best.seconds, name) for name in REASONS}
    name = max(longer, key=lambda name: longer[name])
    return RECOMPUTE if name == "compute" and setting.division.recompute > best.division.recompute else REASONS[name]


def batch_for(parameters: float, tokens: float, context: int, gpus: int) -> int:
    """Sequences of a step: GPT-3's number of tokens for the size, in at least `FEWEST_STEPS` steps, for `gpus` GPUs.

    Half a million tokens below a billion parameters, a million below 4, 2 million below 100, then 4 (Brown et al. 2020,
    arXiv:2005.14165, table 2.1, up to the next power of 2). The number of sequences is a power of 2 times that of GPUs,
    or divides it.
    """
    size = next((1 << n for bound, n in ((1e9, 19), (4e9, 20), (1e11, 21)) if parameters < bound), 1 << 22)
    sequences = max(1, int(min(size, tokens / FEWEST_STEPS) / context))
    if sequences < gpus:
        return max(n for n in range(1, sequences + 1) if gpus % n == 0)
    return gpus << ((sequences // gpus).bit_length() - 1)


def fewest_gpus(work: Work, machine: Machine, parameters: float, tokens: float, heads: tuple[int, ...]) -> int | None:
    """The smallest number of GPUs on which some division fits: a part of a machine, or whole machines."""
    for gpus in _counts(machine.per_node):
        batch = batch_for(parameters, tokens, work.context, gpus)
        if least_bytes(work, machine, gpus, batch, heads) <= machine.memory:
            return gpus
    return None


def _counts(per_node: int) -> Iterator[int]:
    yield from range(1, per_node)
    nodes = 1
    while nodes * per_node <= MOST_GPUS:
        yield nodes * per_node
        nodes += max(1, nodes // 8)  # steps of an eighth at most


def least_bytes(work: Work, machine: Machine, gpus: int, batch: int, heads: tuple[int, ...]) -> float:
    """Bytes of the fullest GPU in the division that needs least, with one sequence in a micro-batch."""
    sizes = (
        rank_bytes(work, division._replace(micro_batches=batch // division.dp), batch)
        for division in ways(work, min(machine.per_node, gpus), gpus, heads)
        if batch % division.dp == 0
    )
    return min(sizes, default=float("inf"))


def check_gpus(gpus: int, per_node: int) -> None:
    """Raise InputError for a number of GPUs that does not fill machines, or that nobody has."""
    if gpus > MOST_GPUS:
        raise InputError(f"plan: --gpus is {gpus:,}; give {MOST_GPUS:,} at most")
    if gpus > per_node and gpus % per_node:
        raise InputError(
            f"plan: --gpus is {gpus}, which does not fill machines of {per_node}; give a multiple of {per_node}, or "
            "--gpus-per-node"
        )


def refuse(
    work: Work, machine: Machine, name: str, parameters: float, tokens: float, gpus: int, batch: int, heads: tuple
) -> InputError:
    """The error for a model that does not fit: what it needs, and the fewest GPUs that have it."""
    least = least_bytes(work, machine, gpus, batch, heads)
    if least == float("inf"):
        return InputError(
            f"plan: --batch-size is {batch}, which no division of {gpus} GPUs divides; give a multiple of {gpus}"
        )
    where, has = (f"{gpus} x {name}", "has") if name != "cpu" else ("this computer", "has free")
    sentence = (
        f"plan: the model does not fit on {where}: it needs {in_bytes(least)} at least{' on each' * (gpus > 1)}, which "
        f"{has} {in_bytes(machine.memory)}"
    )
    if name == "cpu":
        return InputError(f"{sentence}; give fewer --parameters, a smaller --context, or a --gpu")
    count = fewest_gpus(work, machine, parameters, tokens, heads)
    if count is None:
        return InputError(f"{sentence}, nor would {MOST_GPUS:,} do; give fewer --parameters, or a larger --gpu")
    return InputError(
        f"{sentence}; the smallest number that does is {count}: give --gpus {count}, or fewer --parameters"
    )
