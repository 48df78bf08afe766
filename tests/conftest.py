"""What holds for all tests."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "caplog" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.thread_unsafe(reason="hears what others log"))
