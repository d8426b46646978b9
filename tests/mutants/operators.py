"""Small mistakes that a programmer might make, one at a time, in the source of one module."""

import ast
import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass

__all__ = ["Mutant", "mutants_of"]

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
_OTHERS = {"min": "max", "max": "min"}


@dataclass(frozen=True)
class Mutant:
    """A module with one mistake.

    Attributes:
        name: the function, what was there and what is there now; no line, which moves.
        line: of the mistake.
    """

    name: str
    line: int
    tree: ast.Module


def mutants_of(source: str) -> Iterator[Mutant]:
    """Yield each module that differs from ``source`` in one place inside a function."""
    tree = ast.parse(source)
    counts: dict[str, int] = {}
    for path, node in _inside_functions(tree):
        for change in _changes(node):
            mutated = deepcopy(tree)
            old, new = _apply(mutated, node, change)
            name = f"{path}: {old}  →  {new}"
            counts[name] = counts.get(name, 0) + 1
            suffix = f"  #{counts[name]}" if counts[name] > 1 else ""
            yield Mutant(name + suffix, node.lineno, ast.fix_missing_locations(mutated))


def _inside_functions(tree: ast.Module) -> Iterator[tuple[str, ast.expr | ast.stmt]]:
    """Yield each node that runs when a function does, with the function's name."""
    for top in tree.body:
        if isinstance(top, ast.ClassDef):
            for inner in top.body:
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield from _below(f"{top.name}.{inner.name}", inner)
        elif isinstance(top, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _below(top.name, top)


def _below(
    name: str, function: ast.FunctionDef | ast.AsyncFunctionDef
) -> Iterator[tuple[str, ast.expr | ast.stmt]]:
    has_docstring = ast.get_docstring(function, clean=False) is not None
    for statement in function.body[int(has_docstring) :]:
        yield from ((name, node) for node in _code(statement))


def _code(node: ast.AST) -> Iterator[ast.expr | ast.stmt]:
    # What an annotation or an assertion for the type checker says has no effect.
    if isinstance(node, ast.Assert | ast.JoinedStr):
        return
    if isinstance(node, ast.expr | ast.stmt):
        yield node
    for field, value in ast.iter_fields(node):
        if field != "annotation":
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _code(child)


def _changes(node: ast.expr | ast.stmt) -> Iterator[ast.expr | ast.stmt]:
    """Yield what may stand in the place of ``node``."""
    new = deepcopy(node)
    match node, new:
        case ast.Compare(), ast.Compare() if type(node.ops[0]) in _COMPARISONS:
            new.ops[0] = _COMPARISONS[type(node.ops[0])]()
            yield new
        case ast.BinOp(), ast.BinOp() if type(node.op) in _ARITHMETIC:
            new.op = _ARITHMETIC[type(node.op)]()
            yield new
        case ast.AugAssign(), ast.AugAssign():
            yield ast.Pass()
            if type(node.op) in _ARITHMETIC:
                new.op = _ARITHMETIC[type(node.op)]()
                yield new
        case ast.BoolOp(), ast.BoolOp():
            new.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
            yield new
        case ast.UnaryOp(op=ast.Not()), _:
            yield deepcopy(node.operand)
        case ast.Constant(value=bool()), ast.Constant():
            yield ast.Constant(not node.value)
        case ast.Constant(value=int(number)), ast.Constant():
            yield ast.Constant(number + 1)
        case ast.Constant(value=str(text)), ast.Constant() if _is_code(text):
            yield ast.Constant(f"{text}X")
        case ast.Call(func=ast.Name(id=called)), ast.Call() if called in _OTHERS:
            new.func = ast.Name(_OTHERS[called], ast.Load())
            yield new
        case ast.Return(value=ast.expr()), _ if not _is_none(node.value):
            yield ast.Return(ast.Constant(None))
        case ast.Expr(value=ast.Call() | ast.Await()), _:
            yield ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]), _:
            yield ast.Pass()


def _is_code(text: str) -> bool:
    """Whether a program reads ``text``; what people read may be said otherwise."""
    return re.fullmatch(r"[a-z~:_]+", text) is not None


def _is_none(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _apply(tree: ast.Module, old: ast.expr | ast.stmt, new: ast.expr | ast.stmt) -> tuple[str, str]:
    """Put ``new`` in the place of ``old`` in a copy of its tree; return both as text."""
    place = (type(old), old.lineno, old.col_offset, old.end_lineno, old.end_col_offset)
    for parent in ast.walk(tree):
        for field, value in ast.iter_fields(parent):
            for index, child in enumerate(value if isinstance(value, list) else [value]):
                if not isinstance(child, ast.expr | ast.stmt):
                    continue
                if place == (
                    type(child), child.lineno, child.col_offset,
                    child.end_lineno, child.end_col_offset,
                ):  # fmt: skip
                    if isinstance(value, list):
                        value[index] = ast.copy_location(new, old)
                    else:
                        setattr(parent, field, ast.copy_location(new, old))
                    return _text(old), _text(new)
    raise AssertionError(f"line {old.lineno} is not in its own tree")


def _text(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 90 else text[:87] + "..."
