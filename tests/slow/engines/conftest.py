"""What the tests of engines share."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .local_ray import local_ray
from .pages import on_path


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the recipes are written: on the path of this process, and of those that it starts."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        found = tmp_path_factory.mktemp("recipes")
        on_path(found, monkeypatch)
        yield found


@pytest.fixture(scope="session")
def ray(folder: Path) -> Iterator[Any]:
    """Ray, started once for all, as it takes seconds."""
    with local_ray() as found:
        yield found
