"""The code that the pages in docs/ show, as modules that processes elsewhere can import."""

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parent.parent.parent / "docs"


def code(page: str, heading: str) -> str:
    """Return the Python blocks under a heading of a page (of any level), joined; a heading must have one."""
    sections = re.split(r"(?m)^#+ ", (DOCS / page).read_text())
    (section,) = [section for section in sections if section.split("\n", 1)[0].strip() == heading]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert blocks, f"{page} shows no Python under {heading!r}"
    return "\n".join(blocks)


def module(page: str, heading: str, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Write the code under a heading to a module in the folder and import it; child processes find it too.

    Until the test ends: then monkeypatch takes it out again.
    """
    (folder / f"{name}.py").write_text(code(page, heading))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=":")
    monkeypatch.delitem(sys.modules, name, raising=False)
    found = importlib.import_module(name)
    monkeypatch.setitem(sys.modules, name, found)
    return found
