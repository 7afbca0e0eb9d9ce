"""The command line: `minillm train`, `sample`, `chat`, `tokenizer`, `profile`, `gradcheck`, `kernels`, `convert`,
`diff`, `describe`, `pipeline-picture`, `parallel-report`.

Options come from dataclasses (options.py reads their fields and the texts below them). An error that minillm raises on
purpose is printed as its one sentence, with exit status 2; any other is a defect and shows its traceback.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from minillm import __version__
from minillm.tuning import tuned_process
from minillm.console import (
    PIPE_CLOSED,
    abandon_output,
    flush,
    lines_of_input,
    print_as_it_comes,
    replace_what_cannot_be_shown,
)
from minillm.errors import InputError, MinillmError, did_you_mean
from minillm.models.gpt2 import GPT2Config
from minillm.options import Positional, filled, read, scan
from minillm.training.config import TrainConfig, preset


@dataclass(frozen=True)
class Train(TrainConfig):
    """Train a small GPT on a text."""

    resume: Path | None = None
    """Run directory to continue; of the other options only device, steps, intervals, samples and ranks may change."""
    nproc: int = 1
    """Ranks to start on this machine; other launchers set WORLD_SIZE, and this stays 1."""
    timeout: float | None = None
    """Seconds that ranks wait for each other before they say which is missing; 300 by default."""
    trace: Path | None = None
    """Folder for a record of every message between ranks, messages-RANK.jsonl: who sent what to whom, and when."""


@dataclass(frozen=True)
class Sample:
    """Continue a prompt with a trained model."""

    run: Positional[Path]
    """Run directory that `minillm train` made."""
    prompt: str = "The "
    """Text to continue."""
    max_tokens: int = 200
    """Most tokens to add; an end-of-text token ends sooner."""
    temperature: float = 0.8
    """Divides the logits: 0 takes the likeliest token, 1 the model's own distribution."""
    top_k: int | None = None
    """Choose among the k likeliest tokens only."""
    top_p: float | None = None
    """Choose among the fewest tokens that together have this probability."""
    min_p: float | None = None
    """Choose among the tokens with at least this share of the likeliest one's probability."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that were there before become less likely."""
    seed: int = 0
    """The same seed gives the same text."""
    device: str = "cpu"
    """Where to compute: `cpu`, `cuda` or `cuda:1`."""


@dataclass(frozen=True)
class TokenizerTrain:
    """Train a tokenizer on a text and save it."""

    out: Positional[Path]
    """Folder to save it in."""
    data: str = "builtin"
    """Text: a file, a folder, a glob pattern, a .jsonl, or `builtin`."""
    field: str | None = None
    """Which field of a .jsonl line holds the text; `text` by default."""
    kind: Literal["bpe", "wordpiece", "unigram", "char"] = "bpe"
    """Byte-level BPE, BERT's WordPiece, Unigram, or one token a character."""
    vocab_size: int = 1024
    """Number of tokens, characters or bytes and special tokens included; of `char` it is what the text has."""


@dataclass(frozen=True)
class TokenizerEncode:
    """Print the ids of a text, or write a corpus as token shards to train on."""

    tokenizer: Positional[Path]
    """Folder of a saved tokenizer (a run directory's `tokenizer`)."""
    text: Positional[str | None] = None
    """Text to encode."""
    data: str | None = None
    """Instead of a text: a file, a folder, a glob pattern, a .jsonl, or `builtin`."""
    field: str | None = None
    """Which field of a .jsonl line holds the text; `text` by default."""
    out: Path | None = None
    """With --data: folder for train_*.bin and validation_*.bin, which `minillm train --data` reads."""
    validation_fraction: float = 0.1
    """Share of the text, at its end, for validation."""


@dataclass(frozen=True)
class TokenizerDecode:
    """Print the text of token ids."""

    tokenizer: Positional[Path]
    """Folder of a saved tokenizer."""
    ids: Positional[tuple[int, ...]]
    """Token ids."""


