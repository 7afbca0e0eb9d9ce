"""`minillm step`: one training step, walked through line by line, on a page or in the terminal."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from minillm.commands.common import check_one_model
from minillm.commands.finetune_heads import with_labels
from minillm.commands.train import check_effect, starting_model
from minillm.counted import counted
from minillm.errors import InputError, did_you_mean
from minillm.files import check_folder_of
from minillm.options import Positional, filled, peek, scan
from minillm.resolver import Described, Place, described, find
from minillm.training.config import OBJECTIVES, TrainConfig, preset
from minillm.training.tasks import TASKS

if TYPE_CHECKING:
    from minillm.study.step.records import StepTrace

HEADS = ("classify", "qa")  # tasks whose data says what the head tells apart
ALIASES = {"dpo": "preference", "translate": "pairs"}  # what `minillm finetune` calls a task


@dataclass(frozen=True)
class Step(TrainConfig):
    """Walk through one training step in the plain engine: every line with its numbers, forwards and backwards."""

    headings: ClassVar[dict[str, str]] = {
        "the walk": "text out terminal compare export lens largest",
        "model": "name preset architecture model init lora",
        "data": "data field tokenizer objective task batch_size seed validation_fraction",
        "optimiser": "lr beta1 beta2 weight_decay clip",
    }
    no_options: ClassVar[tuple[str, ...]] = (
        *("init", "steps", "micro_batches", "optimizer", "min_lr", "warmup", "schedule", "decay_steps", "eval_every"),
        *("eval_batches", "sample_every", "patience", "sample_tokens", "threads", "device", "dtype", "dp", "tp", "pp"),
        *("zero", "pipeline", "recompute", "watch"),
    )
    name: Positional[str | None] = None
    """Model to step with: a run directory, a folder with config.json, a .gguf, or a preset; see also --preset."""
    preset: str = "nano"
    """Preset to start from, such as nano, llama-nano, bert-nano, roberta-nano, xlnet-nano or bart-nano; other options
    override it."""
    text: str | None = None
    """Text to step on; by default a short sentence."""
    objective: str = dataclasses.field(default="causal", metadata={"name": "task"})
    """What is learned: causal, masked, permutation, denoising; with --data also sft, dpo, reward, grpo, classify, qa
    and pairs. By default what `minillm train` teaches the model."""
    data: str = "builtin"
    """Records or text whose first batch is taken in place of --text, in the form that the task reads."""
    batch_size: int = 1
    """Rows of that batch: texts, examples or pairs; for grpo a multiple of --group-size."""
    out: Path | None = None
    """Page to write; step.html unless it is given. With --compare it shows both steps; with --compare, --export or
    --lens and without --out, no page is written."""
    terminal: bool = False
    """Walk in the terminal instead of writing a page; `help` there lists the commands."""
    compare: str | None = None
    """Two steps, side by side: A,B where each is an engine (plain, fast, emulate), a model, or a mutated backward,
    OP=MODULE:FUNCTION; with one word alone, plain is the first."""
    export: str | None = None
    """Write one stop, such as "layernorm backward in h.0.ln_2" or its number, as a .py with its .npz, to run alone."""
    lens: bool = False
    """Print what the gradients of the MLPs say in words: the tokens whose vectors are nearest to their rows."""
    largest: int | None = None
    """Elements of the largest array that is kept, to save memory; two million unless it is given."""

    def __post_init__(self):
        object.__setattr__(self, "objective", ALIASES.get(self.objective, self.objective))
        if self.largest is not None and self.largest < 1:
            raise InputError(f"step: largest is {self.largest}; give 1 or more elements")
        for name, example in {"compare": "plain,fast", "export": '"layernorm backward in h.0.ln_2"'}.items():
            if getattr(self, name) == "":
                raise InputError(f"step: --{name} is empty; give for example {example}")
        if self.compare and (self.export or self.lens):
            raise InputError("step: --compare shows two steps; leave --export and --lens out, which look into one")
        if self.out is not None:
            check_folder_of("step", "--out", self.out)
        super().__post_init__()


def step(arguments: list[str]) -> None:
    """Run one step and show it."""
    from minillm.study.step.setup import READ_TEXT, prepare

    before = starting_point(arguments)
    values = scan(Step, "step", arguments, before)
    given = filled(Step, "step", values, before)
    if given.name != before.name:
        raise InputError(f"step: the model comes first: minillm step {given.name} ...")
    check_effect("step", values, given)
    if ("batch_size",) in values and given.data == "builtin" and given.objective in READ_TEXT:
        raise InputError("step: --batch-size does nothing here, as a text is one row; leave it out, or give --data")
    config = settings_of(given)
    limit = {} if given.largest is None else {"largest": given.largest}
    if given.terminal:
        if given.compare or given.export or given.lens or given.out:
            raise InputError("step: --terminal walks, and writes nothing; leave --out, --compare, --export, --lens out")
        from minillm.study.step.terminal import Walk

        walk = Walk()
        trace = prepare(config, given.text).trace(on_line=walk.on_line, **limit)
        walk.end()
        print(*summary(trace), sep="\n")
        return
    if given.compare:
        compare(given, config, limit)
        return
    trace = prepare(config, given.text).trace(**limit)
    print(*summary(trace), sep="\n")
    if given.lens:
        from minillm.study.step.lens import lens_lines

        print(*lens_lines(trace.readings), sep="\n")
    if given.export:
        from minillm.study.step.export import export

        print(*(f"wrote {path}" for path in export(trace, trace.find(given.export), Path.cwd())), sep="\n")
    if given.out or not (given.lens or given.export):
        write(trace, given.out or Path("step.html"))


def write(trace: StepTrace, out: Path, **others: Any) -> None:
    """Write the page, and say where it is."""
    from minillm.study.step.page import write_page

    path = write_page(trace, out, **others)
    print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB); open it in a browser")


def starting_point(arguments: list[str]) -> Step:
    """The settings that hold where nothing else is given: those of the model that is named, or of a preset."""
    name = next((word for word in arguments[:1] if not word.startswith("-")), None)
    objective = peek(arguments, "--task")
    objective = ALIASES.get(objective, objective) if objective else None
    if objective is not None and objective not in TASKS:
        raise InputError(f"step: there is no task {objective!r}{did_you_mean(objective, [*TASKS, *ALIASES])}")
    check_one_model("step", name, arguments)
    if name is None or find(name, "step").kind == "preset":
        config = preset(name or peek(arguments, "--preset") or "nano")
        config = config.with_model(peek(arguments, "--model") or config.architecture, objective)
    else:
        config = config_of_model(name, objective)
    settings = {field.name: getattr(config, field.name) for field in dataclasses.fields(TrainConfig)}
    return Step(**settings | {"name": name, "batch_size": 1, "out": None})


def config_of_model(name: str, objective: str | None) -> TrainConfig:
    """The settings of a training that goes on from a model, or begins with a preset."""
    if find(name, "step").kind == "preset":
        config = preset(name)
        return config.with_model(config.architecture, objective)
    start = starting_model(name, "step")
    run = described(name, "step").run
    architecture = start["architecture"]
    config = run.config if run is not None else TrainConfig().with_model(architecture)
    chosen = objective or (config.objective if run is not None else OBJECTIVES[architecture])
    same = run is not None and chosen == config.objective
    changes = start if same else {**start, "objective": chosen, "task": None}
    return dataclasses.replace(config, **changes, data="builtin", lora=None, device="cpu", dtype="float32", zero=0)


def settings_of(given: Step) -> TrainConfig:
    """The settings of the training that the step belongs to; a head gets the classes of the data."""
    settings = {field.name: getattr(given, field.name) for field in dataclasses.fields(TrainConfig)}
    if given.objective in HEADS and given.data != "builtin":
        place = Place("preset", Path(given.preset))
        found = described(given.init, "step") if given.init else Described(place, type(given.model), given.model)
        settings["model"] = with_labels(given, found)
    return TrainConfig(**settings | {"out": None})


def summary(trace: StepTrace) -> list[str]:
    """Two lines about the step."""
    lines = sum(len(stop.lines) for stop in trace.stops)
    norm = "" if trace.grad_norm is None else f", gradient norm {trace.grad_norm:.4g}"
    return [
        f"{trace.model}: loss {trace.loss:.6f}{norm}, {counted(len(trace.stops), 'stop')}, {counted(lines, 'line')}",
        *trace.notes,
    ]


def compare(given: Step, config: TrainConfig, limit: dict[str, int]) -> None:
    """Run the step in two ways, and report the first line that differs; a page shows both."""
    from minillm.study.step.compare import compare_traces, traces_of

    words = (given.compare or "").split(",")
    a, b = traces_of(words, lambda model: settings_for(given, config, model), given.text, **limit)
    found = compare_traces(a, b, titles=words if len(words) == 2 else ["plain", *words])
    print(*found.report(), sep="\n")
    if given.out:
        write(a, given.out, compare=found)


def settings_for(given: Step, config: TrainConfig, model: str | None) -> TrainConfig:
    """The settings of one of two steps: with another model, or as they are."""
    if model is None:
        return config
    other = config_of_model(model, config.objective)
    return dataclasses.replace(other, lr=config.lr, clip=config.clip, batch_size=config.batch_size, data=config.data)
