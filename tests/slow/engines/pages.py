"""The code that the pages in docs/ show, as modules that processes elsewhere can import."""

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parent.parent.parent.parent / "docs"


def blocks(page: str, heading: str, language: str) -> list[str]:
    """Return the blocks of a language under a heading of a page (of any level), up to the next heading."""
    current = ""
    found: dict[str, list[str]] = {current: []}
    # A line of code may begin with "#" as well; so a block is taken as a whole, and only what is outside is a heading.
    for match in re.finditer(r"(?ms)^```(\w*)\n(.*?)^```$|^#+ (.*?)$", (DOCS / page).read_text()):
        if match[3] is None:
            if match[1] == language:
                found[current].append(match[2])
        else:
            current = match[3].strip()
            assert current not in found, f"{page} has two headings {current!r}"
            found[current] = []
    assert heading in found, f"{page} has no heading {heading!r}"
    return found[heading]


def examples(page: str) -> list[tuple[str, str]]:
    """Return the Python blocks of a page, in order, each with the output that it shows: the text that follows."""
    found = re.findall(r"(?ms)^```(\w+)\n(.*?)^```$", (DOCS / page).read_text())
    pairs = zip(found, [*found[1:], ("", "")], strict=True)
    return [
        (code, text if following == "text" else "")
        for (language, code), (following, text) in pairs
        if language == "python"
    ]


def code(page: str, heading: str) -> str:
    """Return the Python blocks under a heading of a page (of any level), joined; a heading must have one."""
    found = blocks(page, heading, "python")
    assert found, f"{page} shows no Python under {heading!r}"
    return "\n\n".join(found)


def on_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process, and those that it starts, import from the folder, until monkeypatch takes it back."""
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=":")


def module(page: str, heading: str, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Write the code under a heading to a module in the folder and import it; child processes find it too.

    Until the test ends: then monkeypatch takes it out again.
    """
    (folder / f"{name}.py").write_text(code(page, heading))
    on_path(folder, monkeypatch)
    monkeypatch.delitem(sys.modules, name, raising=False)
    found = importlib.import_module(name)
    monkeypatch.setitem(sys.modules, name, found)
    return found