@dataclass(frozen=True)
class Profile:
    """Show where the time of a training step goes, operation by operation, on a CPU."""

    preset: str
    """Named settings to start from: default, shakespeare-char-cpu or nano; other options change single ones."""
    model: GPT2Config
    """Shape of the model."""
    batch_size: int
    """Sequences per step, each of `context` tokens."""
    repeats: int = 5
    """Number of steps to time, after some to warm up."""


@dataclass(frozen=True)
class Gradcheck:
    """Check every operation's backward against differences of its forward, in float64, and at other inputs."""

    ops: Positional[tuple[str, ...]] = ()
    """Names of operations; all by default."""


@dataclass(frozen=True)
class Kernels:
    """Compile the CUDA kernels (no GPU needed) and print what each takes on each architecture."""

    files: Positional[tuple[str, ...]] = ()
    """Files in kernels/, such as softmax.cu; all by default."""


CHANGEABLE_ON_RESUME = {"device", "steps", "eval_every", "eval_batches", "sample_every", "sample_tokens", "resume"}
CHANGEABLE_ON_RESUME |= {
    "nproc",
    "timeout",
    "trace",
    "dp",
    "tp",
    "pp",
    "zero",
    "pipeline",
    "recompute",
    "micro_batches",
}


@dataclass(frozen=True)
class Convert:
    """Write a model as Hugging Face's files: config.json and model.safetensors."""

    model: Positional[Path]
    """A run directory of `minillm train`, whose best checkpoint counts, or a folder or .safetensors to load."""
    out: Positional[Path]
    """Folder to write."""
    dtype: Literal["float32", "float64", "float16", "bfloat16"] = "float32"
    """Of the weights in the files."""
    max_shard_bytes: int = 5 * 10**9
    """More than that goes to several files."""


@dataclass(frozen=True)
class Diff:
    """Name the first layer in which two models differ, on the same input, and by how much."""

    a: Positional[Path]
    """A run directory of `minillm train`, or a folder or .safetensors to load."""
    b: Positional[Path]
    """The other."""
    tolerance: float = 1e-5
    """Of the largest number that a layer gives."""
    tokens: int = 16
    """Length of the input, which is drawn at random."""


@dataclass(frozen=True)
class Describe:
    """Say what a model takes before it is built: parameters, memory of a training step, operations, KV cache."""

    model: Positional[str]
    """A preset such as gpt2 or llama-2-7b, a folder with config.json, a .gguf, or a run directory."""
    batch_size: int | None = None
    """Sequences per step; a run's own, or 1, by default."""
    context: int | None = None
    """Tokens per sequence; the model's own by default, but 2048 at most."""
    dtype: Literal["float32", "float64", "bfloat16"] | None = None
    """Of weights and activations; a run's own, or float32, by default."""


@dataclass(frozen=True)
class PipelinePicture:
    """Draw when each stage of a pipeline computes and when it waits, measured on processes of this machine."""

    stages: int = 4
    """Processes; each has a stage of a small GPT."""
    micro_batches: int = 8
    """Parts of the batch, which follow one another through the stages."""
    schedule: Literal["1f1b", "gpipe"] = "1f1b"
    """In which order a stage does forwards and backwards."""
    out: Path = Path("pipeline.png")
    """Picture to write, a PNG."""


@dataclass(frozen=True)
class ParallelReport:
    """Say what each way of dividing a training sends, keeps and takes: measured here, and projected to a cluster."""

    model: Positional[str] = "gpt2-xl"
    """What to train on the cluster: a preset such as llama-2-7b, a folder with config.json, or a .gguf."""
    nproc: int = 4
    """Ranks on this machine, on which a small model is trained in every way; 0 for none."""
    small: str = "tiny"
    """That small model."""
    small_batch_size: int = 8
    """Sequences of its batch."""
    gpus: int = 1024
    """GPUs of the cluster."""
    gpus_per_node: int = 8
    """GPUs of a machine."""
    batch_size: int = 1024
    """Sequences of a step on the cluster."""
    context: int | None = None
    """Tokens per sequence; the model's own by default, but 4096 at most."""
    flops: float = 989e12
    """Operations a second that a GPU's maker names, in bfloat16."""
    mfu: float = 0.5
    """Share of them that a GPU reaches alone."""
    memory: float = 80e9
    """Bytes of a GPU."""
    memory_bandwidth: float = 3.35e12
    """Bytes a second of that."""
    link_bandwidth: float = 450e9
    """Bytes a second between the GPUs of a machine, each way."""
    network_bandwidth: float = 50e9
    """Bytes a second of a GPU to other machines, each way."""
    latency: float = 5e-6
    """Seconds of a message without content."""


