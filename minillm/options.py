"""Command-line options from dataclasses: each field is an option, and invalid input raises an error of one sentence.

    read(Sample, "sample", ["runs/mine", "--top-k", "5"])  ->  Sample(run=Path("runs/mine"), top_k=5)

The field `top_k` is the option --top-k (or --top_k), and a field that is `Positional` has its place instead of a name.
The help of a field is the text below it, or the comment behind it. The metadata {"option": False} makes a field no
option, as does its name in `no_options` of the class; {"name": "model"} gives an option another name, {"alone": 20}
the number that it means without one, and {"unit": "bytes"} lets a number have a unit, such as 80GB. `headings` of the
class, such as {"data": "tokenizer field"}, gather the options in the help.

The fields of a field that is a dataclass, such as the shape of a model, are options beside the others. Where the
annotation leaves open which dataclass it is, the value in `default` decides. The word after an option is its value,
even if it begins with "-", unless it is the name of an option; `--data=--steps` gives such a value all the same. Words
after `--` are never options.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import itertools
import re
import shlex
import shutil
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from minillm.errors import InputError

T = TypeVar("T")
Positional = Annotated[T, "positional"]
HELP = ("help",)  # the key of --help among the values
LARGEST = {"seed": 1 << 64, "max_shard_bytes": 1 << 63}  # bounds of whole numbers; all others are below 2^31
LONGEST_CHOICE = 40  # letters of the choices behind an option's name in the help; more of them follow its text
# Names that other tools use, with ours to suggest.
SYNONYMS = {
    "--lr": "learning-rate max-lr eta",
    "--min-lr": "min-learning-rate lr-min end-learning-rate",
    "--steps": "max-steps max-iters iters iterations num-steps train-steps epochs num-epochs num-train-epochs",
    "--batch-size": "batch bs per-device-train-batch-size train-batch-size",
    "--micro-batches": "gradient-accumulation-steps grad-accum accumulate",
    "--layers": "n-layer n-layers num-layers num-hidden-layers depth",
    "--heads": "n-head n-heads num-heads num-attention-heads",
    "--channels": "n-embd n-embed d-model dim hidden-size embedding-size width",
    "--context": "block-size context-length context-size ctx-size n-ctx seq-len seq-length sequence-length max-length",
    "--warmup": "warmup-steps warmup-iters num-warmup-steps",
    "--schedule": "lr-scheduler lr-schedule scheduler lr-scheduler-type",
    "--clip": "grad-clip clip-grad max-grad-norm gradient-clip",
    "--weight-decay": "wd",
    "--beta1": "adam-beta1 beta-1",
    "--beta2": "adam-beta2 beta-2",
    "--eval-every": "eval-interval eval-steps",
    "--eval-batches": "eval-iters",
    "--data": "dataset input file corpus text train-data train-file data-dir",
    "--out": "output output-dir out-dir save-dir",
    "--resume": "init-from checkpoint ckpt resume-from-checkpoint continue",
    "--nproc": "nproc-per-node num-processes gpus ranks world-size",
    "--threads": "num-threads n-threads nthreads cpus cores",
    "--device": "gpu cuda",
    "--dtype": "precision torch-dtype bf16 fp16",
    "--recompute": "gradient-checkpointing activation-checkpointing",
    "--seed": "random-seed manual-seed",
    "--prompt": "start text input",
    "--max-tokens": "max-new-tokens max-length n-predict num-tokens length",
    "--temperature": "temp",
    "--top-k": "k",
    "--top-p": "nucleus",
    "--repetition-penalty": "repeat-penalty",
    "--vocab-size": "vocabulary-size n-vocab",
    "--parameters": "params size model-size num-parameters n-params",
    "--products": "mfu hfu utilisation utilization efficiency",
}


class Option(NamedTuple):
    """A field as an option."""

    path: tuple[str, ...]  # field names: two for a field of a field
    kind: type  # the type of one value: int, float, str, bool or Path
    choices: tuple[str, ...]  # the allowed values, if they are limited
    can_be_none: bool
    many: bool  # a positional that takes all remaining words
    positional: bool
    default: Any  # dataclasses.MISSING for a required option
    written: str  # as it is written: top_k
    alone: Any = None  # what it means without a value; None where it needs one
    unit: str = ""  # of a number that may be given with it, such as 80GB

    @property
    def name(self) -> str:
        """The option as it is written on the command line: --top-k, or RUN."""
        return self.written.upper() if self.positional else "--" + self.written.replace("_", "-")


def read(kind: type[T], command: str, arguments: list[str]) -> T:
    """Read a command's options into its dataclass.

    Raises: InputError for invalid options; SystemExit after `--help`.
    """
    return filled(kind, command, scan(kind, command, arguments))


def peek(arguments: list[str], name: str, default: str | None = None) -> str | None:
    """The value of an option that decides which other options there are; of one that is given twice, the last."""
    words = arguments[: arguments.index("--")] if "--" in arguments else arguments
    found = default
    for word, following in itertools.zip_longest(words, words[1:]):
        written, equals, value = word.partition("=")
        if written == name and (equals or not (following or "--").startswith("--")):
            found = value if equals else following
    return found


def scan(kind: type, command: str, arguments: list[str], default: Any = None) -> dict[tuple[str, ...], Any]:
    """The given values, by the path of their field; of an option that is given twice, the last one.

    default: a dataclass of this kind, which decides where an annotation leaves open which options there are.
    Raises: InputError for an option or a value that cannot be used.
    """
    options = {option.name: option for option in options_of(kind, default) if not option.positional}
    flags = {f"--no-{name[2:]}": option for name, option in options.items() if option.kind is bool}
    known = {*options, *flags, "--help", "-h"}
    found: dict[tuple[str, ...], Any] = {}
    free: list[str] = []
    waiting = list(reversed(arguments))
    while waiting:
        argument = waiting.pop()
        if argument == "--":
            free += reversed(waiting)
            break
        if not argument.startswith("-") or argument == "-" or _is_number(argument):
            free.append(argument)
            continue
        written, equals, value = argument.partition("=")
        name = "--" + written[2:].replace("_", "-") if written.startswith("--") else written
        if name not in known:
            _refuse_unknown(command, written, known)
        if name in ("--help", "-h"):
            found[HELP] = True
        elif (flag := flags.get(name) or options[name]).kind is bool:
            if equals:
                raise InputError(f"{command}: {written} takes no value; write {flag.name} or --no-{flag.name[2:]}")
            found[flag.path] = name not in flags
        else:
            if not equals:
                if flag.alone is not None and not (waiting and (_is_number(waiting[-1]) or waiting[-1] == "None")):
                    found[flag.path] = flag.alone
                    continue
                if not waiting or waiting[-1].partition("=")[0].replace("_", "-") in known:
                    raise InputError(f"{command}: {written} has no value; write {written} {_example(options[name])}")
                value = waiting.pop()
            found[options[name].path] = _value(command, written, options[name], value)
    return found | _placed(kind, command, free)


def filled(kind: type[T], command: str, values: dict[tuple[str, ...], Any], default: T | None = None) -> T:
    """Make the dataclass of these values, and those of `default` for the others; print the help if it was requested.

    Raises: InputError for a missing option, and the errors of the dataclass itself.
    """
    if HELP in values:
        print(*help_lines(kind, command, default), sep="\n", flush=True)
        raise SystemExit(0)
    for option in options_of(kind, default):
        if default is None and option.default is dataclasses.MISSING and option.path not in values:
            raise InputError(f"{command}: {option.name} is missing; {_hint(command)}")
    given: dict[str, Any] = {path[0]: value for path, value in values.items() if len(path) == 1}
    for outer in {path[0] for path in values if len(path) == 2}:
        inner = {path[1]: value for path, value in values.items() if path[0] == outer}
        before = value_of(kind, outer, default)
        inside: Any = inner_kind(kind, outer, default)
        try:
            given[outer] = inside(**inner) if before is None else dataclasses.replace(before, **inner)
        except InputError as error:
            raise InputError(_with_options(str(error), command, kind, default, outer)) from None
    return kind(**given) if default is None else dataclasses.replace(default, **given)  # type: ignore[type-var]


def options_of(kind: type, default: Any = None, path: tuple[str, ...] = ()) -> Iterator[Option]:
    """The fields of a dataclass, and of the dataclasses among them; see `scan` for `default`."""
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        if not field.metadata.get("option", True) or field.name in getattr(kind, "no_options", ()):
            continue
        hint, here = hints[field.name], (*path, field.name)
        positional = get_origin(hint) is Annotated
        if positional:
            hint = get_args(hint)[0]
        if (inner := inner_kind(kind, field.name, default)) is not None:
            yield from options_of(inner, value_of(kind, field.name, default), here)
            continue
        parts = _parts(hint)
        one = next(part for part in parts if part is not type(None))  # of several, the first is written
        many = get_origin(one) is tuple
        choices = get_args(one) if get_origin(one) is Literal else ()
        single = get_args(one)[0] if many else str if choices else one
        if single not in _KINDS and single is not bool:
            continue  # only a config.json can say it
        written = field.metadata.get("name", field.name)
        alone, unit = field.metadata.get("alone"), field.metadata.get("unit", "")
        yield Option(here, single, choices, len(parts) > 1, many, positional, field.default, written, alone, unit)


def value_of(kind: type, name: str, default: Any) -> Any:
    """The value of a field in `default`, or where there is none, the default of the field itself."""
    if default is not None:
        return getattr(default, name)
    [field] = [field for field in dataclasses.fields(kind) if field.name == name]
    if callable(field.default_factory):
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def inner_kind(kind: type, name: str, default: Any) -> type | None:
    """The dataclass that a field holds, or may hold beside None; None if it holds something else."""
    for hint in _parts(get_type_hints(kind)[name]):
        if dataclasses.is_dataclass(hint):
            return hint  # type: ignore[return-value]
    value = value_of(kind, name, default)
    return type(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else None


def _parts(hint: Any) -> tuple[Any, ...]:
    """The types of which an annotation allows any."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def texts_of(kind: type, default: Any = None) -> dict[tuple[str, ...], str]:
    """The help of each field by its path: the text below the field, or the comment behind it."""
    texts: dict[tuple[str, ...], str] = {}
    for base in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        source = textwrap.dedent(inspect.getsource(base))
        [body] = [node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
        for node, following in zip(body, [*body[1:], None], strict=True):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                below = following.value if isinstance(following, ast.Expr) else None
                comment = source.splitlines()[node.lineno - 1].partition("  # ")[2]
                text = str(below.value) if isinstance(below, ast.Constant) else comment
                texts[(node.target.id,)] = " ".join(text.split())
    for field in dataclasses.fields(kind):
        if (inner := inner_kind(kind, field.name, default)) is not None:
            inside = texts_of(inner, value_of(kind, field.name, default))
            texts |= {(field.name, *path): text for path, text in inside.items()}
    return texts


def help_lines(kind: type, command: str, default: Any = None) -> Iterator[str]:
    """The lines of a command's help: its usage, and its options with their defaults."""
    options, texts = list(options_of(kind, default)), texts_of(kind, default)
    heading_of = {name: heading for heading, names in getattr(kind, "headings", {}).items() for name in names.split()}
    rows: dict[str, list[tuple[str, str]]] = {"": [("-h, --help", "Show this text.")]}
    rows |= {heading: [] for heading in heading_of.values()}
    for option in options:
        value = option.default if default is None else default
        for name in option.path if default is not None else ():
            value = getattr(value, name, None)  # None where the dataclass of this field is
        default_text = f"{value:.10g}" if isinstance(value, float) else shlex.quote(str(value))
        shown = "" if value in (None, (), "", dataclasses.MISSING) else f" (default: {default_text})"
        sign = f", --no-{option.name[2:]}" if option.kind is bool else f" {_example(option)}"
        sign = f" [{_example(option)}]" if option.alone is not None else sign
        text = texts[option.path]
        if len(sign) > LONGEST_CHOICE:
            sign, text = " NAME", f"{text} One of: {', '.join(option.choices)}."
        text = text[:1].upper() + text[1:] + shown
        heading = heading_of.get(option.path[0], "")
        rows[heading].append((option.name + ("" if option.positional else sign), text))
    usage = f"usage: minillm {command} [-h] [OPTIONS]"
    for option in options:
        if option.positional:
            place = option.name + " ..." * option.many
            usage += f" {place}" if option.default is dataclasses.MISSING else f" [{place}]"
    yield usage
    columns = min(max(shutil.get_terminal_size().columns, 20), 110)
    margin = 28 if columns >= 60 else 6
    wrap = functools.partial(textwrap.wrap, break_on_hyphens=False, break_long_words=False)
    yield from ("", *wrap(kind.__doc__ or "", columns), "")
    for heading, of_heading in rows.items():
        yield from ("", f"{heading}:") if heading and of_heading else ()
        for name, text in of_heading:
            lines = wrap(text, columns - margin)
            beside = len(name) + 4 <= margin
            yield f"  {name:<{margin - 4}}  {lines[0]}" if beside else f"  {name}"
            yield from (" " * margin + line for line in lines[beside:])


def _placed(kind: type, command: str, free: list[str]) -> dict[tuple[str, ...], Any]:
    """Assign the free words to the positional fields, in order."""
    found: dict[tuple[str, ...], Any] = {}
    for option in options_of(kind):
        if option.positional and free:
            taken, free = (free, []) if option.many else (free[:1], free[1:])
            values = [_value(command, option.name, option, one) for one in taken]
            found[option.path] = tuple(values) if option.many else values[0]
    if free:
        raise InputError(f"{command}: {free[0]!r} is more than was expected; {_hint(command)}")
    return found


def _with_options(text: str, command: str, kind: type, default: Any, outer: str) -> str:
    """The error of an inner dataclass, `LoraConfig: alpha is nan; ...`, in the words of the command line."""
    for option in options_of(kind, default):
        if option.path[0] == outer:
            text = re.sub(rf"^\w+: {option.path[-1]}(?= is )", f"{command}: {option.name}", text)
    return text


def _value(command: str, written: str, option: Option, value: str) -> Any:
    if option.can_be_none and not option.positional and value == "None":
        return None
    if "\0" in value:
        raise InputError(f"{command}: {written} is {value!r}; give {_KINDS[option.kind]} without a zero byte")
    if option.choices:
        if value not in option.choices:
            raise InputError(f"{command}: {written} is {value!r}; choose one of: {', '.join(option.choices)}")
        return value
    if option.kind is Path and not value:
        raise InputError(f"{command}: {written} is empty; give a path")
    try:
        found = option.kind(in_units(value) if option.unit else value)
    except ValueError:
        of = f" of {option.unit}, such as {UNIT_EXAMPLES[option.unit]}" if option.unit else ""
        raise InputError(
            f"{command}: {written} has the invalid value {value!r}; give {_KINDS[option.kind]}{of}"
        ) from None
    largest = LARGEST.get(option.path[-1], 1 << 31)
    if option.kind is int and not -largest < found < largest:
        raise InputError(
            f"{command}: {written} is {value[:30]}; give a whole number below 2^{largest.bit_length() - 1}"
        )
    return found


def in_units(text: str) -> str:
    """The number that a text such as 80GB, 80GiB, 3.35TB/s or 989TFLOPS means, as Python writes it; others as given."""
    found = re.fullmatch(r"([-+.\de]*\d)\s*([kmgtp]?)(i?)(b|bytes|b/s|flops|flop/s|)", text.strip().lower())
    if found is None or not (found[2] or found[4]):
        return text
    value = float(found[1]) * (1024 if found[3] else 1000) ** " kmgtp".index(found[2] or " ")
    return str(int(value) if value.is_integer() else value)


UNIT_EXAMPLES = {"bytes": "80GB or 80GiB", "bytes a second": "900GB/s", "FLOP/s": "989T"}
_KINDS = {int: "a whole number", float: "a number", str: "a text", Path: "a path"}


def _example(option: Option) -> str:
    return "|".join(option.choices) or {int: "NUMBER", float: "NUMBER", str: "TEXT", Path: "PATH"}[option.kind]


def _hint(command: str) -> str:
    return f"`minillm {command} --help` lists what there is"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text[-1:].isdigit() or text[-1:] == "."  # not -inf or -nan


def _refuse_unknown(command: str, written: str, known: set[str]) -> NoReturn:
    """Raise an error that suggests the nearest option, or ours for another tool's name."""
    ours = {other: name for name, others in SYNONYMS.items() if name in known for other in others.split()}
    ours |= {name.lstrip("-"): name for name in sorted(known)}
    near = difflib.get_close_matches(written.lower().lstrip("-").replace("_", "-"), ours, n=1, cutoff=0.7)
    hint = f"did you mean {ours[near[0]]}?" if near else f"{_hint(command)}, and words after -- are never options"
    raise InputError(f"{command}: there is no option {written}; {hint}")
