"""Arithmetic that a study file may contain: ``tp * pp <= 64``, ``15e12 / tokens_per_s``, ``peak_memory <= '70 GB'``."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from simtrain import units
from simtrain.errors import InputError, UnknownNameError

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod, ast.Pow: operator.pow,
}  # fmt: skip
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Eq: operator.eq, ast.NotEq: operator.ne,
    ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b,
}  # fmt: skip
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Not: operator.not_}
FUNCTIONS: Mapping[str, Callable[..., Any]] = {"min": min, "max": max, "abs": abs, "ceil": math.ceil, "floor": math.floor, "log2": math.log2, "sqrt": math.sqrt}
"""What an expression may call."""
_PROBLEMS = (ArithmeticError, TypeError, ValueError)


class Expression:
    """One expression over dotted names. Nothing but arithmetic, comparisons and a few functions is understood.

    Parameters
    ----------
    text
        As written. Text in quotes that reads as a quantity, such as ``'70 GB'``, is its SI value.
    where
        Place in the file, for messages.

    Raises
    ------
    InputError
        If it is no expression of this kind.

    Examples
    --------
    >>> Expression("tp * pp <= 64").value({"tp": 8, "pp": 8}.__getitem__)
    True
    >>> Expression("nic.bandwidth == '400 Gbit/s'").value({"nic.bandwidth": 5e10}.__getitem__)
    True
    """

    def __init__(self, text: str, where: str = "") -> None:
        self.text, self.where = text, where
        try:
            self._tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise self._error("is no expression; write e.g. 'tp * pp <= 64'") from None
        self._check(self._tree)

    def _error(self, what: str) -> InputError:
        return InputError(f"{self.where + ': ' if self.where else ''}{self.text!r} {what}")

    def _check(self, node: ast.AST) -> None:
        match node:
            case ast.Name() | ast.Constant(value=int() | float() | str()):
                return
            case ast.Attribute() if _dotted(node):
                return
            case ast.Call(func=ast.Name(id=name), keywords=[]) if name in FUNCTIONS:
                parts: list[ast.AST] = list(node.args)
            case ast.BinOp(op=op) if type(op) in _BINARY:
                parts = [node.left, node.right]
            case ast.UnaryOp(op=op) if type(op) in _UNARY:
                parts = [node.operand]
            case ast.Compare() if all(type(op) in _COMPARE for op in node.ops):
                parts = [node.left, *node.comparators]
            case ast.BoolOp() | ast.List() | ast.Tuple():
                parts = list(node.values if isinstance(node, ast.BoolOp) else node.elts)
            case _:
                raise self._error(f"holds {ast.unparse(node)!r}; allowed: numbers, names, + - * / // % **, comparisons, and, or, not, {', '.join(FUNCTIONS)}")
        for part in parts:
            self._check(part)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Dotted names in the expression, each once."""
        return tuple(dict.fromkeys(_names(self._tree)))

    def value(self, lookup: Callable[[str], Any]) -> Any:
        """Return what it comes to.

        Parameters
        ----------
        lookup
            From a dotted name to its value.

        Raises
        ------
        InputError
            If it cannot be computed, such as a division by zero.
        """
        try:
            return self._value(self._tree, lookup)
        except UnknownNameError as error:
            raise self._error(str(error)) from None
        except _PROBLEMS as error:
            raise self._error(f"cannot be computed ({error})") from None

    def _value(self, node: ast.AST, lookup: Callable[[str], Any]) -> Any:
        match node:
            case ast.Constant(value=value):
                return _quantity(value) if isinstance(value, str) else value
            case ast.Name() | ast.Attribute():
                return lookup(_dotted(node))
            case ast.Call(func=ast.Name(id=name)):
                return FUNCTIONS[name](*(self._value(a, lookup) for a in node.args))
            case ast.BinOp():
                return _BINARY[type(node.op)](self._value(node.left, lookup), self._value(node.right, lookup))
            case ast.UnaryOp():
                return _UNARY[type(node.op)](self._value(node.operand, lookup))
            case ast.BoolOp():
                return self._first_that_decides(node, lookup)
            case ast.Compare():
                sides = [self._value(side, lookup) for side in (node.left, *node.comparators)]
                return all(_COMPARE[type(op)](a, b) for op, a, b in zip(node.ops, sides, sides[1:], strict=False))
            case _:
                assert isinstance(node, (ast.List, ast.Tuple)), "checked when it was read"
                return [self._value(e, lookup) for e in node.elts]

    def _first_that_decides(self, node: ast.BoolOp, lookup: Callable[[str], Any]) -> Any:
        value: Any = None
        for part in node.values:
            value = self._value(part, lookup)
            if bool(value) != isinstance(node.op, ast.And):
                break
        return value


def _dotted(node: ast.AST) -> str:
    """Return ``a.b.c`` of nested attributes; empty when it is something else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        inner = _dotted(node.value)
        return f"{inner}.{node.attr}" if inner else ""
    return ""


def _names(node: ast.AST) -> list[str]:
    if isinstance(node, (ast.Name, ast.Attribute)):
        return [_dotted(node)]
    inner = node.args if isinstance(node, ast.Call) else list(ast.iter_child_nodes(node))
    return [name for part in inner for name in _names(part)]


def _quantity(text: str) -> Any:
    """Return the SI value of a quantity; anything else stays text."""
    for dimension in units.UNITS:
        try:
            return units.parse(text, dimension)
        except ValueError:
            continue
    return text
