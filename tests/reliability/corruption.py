"""Damaged files: found when they are read, and named

Each trial damages one file of a run, of a model in Hugging Face's form, or of a folder of shards, and reads it as a
person would: it resumes the run, opens its model, loads the weights, or trains on the ids. It ends so:
- refused: an error of minillm that names the file, or, for lines of the metrics, a count of damaged lines;
- harmless: what was read equals what was written, bit for bit, such as after a change among spaces;
- a fault: other content was used without a word, the file was not named, or there was a traceback.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import minillm
from minillm.beside import load_tokenizer
from minillm.cli import main
from minillm.data import open_tokens, write_shards
from minillm.errors import MinillmError
from minillm.lora import LoraConfig, add_lora, load_lora, save_lora
from minillm.lora.model import record_of
from minillm.training.run import Run
from minillm.training.saving import read_latest
from minillm.training.tasks import task_class
from tests.reliability.row import Row

SETTINGS = "--preset nano --steps 4 --warmup 1 --eval-every 2 --eval-batches 1 --sample-every 0 --no-progress".split()


def flipped(content: bytes, place: int, bit: int = 2) -> bytes:
    """The content with one bit changed."""
    return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


def damages(rng: np.random.Generator, others: list[bytes]) -> dict[str, Callable[[bytes], bytes]]:
    """Ways to damage a file; others: the contents of such files of other runs."""

    def zeroed(content: bytes) -> bytes:
        start = int(rng.integers(len(content)))
        return content[:start] + bytes(min(512, len(content) - start)) + content[start + 512 :]

    def exchanged(content: bytes) -> bytes:
        size = min(256, len(content) // 3)
        a, b = sorted(int(at) for at in rng.integers(0, len(content) - size, 2))
        b = max(b, a + size)
        return content[:a] + content[b : b + size] + content[a + size : b] + content[a : a + size] + content[b + size :]

    return {
        "one bit flipped": lambda content: flipped(content, int(rng.integers(len(content))), int(rng.integers(8))),
        "zeros over 512 bytes": zeroed,
        "cut short": lambda content: content[: int(rng.integers(len(content)))],
        "bytes appended": lambda content: content + rng.bytes(int(rng.integers(1, 64))),
        "two stretches exchanged": exchanged,
        "another run's file": lambda content: others[int(rng.integers(len(others)))],
    }


def make_folder(folder: Path, seed: int) -> None:
    """A run, its model in Hugging Face's form, and shards, which depend on the seed."""
    folder.mkdir()
    words = np.random.default_rng(seed).permutation(
        "to be or not to be that is the question whether tis nobler".split()
    )
    (folder / "text.txt").write_text(" ".join(words) * 60)
    quiet = contextlib.redirect_stdout(io.StringIO())
    with quiet:
        main(
            ["train", *SETTINGS, "--seed", str(seed), "--data", str(folder / "text.txt"), "--out", str(folder / "run")]
        )
        main(["convert", str(folder / "run"), str(folder / "model")])
        save_lora(with_adapters(folder / "model"), folder / "adapter")
    ids = np.random.default_rng(seed).integers(0, 300, 30_000)
    write_shards(folder / "shards", "train", ids.tolist(), 300, "0123456789abcdef")


def with_adapters(folder: Path) -> Any:
    """A model with adapters, none of which is zero."""
    model = minillm.load(folder)
    add_lora(model, LoraConfig(rank=2, alpha=4))
    for name, parameter in model.named_parameters():
        if name.endswith(".B"):
            parameter.data[...] = 0.01
    return model


def arrays_of(state: Any) -> dict[str, bytes]:
    """The bytes of each array, to compare."""
    return {name: np.asarray(array).tobytes() for name, array in state.items()}


def resumed(folder: Path) -> Any:
    """What `train --resume` takes from a run."""
    run = Run.open(folder / "run")
    checkpoint = read_latest(run, task_class(run.config.objective)(run.config, run.tokenizer))
    return run.config, arrays_of(checkpoint.model), arrays_of(checkpoint.optimizer), checkpoint.state


def best(folder: Path) -> Any:
    """The weights that `sample` and `minillm.load` take from a run."""
    run = Run.open(folder / "run")
    checkpoint = run.read_checkpoint(run.checkpoint("best"))
    return arrays_of(minillm.load(folder / "run").state_dict()), arrays_of(checkpoint.optimizer), checkpoint.state


