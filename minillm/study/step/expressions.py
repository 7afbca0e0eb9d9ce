"""Expressions of a line of source: their parts, and the same expression of other arrays. explain.py evaluates them."""

from __future__ import annotations

import ast
from typing import Any

PLACES = "places__"  # the name that stands for an array whose numbers are their own places


class Unknown(Exception):
    """An expression that cannot be followed."""


def operands(node: ast.expr) -> list[ast.expr]:
    """The parts of an expression whose elements it may move."""
    if isinstance(node, (ast.Subscript, ast.Attribute)):
        return [*(operands(node.value) if isinstance(node.value, ast.Call) else []), node.value]
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.GeneratorExp):
        return [generator.iter for generator in node.args[0].generators]  # next(part for part in dy if ...)
    if isinstance(node, ast.Call):
        method = [node.func.value] if isinstance(node.func, ast.Attribute) else []
        return [*method, *node.args]
    return []


def statement_of(text: str) -> ast.stmt:
    """The statement of a line. Raises: Unknown for a text that is none."""
    try:
        [statement] = ast.parse(text).body
    except (SyntaxError, ValueError):
        raise Unknown from None
    return statement


def item_of(value: ast.expr, number: int) -> ast.expr:
    """The expression for an item of what another one gives."""
    return ast.parse(f"({ast.unparse(value)})[{number}]", mode="eval").body


class _Places(ast.NodeTransformer):
    """Puts the array of places where a part of an expression was."""

    def __init__(self, part: ast.expr):
        self.part = ast.unparse(part)

    def visit(self, node: ast.AST) -> Any:
        """Replace the part itself, and look into everything else."""
        if isinstance(node, ast.expr) and ast.unparse(node) == self.part:
            return ast.Name(PLACES, ast.Load())
        return self.generic_visit(node)


def replaced(node: ast.expr, part: ast.expr) -> ast.expr:
    """The expression with the array of places where one of its parts was."""
    copy = ast.parse(ast.unparse(node), mode="eval").body
    return ast.fix_missing_locations(_Places(part).visit(copy))


def is_move(node: ast.expr) -> bool:
    """True for a transpose, x.T."""
    return isinstance(node, ast.Attribute) and node.attr == "T"


def fitted(index: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The index of an element of an operand that is broadcast."""
    if len(shape) > len(index):
        raise Unknown
    return tuple(0 if size == 1 else i for i, size in zip(index[len(index) - len(shape) :], shape, strict=True))
