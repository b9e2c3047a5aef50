"""Draws small changes to modules, with the operators of cosmic-ray and a few that it lacks.

`mutation.py` runs this as a program, with cosmic-ray on its path; it answers on its standard
output, in JSON.
"""

from __future__ import annotations

import ast
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import parso
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator
from parso.python.tree import Keyword

Position = tuple[int, int]  # line from 1, character from 0

# Of each comparison and each operator its opposite and its neighbour. The other forty would nearly
# all be noticed as a TypeError, which says nothing about the tests.
COSMIC_RAY = (
    "AddNot",
    "NumberReplacer",
    "ReplaceAndWithOr",
    "ReplaceOrWithAnd",
    "ReplaceTrueWithFalse",
    "ReplaceFalseWithTrue",
    "ReplaceBreakWithContinue",
    "ReplaceContinueWithBreak",
    "ReplaceUnaryOperator_Delete_Not",
    "ReplaceUnaryOperator_Delete_USub",
    *(
        f"ReplaceComparisonOperator_{change}"
        for change in (
            *("Eq_NotEq", "NotEq_Eq", "Is_IsNot", "IsNot_Is", "Lt_LtE", "Lt_Gt", "LtE_Lt"),
            *("LtE_GtE", "Gt_GtE", "Gt_Lt", "GtE_Gt", "GtE_LtE"),
        )
    ),
    *(
        f"ReplaceBinaryOperator_{change}"
        for change in (
            *(
                "Add_Sub",
                "Sub_Add",
                "Mul_Div",
                "Mul_Add",
                "Div_Mul",
                "FloorDiv_Mul",
                "Mod_FloorDiv",
            ),
            *("Pow_Mul", "LShift_RShift", "RShift_LShift", "BitOr_BitAnd", "BitAnd_BitOr"),
        )
    ),
)


class DropCall:
    """Replaces a statement that is a call, awaited or not, by `pass`."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Position, Position]]:
        if node.type == "simple_stmt":
            call = node.children[0]
            if call.type in ("atom_expr", "power") and _is_call(call.children[-1]):
                yield call.start_pos, call.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        call = node.children[0]
        node.children[0] = Keyword("pass", call.start_pos, call.get_first_leaf().prefix)
        return node


AUGMENTED = {"+=": "-=", "-=": "+=", "*=": "/=", "|=": "&=", "&=": "|="}


class ReplaceAugmentedAssignment:
    """Adds in place of subtracting, and the other way round."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Position, Position]]:
        if node.type == "operator" and node.value in AUGMENTED:
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        node.value = AUGMENTED[node.value]
        return node


class ReplaceMembership:
    """Replaces `in` by `not in`, and the other way round."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Position, Position]]:
        if node.type == "comparison":
            for operator in node.children[1::2]:
                if operator.get_code().split() in (["in"], ["not", "in"]):
                    yield operator.start_pos, operator.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        words = {("in",): " not in", ("not", "in"): " in"}
        places = [
            place
            for place in range(1, len(node.children), 2)
            if tuple(node.children[place].get_code().split()) in words
        ]
        place = places[index]
        text = words[tuple(node.children[place].get_code().split())]
        node.children[place] = parso.parse(text)
        return node


OPERATORS: dict[str, Any] = {
    **{name: get_operator(f"core/{name}") for name in COSMIC_RAY},
    **{one.__name__: one for one in (DropCall, ReplaceAugmentedAssignment, ReplaceMembership)},
}


def _is_call(node: Any) -> bool:
    return bool(node.type == "trailer" and node.children[0].value == "(")


class Span(NamedTuple):
    start: Position
    end: Position


def ignored(source: str) -> list[Span]:
    """Annotations, decorators, and the texts of errors and log lines: no change there counts."""
    lines = source.splitlines()

    def span(node: Any) -> Span:
        def place(line: int, offset: int) -> Position:
            return line, len(lines[line - 1].encode()[:offset].decode())

        return Span(
            place(node.lineno, node.col_offset), place(node.end_lineno, node.end_col_offset)
        )

    found: list[Span] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found += map(span, node.decorator_list)
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation:
            found.append(span(node.annotation))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.returns:
            found.append(span(node.returns))
        if isinstance(node, ast.Raise) and node.exc:
            found.append(span(node.exc))
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            found.append(span(node))
        if isinstance(node, ast.Call) and _writes_text(node.func):
            found += map(span, (*node.args, *(keyword.value for keyword in node.keywords)))
    return found


def _writes_text(function: ast.expr) -> bool:
    """Whether it logs, or makes an error."""
    name = getattr(function, "attr", getattr(function, "id", ""))
    return name in {"log", "log_info", "log_warn", "log_error", "print"} or name.endswith("Error")


def functions(source: str) -> dict[int, str]:
    """The qualified name of the innermost function or class of each line that is in one."""
    found = {}

    def visit(node: ast.AST, names: tuple[str, ...]) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                inner = (*names, child.name)
                for line in range(child.lineno, (child.end_lineno or child.lineno) + 1):
                    found[line] = ".".join(inner)
                visit(child, inner)
            else:
                visit(child, names)

    visit(ast.parse(source), ())
    return found


class Change(NamedTuple):
    module: str
    line: int
    operator: str
    occurrence: int


def places(root: Path, module: str) -> list[list[Change]]:
    """The possible changes of a module, by the place where they begin."""
    source = (root / module).read_text()
    skipped = ignored(source)
    nodes = list(ast_nodes(get_ast(source)))
    found: dict[Position, list[Change]] = {}
    for name, operator in OPERATORS.items():
        positions = [(node, *one) for node in nodes for one in operator().mutation_positions(node)]
        for occurrence, (node, start, end) in enumerate(positions):
            if _is_marker(node):
                continue
            if not any(span.start <= start and end <= span.end for span in skipped):
                found.setdefault(start, []).append(Change(module, start[0], name, occurrence))
    return [found[start] for start in sorted(found)]


def _is_marker(node: Any) -> bool:
    """Whether it is the star between the parameters of a function, no multiplication."""
    return bool(node.type == "operator" and node.parent.type == "parameters")


def make(root: Path, change: Change) -> dict[str, Any] | None:
    """The mutant, or none if it is no valid Python."""
    source = (root / change.module).read_text()
    mutated = mutate_code(source, OPERATORS[change.operator](), change.occurrence)
    try:
        compile(mutated, change.module, "exec")
    except SyntaxError:
        return None
    where = functions(source).get(change.line, "")
    return {"module": change.module, "line": change.line, "function": where, "source": mutated}


def draw(root: Path, modules: list[str], chance: random.Random) -> Iterator[dict[str, Any]]:
    """Mutants in random order: at most one for each place, all places with the same chance."""
    at = [place for module in modules for place in places(root, module)]
    chance.shuffle(at)
    for place in at:
        mutant = make(root, chance.choice(place))
        if mutant:
            yield mutant


def main() -> None:
    """Arguments: the root, a seed, how many mutants at most, and the modules."""
    root, seed, count, *modules = sys.argv[1:]
    mutants = draw(Path(root), modules, random.Random(seed))
    json.dump([mutant for mutant, _ in zip(mutants, range(int(count)))], sys.stdout)


if __name__ == "__main__":
    main()
