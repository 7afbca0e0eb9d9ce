"""An exercise: what is asked, the cases that an answer is tried on, and the mistakes that people make in it.

Each file of `course/` holds one. Its docstring is the statement and its first function is the one to write, with the
signature and the shapes but no body. The right answer comes from the engine's own functions. Every mistake is a small
wrong function with its own hint. A mistake is recognised by what it computes, not by how it is written: whoever's
function gives the numbers of a mistake gets the hint of that mistake.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minillm.counted import counted
from minillm.errors import InputError
from minillm.exercises.compare import same

Inputs = dict[str, Any]
SEED = 16  # for the random numbers of the cases, which are equal in every check


class Mistake(NamedTuple):
    """A wrong function, and what to tell the person whose function computes that."""

    function: Callable[..., Any]
    hint: str

    @property
    def name(self) -> str:
        return self.function.__name__.replace("_", " ")


class Outcome(NamedTuple):
    """The result of one call: the outputs by name, or the exception that ended it."""

    outputs: dict[str, Any]
    error: BaseException | None = None
    changed: tuple[str, ...] = ()  # arguments that the call changed and should not have


class WrongResult(Exception):
    """The function did not return the number of results that was asked for."""


def call(function: Callable[..., Any], inputs: Inputs) -> Any:
    """Call a function with its arguments by position, so that a learner may rename them."""
    return function(*inputs.values())


@dataclass(frozen=True)
class Exercise:
    """An exercise; the top of this file says what belongs to it."""

    starter: Callable[..., Any]  # the function to write
    returns: str  # the names of its results
    right: Callable[..., Any]  # the right answer, made of the engine's functions
    cases: Callable[[np.random.Generator], Iterable[Inputs]]
    hints: tuple[str, ...]  # given one after another to a person who asks
    read: str  # the file of the engine to read afterwards
    tolerance: float = 1e-9  # of an answer, relative to the largest number of the result
    seconds: int = 30  # after which a check is stopped
    compiling: int = 0  # seconds more until its file is loaded
    run: Callable[[Callable[..., Any], Inputs], Any] = call
    suffix: str = ".py"
    mistakes: list[Mistake] = field(default_factory=list)

    def mistake(self, hint: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Add the decorated function to the mistakes, with its hint."""

        def add(function: Callable[..., Any]) -> Callable[..., Any]:
            self.mistakes.append(Mistake(function, hint))
            return function

        return add

    @property
    def module(self) -> str:
        return self.starter.__module__.rpartition(".")[2]

    @property
    def name(self) -> str:
        return self.module.replace("_", "-")

    @property
    def file_name(self) -> str:
        return self.module + self.suffix

    @property
    def statement(self) -> str:
        return inspect.cleandoc(sys.modules[self.starter.__module__].__doc__ or "")

    @property
    def title(self) -> str:
        return self.statement.partition("\n")[0].rstrip(".")

    def text(self, path: Path) -> str:
        """The text of a new file for the learner."""
        head = f'"""minillm exercise {self.name}: {self.statement}\n\nCheck it with: minillm exercise check {path}\n"""'
        return f"{head}\n\nimport numpy as np\n\n\n{inspect.getsource(self.starter)}"

    def load(self, path: Path) -> Callable[..., Any]:
        """The learner's function; the exceptions of the file are those of an import."""
        spec = importlib.util.spec_from_file_location("learner", path)
        if spec is None or spec.loader is None:
            raise InputError(f"{path.name} is no Python file; let its name end with .py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        function = getattr(module, self.starter.__name__, None)
        if not callable(function):
            name = self.starter.__name__
            raise InputError(
                f"{path.name} has no function {name}; write `def {name}{inspect.signature(self.starter)}:`"
            )
        return function

    def all_cases(self) -> list[Inputs]:
        """The inputs of every case, in the order in which they are tried."""
        return list(self.cases(np.random.default_rng(SEED)))

    def outcome(self, function: Callable[..., Any], inputs: Inputs) -> Outcome:
        """Call a function on a copy of a case's inputs."""
        given = copy.deepcopy(inputs)
        names = self.returns.split()
        try:
            with np.errstate(all="ignore"):
                result = self.run(function, given)
            results = self._results(names, result)
        except (Exception, SystemExit) as error:
            return Outcome({}, error)
        changed = tuple(name for name in inputs if not same(given[name], inputs[name], 0))
        return Outcome(dict(zip(names, results, strict=True)), changed=changed)

    def _results(self, names: list[str], result: Any) -> list[Any]:
        function, wanted = self.starter.__name__, ", ".join(names)
        if result is None:
            raise WrongResult(f"{function} returns None; end it with `return {wanted}`")
        if len(names) == 1:
            return [result]
        if not isinstance(result, (tuple, list)) or len(result) != len(names):
            given = (
                counted(len(result), "result") if isinstance(result, (tuple, list)) else f"a {type(result).__name__}"
            )
            raise WrongResult(f"{function} returns {given}; return {len(names)}: {wanted}")
        if missing := [name for name, value in zip(names, result, strict=True) if value is None]:
            raise WrongResult(f"{function} returns None for {', '.join(missing)}")
        return list(result)
