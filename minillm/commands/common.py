"""Functions that several commands use: models of runs and files, and tables to print."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Column, Table

from minillm import hub
from minillm.checkpoint import load_checkpoint
from minillm.models.gpt2 import GPT2
from minillm.pretrained import SavedWith, keep
from minillm.training.run import Run
from minillm.training.trainer import make_model


def is_run(path: Path) -> bool:
    """Tell whether `path` is a directory of `minillm train`, even one that was stopped before its first step."""
    return (path / "checkpoints").is_dir() or (path / "metrics.jsonl").exists()


def trained_model(run: Run, device: str = "cpu", dtype: Literal["float32", "bfloat16"] = "float32") -> GPT2:
    """The model of a run, with the weights of its best checkpoint."""
    model = make_model(dataclasses.replace(run.config, device=device, dtype=dtype), run.tokenizer)
    model.load_state_dict(load_checkpoint(run.checkpoint("best")).model)
    return model


def load_model(path: Path) -> Any:
    """The model of a run directory, or one that `minillm.load` reads."""
    if not is_run(path):
        return hub.load(path)
    run = Run.open(path)
    model, end = trained_model(run), run.tokenizer.eot_id
    if end is not None:
        keep(model, SavedWith({"bos_token_id": end, "eos_token_id": end}, {}))
    return model


def print_tables(tables: Iterable[Any], width: int = 100) -> None:
    """Print tables, each `width` characters wide or more."""
    for title, columns, rows in tables:
        table = Table(columns[0], *(Column(name, justify="right") for name in columns[1:]), title=title)
        for row in rows:
            table.add_row(*row)
        Console(width=max(Console().width, width), markup=False, emoji=False).print(table)  # names may have brackets
