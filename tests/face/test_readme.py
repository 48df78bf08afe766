"""Every Python block of the README runs, in order, and prints what stands below it."""

import contextlib
import io
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.thread_unsafe(reason="prints")

README = Path(__file__).parents[2] / "README.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README.read_text(), re.DOTALL)


def test_readme_runs_and_prints_the_output_it_shows() -> None:
    namespace: dict[str, object] = {"__name__": "readme"}
    compared = 0
    for (language, code), (following, expected) in zip(BLOCKS, [*BLOCKS[1:], ("", "")], strict=True):
        if language != "python":
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, str(README), "exec"), namespace)
        assert printed.getvalue() == (expected if following == "text" else ""), code
        compared += following == "text"
    assert compared >= 6


def test_readme_first_example_is_short() -> None:
    language, code = BLOCKS[0]
    assert language == "python"
    assert len(code.splitlines()) <= 15
