"""What docs/databases.md shows: many callers, one query, and what becomes of them when the connection drops."""

import asyncio
import re
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from batchify import MissingResultError

from ...tools import in_threads, until
from .components import component
from .pages import code, module, on_path
from .postgres import Server, free_port, server

PEOPLE = {number: f"person {number}" for number in range(1, 101)}
MISSING = 1_000
# Each of 15 people twice, two others, and somebody who is not there.
ASKED = [*range(1, 16), MISSING, *range(15, 0, -1), 50]
EXPECTED = [PEOPLE.get(number) for number in ASKED]


def _only_one_is_missing(outcomes: list[Any]) -> None:
    assert [None if isinstance(outcome, Exception) else outcome for outcome in outcomes] == EXPECTED
    assert type(outcomes[ASKED.index(MISSING)]) is MissingResultError


def _all_at_once(f: Any) -> list[Any]:
    """Ask from a thread each, and cut the batch when all wait: equal ones that come later would be another batch."""
    f.batch_size, f.timeout = len(ASKED), None

    def flush() -> None:
        until(lambda: f.stats.pending == len(ASKED))
        f.flush()

    flusher = threading.Thread(target=flush)
    flusher.start()
    outcomes = in_threads(f, ASKED)
    flusher.join()
    return outcomes