@dataclass(frozen=True)
class Chat:
    """Hold a conversation with a model that was trained to answer; each line is a message."""

    model: Positional[Path]
    """A .gguf file, or a folder with config.json, model.safetensors and tokenizer.json."""
    template: str | None = None
    """How the model was taught to read a conversation (chatml, llama3, ...); by its tokenizer, if that tells."""
    system: str | None = None
    """What the model is told before the conversation."""
    max_tokens: int = 512
    """Most tokens in an answer."""
    temperature: float = 0.7
    """Divides the logits: 0 takes the likeliest token."""
    top_k: int | None = None
    """Choose among the k likeliest tokens only."""
    top_p: float | None = 0.95
    """Choose among the fewest tokens that together have this probability."""
    min_p: float | None = None
    """Choose among the tokens with at least this share of the likeliest one's probability."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that were there before become less likely."""
    seed: int = 0
    """The same seed, and the same messages, give the same answers."""


def train(arguments: list[str]) -> None:
    """Train, or go on with a run: in this process, as one of several ranks, or by starting them."""
    from minillm.parallel import launch, rendezvous
    from minillm.parallel.communicator import Trace
    from minillm.training.run import Run
    from minillm.training.trainer import train as run_training

    values = scan(Train, "train", arguments)
    resume = values.get(("resume",))  # it, or the preset, decides what holds where nothing was given
    before = Run.open(resume).config if resume else preset(values.get(("preset",), "default"))
    before = Train(**{field.name: getattr(before, field.name) for field in dataclasses.fields(before)})
    given = filled(Train, "train", values, before)
    if resume:
        for field in dataclasses.fields(given):
            if field.name not in CHANGEABLE_ON_RESUME and getattr(given, field.name) != getattr(before, field.name):
                raise InputError(
                    f"train: {field.name} is {getattr(before, field.name)} in {resume} and cannot change when a run is "
                    "resumed; leave it out, or start a new run"
                )
    else:
        check_effect(values, given)
    settings = {field.name: getattr(given, field.name) for field in dataclasses.fields(TrainConfig)}
    config = TrainConfig(**settings)
    size = rendezvous.world_size()
    if given.timeout is not None and not 0 < given.timeout < 1e7:
        raise InputError(f"train: timeout is {given.timeout}; give a number of seconds above 0")
    for name in ("timeout", "trace"):
        if getattr(given, name) is not None and max(size, given.nproc) == 1 and "WORLD_SIZE" not in os.environ:
            raise InputError(f"train: --{name} is about ranks that wait for each other; start several with --nproc")
    if given.timeout is not None:
        os.environ["MINILLM_TIMEOUT"] = str(given.timeout)
    if max(size, given.nproc) > 1 and given.device.startswith("cuda:"):
        raise InputError(f"train: {given.device} is one GPU; give --device cuda, and each rank takes its own")
    if given.nproc != 1 and "WORLD_SIZE" not in os.environ:
        raise SystemExit(launch.run(["train", *arguments], given.nproc))
    if given.nproc not in (1, size):
        raise InputError(f"train: --nproc is {given.nproc}, but a launcher has started {size} ranks; leave --nproc out")
    if size > 1:

        def rank(here: Any) -> None:
            if given.trace:
                given.trace.mkdir(parents=True, exist_ok=True)
                here.trace = Trace(given.trace / f"messages-{here.rank}.jsonl")
            run_training(config, given.resume, communicator=here)

        launch.run_rank(rank, given.device)
    else:
        run_training(config, given.resume)


