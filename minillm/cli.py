"""The command line: the list of commands, and the exit status of what goes wrong.

Each command is a function in a file of `minillm/commands/`, which is loaded when the command is given. Beside the
function is a dataclass of its options (options.py reads its fields and the texts below them). An error that minillm
raises on purpose is printed as its one sentence, with exit status 2; any other is a defect and shows its traceback.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable

from minillm.console import PIPE_CLOSED, abandon_output, flush, replace_what_cannot_be_shown
from minillm.errors import InputError, MinillmError, did_you_mean
from minillm.options import peek
from minillm.version import __version__

COMMANDS = {  # the file in minillm/commands of each
    "train": "train",
    "finetune sft": "finetune",
    "finetune dpo": "finetune",
    "finetune reward": "finetune",
    "finetune grpo": "finetune",
    "finetune classify": "finetune_heads",
    "finetune qa": "finetune_heads",
    "finetune translate": "finetune_translate",
    "sample": "sample",
    "eval": "eval",
    "chat": "chat",
    "tokenizer train": "tokenizer",
    "tokenizer encode": "tokenizer",
    "tokenizer decode": "tokenizer",
    "data build": "data",
    "data extract": "data",
    "data clean": "data",
    "data dedup": "data",
    "data decontaminate": "data",
    "data split": "data",
    "data shards": "data",
    "data report": "data",
    "profile": "profile",
    "step": "step",
    "gradcheck": "gradcheck",
    "guide": "guide",
    "check": "check",
    "kernels": "kernels",
    "exercise list": "exercise",
    "exercise start": "exercise",
    "exercise check": "exercise",
    "exercise hint": "exercise",
    "convert": "convert",
    "verify": "verify",
    "diff": "diff",
    "describe": "describe",
    "plan": "plan",
    "doctor": "doctor",
    "pipeline-picture": "parallel",
    "parallel-report": "parallel",
}
GROUPS = {name.partition(" ")[0] for name in COMMANDS if " " in name}  # first words of commands that have two


def function_of(command: str) -> Callable[[list[str]], None]:
    """The function that does a command: `tokenizer_train` for "tokenizer train"."""
    module = importlib.import_module(f"minillm.commands.{COMMANDS[command]}")
    return getattr(module, command.replace(" ", "_").replace("-", "_"))


def options_of(command: str) -> type:
    """The dataclass of a command's options: `TokenizerTrain` for "tokenizer train"."""
    module = importlib.import_module(f"minillm.commands.{COMMANDS[command]}")
    return getattr(module, command.replace("-", " ").title().replace(" ", ""))


def usage(group: str = "") -> str:
    """The list of commands, or of those that begin with a word."""
    names = [name for name in COMMANDS if name.startswith(group)]
    lines = [f"  minillm {name:<18} {options_of(name).__doc__}" for name in names]
    of = f"minillm {group} COMMAND" if group else "minillm COMMAND"
    return "\n".join([f"usage: {of} [options]; {of} --help lists the options", "", *lines])


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the `minillm` command."""
    replace_what_cannot_be_shown()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    words = 2 if arguments[:1] and arguments[0] in GROUPS else 1
    command = " ".join(arguments[:words])
    try:
        run_command(command, arguments[words:])
        flush()
    except MinillmError as error:
        print(in_words_of(command, str(error)), file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:  # the reader of the output has left, as `head` does
        abandon_output()
        raise SystemExit(PIPE_CLOSED) from None
    except OSError as error:  # a name that cannot be a file's, a folder without permission, a full disk
        place = error.filename or peek(arguments, "--out") or "a file"  # the system names none where a disk is full
        told = f"{place} cannot be used ({error.strerror or error})"
        print(f"minillm {command}: {told}; give another path, or make room", file=sys.stderr)
        abandon_output()
        raise SystemExit(2) from None
    except MemoryError as error:
        print(f"minillm {command}: memory is not enough ({error}); take a smaller model or batch", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def in_words_of(command: str, text: str) -> str:
    """The sentence of an error, beginning with the command that a person typed and not with the function behind it."""
    function, _, rest = text.partition(": ")
    if function == command or command not in COMMANDS:
        return text
    is_function = all(part.isidentifier() for part in function.split("."))
    return f"{command}: {rest if rest and is_function else text}"


def run_command(command: str, arguments: list[str]) -> None:
    """Do a command, or print the list of commands."""
    if command in ("", "-h", "--help"):
        print(usage())
        flush()
        raise SystemExit(0 if command else 2)
    group, _, word = command.partition(" ")
    if group in GROUPS and word in ("-h", "--help"):
        print(usage(group))
        return
    if command in ("-V", "--version"):
        print(f"minillm {__version__}")
        return
    if command in GROUPS:
        names = ", ".join(name for name in COMMANDS if name.startswith(f"{command} "))
        raise InputError(f"minillm: {command} is not told what to do; choose one of: {names}")
    if command not in COMMANDS:
        word = "" if command.startswith("-") else command  # an option is no misspelt command
        raise InputError(f"minillm: there is no command {command!r}{did_you_mean(word, COMMANDS)}")
    function_of(command)(arguments)


if __name__ == "__main__":
    main()
