"""The building: a file imports only from floors below its own, and heavy or foreign packages stay where they belong."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import minillm

ROOT = Path(minillm.__file__).parent

FLOORS = {  # the longest name that fits counts
    "minillm.copies": 0,
    "minillm.errors": 0,
    "minillm.counted": 0,
    "minillm.checksums": 1,
    "minillm.files": 1,
    "minillm.lock": 1,
    "minillm.version": 0,
    "minillm.hints": 0,
    "minillm.page": 1,
    "minillm.module_hints": 1,
    "minillm.tokenizers": 2,
    "minillm.device": 1,
    "minillm.backend": 1,
    "minillm.dtypes": 1,
    "minillm.sums": 1,
    "minillm.erf": 1,
    "minillm.tuning": 2,
    "minillm.random": 1,
    "minillm.grad_mode": 1,
    "minillm.leaves": 1,
    "minillm.backward": 2,
    "minillm.cuda": 2,
    "minillm.cuda.activations": 3,
    "minillm.cuda.adamw": 4,
    "minillm.cuda.global_norm": 4,
    "minillm.cuda.launch": 3,
    "minillm.engine": 3,
    "minillm.fast": 5,
    "minillm.fast.adamw": 4,
    "minillm.fast.global_norm": 4,
    "minillm.fast.sgd": 4,
    "minillm.kernels": 4,
    "minillm.methods": 2,
    "minillm.tensor": 3,
    "minillm.autograd": 3,
    "minillm.ops": 4,
    "minillm.losses": 5,
    "minillm.nn": 5,
    "minillm.finite": 4,
    "minillm.optim": 5,
    "minillm.testing": 5,
    "minillm.models": 6,
    "minillm.data": 6,
    "minillm.corpus": 7,
    "minillm.lora": 7,
    "minillm.evaluation": 7,
    "minillm.parallel": 7,
    "minillm.parallel.stopping": 1,
    "minillm.stored": 3,
    "minillm.weights": 3,
    "minillm.pretrained": 4,
    "minillm.text_stream": 6,
    "minillm.generate": 7,
    "minillm.beam_search": 7,
    "minillm.chat_templates": 3,
    "minillm.chat_jinja": 4,
    "minillm.chat": 7,
    "minillm.checkpoint": 7,
    "minillm.gguf": 7,
    "minillm.hub": 7,
    "minillm.resolver": 7,
    "minillm.beside": 7,
    "minillm.export": 8,
    "minillm.verify": 8,
    "minillm": 8,  # the public names
    "minillm.training": 7,
    "minillm.study": 8,
    "minillm.guide": 8,
    "minillm.exercises": 8,
    "minillm.console": 0,
    "minillm.options": 1,
    "minillm.commands": 9,
    "minillm.cli": 10,
    "minillm.__main__": 11,
}
# What others of the same floor may use.
SHARED = {
    "minillm.errors",
    "minillm.device",
    "minillm.backend",
    "minillm.dtypes",
    "minillm.sums",
    "minillm.engine",
    "minillm.tensor",
    "minillm.ops.arithmetic",
    "minillm.ops.activations",
    "minillm.ops.axes",
    "minillm.ops.broadcast",
    "minillm.ops.choice",
    "minillm.ops.create",
    "minillm.ops.exponential",
    "minillm.ops.frozen_linear",
    "minillm.ops.gather",
    "minillm.ops.getitem",
    "minillm.ops.index_select",
    "minillm.ops.join",
    "minillm.ops.operands",
    "minillm.ops.pad",
    "minillm.ops.power",
    "minillm.ops.reshape",
    "minillm.ops.rounding",
    "minillm.ops.to",
    "minillm.ops.transpose",
    "minillm.ops.triangle",
    "minillm.ops.dropout",
    "minillm.ops.gelu",
    "minillm.ops.silu",
    "minillm.cuda.launch",
    "minillm.ops.layernorm",
    "minillm.ops.reduce",
    "minillm.ops.softmax",
    "minillm.chat",
    "minillm.beam_search",
    "minillm.checkpoint",
    "minillm.export",
    "minillm.evaluation.heads",
    "minillm.evaluation.intervals",
    "minillm.generate",
    "minillm.gguf",
    "minillm.hub",
    "minillm.resolver",
    "minillm.beside",
    "minillm.training.config",
    "minillm.training.run",
    "minillm.training.tasks",
    "minillm.models.bart_conditioned",
    "minillm.models.bart_config",
    "minillm.models.bert",
    "minillm.models.config",
    "minillm.models.heads",
    "minillm.models.labels",
    "minillm.models.llama",
    "minillm.models.llama_config",
    "minillm.models.rotary",
    "minillm.models.xlnet_attention",
    "minillm.models.xlnet_config",
    "minillm.lora",
    "minillm.parallel.communicator",
    "minillm.parallel.data_parallel",
    "minillm.parallel.launch",
    "minillm.parallel.mesh",
    "minillm.parallel.objective",
    "minillm.parallel.recompute",
    "minillm.parallel.wrapper",
}
TOGETHER = {
    "minillm.fast",
    "minillm.losses",
    "minillm.tokenizers",
    "minillm.cuda",
    "minillm.data",
    "minillm.corpus",
    "minillm.lora",
    "minillm.evaluation",
    "minillm.nn",
    "minillm.optim",
    "minillm.training",
    "minillm.parallel",
    "minillm.testing",
    "minillm.study",
    "minillm.exercises",
    "minillm.commands",
}  # one subject in several files
CUDA_PAIR = 6  # the floor of `minillm.cuda.<operation>`, above the plain and the fast pair
# Packages that are not Python's own, and where each may be imported. All but numpy and regex only when they are needed.
FOREIGN = {
    "numpy": {"minillm"},
    "regex": {"minillm.tokenizers"},
    "rich": {f"minillm.{name}" for name in ("commands", "corpus.stage", "training.display", "tokenizers.progress")},
    "matplotlib": {
        "minillm.training.run",
        "minillm.training.watch",
        "minillm.study.picture",
        "minillm.study.doctor.pictures",
    },
    "safetensors": {"minillm.checkpoint", "minillm.stored"},
    "threadpoolctl": {"minillm.backend", "minillm.tuning"},
    "cupy": {"minillm.device", "minillm.cuda", "minillm.parallel.nccl"},
    "cupy_backends": {"minillm.device", "minillm.cuda", "minillm.parallel.nccl"},
    "gguf": {"minillm.gguf"},
    **{name: {"minillm.corpus"} for name in ("resiliparse", "fastwarc", "ftfy", "py3langid")},
    "zstandard": {"minillm.corpus"},
    "pyarrow": {"minillm.corpus"},
    "sacrebleu": {"minillm.evaluation.bleu"},
    "pytest": {"minillm.testing.pytest_minillm"},
    "ml_dtypes": {"minillm.dtypes", "minillm.cuda"},
}


def module_name(path: Path) -> str:
    parts = ["minillm", *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(ROOT.rglob("*.py")) if "_kernels" not in path.parts}


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module that a file imports, at its top or within a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the floor"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from ((name if name in FILES else node.module) for name in names)


def dynamic_imports(tree: ast.AST) -> Iterator[str]:
    """Every module that a call of `import_module` may import; a part of the name that is computed stands for any."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            [name] = node.args
            if not isinstance(name, (ast.Constant, ast.JoinedStr)):
                continue  # engine.py finds the pairs of an operation by its name, and knows none of them
            parts = name.values if isinstance(name, ast.JoinedStr) else [name]
            pattern = "".join(re.escape(p.value) if isinstance(p, ast.Constant) else "[^._][^.]*" for p in parts)
            yield from (module for module in FILES if re.fullmatch(pattern, module))