def metrics(folder: Path) -> Any:
    """The lines that are whole. Raises: DamagedLinesError for others, and for a step that has none."""
    run = Run.open(folder / "run")
    if run.damaged_lines() or run.missing_lines(4):
        raise DamagedLinesError(f"{folder / 'run' / 'metrics.jsonl'}: lines {run.damaged_lines()}, steps lacking")
    return run.metrics()


class DamagedLinesError(MinillmError):
    """Lines of the metrics are damaged or lacking; `train --resume` says how many, and goes on without them."""


def weights(folder: Path) -> Any:
    """The model that is loaded from Hugging Face's files."""
    model = minillm.load(folder / "model")
    return model.config, arrays_of(model.state_dict())


def adapters(folder: Path) -> Any:
    """A model with the adapters that `save_lora` wrote."""
    model = load_lora(minillm.load(folder / "model"), folder / "adapter")
    return record_of(model, "adapters").config, arrays_of(model.state_dict())


def exported_tokenizer(folder: Path) -> Any:
    """The tokenizer that is read from Hugging Face's files."""
    tokenizer = load_tokenizer(folder / "model")
    return tokenizer.to_json(), tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id


def tokenizer(folder: Path) -> Any:
    """The tokenizer of a run."""
    return Run.open(folder / "run").tokenizer.to_json()


def ids(folder: Path) -> Any:
    """The ids that are trained on."""
    return np.asarray(open_tokens(folder / "shards" / "train_00000.bin", "0123456789abcdef")).tobytes()


READERS: dict[str, Callable[[Path], Any]] = {  # each file, and what a person does with it
    "run/checkpoints/last.safetensors": resumed,
    "run/checkpoints/best.safetensors": best,
    "run/config.json": resumed,
    "run/metrics.jsonl": metrics,
    "run/tokenizer/tokenizer.json": tokenizer,
    "model/model.safetensors": weights,
    "model/config.json": weights,
    "model/tokenizer.json": exported_tokenizer,
    "model/tokenizer_config.json": exported_tokenizer,
    "model/checksums.json": weights,
    "adapter/adapter_model.safetensors": adapters,
    "adapter/adapter_config.json": adapters,
    "shards/train_00000.bin": ids,
}


def attempt(reader: Callable[[Path], Any], folder: Path, path: Path, whole: Any) -> str:
    """How a trial ends: "refused", "harmless", or a fault in words."""
    try:
        found = reader(folder)
    except MinillmError as error:
        named = path.name in str(error) or str(path.parent) in str(error)
        return "refused" if named else f"not named: {error}"
    except Exception as error:
        return f"traceback: {type(error).__name__}: {error}"
    return "harmless" if found == whole else "used without a word"


def trials(count: int, folder: Path, seed: int = 0) -> dict[tuple[str, str], Counter[str]]:
    """Damage files `count` times; returns how the trials of each file and damage ended."""
    for number in range(3):
        make_folder(folder / str(number), number)
    rng, mine = np.random.default_rng(seed), folder / "0"
    whole = {name: reader(mine) for name, reader in READERS.items()}
    ended: dict[tuple[str, str], Counter[str]] = {}
    for number in range(count):
        name = list(READERS)[number % len(READERS)]
        path = mine / name
        others = [(folder / other / name).read_bytes() for other in "12"]
        if name.startswith(("model", "adapter", "shards")):  # another model or corpus is no damage, but another file
            others = [other[: len(other) // 2] for other in others]
        kinds = damages(rng, others)
        kind = list(kinds)[number // len(READERS) % len(kinds)]
        content = path.read_bytes()
        damaged = kinds[kind](content)
        path.unlink()
        path.write_bytes(damaged)
        result = attempt(READERS[name], mine, path, whole[name]) if damaged != content else "harmless"
        path.unlink()
        path.write_bytes(content)
        ended.setdefault((name, kind), Counter())[result] += 1
    return ended


def measure(count: int) -> list[Row]:
    """The table: a row for each file."""
    folder = Path(tempfile.mkdtemp())
    try:
        ended = trials(count, folder)
    finally:
        shutil.rmtree(folder)
    rows = []
    for name in READERS:
        total: Counter[str] = sum((counts for (file, _), counts in ended.items() if file == name), Counter())
        faults = {what: number for what, number in total.items() if what not in ("refused", "harmless")}
        told = f"{total['refused']} refused, {total['harmless']} harmless" + (
            f"; {json.dumps(faults)}" if faults else ""
        )
        rows.append(Row(name, total.total(), sum(faults.values()), told))
    return rows
