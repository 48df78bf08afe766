"""Which mutants of a file are tried: those of some of cosmic-ray's operators, and of a few of our own.

Of cosmic-ray's, one or two for each kind of operator: `a - b` for `a + b` is enough, `a ^ b` says nothing more. Its
`AddNot` and `ReplaceAndWithOr` are left out, since what they find is found by `ReplaceCondition` and `DropOperand`.
"""

import ast
import pickle
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, pairwise
from pathlib import Path
from typing import Any, Protocol

import cosmic_ray.plugins
import parso
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import MutationVisitor

Span = tuple[tuple[int, int], tuple[int, int]]

CORE = [
    *("NumberReplacer", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceBreakWithContinue"),
    *("ReplaceContinueWithBreak", "ExceptionReplacer", "ZeroIterationForLoop"),
    *("ReplaceUnaryOperator_Delete_Not", "ReplaceUnaryOperator_USub_UAdd"),
    *(
        f"ReplaceComparisonOperator_{pair}"
        for pair in (
            *("Eq_NotEq", "Eq_LtE", "Eq_GtE", "NotEq_Eq", "Lt_LtE", "Lt_NotEq", "LtE_Lt", "LtE_Eq"),
            *("Gt_GtE", "Gt_NotEq", "GtE_Gt", "GtE_Eq", "Is_IsNot", "IsNot_Is"),
        )
    ),
    *(
        f"ReplaceBinaryOperator_{pair}"
        for pair in ("Add_Sub", "Sub_Add", "Mul_Add", "Div_Mul", "Pow_Mul", "BitAnd_BitOr", "BitOr_BitAnd")
    ),
]

# Not in a condition: there ReplaceCondition finds all that these do.
NEGATING = ("Delete_Not", "Eq_NotEq", "NotEq_Eq", "Is_IsNot", "IsNot_Is")


class Operator(Protocol):
    """As cosmic-ray's."""

    def mutation_positions(self, node: Any) -> Iterator[Span]: ...
    def mutate(self, node: Any, index: int) -> Any: ...


class _Replace:
    """An operator that puts other code in the place of a node, or of some of its children."""

    def variants(self, node: Any) -> Iterator[tuple[Any, str]]:
        """Yield what is replaced, and by what."""
        raise NotImplementedError

    def mutation_positions(self, node: Any) -> Iterator[Span]:
        for old, _ in self.variants(node):
            yield old.start_pos, old.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        old, new = list(self.variants(node))[index]
        tree: Any = parso.parse(  # type: ignore[no-untyped-call, unused-ignore]
            old.get_first_leaf().prefix + new
        )
        if old is node:
            return tree
        node.children = [tree if child is old else child for child in node.children]
        return node


class ReplaceCondition(_Replace):
    """Puts True and False in the place of what `if`, `elif`, `while` and a conditional expression ask."""

    def variants(self, node: Any) -> Iterator[tuple[Any, str]]:
        children = getattr(node, "children", [])
        if node.type in ("if_stmt", "while_stmt", "ternary", "test", "comp_if", "namedexpr_test"):
            for keyword, condition in pairwise(children):
                if getattr(keyword, "value", "") in ("if", "elif", "while") and keyword.type == "keyword":
                    for value in ("True", "False"):
                        if condition.get_code(include_prefix=False) != value:
                            yield condition, value


class DropOperand(_Replace):
    """Leaves out each operand of `and` and `or`."""

    def variants(self, node: Any) -> Iterator[tuple[Any, str]]:
        if node.type in ("and_test", "or_test"):
            operands = node.children[::2]
            for operand in operands:
                rest = [other.get_code(include_prefix=False) for other in operands if other is not operand]
                yield node, f"({f' {node.children[1].value} '.join(rest)})"


class DropKeyword(_Replace):
    """Leaves out each keyword argument of a call."""

    def variants(self, node: Any) -> Iterator[tuple[Any, str]]:
        if node.type in ("arglist", "trailer"):
            for child in node.children:
                if child.type == "argument" and getattr(child.children[1], "value", "") == "=":
                    yield child, "*()"


class DropStatement(_Replace):
    """Leaves out a statement that does something, or returns None in place of what it returns."""

    def variants(self, node: Any) -> Iterator[tuple[Any, str]]:
        if node.type != "simple_stmt":
            return
        statement = node.children[0]
        kind = statement.type
        if kind == "return_stmt" and statement.get_code(include_prefix=False) != "return None":
            yield statement, "return None"
        elif kind in ("atom_expr", "del_stmt", "raise_stmt") or statement.get_code(include_prefix=False) in (
            "raise",
            "return",
        ):
            yield statement, "pass"
        elif kind == "expr_stmt" and statement.children[1].type != "annassign":
            augmented = statement.children[1].get_code().strip() != "="
            if augmented or statement.children[0].type == "atom_expr":
                yield statement, "pass"


class DropWith(_Replace):
    """Runs the body of a `with` without its context manager. Not of a lock: only a race would tell."""

    def variants(self, node: Any) -> Iterator[tuple[Any, str]]:
        if node.type == "with_stmt":
            items = node.children[1:-2]
            if not any(" as " in item.get_code() or "lock" in item.get_code() for item in items):
                yield node, "if True:" + node.children[-1].get_code()


OWN: dict[str, Operator] = {
    kind.__name__: kind() for kind in (ReplaceCondition, DropOperand, DropKeyword, DropStatement, DropWith)
}


@dataclass(frozen=True)
class Mutant:
    """One change of one file. Known by the text of the line and not by its number, which moves."""

    file: str
    line: int
    before: str
    after: str
    nth: int  # of those that look the same
    code: str

    @property
    def change(self) -> str:
        return f"`{self.before}` -> `{self.after}`"

    @property
    def key(self) -> str:
        nth = f" ({self.nth})" if self.nth > 1 else ""
        return f"{self.file}: {self.change}{nth}"


def mutants(path: Path) -> Iterator[Mutant]:
    """Yield the mutants of a file that say something, in the order of its lines."""
    source = path.read_text()
    tree = ast.parse(source)
    silent = list(_spans_that_say_nothing(tree))
    conditions = [_span(node.test) for node in ast.walk(tree) if isinstance(node, (ast.If, ast.While, ast.IfExp))]
    parsed = get_ast(source)
    nodes = list(ast_nodes(parsed))
    pickled = pickle.dumps(parsed)  # a tenth of the time of parsing it for each mutant
    found: list[tuple[Span, str]] = []
    for name in [*CORE, *OWN]:
        operator: Operator = OWN[name] if name in OWN else cosmic_ray.plugins.get_operator(f"core/{name}")()
        skipped = silent + (conditions if name.endswith(NEGATING) else [])
        spans = [span for node in nodes for span in operator.mutation_positions(node)]
        for occurrence, span in enumerate(spans):
            if not any(start <= span[0] and span[1] <= end for start, end in skipped):
                # It knows how to replace exceptions by their names, but not by such as have a dot.
                with suppress(AttributeError):
                    code = MutationVisitor(occurrence, operator).walk(pickle.loads(pickled)).get_code()
                    if _compiles(code):
                        found.append((span, code))
    numbers: dict[tuple[str, str], Iterator[int]] = {}
    seen: set[str] = set()
    for span, code in sorted(found, key=lambda pair: pair[0]):
        if code not in seen:
            seen.add(code)
            before, after = _changed(source, code)
            nth = next(numbers.setdefault((before, after), count(1)))
            yield Mutant(path.name, span[0][0], before, after, nth, code)


def _compiles(code: str) -> bool:
    try:
        compile(code, "mutant", "exec")
    except (SyntaxError, ValueError):
        return False
    return True


def _changed(source: str, code: str) -> tuple[str, str]:
    """Return the lines that differ, as one line each."""
    old, new = source.splitlines(), code.splitlines()
    start = next(i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b)
    while old and new and old[-1] == new[-1] and min(len(old), len(new)) > start + 1:
        old.pop()
        new.pop()
    return _joined(old[start:]), _joined(new[start:])


def _joined(lines: list[str]) -> str:
    code = [re.sub(r"  # .*|^ *# .*", "", line).strip() for line in lines]
    return re.sub(" +", " ", " ".join(filter(None, code)))


def _spans_that_say_nothing(tree: ast.Module) -> Iterator[Span]:
    """Yield where types are spoken of, what is never run, and what tests alone run."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield from map(_span, node.decorator_list)
            names = {ast.unparse(each) for each in node.decorator_list}
            if "overload" in names or "For tests" in (ast.get_docstring(node) or ""):
                yield _span(node)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            if node.returns is not None:
                yield _span(node.returns)
            arguments = node.args
            for argument in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]:
                if argument.annotation is not None:
                    yield _span(argument.annotation)
        elif isinstance(node, ast.ClassDef):
            if any("Protocol" in ast.unparse(base) for base in node.bases):
                yield _span(node)
        elif isinstance(node, ast.AnnAssign):
            yield _span(node.annotation)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield _span(node.test)
            if ast.unparse(node.test) == "TYPE_CHECKING":
                yield from map(_span, node.body)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("complain", "TypeVar", "cast"):
            yield from map(_span, node.args)
            yield from map(_span, node.keywords)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript):
            yield _span(node)  # an alias of a type


def _span(node: Any) -> Span:
    return (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)