def imports_of(module: str, source: str) -> set[str]:
    """Every other module of minillm that a file imports, at its top, within functions or by `import_module`."""
    tree = ast.parse(source)
    return {*imports(tree), *dynamic_imports(tree)} & FILES.keys() - {module}


def shortest_circle(graph: dict[str, set[str]]) -> list[str]:
    """The fewest modules that import each other in a circle, or none.

    `import minillm.ops.linear` runs the files of the packages `minillm` and `minillm.ops` first. Such a file only
    gathers names, so it counts where it is imported by its own name.
    """
    found: list[str] = []
    for start in graph:
        paths = [[start]]
        seen = set()
        while paths and not (found and len(paths[0]) >= len(found)):
            path = paths.pop(0)
            if start in graph[path[-1]]:
                found = path
                break
            paths += [[*path, target] for target in sorted(graph[path[-1]] - seen)]
            seen |= graph[path[-1]]
    return found


def outside_assignments(source: str) -> list[str]:
    """Statements that assign into an imported module or class, or call `setattr` on anything but `self`."""
    tree = ast.parse(source)
    imported = {
        alias.asname or alias.name.partition(".")[0]: (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    modules = {
        alias.asname or alias.name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }

    def is_foreign(node: ast.expr) -> bool:
        if isinstance(node, ast.Attribute):  # minillm.backend
            return is_foreign(node.value) and ast.unparse(node) in FILES
        if not isinstance(node, ast.Name) or node.id in modules or node.id not in imported:
            return isinstance(node, ast.Name) and node.id in modules
        package, name = imported[node.id]
        found = getattr(importlib.import_module(package), name, None)
        return f"{package}.{name}" in FILES or isinstance(found, (type, ModuleType))

    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("setattr", "delattr"):
            found += [ast.unparse(node)] * (ast.unparse(node.args[0]) != "self")
        targets = node.targets if isinstance(node, (ast.Assign, ast.Delete)) else [getattr(node, "target", None)]
        for target in targets:
            for one in getattr(target, "elts", [target]):
                if isinstance(one, ast.Subscript) and ast.unparse(one.value).startswith("vars("):
                    holder = one.value.args[0]  # type: ignore[attr-defined]
                else:
                    holder = one.value if isinstance(one, ast.Attribute) else None
                if holder is not None and is_foreign(holder):
                    found.append(ast.unparse(node))
    return found


def within(module: str, folder: str) -> bool:
    return module == folder or module.startswith(f"{folder}.")


def floor(module: str) -> int:
    if module == "minillm":
        return FLOORS["minillm"]
    if module.startswith("minillm.cuda.") and module.replace(".cuda.", ".ops.") in FILES:
        return CUDA_PAIR
    places = [name for name in FLOORS if name != "minillm" and within(module, name)]
    assert places, f"{module} has no floor yet: give it one in FLOORS"
    return FLOORS[max(places, key=len)]


def broken_rules(module: str, source: str) -> list[str]:
    found = []
    for target in imports(ast.parse(source)):
        package = target.partition(".")[0]
        if package in FOREIGN:
            if not any(within(module, place) for place in FOREIGN[package]):
                found.append(f"{module} imports {target}")
        elif package != "minillm":
            if package not in sys.stdlib_module_names:
                found.append(f"{module} imports {target}, which is not among the dependencies")
        elif floor(target) > floor(module):
            found.append(f"{module} (floor {floor(module)}) imports {target} (floor {floor(target)})")
        elif floor(target) == floor(module):
            together = any(within(module, folder) and within(target, folder) for folder in TOGETHER)
            own = within(target, module)  # a package's __init__ gathers its files
            if not (together or own or target in SHARED):
                found.append(f"{module} imports {target} of its own floor")
    return found


@pytest.mark.parametrize("module", FILES)
def test_a_file_imports_only_from_below(module: str) -> None:
    assert broken_rules(module, FILES[module].read_text(encoding="utf-8")) == []


GRAPH = {module: imports_of(module, path.read_text(encoding="utf-8")) for module, path in FILES.items()}


def test_no_files_import_each_other_in_a_circle() -> None:
    assert shortest_circle(GRAPH) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("minillm.backend", "from minillm import ops"),
        ("minillm.ops.arithmetic", "def late():\n    from minillm.ops.power import sqrt"),
        ("minillm.models.config", "importlib.import_module(f'minillm.models.{name}')"),
        ("minillm.optim.clip", "importlib.import_module('minillm.optim')"),
        ("minillm.training.config", "if TYPE_CHECKING:\n    from minillm.training.run import Run"),
    ],
)
def test_a_circle_is_found(module: str, source: str) -> None:
    assert module in shortest_circle(GRAPH | {module: GRAPH[module] | imports_of(module, source)})


