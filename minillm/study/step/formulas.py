"""The right-hand side of a line of source, as data that a page can evaluate for one element.

`dx = rstd * (dnorm - through_mean)` becomes

    {"dx": ["*", ["name", "rstd"], ["-", ["name", "dnorm"], ["name", "through_mean"]]]}

With the arrays of a trace the page works out what an element is made of: which numbers a product or a sum takes, and
where they stand. A tree is a list whose first item names what it is; what cannot be told from the text alone becomes no
tree, and the page says nothing about such a line. The other half of this, which evaluates trees, is page_formula.js.

    ["num", 3]  ["name", "x"]  ["none"]  ["text", "tanh"]     constants and names
    ["+", a, b], and - * / ** // < <= > >= == != & |  ["neg", a]  ["not", a]
    ["call", "exp", a]              an elementwise function of NumPy
    ["where", condition, a, b]      ["if", condition, a, b]
    ["matmul", a, b]                ["sum", a, axis, keepdims], and mean, max, min
    ["T", a]  ["transpose", a, axes]  ["swapaxes", a, i, j]  ["reshape", a, shape]  ["rows", a]
    ["index", a, key]               the key is a list of trees, ["..."], ["new"] and ["slice", start, stop]
    ["scatter", indices, rows]      each element the sum of the rows whose index it has
    ["cut", a, bounds, axis]        piece i of an array, cut along an axis      ["take", a, indices, axis]
    ["pair", a, layout, 0 or 1]     the first or second channels of RoPE        ["joined", a, b, layout], its inverse
    ["repeat", a, times, axis]  ["broadcast", a, shape]  ["concatenate", a, axis]  ["shape", a]  ["tuple", ...]
"""

from __future__ import annotations

import ast
import sys
import textwrap
from typing import Any

from minillm.study.step.records import Source

Tree = list[Any]

OPERATORS: dict[type, str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.Pow: "**",
    ast.FloorDiv: "//",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.BitAnd: "&",
    ast.BitOr: "|",
    ast.Is: "is",
    ast.IsNot: "is not",
}
ELEMENTWISE = "exp expm1 log log1p log2 log10 sqrt tanh sin cos abs sign floor ceil maximum minimum clip erf".split()
BINARY = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/", "power": "**"}
REDUCTIONS = ("sum", "mean", "max", "min", "amax", "amin")
UNCHANGED = ("astype", "copy", "asarray", "ascontiguousarray", "float32", "contiguous")  # the numbers stay as they are


class Unknown(Exception):
    """An expression whose numbers cannot be told from its text."""


def formulas(key: str, source: Source) -> dict[int, dict[str, Tree]]:
    """For each line of a function that makes arrays, by its number in the file, the tree of each name that it makes."""
    try:
        [function] = ast.parse(textwrap.dedent("\n".join(source.lines))).body
    except (SyntaxError, ValueError):  # a lambda within a call, or a function without source
        return {}
    writer = Writer(_numbers_of(key.rpartition(".")[0], function))
    found: dict[int, dict[str, Tree]] = {}
    for node in ast.walk(function):
        trees = writer.statement(node) if isinstance(node, ast.stmt) else {}
        if trees:
            found[source.first + node.lineno - 1] = trees  # type: ignore[attr-defined]
    return found


def _numbers_of(module: str, function: ast.AST) -> dict[str, float]:
    """The constants of a module that a function reads, such as SQRT_2_OVER_PI."""
    names = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
    holder: Any = sys.modules.get(module)
    values: dict[str, Any] = {name: getattr(holder, name, None) for name in names}
    return {
        name: float(value)
        for name, value in values.items()
        if not isinstance(value, (str, type)) and hasattr(value, "__float__") and getattr(value, "shape", ()) == ()
    }


