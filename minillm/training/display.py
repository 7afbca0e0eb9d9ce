"""The display of a training run: a live line on a terminal, and a plain line for each validation elsewhere.

The live line is drawn by the steps themselves; no thread draws it meanwhile. When a debugger starts, by breakpoint()
or by pdb, the line is left as it stands, so that the prompt has the terminal; it returns at the first step that no
debugger follows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import shlex
import statistics
import sys
import time
from typing import IO, TYPE_CHECKING, Any, cast

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from minillm.console import Output
from minillm.counted import counted
from minillm.errors import MinillmError
from minillm.training import speed, watch
from minillm.training.overfitting import COMPARED, parted
from minillm.tuning import Choice

if TYPE_CHECKING:
    from minillm.training.saving import State


DRAW_EVERY = 0.1  # seconds


class Display:
    """Progress of one run; entered around the loop.

    live: draw a live line if the output is a terminal. trained: the number of weights that are trained, if not all are.
    """

    def __init__(
        self, run: Any, weights: int, task: Any, state: State, config: Any, live: bool = True, trained: int = 0
    ):
        self.run = run
        self.task = task
        self.config = config
        self.output = Output()
        self.console = Console(file=cast("IO[str]", self.output), soft_wrap=True, highlight=False, emoji=False)
        self.told: set[str] = set()  # troubles that were shown
        self.progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TextColumn(
                "loss {task.fields[loss]}  {task.fields[what]} {task.fields[val_loss]}  {task.fields[speed]} tokens/s"
            ),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self.console,
            auto_refresh=False,
            disable=not (live and self.console.is_terminal),
        )
        self.validated = task.validated.removesuffix(" loss")  # in lines that are short
        self.drawn = 0.0  # when the live line was drawn last
        self.line = self.progress.add_task(
            "", total=config.steps, completed=state.step, loss="-", val_loss="-", speed="-", what=self.validated
        )
        self.speed = 0.0  # tokens per second, a running mean over about 20 steps
        some = f" ({trained:,} of them, the adapters, are trained)" if trained else ""
        self.console.print(f"{weights:,} weights{some}, {escape(task.summary())}")
        self.console.print(
            f"run directory {escape(str(run.folder))}" + (f", from step {state.step}" if state.step else "")
        )
        self.choice = Choice.from_json(state.choice) if state.choice else None
        if self.choice and self.choice.seconds:
            told = f"{self.choice.name}, as when it began" if state.step else f"{self.choice}"
            self.console.print(f"work is cut over {told}; --threads fixes the number")
        self.seconds: list[float] = []  # of each step so far

    def say(self, sentence: str) -> None:
        """Show a sentence about the run."""
        self.console.print(sentence, markup=False)

    def __enter__(self) -> Display:
        if not self.progress.disable:
            _watch_for_debuggers()
            _entered.append(self)
            if not debugger_is_attached():
                self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        self.progress.stop()
        if self in _entered:
            _entered.remove(self)
        if kind is KeyboardInterrupt:
            self.say(f"stopped without saving; to go on after the last checkpoint:\n  {self.resume_command()}")
        if self.output.broken:
            with contextlib.suppress(OSError, ValueError):
                told = f"the output could not be written ({self.output.broken}), so the rest was not shown"
                print(f"train: {told}; the run is in {self.folder()}", file=sys.stderr, flush=True)

    def trouble(self, what: str, sentence: str) -> None:
        """Show what could not be written, once for each thing until it works again."""
        if what not in self.told:
            self.told.add(what)
            self.say(sentence)

    def asks_to_try_again(self, reason: str) -> bool:
        """Ask a person at a terminal to save once more what could not be saved; False if there is nobody to ask."""
        if sys.stdin is None or not (sys.stdin.isatty() and self.console.is_terminal):
            return False
        self.progress.stop()
        self.say(f"the last step is not saved: {reason}")
        try:
            return input("make room, then press Enter to save again; n gives up: ").strip() != "n"
        except (EOFError, KeyboardInterrupt):
            return False

    def is_live(self) -> bool:
        """True if a live line is there; if a debugger has gone, it is there again."""
        if self.progress.disable:
            return False
        if debugger_is_attached():
            self.progress.stop()
        elif self in _entered:
            self.progress.start()
        return self.progress.live.is_started

    def first(self, measured: dict[str, Any]) -> None:
        """Write what a validation before the first step found to metrics.jsonl, and show it."""
        self.run.add_metrics({"step": 0, "loss": None, **measured})
        shown = f"{measured['val_loss']:.3f}{in_bits(measured)}{self.remark(measured)}"
        self.console.print(f"step 0/{self.config.steps}  {self.validated} {shown}", markup=False)

    def remark(self, record: dict[str, Any]) -> str:
        """The task's remark on a validation, with space before it."""
        remark = self.task.remark(record)
        return f"  {remark}" if remark else ""

    def step(self, record: dict[str, Any], seconds: float) -> None:
        """Show a step, which took `seconds`."""
        if self.run.waiting:
            files = " and ".join(self.run.waiting)
            self.trouble(
                "metrics", f"{files} cannot be written; training goes on, and the lines are kept until they can"
            )
        self.speed += (record["tokens_per_s"] - self.speed) * (0.05 if self.speed else 1)
        if "skipped" in record:
            self.say(record["skipped"])
        if "spike_above" in record:
            self.say(
                f"at step {record['step']} the loss jumps to {record['loss']:.3f}, where the median of the steps "
                f"before it is {record['spike_above']:.3f}"
            )
        loss = "skipped" if record["loss"] is None else f"{record['loss']:.3f}"
        fields: dict[str, Any] = {"loss": loss, "speed": f"{self.speed:,.0f}"}
        live = self.is_live()
        if record["val_loss"] is not None:
            fields["val_loss"] = f"{record['val_loss']:.3f}{in_bits(record)}"
            if not live:
                self.console.print(
                    f"step {record['step']}/{self.config.steps}  loss {fields['loss']}  {self.validated} "
                    f"{fields['val_loss']}  {fields['speed']} tokens/s  {record['seconds']:.0f} s{self.remark(record)}",
                    markup=False,
                )
        due = live and time.monotonic() - self.drawn >= DRAW_EVERY
        self.progress.update(self.line, completed=record["step"], refresh=due, **fields)
        self.drawn = time.monotonic() if due else self.drawn
        self.seconds.append(seconds)
        if len(self.seconds) == speed.TOLD_AT:
            self.tell_the_rest(record["step"])

    def tell_the_rest(self, step: int) -> None:
        """Say how long the run will take, and whether two processes would be faster."""
        seconds = statistics.median(self.seconds[speed.TOLD_AT // 2 :])
        config = self.config
        if self.task.name == "causal":
            config = dataclasses.replace(config, model=self.task.shape(config, self.task.tokenizer))
        one_process = self.choice and self.choice.seconds and self.task.name == "causal"
        # where ways were tried, two processes are one more, and random tokens do for those of a text
        two = speed.seconds_in_two_processes if one_process else None
        for line in speed.forecast(config, step, seconds, self.folder(), two):
            self.console.print(line, markup=False)

    def sample(self, prompt: str, continuation: str) -> None:
        """Show a prompt and how the model continues it."""
        self.console.print(Text.assemble((prompt, "dim"), continuation))
        self.console.print("-" * 40, style="dim")

    def finish(self, state: State, stopped: bool) -> None:
        """Draw the loss curve, and show the results and the command that comes next."""
        self.progress.stop()
        folder, drawn = self.folder(), True
        try:
            self.run.plot()
        except MinillmError as error:
            drawn = False
            self.say(f"the loss curve is not drawn: {error}")
        validated = [record for record in self.run.metrics() if record["val_loss"] is not None]
        if validated:
            self.console.print(
                f"{self.task.validated}: last {validated[-1]['val_loss']:.4f} at step {validated[-1]['step']}, "
                f"best {state.best_loss:.4f} at step {state.best_step}; {state.seconds:.0f} s of training"
            )
        if state.skipped:
            self.say(f"{counted(state.skipped, 'step was', 'steps were')} skipped, with a loss or gradient not finite")
        if self.task.validated == COMPARED and (found := parted(self.run.metrics())) is not None:
            self.console.print(str(found))
        if drawn:
            self.say(f"loss curve: {folder}/loss.png")
        self.tell_the_layers(state)
        if stopped and state.has_no_hope(self.config.patience):
            self.console.print(
                f"stopped at step {state.step}: the last "
                f"{counted(self.config.patience or 0, 'validation was', 'validations were')} not better than step "
                f"{state.best_step}"
            )
        elif stopped:
            self.console.print(f"stopped and saved at step {state.step}; to go on:")
            self.say(f"  {self.resume_command()}")
            return
        for line in self.task.next_steps(folder):
            self.console.print(line, markup=False)

    def tell_the_layers(self, state: State) -> None:
        """Draw what --watch has found in the layers, and say what is unusual, and what watching has cost."""
        records = self.run.watched()
        if not records:
            return
        try:
            watch.plot(records, self.run.folder / "watch.png")
        except MinillmError as error:
            self.say(f"the picture of the layers is not drawn: {error}")
            return
        seconds = sum(record["seconds"] for record in records)
        self.console.print(
            f"layers: {self.folder()}/watch.png, of {counted(len(records), 'watched step')}; this took "
            f"{seconds:.1f} s of {state.seconds:.0f} s",
            markup=False,
        )
        for remark in watch.remarks(records):
            self.console.print(remark, markup=False)

    def resume_command(self) -> str:
        """The command that goes on with this run."""
        return f"minillm train --resume {self.folder()}"

    def folder(self) -> str:
        """The run directory, quoted for a shell."""
        name = str(self.run.folder)
        return shlex.quote(f"./{name}" if name.startswith("-") else name)  # or it would be an option


class NoDisplay:
    """The display of every rank but 0, which shows nothing."""

    def __enter__(self) -> NoDisplay:
        return self

    def __exit__(self, *error: Any) -> None:
        return None

    def first(self, measured: dict[str, Any]) -> None:
        """Do nothing; see Display.first."""

    def step(self, record: dict[str, Any], seconds: float) -> None:
        """Do nothing; see Display.step."""

    def sample(self, prompt: str, continuation: str) -> None:
        """Do nothing; see Display.sample."""

    def trouble(self, what: str, sentence: str) -> None:
        """Do nothing; see Display.trouble."""

    def asks_to_try_again(self, reason: str) -> bool:
        """There is nobody to ask; see Display.asks_to_try_again."""
        return False

    def finish(self, state: State, stopped: bool) -> None:
        """Do nothing; see Display.finish."""


def in_bits(record: dict[str, Any]) -> str:
    """The validation loss in bits per byte of the text, in brackets, where the loss is that of a text's tokens."""
    bits = record.get("val_bits_per_byte")
    return "" if bits is None else f" ({bits:.3f} bits a byte)"


# --- debuggers -----------------------------------------------------------------------------------------------------

_entered: list[Display] = []  # the displays whose live line may be on the terminal


@functools.cache
def _watch_for_debuggers() -> None:
    """Stop the live line when a debugger starts. Python has no way to end this, so it is begun once."""
    starts = ("builtins.breakpoint", "pdb.Pdb")

    def before(event: str, _: tuple) -> None:
        if event in starts:
            for display in _entered:
                display.progress.stop()

    sys.addaudithook(before)


def debugger_is_attached() -> bool:
    """True if a debugger (or another tool) follows every line: pdb between two prompts, or while it has breakpoints."""
    monitoring = getattr(sys, "monitoring", None)  # of Python 3.12; pdb uses it from 3.14 on
    return sys.gettrace() is not None or (monitoring is not None and bool(monitoring.get_tool(monitoring.DEBUGGER_ID)))
