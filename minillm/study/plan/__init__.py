"""A plan for a training: its model, tokens, division over GPUs, time, energy, cost and data, before anything is bought.

Sizes are those of `minillm.study.describe`, which runs the model's own step without numbers; memory and messages those
of `minillm.parallel`, by `parallel_report`, whose formulas equal what ranks measure to the byte; times those of
`projection`, and so as good as the machine's few numbers in gpus.py are. benchmarks/results/plan.md says how far they
are from trainings that others have published.

The files beside this one: shapes.py (a model near a size), scaling.py (tokens and loss), gpus.py, search.py (the
division), languages.py (the text to collect), job.py (scripts), report.py (tables and JSON).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minillm.errors import InputError
from minillm.models.gpt2 import GPT2
from minillm.models.llama import Llama
from minillm.resolver import described
from minillm.study.parallel_report import Division, Place, shapes_of, stage_of, step_bytes
from minillm.study.plan import search as searching
from minillm.study.plan.gpus import GAP, LAUNCHES, Gpu
from minillm.study.plan.languages import Need
from minillm.study.plan.scaling import TOKENS_PER_PARAMETER
from minillm.study.plan.search import Search, batch_for, check_gpus, refuse
from minillm.study.plan.shapes import LEAST, MOST, llama_near
from minillm.study.plan.units import count
from minillm.study.projection import Machine, Setting, Work, cut_sizes, work_of_config

LONGEST = 4096  # tokens of a sequence, unless more are asked for
MOST_CONTEXT = 1 << 20
STRAIGHT = 4096
SMALL, SHORTER = 1e9, 2048  # below so many parameters, so many tokens


@dataclass(frozen=True)
class Assumptions:
    """The assumptions behind time, energy and cost, beside the GPU's own numbers."""

    price: float  # US dollars a GPU and hour
    power: float  # watts of a GPU
    pue: float  # energy of the whole building for each of its computers
    uptime: float  # share of the time in which steps are made


@dataclass(frozen=True)
class Plan:
    """A planned training, and everything that it was chosen among."""

    kind: Any  # the class of the model
    config: Any
    name: str
    parameters: int
    tokens: int
    gpu: Gpu
    gpus: int
    batch: int  # sequences of a step
    work: Work
    machine: Machine
    search: Search
    assumptions: Assumptions
    data: Need
    language: str  # its code

    @property
    def best(self) -> Setting:
        """The setting that is predicted fastest."""
        return self.search.best

    @property
    def division(self) -> Division:
        """Its division."""
        return self.best.division

    @property
    def context(self) -> int:
        """Tokens of a sequence."""
        return self.work.context

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return max(1, round(self.tokens / self.best.tokens))

    @property
    def tokens_a_second(self) -> float:
        """The rate of all GPUs together, while steps are made."""
        return self.best.tokens / self.best.seconds.total

    @property
    def seconds(self) -> float:
        """The time of the whole training, with what is lost beside the steps."""
        return self.tokens / self.tokens_a_second / self.assumptions.uptime

    @property
    def gpu_hours(self) -> float:
        """GPUs times hours."""
        return self.gpus * self.seconds / 3600

    @property
    def kilowatt_hours(self) -> float:
        """Energy of the GPUs, with their share of the building's."""
        return self.gpu_hours * self.assumptions.power * self.assumptions.pue / 1000

    @property
    def cost(self) -> float:
        """US dollars."""
        return self.gpu_hours * self.assumptions.price

    @property
    def flops(self) -> float:
        """Operations of matrix products of the whole training, without those of recomputation."""
        return self.tokens * self.work.flops

    @property
    def utilisation(self) -> float:
        """Share of the peak that the training reaches: MFU, from the products that are counted."""
        return self.work.flops * self.tokens_a_second / (self.gpus * self.gpu.flops)

    @property
    def day(self) -> float:
        """Parameters that this machine trains in a day at this rate, on 20 tokens each."""
        rate = 6 * self.parameters * self.tokens_a_second * self.assumptions.uptime
        return (rate * 86400 / (6 * TOKENS_PER_PARAMETER)) ** 0.5

    def sent(self) -> dict[str, int]:
        """Bytes that the first GPU sends in a step, by content, as minillm.parallel counts them."""
        return dict(step_bytes(self.work.shapes, self.division, self.batch, self.context, self.work.itemsize))


