"""The text of a kernel: its file with what it includes pasted in, the instances that it lists, and their signatures.

Included files are pasted in so that whatever keeps a compiled kernel under its text notices when one of them changes.
Only those of `kernels/emulator/` stay `#include` lines: CUDA never sees them, and `emulate` gives them to g++.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minillm.errors import InputError, MinillmError

FOLDER = Path(__file__).parents[1] / "_kernels"  # where the wheel carries them
if not FOLDER.is_dir():
    FOLDER = Path(__file__).parents[2] / "kernels"  # in a checkout

DTYPES = {
    "float": "float32",
    "double": "float64",
    "__nv_bfloat16": "bfloat16",
    "__half": "float16",
    "int": "int32",
    "unsigned": "uint32",
    "long long": "int64",
    "unsigned long long": "uint64",
    "unsigned char": "uint8",
    "bool": "bool",
}
C_TYPES = {dtype: c_type for c_type, dtype in DTYPES.items()}
STRIDES = re.compile(r"Strides<(\d+)>")  # of attention.cuh: three long long for each operand, in one argument by value
SYNONYMS = {"unsigned int": "unsigned", "half": "__half"}
THREADS_LIMIT = 1024  # of a block, where a kernel has no __launch_bounds__


class KernelError(MinillmError, RuntimeError):
    """A kernel that does not compile, breaks a rule of CUDA while emulated, or is missing where it is required."""


def compile_error(what: str, log: str) -> KernelError:
    """An error with the first line of a compiler's message that tells one, and all of it as a note."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    full = [line for line in lines if "No space left" in line]  # the disk is at fault, and not the text
    first = next((line for line in [*full, *lines] if "error" in line or line in full), "no message")
    error = KernelError(f"{what}: does not compile: {first}")
    error.add_note(log)
    return error


class Group(NamedTuple):
    """Instances that are compiled together: one line `// instances: ...` of a .cu file.

    In a line `// instances sm_80: ...` they need that architecture. Such kernels must be templates, unless the file has
    no others, because CUDA compiles a kernel that is no template with any other.
    """

    least: int  # 80 for sm_80
    names: tuple[str, ...]


class Source(NamedTuple):
    """A .cu file, with the files that it includes pasted in."""

    path: Path
    text: str
    groups: tuple[Group, ...]


class Parameter(NamedTuple):
    """A parameter of a kernel: a number, a pointer, or the strides of several arrays by value."""

    name: str
    c_type: str
    pointer: bool
    const: bool

    @property
    def operands(self) -> int:
        """For how many arrays it has strides; 0 for all but Strides."""
        found = STRIDES.fullmatch(self.c_type)
        return int(found[1]) if found else 0

    def __str__(self) -> str:
        return f"{'const ' * self.const}{self.c_type}{'*' * self.pointer} {self.name}".strip()


def kernel_files() -> list[str]:
    """All .cu files in `kernels/`, as names for `Kernel` and `compile_table`."""
    return sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.cu"))


def instances(file: str | Path) -> list[str]:
    """The kernels that a .cu file lists in its lines `// instances: ...`."""
    return [name for group in read_source(file).groups for name in group.names]


def read_source(file: str | Path) -> Source:
    """Read a .cu file: a name in `kernels/`, or a path. Raises: InputError if it is missing or lists no instances."""
    path = (FOLDER / file).resolve()  # an absolute path stays itself
    if not path.is_file():
        raise InputError(f"Kernel: there is no file {path}")
    lines = re.findall(r"^// instances(?: sm_(\d+))?: (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    if not lines:
        raise InputError(f"Kernel: {path.name} lists no kernels; end it with a line '// instances: NAME<float> ...'")
    names = [tuple(map(canonical, re.findall(r"\w+(?:<[^<>]*>)?", line))) for _, line in lines]
    groups = (Group(int(least or 0), group) for (least, _), group in zip(lines, names, strict=True))
    return Source(path, _pasted(path, set()), tuple(groups))


def _pasted(path: Path, pasted: set[Path]) -> str:
    """The text of a file, each included one inside it once, and #line for compilers and debuggers to name them."""
    pasted.add(path)
    lines = [f'#line 1 "{path}"']
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        include = re.match(r'\s*#\s*include\s+"([^"]+)"', line)
        if include and not include[1].startswith("emulator/"):
            found = next((p for p in (path.parent / include[1], FOLDER / include[1]) if p.is_file()), None)
            if found is None:
                raise KernelError(f"{path.name}:{number}: {include[1]} is neither beside this file nor in {FOLDER}")
            if found.resolve() not in pasted:
                lines.append(_pasted(found.resolve(), pasted))
            lines.append(f'#line {number + 1} "{path}"')
        else:
            lines.append("" if line.startswith("#pragma once") else line)
    return "\n".join(lines)


def split_instance(instance: str) -> tuple[str, list[str]]:
    """The name of an instance and its template arguments."""
    name, _, arguments = instance.partition("<")
    return name, [argument.strip() for argument in arguments.rstrip(">").split(",")] if arguments else []


def canonical(instance: str) -> str:
    """An instance as all write it: `shift<float, 2>`."""
    name, arguments = split_instance(instance)
    return f"{name}<{', '.join(arguments)}>" if arguments else name


def strides_dtype(operands: int) -> np.dtype:
    """The dtype of a Strides argument: an array of size one, whose element is an array (operands, 3).

    CuPy, like CUDA, passes a NumPy array of size one by value.
    """
    return np.dtype([("of", np.int64, (operands, 3))])


def signature(source: Source, instance: str) -> tuple[list[Parameter], int]:
    """The parameters of an instance, and how many threads its __launch_bounds__ allows."""
    name, arguments = split_instance(instance)
    code = re.sub(r"//[^\n]*|/\*.*?\*/", "", source.text, flags=re.DOTALL)
    bounds = r"(?:__launch_bounds__\s*\(\s*(\w+)[^)]*\)\s*)?"
    found = re.search(rf"(?:template\s*<([^<>]*)>\s*)?__global__\s+void\s+{bounds}{name}\s*\(([^)]*)\)", code)
    template = [declared.split()[-1] for declared in (found[1] or "").split(",") if declared] if found else []
    if not found or len(template) != len(arguments):
        form = f"template <typename T> __global__ void __launch_bounds__(N) {name}(...)"
        raise KernelError(f"{source.path.name}: {instance} does not name a kernel of the form '{form}'")
    values = dict(zip(template, arguments, strict=True))
    parameters = [_parameter(f"{source.path.name}: {name}", text, values) for text in found[3].split(",")]
    return parameters, int(found[2]) if (found[2] or "").isdigit() else THREADS_LIMIT


def _parameter(where: str, text: str, template: dict[str, str]) -> Parameter:
    resolved = re.sub(r"\w+", lambda word: template.get(word[0], word[0]), text.replace("__restrict__", ""))
    found = re.fullmatch(r"\s*(const\s)?\s*([\w<> ]+?)\s*(\*?)\s*(\w+)\s*", resolved)
    c_type = " ".join(found[2].split()) if found else ""
    c_type = SYNONYMS.get(c_type, c_type)
    if c_type.startswith("Accumulator<"):  # the one trait that a signature may use, defined in common.cuh
        c_type = "double" if "double" in c_type else "float"
    if not found or (c_type not in DTYPES and not STRIDES.fullmatch(c_type)):
        raise KernelError(f"{where}: parameter '{text.strip()}' is none of {', '.join(DTYPES)}, nor a pointer to one")
    return Parameter(found[4], c_type, bool(found[3]), bool(found[1]))
