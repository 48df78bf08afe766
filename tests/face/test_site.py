"""The pages of the site: the reference has all that is public, and the first page shows the README's first example."""

import re
from pathlib import Path

import pytest

import batchify
from batchify import BatchedCoroutineFunction, BatchedFunction, BatchProcessor

ROOT = Path(__file__).parents[2]
# Options that can only be read, which the reference names in a sentence. A coroutine function only refuses these calls.
FIXED = {"weight", "max_weight", "group_by", "dedupe", "isolate", "concurrency", "max_pending", "on_batch"}
REFUSED = {"close", "drain"}


def section_of(name: str) -> str:
    """Return what the reference has from the entry of a class to the next heading."""
    found = re.search(
        rf"^\.\. auto(?:class|function|exception):: {name}$(.*?)(?=^#|\Z)", page(), re.MULTILINE | re.DOTALL
    )
    assert found, name
    return found[1]


def page() -> str:
    return (ROOT / "docs/api.md").read_text()


def test_reference_has_every_public_name() -> None:
    for name in batchify.__all__:
        section_of(name)


@pytest.mark.parametrize(
    ("kind", "elsewhere"),
    [(BatchedFunction, FIXED), (BatchedCoroutineFunction, FIXED | REFUSED), (BatchProcessor, set())],
)
def test_reference_has_every_public_attribute(kind: type, elsewhere: set[str]) -> None:
    public = {name for name in dir(kind) if not name.startswith("_")}
    listed = set(re.findall(r"auto(?:method|property):: (\w+)", section_of(kind.__name__)))
    assert listed - {"__call__"} == public - elsewhere


def test_first_page_shows_the_first_example_of_the_readme() -> None:
    readme, index = (
        re.findall(r"```.*?```", (ROOT / name).read_text(), re.DOTALL) for name in ("README.md", "docs/index.md")
    )
    assert index[:2] == readme[:2]
