"""How much is explored, and the table of that at the end of the run."""

import os

import pytest

pytest.register_assert_rewrite(f"{__package__}.scenarios", f"{__package__}.controlled")

FACTOR = float(os.environ.get("SCHEDULES", "1"))
Table = list[tuple[str, str, int, str]]
_TABLE = pytest.StashKey[Table]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_TABLE] = []


@pytest.fixture(scope="session")
def table(request: pytest.FixtureRequest) -> Table:
    """Rows: what was explored, how, under how many schedules, what was found."""
    return request.config.stash[_TABLE]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash[_TABLE]
    if rows:
        terminalreporter.section("schedules explored")
        for what, how, schedules, found in rows:
            terminalreporter.write_line(f"{schedules:>7}  {what:<52} {how:<34} {found}")
        terminalreporter.write_line(f"{sum(row[2] for row in rows):>7}  in all")
