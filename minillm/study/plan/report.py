"""A plan as tables to print, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from minillm.study.describe.tables import Table, in_bytes
from minillm.study.parallel_report import kept_bytes
from minillm.study.plan import Plan
from minillm.study.plan.job import train_arguments
from minillm.study.plan.languages import LANGUAGES
from minillm.study.plan.scaling import LAWS, TOKENS_PER_PARAMETER
from minillm.study.plan.search import Fallen
from minillm.study.plan.units import duration, short, three_digits
from minillm.study.projection import Setting

SHOWN = 8  # settings in the table of the fastest
LONG = 60 * 86400.0  # seconds after which the first sentence says what a day is enough for


def summary(plan: Plan) -> str:
    """The plan as one sentence."""
    where = f"{plan.gpus} x {plan.gpu.name}" if plan.gpu.name != "cpu" else "this computer"
    cost = f", {three_digits(plan.cost)} US dollars" if plan.cost else ""
    parts, rows = plan.division.micro_batches, plan.best.rows
    division = f"{plan.division.name}, {parts} micro-batch{'es' * (parts > 1)} of {rows} sequence{'s' * (rows > 1)}"
    in_a_day = ""
    if plan.seconds > LONG:
        in_a_day = f" In a day it would train {short(plan.day)} parameters on {TOKENS_PER_PARAMETER} tokens each."
    return (
        f"{plan.name} ({short(plan.parameters)} parameters) on {short(plan.tokens)} tokens takes {where} "
        f"{duration(plan.seconds)}, {three_digits(plan.kilowatt_hours)} kWh{cost}; divided as {division}.{in_a_day}"
    )


def tables(plan: Plan) -> Iterator[Table]:
    """All tables of a plan: what is trained, how it is divided, what that takes, what it costs, and on which data."""
    yield _model_table(plan)
    yield _settings_table(plan)
    yield _fallen_table(plan)
    yield _memory_table(plan)
    yield _cost_table(plan)
    yield _assumptions_table(plan)
    yield _data_table(plan)


def _model_table(plan: Plan) -> Table:
    config, ratio = plan.config, plan.tokens / plan.parameters
    shape = f"{config.layers} blocks, {config.channels} channels, {config.heads} heads"
    rows: list[tuple[str, ...]] = [
        ("shape", shape),
        ("parameters", f"{plan.parameters:,} ({short(plan.parameters)})"),
        ("context", f"{plan.context:,} tokens"),
        ("tokens", f"{plan.tokens:,} ({short(plan.tokens)}), {ratio:.3g} a parameter"),
        ("rule", f"about {TOKENS_PER_PARAMETER} a parameter (Hoffmann et al. 2022, table 3)"),
        ("operations", f"{plan.flops:.3g} FLOPs of matrix products; 6 N D: {6 * plan.parameters * plan.tokens:.3g}"),
    ]
    for law in LAWS:
        formula = f"{law.e} + {law.a} / N^{law.alpha} + {law.b} / D^{law.beta}"
        rows.append((f"loss by {law.source}", f"{law.loss(plan.parameters, plan.tokens):.3f} nats = {formula}"))
        best, tokens = law.best(6 * plan.parameters * plan.tokens)
        rows.append(("  its best for these operations", f"{short(best)} parameters on {short(tokens)} tokens"))
    return Table(f"{plan.name}: what is trained", ("", ""), rows)


def _settings_table(plan: Plan) -> Table:
    columns = ("setting", "micro-batches", "step", "tensor", "bubble", "data", "update", "a GPU holds", "tokens/s")
    count, fits = plan.search.tried, len(plan.search.fits)
    title = (
        f"{plan.gpus} x {plan.gpu.name}, steps of {plan.batch} x {plan.context:,} tokens: the fastest of {fits} "
        f"divisions that fit ({count} settings were tried)"
    )
    return Table(title, columns, [_setting_row(setting) for setting in plan.search.fits[:SHOWN]])


def _setting_row(setting: Setting) -> tuple[str, ...]:
    seconds, total = setting.seconds, setting.seconds.total
    parts = (seconds.tensor, seconds.bubble, seconds.data, seconds.update)
    return (
        setting.division.name,
        f"{setting.division.micro_batches} x {setting.rows}",
        f"{three_digits(total)} s",
        *(f"{part / total:.1%}" for part in parts),
        in_bytes(setting.bytes),
        f"{setting.tokens / total:,.0f}",
    )


def _fallen_table(plan: Plan) -> Table:
    rows = [_fallen_row(plan, fallen) for fallen in plan.search.fallen]
    return Table("why the other settings fell", ("reason", "settings", "the nearest of them", "which"), rows)


def _fallen_row(plan: Plan, fallen: Fallen) -> tuple[str, ...]:
    setting, best = fallen.fastest, plan.best
    name = f"{setting.division.name}, {setting.division.micro_batches} x {setting.rows}"
    slower = setting.seconds.total / best.seconds.total - 1
    what = f"takes {slower:.1%} longer"
    if setting.bytes > plan.machine.memory:
        what = f"needs {in_bytes(setting.bytes)} of {in_bytes(plan.machine.memory)}"
    return fallen.reason, str(fallen.settings), name, what


def _memory_table(plan: Plan) -> Table:
    kept = kept_bytes(plan.work.shapes, plan.division, plan.work.itemsize)
    rows: list[tuple[str, ...]] = [(name, in_bytes(size)) for name, size in kept.items() if size]
    rows.append(("activations, at the peak", in_bytes(plan.best.bytes - sum(kept.values()))))
    rows.append(("in all, on the fullest GPU", f"{in_bytes(plan.best.bytes)} of {in_bytes(plan.machine.memory)}"))
    rows += [(f"sent in a step: {name}", in_bytes(size)) for name, size in plan.sent().items()]
    return Table(f"the first GPU of {plan.division.name}", ("", "bytes"), rows)


def _cost_table(plan: Plan) -> Table:
    rows: list[tuple[str, ...]] = [
        ("steps", f"{plan.steps:,} of {plan.best.tokens:,} tokens, {three_digits(plan.best.seconds.total)} s each"),
        ("tokens a second", f"{plan.tokens_a_second:,.0f}, {plan.tokens_a_second / plan.gpus:,.0f} a GPU"),
        ("utilisation", f"{plan.utilisation:.0%} of the peak (MFU, of the products that are counted)"),
        ("time", duration(plan.seconds)),
        ("GPU hours", three_digits(plan.gpu_hours)),
        ("energy", f"{three_digits(plan.kilowatt_hours)} kWh"),
        ("cost", f"{three_digits(plan.cost)} US dollars"),
        (
            "in a day",
            f"it would train {short(plan.day)} parameters on {TOKENS_PER_PARAMETER} tokens each",
        ),
    ]
    return Table("time, energy and cost", ("", ""), rows)


def _assumptions_table(plan: Plan) -> Table:
    gpu, given = plan.gpu, plan.assumptions
    link, network = (in_bytes(bandwidth) for bandwidth in (gpu.link, gpu.network))
    rows: list[tuple[str, ...]] = [
        ("--flops", f"{gpu.flops / 1e12:g}e12 in {gpu.dtype}", gpu.source),
        (
            "--products",
            f"{gpu.products:.0%}",
            "share of it that products reach: PyTorch's, fitted or guessed (gpus.py)",
        ),
        ("--memory", in_bytes(gpu.memory), "the same; in 10^9 bytes, the rest is for CUDA and NCCL"),
        ("--memory-bandwidth", f"{in_bytes(gpu.bandwidth)}/s", "the same"),
        ("--link-bandwidth", f"{link}/s", f"the same, one way, between the {gpu.per_node} GPUs of a machine"),
        ("--network-bandwidth", f"{network}/s", "the same, one way, a GPU"),
        ("--power", f"{given.power:g} W", "the maker's limit; GPUs alone, as in arXiv:2307.09288, section 2.2.1"),
        (
            "--pue",
            f"{given.pue:g}",
            "energy of the building for that of its computers (as in arXiv:2302.13971)",
        ),
        ("--price", f"${given.price:.2f} an hour", gpu.price_source),
        (
            "--uptime",
            f"{given.uptime:.0%}",
            "time in which steps are made: Llama 3 had over 90% (arXiv:2407.21783)",
        ),
    ]
    return Table("assumptions: replace them by these options", ("option", "value", "source"), rows)


def _data_table(plan: Plan) -> Table:
    need = plan.data
    rate = 1 / need.rates.tokens_a_byte
    repeats = f", so that all of it is seen {need.repeats:,.1f} times" if need.repeats > 1 else ""
    rows: list[tuple[str, ...]] = [
        ("tokens", f"{short(need.tokens)}; {rate:.2f} bytes each, {need.tokens / need.words:.2f} a word"),
        ("words", short(need.words)),
        ("clean text", f"{in_bytes(need.bytes)} in {short(need.pages)} pages"),
        ("before quality filters", f"{short(need.unfiltered)} pages"),
        ("before duplicates were removed", f"{short(need.crawled)} pages, of which {need.kept:.0%} are left"),
        ("as a crawl stores them", f"{in_bytes(need.html)} of HTML"),
        ("FineWeb 2 has", f"{short(need.available)} of these tokens{repeats}"),
    ]
    if need.repeats > 4:
        rows.append(("repeating", "4 times is nearly as good as new text (Muennighoff et al. 2023); mix languages, or"))
        rows.append(("", f"train a model that the text is enough for: {short(need.available / 20)} parameters"))
    rows.append(("tokenizer", need.rates.source))
    return Table(f"text to collect: {LANGUAGES[plan.language].name}", ("", ""), rows)


def to_json(plan: Plan) -> dict[str, Any]:
    """The plan's numbers, in base units: bytes, seconds, FLOPs, US dollars."""
    division, need = plan.division, plan.data
    return {
        "model": {
            "family": plan.kind.__name__.lower(),
            "parameters": plan.parameters,
            "context": plan.context,
            **{
                name: value
                for name, value in vars(plan.config).items()
                if isinstance(value, bool | int | float | str) and name != "context"
            },
        },
        "tokens": plan.tokens,
        "tokens_per_parameter": plan.tokens / plan.parameters,
        "flops": plan.flops,
        "loss": {law.source: law.loss(plan.parameters, plan.tokens) for law in LAWS},
        "gpu": plan.gpu._asdict(),
        "gpus": plan.gpus,
        "division": {**division._asdict(), "sequences_per_micro_batch": plan.best.rows, "batch_size": plan.batch},
        "settings_tried": plan.search.tried,
        "settings": [_setting_json(setting) for setting in plan.search.fits],
        "fallen": {fallen.reason: fallen.settings for fallen in plan.search.fallen},
        "bytes_per_gpu": plan.best.bytes,
        "sent_per_step": plan.sent(),
        "steps": plan.steps,
        "step_seconds": plan.best.seconds.total,
        "tokens_per_second": plan.tokens_a_second,
        "utilisation": plan.utilisation,
        "seconds": plan.seconds,
        "gpu_hours": plan.gpu_hours,
        "kilowatt_hours": plan.kilowatt_hours,
        "cost": plan.cost,
        "assumptions": vars(plan.assumptions),
        "data": {
            "language": plan.language,
            **{name: value for name, value in need._asdict().items() if name != "rates"},
            **need.rates._asdict(),
        },
        "command": ["minillm", *train_arguments(plan)],
    }


def _setting_json(setting: Setting) -> dict[str, Any]:
    return {
        **setting.division._asdict(),
        "sequences_per_micro_batch": setting.rows,
        "seconds": setting.seconds._asdict(),
        "bytes": setting.bytes,
    }
