"""How the code is cut: a file imports only from the rows below its own, and tests see inner parts through one door."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import batchify

pytestmark = pytest.mark.thread_unsafe(reason="ast.parse() of CPython 3.11 is not thread-safe")

PACKAGE = Path(batchify.__file__).parent
TESTS = Path(__file__).parent
ROWS = [
    "tune",  # imported by users only
    "testing",  # so is this
    "prometheus",  # and this
    "otel",  # and this
    "__init__",
    "_processor",
    "_decorator",
    "_typing",
    "_signature",
    "_threads",
    "_asyncio",
    "_engine",
    "_batch",
    "_inside",
    "_buffer",
    "_options",
    "_stats",
    "_errors",
]
ONLY = {
    "wrapt": {"_decorator"},
    "inspect": {"_decorator", "_signature", "_options"},
    "asyncio": {"_asyncio", "_decorator", "testing", "tune"},
    "monotonic": {"_asyncio", "_threads"},
    "Thread": {"_threads"},
    "allocate_lock": {"_threads", "_engine"},
    "RLock": {"_stats", "testing"},
    "prometheus_client": {"prometheus"},
    "opentelemetry": {"otel"},
}


@cache
def imports(path: Path, *, for_types: bool = True) -> set[str]:
    """What a file imports: names of modules, those of this package without it, and of what it takes from them."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not for_types:
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


def test_every_file_is_in_the_table() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == set(ROWS)


def test_imports_go_one_way() -> None:
    for position, row in enumerate(ROWS):
        above = set(ROWS[: position + 1])
        assert not imports(PACKAGE / f"{row}.py", for_types=False) & above, row
        # The decorator and what it makes know each other's types.
        assert imports(PACKAGE / f"{row}.py") & above == ({"_decorator"} if row == "_typing" else set()), row
    assert not imports(PACKAGE / "_buffer.py") & {"_batch", "_errors"}
    assert not imports(PACKAGE / "_batch.py") & {"_buffer"}


def test_each_kind_of_knowledge_has_one_file() -> None:
    for module, files in ONLY.items():
        assert {row for row in ROWS if module in imports(PACKAGE / f"{row}.py")} == files, module


def test_import_starts_no_thread_and_brings_no_asyncio_of_its_own() -> None:
    # wrapt itself imports asyncio (2.x), so what counts is what is new after it.
    script = """if True:
        import sys, threading, wrapt
        before = set(sys.modules)
        import batchify
        print(sorted(name for name in set(sys.modules) - before if "asyncio" in name), threading.active_count())
    """
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "[] 1\n"


def private_names() -> set[str]:
    """Return the names in the package that begin with an underscore: files, functions, classes, fields, globals."""
    names = {path.stem for path in PACKAGE.glob("*.py")}
    for path in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                names.add(node.name)
            elif isinstance(node, ast.Attribute):
                names.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
    return {name for name in names if name.startswith("_") and not name.startswith("__") and name != "_"}


def touches(tree: ast.AST, private: set[str]) -> Iterator[tuple[int, str]]:
    """Yield where a file reaches for a private name: as an attribute of anything but itself, an import, or a string."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in private:
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                yield node.lineno, node.attr
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "batchify":
            for name in [*(node.module or "").split("."), *(alias.name for alias in node.names)]:
                if name.startswith("_"):
                    yield node.lineno, name
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and not private.isdisjoint(node.value.split("."))
        ):
            yield node.lineno, node.value


def test_private_names_stand_in_one_place_of_the_tests() -> None:
    allowed = {TESTS / "inside.py", Path(__file__)}
    private = private_names()
    found = [
        f"{path.relative_to(TESTS)}:{line}: {name}"
        for path in sorted(TESTS.rglob("*.py"))
        if path not in allowed
        for line, name in touches(ast.parse(path.read_text()), private)
    ]
    assert found == []


def test_private_name_is_noticed_however_it_is_reached() -> None:
    source = """
from batchify._buffer import Buffer
from batchify import _threads
f._self_engine.close()
monkeypatch.setattr(f, "_starting", print)
patch("batchify._threads.monotonic")
self._self_engine = 1
"""
    lines = {line for line, _ in touches(ast.parse(source), private_names())}
    assert lines == {2, 3, 4, 5, 6}