def check_effect(values: dict[tuple[str, ...], Any], given: Train) -> None:
    """Raise InputError for an option that was given and would do nothing beside the others."""
    needs = {
        ("decay_steps",): (given.schedule == "wsd", "--schedule wsd"),
        ("beta1",): (given.optimizer == "adamw", "--optimizer adamw"),
        ("beta2",): (given.optimizer == "adamw", "--optimizer adamw"),
    }
    for path, (works, other) in needs.items():
        if path in values and not works:
            name = path[-1].replace("_", "-")
            raise InputError(f"train: --{name} does nothing here; leave it out, or give {other}")


def sample(arguments: list[str]) -> None:
    """Print the prompt and what the model adds to it, as it comes."""
    from minillm.checkpoint import load_checkpoint
    from minillm.generate import generate_text
    from minillm.training.run import Run
    from minillm.training.trainer import build

    given = read(Sample, "sample", arguments)
    run = Run.open(given.run)
    dtype = "float32" if given.device == "cpu" else run.config.dtype
    model, _ = build(dataclasses.replace(run.config, device=given.device, dtype=dtype), run.tokenizer)
    model.load_state_dict(load_checkpoint(run.checkpoint("best")).model)
    try:
        ids = run.tokenizer.encode(given.prompt)
    except InputError as error:
        raise InputError(f"sample: give another --prompt than {given.prompt!r}: {error}") from None
    pieces = generate_text(
        model,
        run.tokenizer,
        ids,
        given.max_tokens,
        seed=given.seed,
        stop=[] if run.tokenizer.eot_id is None else [run.tokenizer.eot_id],
        temperature=given.temperature,
        top_k=given.top_k,
        top_p=given.top_p,
        min_p=given.min_p,
        repetition_penalty=given.repetition_penalty,
    )
    print_as_it_comes(pieces, begin=run.tokenizer.decode(ids))


def chat(arguments: list[str]) -> None:
    """Read messages line by line, and print each answer as it comes."""
    from minillm import hub
    from minillm.chat import Conversation, chat_template

    given = read(Chat, "chat", arguments)
    if is_run(given.model):
        raise InputError(
            f"chat: {given.model} is a run of `minillm train`, which has learned no conversation; continue a text "
            f"with `minillm sample {given.model}`, or give a published model"
        )
    tokenizer = hub.load_tokenizer(given.model)
    template = chat_template(given.template or tokenizer)
    conversation = Conversation(hub.load(given.model), tokenizer, template, given.system)
    names = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    settings = {name: getattr(given, name) for name in names}
    with tuned_process():
        print(f"{type(conversation.model).__name__}, {template.name}; end with Ctrl-D")
        for number, message in enumerate(lines_of_input("> ")):
            print_as_it_comes(conversation.say(message, seed=given.seed + number, **settings))


def tokenizer_train(arguments: list[str]) -> None:
    """Train a tokenizer and save it."""
    from minillm.data import read_text
    from minillm.tokenizers import BPETokenizer, CharacterTokenizer, UnigramTokenizer, WordPieceTokenizer

    given = read(TokenizerTrain, "tokenizer train", arguments)
    if given.out.exists() and any(given.out.iterdir() if given.out.is_dir() else [given.out]):
        raise InputError(
            f"tokenizer train: {given.out} exists already and is never written over; choose another folder"
        )
    text = read_text(given.data, given.field)
    if given.kind == "char":
        tokenizer: Any = CharacterTokenizer.train(text)
    else:
        kinds: dict[str, Any] = {"bpe": BPETokenizer, "wordpiece": WordPieceTokenizer, "unigram": UnigramTokenizer}
        tokenizer = kinds[given.kind].train(text, given.vocab_size, progress=True)
    tokenizer.save(given.out)
    print(f"{tokenizer.vocab_size} tokens, saved in {given.out}")


