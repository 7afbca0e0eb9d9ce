"""`minillm profile`: where the time of a training step goes."""

from __future__ import annotations

from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from minillm.commands.common import check_one_model
from minillm.errors import InputError
from minillm.models.config import Config
from minillm.options import Positional, filled, peek, scan
from minillm.resolver import described
from minillm.training.config import preset
from minillm.training.tasks import task_class
from minillm.tuning import tuned_process


@dataclass(frozen=True)
class Profile:
    """Show where the time of a training step goes, operation by operation, on a CPU."""

    name: Positional[str | None] = None
    """Model whose shape to take: a run directory, a folder with config.json, a .gguf, or a name such as bert-nano."""
    preset: str = "default"
    """Preset to start from (default, shakespeare-char-cpu, multi30k, nano or gpt2-nano, llama-nano, gemma-nano,
    bert-nano, roberta-nano, distilbert-nano, xlnet-nano, bart-nano, or a size such as gpt2); other options override
    it."""
    model: Config = field(default_factory=lambda: preset("default").model)
    """Shape of the model."""
    batch_size: int = 12
    """Sequences per step, each of `context` tokens."""
    repeats: int = 5
    """Number of steps to time, after some to warm up."""


def profile(arguments: list[str]) -> None:
    """Print a step's time by operation, and the share of matrix products."""
    from minillm.study.profile import profile_training

    name = next((argument for argument in arguments[:1] if not argument.startswith("-")), None)
    check_one_model("profile", name, arguments)
    start = preset(peek(arguments, "--preset") or "default")
    kind, shape = (task_class(start.objective).model_class(start), start.model)
    if name is not None:
        _, kind, shape, _ = described(name, "profile")
    before = Profile(name, start.preset, shape, start.batch_size)
    given = filled(Profile, "profile", scan(Profile, "profile", arguments, before), before)
    for option in ("batch_size", "repeats"):
        if getattr(given, option) < 1:
            raise InputError(f"profile: {option} is {getattr(given, option)}; give 1 or more")
    with tuned_process():
        measured = profile_training(given.model, given.batch_size, given.repeats, kind=kind)
        floor = measured.products_alone()
    table = Table("operation", "calls", "forward ms", "backward ms", "share")
    for name, calls, forward, backward in measured.rows():
        share = (forward + backward) / measured.seconds
        table.add_row(name, f"{calls:g}", f"{1e3 * forward:.2f}", f"{1e3 * backward:.2f}", f"{share:.1%}")
    table.add_row("all else", "", f"{1e3 * measured.elsewhere:.2f}", "", f"{measured.elsewhere / measured.seconds:.1%}")
    Console().print(table)
    alone = f"{1e3 * floor:.1f} ms, {floor / measured.seconds:.0%} of it, at {measured.flops / floor / 1e9:.0f} GFLOP/s"
    print(
        f"a step takes {1e3 * measured.seconds:.1f} ms; its {measured.flops / 1e9:.2f} GFLOP of products alone, {alone}"
    )
