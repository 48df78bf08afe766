"""A PostgreSQL server of the tests' own, in a temporary folder and on a free port of 127.0.0.1."""

import os
import pwd
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .components import absent


class Server:
    """A server that runs.

    Attributes:
        where: The environment variables that lead clients to it.
        log: The file into which it writes every statement that it is sent.
    """

    def __init__(self, where: dict[str, str], log: Path) -> None:
        self.where = where
        self.log = log

    def queries(self) -> list[list[int]]:
        """Return for which ids it was asked, by each query for people so far."""
        asked = r"FROM people WHERE id = ANY\(\$1\)\n.* DETAIL: +[Pp]arameters: \$1 = '{([\d,]*)}'"
        return [[int(number) for number in ids.split(",")] for ids in re.findall(asked, self.log.read_text())]


@contextmanager
def server() -> Iterator[Server]:
    """Start a server, and stop it at the end; skip where there is none to start."""
    programs = _programs()
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))  # not pytest's, into which only its own user may look
    log, port = folder / "log", free_port()
    # Whatever may lead clients elsewhere, or speak another language, stays out.
    run_as: dict[str, Any] = {"cwd": folder, "env": {"PATH": os.environ["PATH"], "LC_ALL": "C"}}
    if os.geteuid() == 0:  # they refuse to run as root
        user = _first_user("postgres", "nobody")
        os.chown(folder, user.pw_uid, user.pw_gid)
        run_as |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}

    def run(program: str, *arguments: str) -> None:
        # Into a file: the server, which goes on, would keep a pipe open.
        with tempfile.TemporaryFile("w+") as said:
            done = subprocess.run([programs / program, *arguments], stdout=said, stderr=said, check=False, **run_as)
            said.seek(0)
            assert done.returncode == 0, said.read()

    try:
        run("initdb", "--pgdata=data", "--username=tester", "--auth=trust", "--encoding=UTF8", "--no-sync")
        with (folder / "data" / "postgresql.conf").open("a") as settings:
            settings.write(f"listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = ''\n")
            settings.write("fsync = off\nlog_statement = 'all'\nlog_parameter_max_length = -1\n")
        run("pg_ctl", "start", "--wait", "--pgdata=data", f"--log={log}")
        try:
            where = {"PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": "tester", "PGDATABASE": "postgres"}
            yield Server(where, log)
        finally:
            run("pg_ctl", "stop", "--wait", "--pgdata=data", "--mode=immediate")
    finally:
        shutil.rmtree(folder)


def _programs() -> Path:
    """Return the folder of initdb and pg_ctl."""
    places = [Path(initdb).parent] if (initdb := shutil.which("initdb")) else []
    if config := shutil.which("pg_config"):
        said = subprocess.run([config, "--bindir"], capture_output=True, text=True, check=True)
        places.append(Path(said.stdout.strip()))
    debian = Path("/usr/lib/postgresql").glob("*/bin")
    places += sorted(debian, key=lambda place: float(place.parent.name), reverse=True)
    found = [place for place in places if (place / "initdb").exists() and (place / "pg_ctl").exists()]
    return found[0] if found else absent("PostgreSQL (initdb, pg_ctl)")


def _first_user(*names: str) -> pwd.struct_passwd:
    found = [user for user in pwd.getpwall() if user.pw_name in names]
    return min(found, key=lambda user: names.index(user.pw_name)) if found else absent("a user to run PostgreSQL as")


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens at, for now."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port