def tokenizer_encode(arguments: list[str]) -> None:
    """Print the ids of a text, or write a corpus as shards."""
    from minillm.data import read_text, split_text, write_shards
    from minillm.tokenizers import Tokenizer

    given = read(TokenizerEncode, "tokenizer encode", arguments)
    if given.text is not None and given.data is None:
        if given.field is not None:
            raise InputError("tokenizer encode: --field is for --data, of which it names a field; leave it out")
        text = given.text
    elif given.text is None and given.data is not None:
        text = read_text(given.data, given.field)
    else:
        raise InputError("tokenizer encode: give a text, or --data with where the text is; one of the two")
    tokenizer = Tokenizer.load(given.tokenizer)
    if given.out is None:
        print(*tokenizer.encode(text))
        return
    parts = split_text(text, given.validation_fraction)
    # Both parts are encoded before either is written, so that a character without a token leaves nothing behind.
    encoded = [np.fromiter(tokenizer.encode_iterable([part]), np.uint32) for part in parts]
    for name, ids in zip(("train", "validation"), encoded, strict=True):
        if not len(ids):
            raise InputError(
                f"tokenizer encode: no text is left for {name} when {given.validation_fraction} of "
                f"{len(text)} characters are for validation; change --validation-fraction, or give more text"
            )
    for name, ids in zip(("train", "validation"), encoded, strict=True):
        print(*write_shards(given.out, name, ids, tokenizer.vocab_size, tokenizer.fingerprint()))


def tokenizer_decode(arguments: list[str]) -> None:
    """Print the text of ids."""
    from minillm.tokenizers import Tokenizer

    given = read(TokenizerDecode, "tokenizer decode", arguments)
    print(Tokenizer.load(given.tokenizer).decode(given.ids))


def profile(arguments: list[str]) -> None:
    """Print a step's time by operation, and the share of matrix products."""
    from minillm.profile import profile_training

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


def gradcheck(arguments: list[str]) -> None:
    """Check the gradients of all operations, or of those named."""
    from minillm.gradcheck import run_cases

    given = read(Gradcheck, "gradcheck", arguments)
    results = run_cases(given.ops or None)
    caption = "variants: other layouts, values, sizes, and float32, of which some operations do not take all"
    name = Column("operation", no_wrap=True)
    table = Table(name, "case", "elements", "worst error", "variants", "seconds", "", caption=caption)
    for result in results:
        tried = f"{result.variants - result.skipped} of {result.variants}" if result.variants else ""
        table.add_row(
            result.op,
            result.case,
            str(result.elements),
            f"{result.error:.1e}",
            tried,
            f"{result.seconds:.2f}",
            "[green]ok[/green]" if result.passed else "[red]FAILED[/red]",
        )
    console = Console()
    console.print(table)
    failed = [result for result in results if not result.passed]
    for result in failed:
        console.print(result.report, markup=False)
    console.print(f"{len(results) - len(failed)} of {len(results)} checks passed")
    if failed:
        raise SystemExit(1)


def kernels(arguments: list[str]) -> None:
    """Compile all kernels, or those named, and print what they take."""
    from minillm.cuda.nvrtc import ARCHITECTURES, compile_table

    given = read(Kernels, "kernels", arguments)
    rows = compile_table(given.files or None)
    found = {(row.kernel, row.architecture): row for row in rows}
    name = Column("kernel", no_wrap=True)
    table = Table(name, *ARCHITECTURES, caption="registers per thread / bytes of shared memory; red: bytes spilled")
    for kernel in dict.fromkeys(row.kernel for row in rows):
        cells = []
        for row in (found.get((kernel, architecture)) for architecture in ARCHITECTURES):
            spilled = row.spills + row.stack if row else 0
            cells.append(f"[red]{spilled}[/red]" if spilled else f"{row.registers} / {row.shared}" if row else "-")
        table.add_row(kernel, *cells)
    Console(width=max(Console().width, 130)).print(table)