def test_sqlite_callers_share_one_query(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with closing(sqlite3.connect("people.db")) as database:
        database.execute("CREATE TABLE people (id INTEGER PRIMARY KEY, name TEXT)")
        database.executemany("INSERT INTO people VALUES (?, ?)", PEOPLE.items())
        database.commit()
    recipe = module("databases.md", "SQLite", "people_in_sqlite", tmp_path, monkeypatch)
    queries: list[str] = []
    connect = sqlite3.connect

    def connect_traced(path: str) -> sqlite3.Connection:
        database = connect(path)
        database.set_trace_callback(queries.append)
        return database

    monkeypatch.setattr(sqlite3, "connect", connect_traced)
    with recipe.name_of as name_of:
        _only_one_is_missing(_all_at_once(name_of))
    (query,) = queries
    assert sorted(map(int, re.findall(r"\d+", query))) == sorted(set(ASKED))  # each but once


@pytest.fixture(scope="module")
def postgres() -> Iterator[Server]:
    """A server with people in it."""
    psycopg = component("psycopg")
    component("psycopg_pool")
    with server() as found:
        where = {name[2:].lower().replace("database", "dbname"): value for name, value in found.where.items()}
        with psycopg.connect(**where) as connection:
            connection.execute("CREATE TABLE people (id INTEGER PRIMARY KEY, name TEXT)")
            connection.cursor().executemany("INSERT INTO people VALUES (%s, %s)", PEOPLE.items())
        yield found


@pytest.fixture
def reached(postgres: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server, to which clients find by themselves."""
    for name, value in postgres.where.items():
        monkeypatch.setenv(name, value)
    return postgres


@pytest.fixture
def in_threads_of(reached: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The recipe for threads."""
    recipe = module("databases.md", "PostgreSQL, from threads", "people_of_threads", tmp_path, monkeypatch)
    with recipe.pool:
        yield recipe


@pytest.fixture
def on_a_loop(reached: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The recipe for an event loop."""
    return module("databases.md", "PostgreSQL, from an event loop", "people_of_a_loop", tmp_path, monkeypatch)


def test_postgres_callers_in_threads_share_one_query(reached: Server, in_threads_of: ModuleType) -> None:
    before = len(reached.queries())
    with in_threads_of.name_of as name_of:
        _only_one_is_missing(_all_at_once(name_of))
    (ids,) = reached.queries()[before:]
    assert sorted(ids) == sorted(set(ASKED))


def test_postgres_callers_on_a_loop_share_one_query(reached: Server, on_a_loop: ModuleType) -> None:
    before = len(reached.queries())

    async def ask() -> list[Any]:
        async with on_a_loop.pool, on_a_loop.name_of as name_of:
            return await asyncio.gather(*map(name_of, ASKED), return_exceptions=True)

    _only_one_is_missing(asyncio.run(ask()))
    (ids,) = reached.queries()[before:]
    assert sorted(ids) == sorted(set(ASKED))


def _drop(pid: int) -> None:
    """Drop the connection of a backend, and see it go."""
    with component("psycopg").connect(autocommit=True) as admin:
        admin.execute("SELECT pg_terminate_backend(%s)", [pid])
        until(lambda: not admin.execute("SELECT FROM pg_stat_activity WHERE pid = %s", [pid]).fetchall())


class Blocker:
    """Holds the table, so that queries wait in the server, and sees them wait."""

    def __init__(self, psycopg: Any) -> None:
        self.holding = psycopg.connect()
        self.looking = psycopg.connect(autocommit=True)
        self.holding.execute("LOCK TABLE people IN ACCESS EXCLUSIVE MODE")

    def waiting(self) -> list[int]:
        """Return which backends wait for the table."""
        rows = self.looking.execute(
            "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'SELECT id, name%'"
        )
        return [pid for (pid,) in rows]

    def let_go(self) -> None:
        """Let the queries on."""
        self.holding.rollback()


@pytest.fixture
def blocker(reached: Server) -> Iterator[Blocker]:
    """The table is held."""
    found = Blocker(component("psycopg"))
    try:
        yield found
    finally:
        found.holding.close()
        found.looking.close()


def _is_dropped(error: BaseException | None) -> bool:
    return isinstance(error, component("psycopg").OperationalError)


def test_connection_that_drops_in_a_batch_fails_it_on_threads(in_threads_of: ModuleType, blocker: Blocker) -> None:
    with in_threads_of.name_of as name_of:
        name_of.batch_size, name_of.timeout = 4, None
        dropped = [name_of.submit(number) for number in (1, 2, 3, 4)]
        until(lambda: len(blocker.waiting()) == 1)
        later = [name_of.submit(number) for number in (5, 6, 7, 8)]  # waits already
        _drop(blocker.waiting()[0])
        assert all(_is_dropped(future.exception()) for future in dropped)
        assert not any(future.done() for future in later)
        blocker.let_go()
        assert [future.result() for future in later] == [PEOPLE[number] for number in (5, 6, 7, 8)]


def test_connection_that_drops_in_a_batch_fails_it_on_a_loop(on_a_loop: ModuleType, blocker: Blocker) -> None:
    async def ask() -> None:
        async with on_a_loop.pool, on_a_loop.name_of as name_of:
            name_of.batch_size, name_of.timeout = 4, None
            dropped = [name_of.submit(number) for number in (1, 2, 3, 4)]
            while len(await asyncio.to_thread(blocker.waiting)) < 1:
                pass
            later = [name_of.submit(number) for number in (5, 6, 7, 8)]  # waits already
            _drop(blocker.waiting()[0])
            assert all(map(_is_dropped, await asyncio.gather(*dropped, return_exceptions=True)))
            assert not any(future.done() for future in later)
            blocker.let_go()
            assert await asyncio.gather(*later) == [PEOPLE[number] for number in (5, 6, 7, 8)]

    asyncio.run(ask())


def test_connection_that_drops_between_two_batches_is_not_noticed_on_threads(in_threads_of: ModuleType) -> None:
    with in_threads_of.name_of as name_of:
        assert name_of(1) == PEOPLE[1]
        with in_threads_of.pool.connection() as connection:
            pid = connection.info.backend_pid
        _drop(pid)
        assert name_of(2) == PEOPLE[2]


def test_connection_that_drops_between_two_batches_is_not_noticed_on_a_loop(on_a_loop: ModuleType) -> None:
    async def ask() -> None:
        async with on_a_loop.pool, on_a_loop.name_of as name_of:
            assert await name_of(1) == PEOPLE[1]
            async with on_a_loop.pool.connection() as connection:
                pid = connection.info.backend_pid
            await asyncio.to_thread(_drop, pid)
            assert await name_of(2) == PEOPLE[2]

    asyncio.run(ask())


def test_server_that_is_away_is_an_error_and_later_callers_are_answered(
    reached: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPORT", str(free_port()))
    recipe = module("databases.md", "PostgreSQL, from threads", "people_of_nowhere", tmp_path, monkeypatch)
    recipe.pool.timeout = 0.1
    with recipe.pool, recipe.name_of as name_of:
        assert isinstance(name_of.submit(1).exception(), component("psycopg_pool").PoolTimeout)
        monkeypatch.setenv("PGPORT", reached.where["PGPORT"])  # it is back
        recipe.pool.timeout = 100
        assert name_of(1) == PEOPLE[1]


SETTINGS = """
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "people.db"}}
INSTALLED_APPS = ["shop"]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
DEBUG = True  # so that queries are logged
"""
MODELS = """
from django.db import models

class Person(models.Model):
    name = models.CharField(max_length=9)
"""
ASK = """
import logging
from concurrent.futures import ThreadPoolExecutor

import django

django.setup()

from django.core.management import call_command
from django.db import connections
from recipe import person_of
from shop.models import Person

call_command("migrate", run_syncdb=True, verbosity=0)
Person.objects.bulk_create(Person(name=f"person {number}") for number in range(1, 21))
queries = []


class Note(logging.Handler):
    def emit(self, record):
        queries.append(record.sql)


logging.getLogger("django.db.backends").addHandler(Note())
logging.getLogger("django.db.backends").setLevel(logging.DEBUG)
person_of.batch_size, person_of.timeout = 20, None  # so that no clock decides
with ThreadPoolExecutor(20) as callers:
    found = list(callers.map(person_of, range(1, 21)))
person_of.close()
assert [person.name for person in found] == [f"person {number}" for number in range(1, 21)]
assert len([query for query in queries if "FROM" in query]) == 1, queries
"""


def test_django_callers_share_one_query_and_its_test_case_sees_what_it_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    component("django")
    (tmp_path / "shop").mkdir()
    files = {
        "conf.py": SETTINGS,
        "ask.py": ASK,
        "shop/__init__.py": "",
        "shop/models.py": MODELS,
        "recipe.py": code("databases.md", "Django's ORM"),
        "shop/tests.py": code("databases.md", "Django's TestCase"),
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    on_path(tmp_path, monkeypatch)
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "conf")
    for command in (["ask.py"], ["-m", "django", "test", "shop"]):
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert "Ran 1 test" in done.stderr