# Files that may assign into what they import: the table of a Tensor's operators and methods; and Python before 3.13
# has no other way to attach to shared memory without taking part in its end.
ASSIGN_OUTSIDE = {"minillm.ops", "minillm.parallel.segments"}


@pytest.mark.parametrize("module", FILES.keys() - ASSIGN_OUTSIDE)
def test_no_file_changes_what_another_holds(module: str) -> None:
    """Whoever wants to see what happens enters `autograd.observe`, and replaces no function or method of others."""
    assert outside_assignments(FILES[module].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "from minillm.nn import Module\nModule.save = save",
        "from minillm.nn import Module as M\ndel M.forward",
        "from minillm.autograd import Op\nbefore, Op._run = Op._run, mine",
        "from minillm import backend\nbackend.matmuls = mine",
        "import minillm.backend\nminillm.backend.wake_up_delay += 1",
        "import numpy as np\nnp.matmul = mine",
        "from minillm.nn import Module\nvars(Module)['forward'] = mine",
        "for module in modules:\n    setattr(module, name, mine)",
    ],
)
def test_an_assignment_from_outside_is_found(source: str) -> None:
    assert len(outside_assignments(source)) == 1


def test_objects_and_own_names_may_be_assigned_to() -> None:
    source = "from minillm.grad_mode import state\nstate.scope = ''\nclass A: pass\nA.x = 1"
    source += "\nimport os\nos.environ['A'] = 'b'\nimport numpy as np\nx[x == np.inf] = 1"
    assert outside_assignments(source) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("minillm.autograd", "from minillm import ops"),
        ("minillm.autograd", "def late():\n    from minillm.ops.linear import linear"),
        ("minillm.errors", "import minillm"),
        ("minillm.ops.linear", "from minillm.ops.rope import rope"),
        ("minillm.ops.linear", "from minillm.ops import rope"),
        ("minillm.nn", "from minillm.optim import AdamW"),
        ("minillm.models.gpt2", "from minillm.data import Batches"),
        ("minillm.training.trainer", "import cupy as xp"),
        ("minillm.nn", "from safetensors.numpy import save_file"),
        ("minillm.nn", "import torch.nn"),
        ("minillm.generate", "from minillm.cli import main"),
    ],
)
def test_the_rules_catch_what_they_should(module: str, source: str) -> None:
    assert len(broken_rules(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("minillm.ops.linear", "import math\nfrom minillm import backend\nfrom minillm.autograd import Op"),
        ("minillm.ops.linear", "from minillm.ops.broadcast import unbroadcast"),
        ("minillm.parallel.nccl", "from cupy.cuda import nccl"),
        ("minillm.tokenizers.bpe", "import regex\nfrom minillm.tokenizers.base import Tokenizer"),
    ],
)
def test_the_rules_allow_what_they_should(module: str, source: str) -> None:
    assert broken_rules(module, source) == []