def is_run(path: Path) -> bool:
    """Whether it is a directory of `minillm train`, even one that was stopped before its first step."""
    return (path / "checkpoints").is_dir() or (path / "metrics.jsonl").exists()


def opened(path: Path) -> Any:
    """The model of a run directory, or one that `minillm.load` reads."""
    from minillm import hub
    from minillm.checkpoint import load_checkpoint
    from minillm.training.run import Run
    from minillm.training.trainer import build

    if is_run(path):
        run = Run.open(path)
        model, _ = build(dataclasses.replace(run.config, device="cpu", dtype="float32"), run.tokenizer)
        model.load_state_dict(load_checkpoint(run.checkpoint("best")).model)
        if run.tokenizer.eot_id is not None:
            hub.keep(model, hub.SavedWith(dict.fromkeys(("bos_token_id", "eos_token_id"), run.tokenizer.eot_id), {}))
        return model
    return hub.load(path)


def convert(arguments: list[str]) -> None:
    """Write a model as Hugging Face's files."""
    given = read(Convert, "convert", arguments)
    if given.max_shard_bytes < 1:
        raise InputError(f"convert: max_shard_bytes is {given.max_shard_bytes}; give 1 or more")
    if is_run(given.out):  # its config.json would be written over
        raise InputError(f"convert: {given.out} is a run directory and is never written over; choose another folder")
    model = opened(given.model)
    if given.dtype != "float32":
        model.to(given.dtype)
    model.save_pretrained(given.out, max_shard_bytes=given.max_shard_bytes)
    print(f"{type(model).__name__} with {model.num_parameters():,} weights in {given.dtype}: {given.out}")


def diff(arguments: list[str]) -> None:
    """Print the layers of two models up to the first that differs; exit status 1 if one does."""
    from minillm.debug import differences

    given = read(Diff, "diff", arguments)
    for name, fits in (("tolerance", given.tolerance >= 0), ("tokens", given.tokens >= 1)):  # NaN fits nothing
        if not fits:
            raise InputError(f"diff: {name} is {getattr(given, name)}; give {int(name == 'tokens')} or more")
    a, b = opened(given.a), opened(given.b)
    tokens = min(given.tokens, a.config.context, b.config.context)
    ids = np.random.default_rng(0).integers(0, min(a.config.vocab_size, b.config.vocab_size), (1, max(1, tokens)))
    found = differences(a, b, ids)
    for one in found:
        layer = one.layer or type(a).__name__
        if one.error > given.tolerance:
            shapes = "" if one.shapes[0] == one.shapes[1] else f", shapes {one.shapes[0]} and {one.shapes[1]}"
            print(f"{layer}: differs by {one.error:.1e} of its largest number{shapes}; all before it agree")
            raise SystemExit(1)
    print(f"all {len(found)} layers agree; the largest difference is {max(one.error for one in found):.1e}")


def describe(arguments: list[str]) -> None:
    """Print what a model takes."""
    from minillm.describe import describe as described
    from minillm.describe import rules, tables

    given = read(Describe, "describe", arguments)
    found = described(given.model, given.batch_size, given.context, given.dtype)
    show(tables(found))
    print(*rules(found), sep="\n")


def show(tables: Iterable[Any], width: int = 100) -> None:
    """Print tables, at least so wide."""
    for title, columns, rows in tables:
        table = Table(columns[0], *(Column(name, justify="right") for name in columns[1:]), title=title)
        for row in rows:
            table.add_row(*row)
        Console(width=max(Console().width, width), markup=False, emoji=False).print(table)  # names may have brackets


def parallel_report(arguments: list[str]) -> None:
    """Print bytes, memory and time of each way of dividing a training, here and on a cluster."""
    from minillm.parallel import projection as projected

    given = read(ParallelReport, "parallel-report", arguments)
    if given.small_batch_size < 1:
        raise InputError(f"parallel-report: the small batch has {given.small_batch_size} sequences; give 1 or more")
    if given.nproc < 0:
        raise InputError(f"parallel-report: {given.nproc} ranks cannot be started; give 0 or more")
    machine = projected.gpu_machine(**{name: getattr(given, name) for name in projected.GPU_SETTINGS})
    tables = list(projected.projection_tables(given.model, machine, given.gpus, given.batch_size, given.context))
    if given.nproc:
        run = projected.measured_run(given.small, given.nproc, given.small_batch_size)
        show([*run.exact, projected.time_table(given.small, run)], 130)
        print(f"predicted with what a short run found: {projected.told(run.machine)}")
    show(tables, 130)


