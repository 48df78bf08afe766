"""Every Python block of the README and of some pages of docs/ runs, in order, and prints what follows it."""

import asyncio
import contextlib
import io
import re
import threading
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.thread_unsafe(reason="prints")

ROOT = Path(__file__).parents[2]


def blocks_of(page: str) -> list[tuple[str, str]]:
    return re.findall(r"```(\w+)\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


_printing = threading.Lock()


def print_whole_lines(*values: object) -> None:
    """Print, while no other thread does: without a GIL two lines can be mixed."""
    with _printing:
        print(*values)


PAGES = [
    ("README.md", 4),
    ("docs/guide.md", 18),
    ("docs/inside.md", 2),
    ("docs/notebooks.md", 1),
    ("docs/retries.md", 13),
    ("docs/testing.md", 1),
    ("docs/tuning.md", 0),
]


@pytest.mark.parametrize(("page", "outputs"), PAGES)
def test_page_runs_and_prints_the_output_it_shows(page: str, outputs: int) -> None:
    namespace: dict[str, object] = {"__name__": "page", "print": print_whole_lines}
    compared = 0
    blocks = blocks_of(page)
    for (language, code), (following, expected) in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        if language != "python":
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, page, "exec"), namespace)
        assert printed.getvalue() == (expected if following == "text" else ""), code
        compared += following == "text"
    assert compared >= outputs


def test_tests_that_the_page_on_testing_shows_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    namespace: dict[str, Any] = {"__name__": "page"}
    for language, code in blocks_of("docs/testing.md"):
        if language == "python":
            exec(compile(code, "docs/testing.md", "exec"), namespace)
    with monkeypatch.context() as patches:
        namespace["test_batches"](patches)
    with monkeypatch.context() as patches:
        asyncio.run(namespace["test_greeting"](patches))


def test_readme_first_example_is_short() -> None:
    language, code = blocks_of("README.md")[0]
    assert language == "python"
    assert len(code.splitlines()) <= 15
