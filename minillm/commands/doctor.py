"""`minillm doctor`: what is wrong with a training before it begins, or with a run, and what to do about it."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from minillm.beside import is_run
from minillm.commands.common import check_one_model
from minillm.commands.finetune import Finetune, FinetuneDpo, FinetuneGrpo, FinetuneReward, FinetuneSft
from minillm.commands.finetune_heads import RATES, WIDE, FinetuneClassify, FinetuneHead, FinetuneQa, with_labels
from minillm.commands.train import Train, check_effect, config_of, starting_model, starting_point
from minillm.errors import CheckpointError, InputError, MinillmError
from minillm.files import check_folder_of
from minillm.options import Positional, filled, peek, scan
from minillm.resolver import Described, described, find, presets
from minillm.training.config import CONFIGS, TrainConfig, preset
from minillm.training.tasks import task_class
from minillm.tuning import tuned_process

if TYPE_CHECKING:
    from minillm.study.doctor import Finding
    from minillm.study.doctor.history import History
    from minillm.training.run import Run

FUNCTION = r"^[a-z_]+: "  # at the beginning of an error: which function raised it
HEADS = ("classify", "qa")  # objectives whose model has classes of the data
# The commands of `minillm finetune` by their objective, and the settings that have a default of their own there.
TUNED: dict[str, type[Finetune]] = {
    "sft": FinetuneSft,
    "preference": FinetuneDpo,
    "reward": FinetuneReward,
    "grpo": FinetuneGrpo,
    "classify": FinetuneClassify,
    "qa": FinetuneQa,
}
OF_TUNING = (
    *("lr", "min_lr", "steps", "warmup", "decay_steps", "batch_size", "eval_batches", "validation_fraction"),
    "weight_decay",
)
OF_A_RUN = ("preset", "architecture", "model", "tokenizer", "objective", "lora")  # what a run keeps


@dataclass(frozen=True)
class Doctor(Train):
    """Say what is wrong with a training before its first step, or with a run: the cause, and what to do."""

    no_options: ClassVar[tuple[str, ...]] = (
        *("init", "out", "resume", "progress", "nproc", "timeout", "trace", "dp", "tp", "pp", "zero", "pipeline"),
        *("device", "dtype", "threads", "recompute", "sample_every", "sample_tokens", "eval_every", "eval_batches"),
        *("micro_batches", "patience", "watch"),
    )
    start: Positional[str | None] = dataclasses.field(default=None, metadata={"name": "model_or_run"})
    """A run directory of `minillm train` or `finetune`, whose metrics are read too; a model to start from, as --init of
    `minillm train`; or a preset. Without it, the settings are those that `minillm train` would have."""
    lr_range: bool = False
    """Also train a hundred steps with rates from 1e-6 to 1, and say which work; the weights are not kept."""
    picture: Path | None = None
    """PNG to write, of the run or of the rates; by default doctor.png in the run, or lr-range.png here."""
    json: bool = False
    """Print the findings as JSON."""

    def __post_init__(self):
        super().__post_init__()
        if self.picture is not None:
            check_folder_of("doctor", "--picture", self.picture)


def doctor(arguments: list[str]) -> None:
    """Print what was found, errors first; exit status 1 if an error is among it, 0 otherwise.

    Settings that cannot be used at all end with status 2, as everywhere.
    """
    from minillm.study.doctor import sorted_findings
    from minillm.study.doctor.runs import ASTRAY

    given, run = settings_of(arguments)
    findings: list[Finding] = []
    with tuned_process():
        if run is not None:
            findings += of_run(run, given)
        lost = any(one.name in ASTRAY for one in findings)
        findings += of_training(given, run, lost)
        if given.lr_range:
            findings += of_rates(given)
    show(sorted_findings(findings), given.json)
    if any(one.severity == "error" for one in findings):
        raise SystemExit(1)


def settings_of(arguments: list[str]) -> tuple[Doctor, Run | None]:
    """The options, which begin as those of the run, the preset or the model that is named first; and the run."""
    words = arguments[1:] if arguments[:1] == ["--"] else arguments
    name = next((word for word in words[:1] if words is not arguments or not word.startswith("-")), None)
    check_one_model("doctor", name, arguments)
    before, run = beginning(name, arguments)
    before = before if run is not None else with_defaults(before)
    settings = {field.name: getattr(before, field.name) for field in dataclasses.fields(before)}
    default = Doctor(**settings, start=name)
    values = scan(Doctor, "doctor", arguments, default)
    if run is not None:
        check_kept(run, values)
    given = filled(Doctor, "doctor", values, default)
    if given.start != name:
        raise InputError(f"doctor: write {given.start} first: minillm doctor {given.start} ...")
    if run is None:
        check_effect("doctor", values, given)
        if given.picture and not given.lr_range:
            raise InputError("doctor: --picture does nothing here: a run is drawn, and --lr-range; leave it out")
        if given.lora and given.objective in TUNED and ("lr",) not in values:
            given = dataclasses.replace(given, lr=10 * given.lr)
    if given.objective in HEADS and run is None:
        kind = task_class(given.objective).model_class(given)
        place = described(name, "doctor") if given.init else Described(None, kind, given.model)  # type: ignore[arg-type]
        given = dataclasses.replace(given, model=with_labels(given, place))  # type: ignore[arg-type]
    return given, run


def check_kept(run: Run, values: dict[tuple[str, ...], Any]) -> None:
    """Raise InputError for an option that a run keeps as it is."""
    for path in values:
        if path[0] in OF_A_RUN:
            option = path[-1] if path[0] == "model" else {"architecture": "model"}.get(path[0], path[0])
            raise InputError(
                f"doctor: --{option.replace('_', '-')} does nothing here, as {run.folder} is a run and keeps its own; "
                "leave it out"
            )


def with_defaults(config: TrainConfig) -> TrainConfig:
    """The settings with the defaults of `minillm finetune`, where that is the command of their objective."""
    kind = TUNED.get(config.objective)
    if kind is None:
        return config
    defaults: dict[str, Any] = {one.name: one.default for one in dataclasses.fields(kind) if one.name in OF_TUNING}
    if issubclass(kind, FinetuneHead):
        narrow = "wide" if config.model.channels >= WIDE else "narrow"
        defaults["lr"] = RATES[narrow if config.init else "new"]
    return dataclasses.replace(config, **defaults)


def beginning(name: str | None, arguments: list[str]) -> tuple[TrainConfig, Run | None]:
    """The settings before any option, and the run if `name` is one."""
    from minillm.training.run import Run

    if name is None:
        return starting_point(arguments), None
    if is_run(Path(name)):
        run = Run.open(Path(name))
        return run.config, run
    if name in CONFIGS and name not in presets() and not Path(name).exists():
        raise InputError(f"doctor: {name} is a family and no model; for a new one write minillm doctor --model {name}")
    objective = peek(arguments, "--objective")
    if find(name, "doctor").kind == "preset":
        config = preset(name)
        return config.with_model(config.architecture, objective), None
    start = starting_model(name, "doctor")
    return dataclasses.replace(TrainConfig().with_model(start["architecture"], objective), **start), None


def of_run(run: Run, given: Doctor) -> list[Finding]:
    """The findings in the metrics of a run, which are drawn too."""
    from minillm.study.doctor import examine_run
    from minillm.study.doctor.history import history_of
    from minillm.study.doctor.pictures import draw_run

    history: History = history_of(run.folder)
    found = examine_run(history)
    if history.learned and not given.lr_range:
        drawn(given, run.folder / "doctor.png", lambda path: draw_run(history, found, path))
    return found


def drawn(given: Doctor, usual: Path, draw: Callable[[Path], None]) -> None:
    """Draw a picture, and say where it is; the findings do not wait for a folder that cannot be written to."""
    path = given.picture or usual
    try:
        draw(path)
        print(f"picture: {path}", file=sys.stderr)
    except OSError as error:
        print(f"no picture: {path} cannot be written ({error.strerror}); give --picture PATH", file=sys.stderr)


def of_training(given: Doctor, run: Run | None, lost: bool) -> list[Finding]:
    """The findings of the checks before training, with the weights of the run if it has saved some and is not lost.

    What the rate does to weights is not asked of a run that has taken steps: its curves tell.
    """
    from rich.console import Console

    from minillm.study.doctor import case_of, examine
    from minillm.study.doctor.finding import Finding

    new = run is None or run.latest() is None or lost
    try:
        case = case_of(config_of(given), run, new)
        with Console(stderr=True).status("looking at model, data and settings"):
            found = examine(*case)
    except MinillmError as error:
        if run is None:
            raise
        damaged = isinstance(error, CheckpointError)  # its own files, and not the data
        return [
            Finding(
                "error" if damaged else "note",
                "not-examined",
                f"model and data of the run were not looked at: {re.sub(FUNCTION, '', str(error)).rstrip('.')}",
                "restore the file from a copy, or train again; what is said of the metrics holds all the same"
                if damaged
                else "give --data with the place where the data are now",
            )
        ]
    same = run is not None and not new and given.lr == run.config.lr
    return [one for one in found if not same or one.name != "learning-rate"]


def of_rates(given: Doctor) -> list[Finding]:
    """The findings of the range test, which is drawn too."""
    from rich.console import Console

    from minillm.study.doctor import case_of
    from minillm.study.doctor.pictures import draw_rates
    from minillm.study.doctor.rates import judged, range_test

    task, model, _ = case_of(config_of(given))
    with Console(stderr=True).status("trying a hundred rates"):
        rates = range_test(task, model)
    drawn(given, Path("lr-range.png"), lambda path: draw_rates(rates, given.lr, path))
    return list(judged(rates, given.lr))


def show(found: list[Finding], as_json: bool) -> None:
    """Print the findings, and how many there are."""
    from minillm.study.doctor import CHECKS, lines_of, summary

    if as_json:
        counts: dict[str, Any] = {
            f"{severity}s": sum(one.severity == severity for one in found) for severity in ("error", "warning", "note")
        }
        print(json.dumps({**counts, "findings": [one._asdict() for one in found]}, indent=2))
        return
    for line in lines_of(found):
        print(line)
    print(f"{summary(found)} ({len(CHECKS)} checks of model, data and settings)")
