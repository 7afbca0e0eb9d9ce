"""`minillm profile`: where the time of a training step goes."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from minillm.errors import InputError
from minillm.models.gpt2 import GPT2Config
from minillm.options import filled, scan
from minillm.training.config import preset
from minillm.tuning import tuned_process


@dataclass(frozen=True)
class Profile:
    """Show where the time of a training step goes, operation by operation, on a CPU."""

    preset: str
    """Preset to start from (default, shakespeare-char-cpu, nano); other options override it."""
    model: GPT2Config
    """Shape of the model."""
    batch_size: int
    """Sequences per step, each of `context` tokens."""
    repeats: int = 5
    """Number of steps to time, after some to warm up."""


def profile(arguments: list[str]) -> None:
    """Print a step's time by operation, and the share of matrix products."""
    from minillm.study.profile import profile_training

    values = scan(Profile, "profile", arguments)
    before = preset(values.get(("preset",), "default"))
    given = filled(Profile, "profile", values, Profile(before.preset, before.model, before.batch_size))
    for name in ("batch_size", "repeats"):
        if getattr(given, name) < 1:
            raise InputError(f"profile: {name} is {getattr(given, name)}; give 1 or more")
    with tuned_process():
        measured = profile_training(given.model, given.batch_size, given.repeats)
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
