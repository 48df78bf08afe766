"""What is there of the components that these tests are about."""

import importlib
import os
from typing import Any, NoReturn

import pytest


def absent(component: str) -> NoReturn:
    """Skip the test, as a component is not there; where all must be there (`ENGINES=required`), fail it."""
    if os.environ.get("ENGINES") == "required":
        pytest.fail(f"{component} is not installed, and ENGINES=required")
    pytest.skip(f"{component} is not installed")


def component(module: str) -> Any:
    """Import a module and return it, or skip the test where it is not installed; see `absent`."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # it is there, and lacks something itself
        absent(module)
