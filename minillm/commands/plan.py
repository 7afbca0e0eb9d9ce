"""`minillm plan`: the model, division, time, energy, cost, data and job script of a training, before it is begun."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from minillm.commands.common import print_tables
from minillm.errors import InputError
from minillm.options import read

if TYPE_CHECKING:
    from minillm.study.plan.gpus import Gpu


@dataclass(frozen=True)
class Plan:
    """Plan a training: model, division over GPUs, time, energy, cost, data, and a script that starts it."""

    parameters: str | None = None
    """Size of the model, such as 125M, 3B or 7B: a Llama of about that size."""
    model: str | None = None
    """Instead of a size: a preset such as llama-2-7b, a folder with config.json, a .gguf, or a run directory."""
    tokens: str | None = None
    """Tokens to train on, such as 140B; 20 for each parameter by default (Chinchilla)."""
    gpu: str = "h100"
    """GPU: a100, h100, h200, b200, l4, l40s, rtx4090, rtx3090, v100, or cpu for this computer without one."""
    gpus: int = 1
    """Number of GPUs; 0 for a computer without one."""
    language: str = "en"
    """Language of the text, such as de."""
    script: Literal["torchrun", "slurm", "kubernetes"] | None = None
    """Print the script that starts the training, and nothing else."""
    json: bool = False
    """Print all numbers as JSON, and nothing else."""
    batch_size: int | None = None
    """Sequences of a step; by default what GPT-3 had for the size, in 2000 steps at least."""
    context: int | None = None
    """Tokens of a sequence; by default 4096, or 2048 for less than a billion parameters, or the given model's own."""
    vocab_size: int = 32000
    """Tokens of the vocabulary of a model that is given by its size."""
    tokenizer: Path | None = None
    """Folder of a saved tokenizer, to count the tokens of --text instead of taking them from a table."""
    text: Path | None = None
    """Text of the language, UTF-8, for --tokenizer."""
    data_yield: float | None = None
    """Share of crawled pages that cleaning leaves; by default that of FineWeb 2 in the language."""
    flops: float | None = field(default=None, metadata={"unit": "FLOP/s"})
    """Peak FLOP/s of a GPU in the dtype of the training; the data sheet's by default, as are the next ones."""
    products: float | None = None
    """Share of the peak that matrix products reach."""
    memory: float | None = field(default=None, metadata={"unit": "bytes"})
    """Bytes of a GPU, such as 80GB."""
    memory_bandwidth: float | None = field(default=None, metadata={"unit": "bytes a second"})
    """Bytes a second between a GPU and its memory."""
    gpus_per_node: int | None = None
    """GPUs of a machine."""
    link_bandwidth: float | None = field(default=None, metadata={"unit": "bytes a second"})
    """Bytes a second between the GPUs of a machine, one way."""
    network_bandwidth: float | None = field(default=None, metadata={"unit": "bytes a second"})
    """Bytes a second of a GPU to other machines, one way."""
    power: float | None = None
    """Watts of a GPU; the maker's limit by default."""
    price: float | None = None
    """US dollars of a GPU and hour; a list price by default."""
    pue: float = 1.1
    """Energy of the whole building for each unit that its computers take."""
    uptime: float = 0.9
    """Share of the time in which steps are made; the rest goes to starts, saves and failures."""


def plan(arguments: list[str]) -> None:
    """Print a plan: as tables, as JSON, or its script."""
    from minillm.study import plan as planning
    from minillm.study.plan import job, report
    from minillm.study.plan.languages import LANGUAGES, language_code, measured, need, rates_of
    from minillm.study.plan.units import count

    given = read(Plan, "plan", arguments)
    check(given)
    gpu, code = gpu_of(given), language_code(given.language)
    language = LANGUAGES[code]
    rates = measured(given.tokenizer, given.text) if given.tokenizer and given.text else rates_of(language)
    found = planning.make_plan(
        planning.model_of(given.parameters, given.model, given.vocab_size, given.context),
        None if given.tokens is None else count(given.tokens, "--tokens", 1, 1e16),
        gpu,
        max(1, given.gpus),
        given.batch_size,
        planning.Assumptions(gpu.price, gpu.power, given.pue, given.uptime),
        lambda tokens: need(tokens, language, rates, given.data_yield),
        code,
    )
    if given.script:
        print(job.script(found, given.script), end="")
    elif given.json:
        print(json.dumps(report.to_json(found), indent=2))
    else:
        print(report.summary(found))
        print_tables(report.tables(found), 130)
        print(f"To start it: the same command with --script {', '.join(job.KINDS[:-1])} or {job.KINDS[-1]}")


ABOVE_ZERO = ("flops", "memory", "memory_bandwidth", "link_bandwidth", "network_bandwidth")
SHARES = ("products", "uptime", "data_yield")
LEAST = {"power": 0.0, "price": 0.0, "pue": 1.0}


def check(given: Plan) -> None:
    """Raise InputError for numbers that cannot be, and for options that would do nothing."""
    for name, least in (("gpus", 0), ("gpus_per_node", 1)):
        value = getattr(given, name)
        if value is not None and value < least:
            raise InputError(f"plan: --{name.replace('_', '-')} is {value}; give {least} or more")
    for name in (*ABOVE_ZERO, *SHARES, *LEAST):
        value, most = getattr(given, name), 1.0 if name in SHARES else 1e30
        enough = value is None or (value >= LEAST[name] if name in LEAST else value > 0)
        if not (enough and (value is None or value <= most)):
            wanted = f"{LEAST[name]:g} or more" if name in LEAST else f"a number above 0, {most:g} at most"
            raise InputError(f"plan: --{name.replace('_', '-')} is {value}; give {wanted}")
    if (given.tokenizer is None) != (given.text is None):
        raise InputError("plan: --tokenizer and --text belong together; give both, or neither for the table's rates")
    if given.script and given.json:
        raise InputError("plan: --script and --json are two things to print; give one of them")
    if given.model and given.vocab_size != Plan.vocab_size:
        raise InputError(f"plan: --vocab-size does nothing here, as {given.model} has its own; leave it out")
    if given.gpu == "cpu" and given.gpus > 1:
        raise InputError(f"plan: --gpus is {given.gpus} with --gpu cpu, which is this computer; leave --gpus out")


def gpu_of(given: Plan) -> Gpu:
    """The GPU of the table, with the numbers that were given instead of its own."""
    from minillm.study.plan.gpus import find_gpu

    gpu = find_gpu("cpu" if given.gpus == 0 else given.gpu)
    fields = {name: name for name in ("flops", "products", "memory", "power", "price")}
    fields |= {"memory_bandwidth": "bandwidth", "gpus_per_node": "per_node"}
    fields |= {"link_bandwidth": "link", "network_bandwidth": "network"}
    values = {field: getattr(given, name) for name, field in fields.items() if getattr(given, name) is not None}
    return gpu._replace(**values)
