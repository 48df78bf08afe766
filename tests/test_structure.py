"""A file imports only from the rows below its own."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import batchify

pytestmark = pytest.mark.thread_unsafe(reason="ast.parse() of CPython 3.11 is not thread-safe")

PACKAGE = Path(batchify.__file__).parent
ROWS = [
    "prometheus",  # imported by users only
    "otel",  # so is this
    "__init__",
    "_processor",
    "_decorator",
    "_signature",
    "_threads",
    "_asyncio",
    "_buffer",
    "_batch",
    "_options",
    "_stats",
    "_errors",
]
ONLY = {"wrapt": {"_decorator"}, "inspect": {"_decorator", "_signature", "_options"}, "_thread": {"_threads"}}
ONLY |= {
    "time": {"_threads", "otel"},
    "asyncio": {"_asyncio", "_decorator"},
    "threading": {"_threads", "_asyncio", "prometheus"},
}
ONLY |= {"prometheus_client": {"prometheus"}, "opentelemetry": {"otel"}}


@cache
def imports(path: Path) -> set[str]:
    """Names of the modules a file imports, those of this package without it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


def test_every_file_is_in_the_table() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == set(ROWS)


def test_imports_go_one_way() -> None:
    for position, row in enumerate(ROWS):
        above = set(ROWS[: position + 1])
        assert not imports(PACKAGE / f"{row}.py") & above, row
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