class Writer:
    """Writes trees for the statements of one function, whose module has these numbers."""

    def __init__(self, numbers: dict[str, float]):
        self.numbers = numbers

    def statement(self, node: ast.stmt) -> dict[str, Tree]:
        """The names that a statement makes, each with its tree; without those that have none."""
        pairs: list[tuple[ast.expr, ast.expr]] = []
        if isinstance(node, ast.Assign):
            for target in node.targets:
                pairs += self._pairs(target, node.value)
        elif isinstance(node, ast.AugAssign):
            pairs = [(node.target, ast.BinOp(node.target, node.op, node.value))]
        elif isinstance(node, ast.Return) and node.value is not None:
            values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
            pairs = [(value, value) for value in values if not isinstance(value, ast.Name)]
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            return self._add_at(node.value)
        found = {}
        for target, value in pairs:
            try:
                found[ast.unparse(target)] = self.tree(value)
            except Unknown:
                continue
        return found

    def _pairs(self, target: ast.expr, value: ast.expr) -> list[tuple[ast.expr, ast.expr]]:
        """The names on the left, each with its own expression on the right."""
        if not isinstance(target, ast.Tuple):
            return [(target, value)]
        if isinstance(value, ast.Tuple) and len(value.elts) == len(target.elts):
            return list(zip(target.elts, value.elts, strict=True))
        if isinstance(value, ast.Call) and _name_of(value.func) == "pairs":
            halves = [ast.Call(ast.Name("pair"), [*value.args, ast.Constant(i)], []) for i in range(2)]
            return list(zip(target.elts, halves, strict=True))
        return []

    def _add_at(self, call: ast.Call) -> dict[str, Tree]:
        """The tree of `add_at(into, indices, rows)`, where `into` was zeros."""
        if _name_of(call.func) != "add_at" or len(call.args) != 3:
            return {}
        try:
            return {ast.unparse(call.args[0]): ["scatter", self.tree(call.args[1]), self.tree(call.args[2])]}
        except Unknown:
            return {}

    def tree(self, node: ast.expr | None) -> Tree:
        """The tree of an expression. Raises: Unknown for one that has none."""
        write = getattr(self, f"_{type(node).__name__.lower()}", None)
        if node is None or write is None:
            raise Unknown
        return write(node)

    def _constant(self, node: ast.Constant) -> Tree:
        if node.value is None:
            return ["none"]
        if isinstance(node.value, str):
            return ["text", node.value]
        if isinstance(node.value, (bool, int, float)):
            return ["num", float(node.value)]
        raise Unknown

    def _name(self, node: ast.Name) -> Tree:
        return ["num", self.numbers[node.id], node.id] if node.id in self.numbers else ["name", node.id]

    def _tuple(self, node: ast.Tuple | ast.List) -> Tree:
        return ["tuple", *(self.tree(item) for item in node.elts)]

    _list = _tuple

    def _attribute(self, node: ast.Attribute) -> Tree:
        text = ast.unparse(node)
        if text in ("np.inf", "math.inf"):
            return ["num", "inf"]
        if text in ("np.pi", "math.pi"):
            return ["num", 3.141592653589793, "pi"]
        if node.attr == "T":
            return ["T", self.tree(node.value)]
        if node.attr in ("shape", "size", "ndim"):
            return [node.attr, self.tree(node.value)]
        if isinstance(node.value, ast.Name):  # saved.weight
            return ["name", text]
        raise Unknown

    def _unaryop(self, node: ast.UnaryOp) -> Tree:
        if isinstance(node.op, ast.USub):
            return ["neg", self.tree(node.operand)]
        if isinstance(node.op, (ast.Invert, ast.Not)):
            return ["not", self.tree(node.operand)]
        raise Unknown

    def _binop(self, node: ast.BinOp) -> Tree:
        if isinstance(node.op, ast.MatMult):
            return ["matmul", self.tree(node.left), self.tree(node.right)]
        if type(node.op) not in OPERATORS:
            raise Unknown
        return [OPERATORS[type(node.op)], self.tree(node.left), self.tree(node.right)]

    def _compare(self, node: ast.Compare) -> Tree:
        if len(node.ops) != 1 or type(node.ops[0]) not in OPERATORS:
            raise Unknown
        return [OPERATORS[type(node.ops[0])], self.tree(node.left), self.tree(node.comparators[0])]

    def _ifexp(self, node: ast.IfExp) -> Tree:
        return ["if", self.tree(node.test), self.tree(node.body), self.tree(node.orelse)]

    def _subscript(self, node: ast.Subscript) -> Tree:
        items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        return ["index", self.tree(node.value), [self._key(item) for item in items]]

    def _key(self, node: ast.expr) -> Tree:
        if isinstance(node, ast.Constant) and node.value is None:
            return ["new"]
        if isinstance(node, ast.Constant) and node.value is Ellipsis:
            return ["..."]
        if isinstance(node, ast.Slice) and node.step is None:
            return ["slice", *(None if end is None else self.tree(end) for end in (node.lower, node.upper))]
        return self.tree(node)

    def _call(self, node: ast.Call) -> Tree:
        name = _name_of(node.func)
        named = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
        arguments = list(node.args)
        on_array = isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) not in (
            "np",
            "math",
            "backend",
        )
        if on_array:  # x.sum(axis=-1), written np.sum(x, axis=-1)
            arguments = [node.func.value, *arguments]  # type: ignore[attr-defined]
        if any(isinstance(one, ast.Starred) for one in arguments) or not arguments:
            raise Unknown
        first = arguments[0]
        if name in UNCHANGED:
            return self.tree(first)
        if name in ELEMENTWISE:
            return ["call", name, *map(self.tree, arguments)]
        if name == "negative":
            return ["neg", self.tree(first)]
        if name in BINARY or name in ("matmul", "where"):
            return [BINARY.get(name, name), *map(self.tree, arguments)]
        if name in REDUCTIONS:
            axis = named.get("axis", arguments[1] if len(arguments) > 1 else ast.Constant(None))
            keepdims = named.get("keepdims", ast.Constant(False))
            return [name.removeprefix("a"), self.tree(first), self.tree(axis), self.tree(keepdims)]
        return self._rearranged(name, arguments, named)

    def _rearranged(self, name: str, arguments: list[ast.expr], named: dict[str, ast.expr]) -> Tree:
        """The tree of a call that moves numbers, and computes none."""
        first, *others = map(self.tree, arguments)
        if name == "as_rows":
            return ["rows", first]
        if name in ("cut", "pair", "joined"):
            return [name, first, *others]
        if name == "take":
            return [name, first, others[0], self.tree(named.get("axis", ast.Constant(None)))]
        if name in ("swapaxes", "transpose"):
            return [name, first, *others]
        if name in ("reshape", "broadcast_to"):
            shape = others[0] if len(others) == 1 else ["tuple", *others]
            return [name.removesuffix("_to"), first, shape]
        if name == "repeat":
            axis = self.tree(named["axis"]) if "axis" in named else others[1]
            return ["repeat", first, others[0], axis]
        if name == "concatenate":
            return ["concatenate", first, others[0] if others else self.tree(named.get("axis", ast.Constant(0)))]
        if name in ("zeros_like", "ones_like"):
            shape = self.tree(named["shape"]) if "shape" in named else ["shape", first]
            return ["broadcast", ["num", float(name == "ones_like")], shape]
        if name == "arange" and not others:
            return ["arange", first]
        if name in ("len", "is_number"):
            return [name, first]
        raise Unknown


def _name_of(function: ast.expr) -> str:
    """The last name of what is called: `sum` of `x.sum` and of `np.sum`."""
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