def model_of(
    parameters: str | None, model: str | None, vocab_size: int, context: int | None
) -> tuple[Any, Any, str, int]:
    """The class, the configuration and the name of the model to plan for, and the tokens of a sequence.

    Raises: InputError where neither or both are given, and for sizes that cannot be.
    """
    if (parameters is None) == (model is None):
        both = "are both given" if model else "are both missing"
        raise InputError(f"plan: --parameters and --model {both}; give a size such as 7B, or a preset or configuration")
    if context is not None and context < 1:
        raise InputError(f"plan: --context is {context}; give 1 or more")
    if context is not None and context > MOST_CONTEXT:
        raise InputError(f"plan: --context is {context:,}; give {MOST_CONTEXT:,} at most")
    if model is not None:
        _, kind, config, _ = described(model, "plan")
        if kind not in (GPT2, Llama):
            raise InputError(f"plan: {model} is a {kind.__name__}, which cannot be divided; give a GPT2 or a Llama")
        if context is not None and context > config.context:
            raise InputError(f"plan: --context is {context}, but {model} has {config.context} positions; give fewer")
        return kind, config, model, min(config.context, LONGEST) if context is None else context
    size = count(str(parameters), "--parameters", LEAST, MOST)
    context = (SHORTER if size < SMALL else LONGEST) if context is None else context
    if not 2 <= vocab_size <= 1 << 21:
        raise InputError(f"plan: --vocab-size is {vocab_size}; give 2 to {1 << 21:,}")
    return Llama, llama_near(size, vocab_size, context), f"llama of {parameters}", context


def parameters_of(kind: Any, config: Any) -> int:
    """Number of parameters. Raises: InputError for a model that cannot be divided."""
    return stage_of(shapes_of(kind, config), Division(), Place(0, 0, 0)).numbers


def work_at(name: str, kind: Any, config: Any, context: int, dtype: str) -> Work:
    """The work of a model; beyond `STRAIGHT` tokens on the line through two shorter contexts.

    Attention's products for a token grow as the context does, and nothing else does.
    """
    if context <= STRAIGHT:
        return work_of_config(name, kind, config, context, dtype)
    half, whole = (work_of_config(name, kind, config, size, dtype) for size in (STRAIGHT // 2, STRAIGHT))
    steps = (context - STRAIGHT) / (STRAIGHT // 2)

    def longer(a: Any, b: Any) -> Any:
        return tuple(map(longer, a, b)) if isinstance(b, tuple) else b + steps * (b - a)

    fields = ("block_flops", "outer_flops", "block_kept", "outer_kept")
    values = {field: longer(getattr(half, field), getattr(whole, field)) for field in fields}
    return whole._replace(context=context, **values)


def make_plan(
    model: tuple[Any, Any, str, int],
    tokens: int | None,
    gpu: Gpu,
    gpus: int,
    batch: int | None,
    assumptions: Assumptions,
    data: Any,
    language: str,
) -> Plan:
    """Plan the training of a model (see `model_of`) on `gpus` GPUs.

    tokens: 20 a parameter where None. data(tokens): the text to collect, a `Need`.

    Raises: InputError where it does not fit, with the smallest number of GPUs on which it does.
    """
    kind, config, name, context = model
    check_gpus(gpus, gpu.per_node)
    parameters = parameters_of(kind, config)
    tokens = TOKENS_PER_PARAMETER * parameters if tokens is None else tokens
    if tokens < context:
        raise InputError(f"plan: --tokens is {tokens}, less than one sequence of {context}; give more")
    batch = batch_for(parameters, tokens, context, gpus) if batch is None else batch
    if batch < 1 or batch * context > tokens:
        raise InputError(
            f"plan: --batch-size is {batch}; give 1 to {max(1, tokens // context):,} sequences of {context} tokens"
        )
    work = work_at(name, kind, config, context, gpu.dtype)
    machine = gpu.machine()._replace(overhead=0.0 if gpu.name == "cpu" else config.layers * LAUNCHES * GAP)
    heads = cut_sizes(config)
    found = searching.search(work, machine, gpus, batch, heads)
    if found is None:
        raise refuse(work, machine, gpu.name, parameters, tokens, gpus, batch, heads)
    need = data(tokens)
    return Plan(
        kind, config, name, parameters, tokens, gpu, gpus, batch, work, machine, found, assumptions, need, language
    )