def test_every_public_module_starts_with_a_docstring() -> None:
    public = {name: path for name, path in FILES.items() if not name.rpartition(".")[2].startswith("_")}
    assert len(public) > 30
    without = [name for name, path in public.items() if not ast.get_docstring(ast.parse(path.read_text("utf-8")))]
    assert without == []


def test_importing_minillm_loads_nothing_but_numpy() -> None:
    code = "import sys; before = set(sys.modules); import minillm; print(*sorted(set(sys.modules) - before))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    packages = {name.partition(".")[0] for name in result.stdout.split()}
    assert {"minillm", "numpy"} <= packages
    assert packages - sys.stdlib_module_names == {"minillm", "numpy"}
    ours = {f"minillm.{name}" for name in ("training", "cli", "commands", "study", "tokenizers")}
    assert not set(result.stdout.split()) & (ours | {"pydoc_data", "asyncio", "multiprocessing"})


def test_the_tests_run_this_checkout(tmp_path) -> None:
    checkout = Path(__file__).parents[1] / "minillm" / "__init__.py"
    assert Path(minillm.__file__) == checkout
    program = "import minillm; print(minillm.__file__)"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert shown.stdout.strip() == str(checkout)


def test_the_wheel_has_every_package() -> None:
    project = Path(__file__).parents[1] / "pyproject.toml"
    settings = tomllib.loads(project.read_text(encoding="utf-8"))["tool"]["setuptools"]
    elsewhere = {path.replace("/", ".") for name, path in settings["package-dir"].items() if name != "minillm"}
    packages = {name for name, path in FILES.items() if path.name == "__init__.py"}
    assert packages - elsewhere <= set(settings["packages"])
    assert (ROOT / "py.typed").is_file()