def pipeline_picture(arguments: list[str]) -> None:
    """Measure and draw a pipeline's schedule."""
    from minillm.parallel.picture import draw, measure

    given = read(PipelinePicture, "pipeline-picture", arguments)
    if given.out.suffix.lower() != ".png" or (given.out.exists() and not given.out.is_file()):
        raise InputError(f"pipeline-picture: --out is {given.out}; give the name of a file that ends in .png")
    if not given.out.parent.is_dir():
        raise InputError(f"pipeline-picture: there is no folder {given.out.parent}; make it, or choose another --out")
    measured = measure(given.stages, given.micro_batches, given.schedule)
    draw(measured, given.out)
    print(f"{measured.title()}; a step takes {1e3 * measured.seconds():.0f} ms: {given.out}")


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": train,
    "sample": sample,
    "chat": chat,
    "tokenizer train": tokenizer_train,
    "tokenizer encode": tokenizer_encode,
    "tokenizer decode": tokenizer_decode,
    "profile": profile,
    "gradcheck": gradcheck,
    "kernels": kernels,
    "convert": convert,
    "diff": diff,
    "describe": describe,
    "pipeline-picture": pipeline_picture,
    "parallel-report": parallel_report,
}


def usage(group: str = "") -> str:
    """The list of commands, or of those that begin with a word."""
    kinds = (
        Train,
        Sample,
        Chat,
        TokenizerTrain,
        TokenizerEncode,
        TokenizerDecode,
        Profile,
        Gradcheck,
        Kernels,
        Convert,
        Diff,
        Describe,
        PipelinePicture,
        ParallelReport,
    )
    rows = zip(COMMANDS, kinds, strict=True)
    lines = [f"  minillm {name:<18} {kind.__doc__}" for name, kind in rows if name.startswith(group)]
    of = f"minillm {group} COMMAND" if group else "minillm COMMAND"
    return "\n".join([f"usage: {of} [options]; {of} --help lists the options", "", *lines])


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the `minillm` command."""
    replace_what_cannot_be_shown()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    words = 2 if arguments[:1] == ["tokenizer"] else 1
    command = " ".join(arguments[:words])
    try:
        run_command(command, arguments[words:])
        flush()
    except MinillmError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:  # whoever read what is printed has seen enough, as `head` does
        abandon_output()
        raise SystemExit(PIPE_CLOSED) from None
    except OSError as error:  # a name that cannot be a file's, a folder that is not ours, a full disk
        print(f"minillm {command}: {error}; give another path, or make room", file=sys.stderr)
        abandon_output()
        raise SystemExit(2) from None
    except MemoryError as error:
        print(f"minillm {command}: memory is not enough ({error}); take a smaller model or batch", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def run_command(command: str, arguments: list[str]) -> None:
    """Do what a command says, or print what there is."""
    if command in ("", "-h", "--help"):
        print(usage())
        flush()
        raise SystemExit(0 if command else 2)
    if command in ("tokenizer -h", "tokenizer --help"):
        print(usage("tokenizer"))
        return
    if command in ("-V", "--version"):
        print(f"minillm {__version__}")
        return
    if command == "tokenizer":
        names = ", ".join(name for name in COMMANDS if name.startswith("tokenizer "))
        raise InputError(f"minillm: tokenizer is not told what to do; choose one of: {names}")
    if command not in COMMANDS:
        raise InputError(f"minillm: there is no command {command!r}{did_you_mean(command, COMMANDS)}")
    COMMANDS[command](arguments)


if __name__ == "__main__":
    main()
