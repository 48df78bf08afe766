"""Mutation testing: change one thing in `batchify/` at a time, and see whether a test notices.

    pip install -e '.[mutation]'
    python tests/mutation/run.py                       # all files: an hour or two on two cores
    python tests/mutation/run.py _buffer.py --workers 4
    python tests/mutation/run.py --new                 # those not tried yet, and again those that no test noticed
    python tests/mutation/run.py --score               # only the figures of what has been run

Each mutant is put into a copy of the project and tested there, first by the tests named in `FIRST`, then by the others.
What came of it goes to `results.jsonl`; mutants that change nothing a caller can notice stand in `equivalent.md`. POSIX
only: each run is a fork of this process, which has imported the tools already, so that a mutant costs half as much.
"""

import argparse
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import _hypothesis_pytestplugin  # noqa: F401 - these imports are for the forks
import cloudpickle  # noqa: F401
import hypothesis.stateful
import pytest
import uvloop  # noqa: F401
import wrapt  # noqa: F401
from operators import Mutant, mutants

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results.jsonl"
EQUIVALENT = HERE / "equivalent.md"

# The tests most likely to notice, for each file; the others come after them.
FIRST = {
    "_options.py": ["options", "messages"],
    "_buffer.py": ["buffer", "messages", "options"],
    "_batch.py": ["answers", "options", "coroutines", "asyncio", "threads"],
    "_errors.py": ["answers", "messages"],
    "_stats.py": ["stats", "options"],
    "_processor.py": ["processor"],
    "_signature.py": ["messages", "binding", "structure"],
    "_threads.py": ["answers", "asyncio", "threads"],
    "_asyncio.py": ["asyncio", "coroutines"],
    "_decorator.py": ["messages", "binding", "pickle", "asyncio", "coroutines"],
}
OTHERS = [
    "stats",
    "answers",
    "buffer",
    "messages",
    "processor",
    "binding",
    "pickle",
    "asyncio",
    "structure",
    "coroutines",
    "options",
]
OTHERS += ["threads"]
LAST = ["any_line"]  # where one test takes as long as others are given
OPTIONS = ["-q", "-x", "--tb=line", "-rf", "-p", "no:cacheprovider", "-p", "no:run_parallel"]
OPTIONS += ["-o", "timeout_method=thread", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
SECONDS, LAST_SECONDS = 10, 60  # for one test
ALL_SECONDS = 180  # for a run that does not end by itself
BYTES = 8 << 30


@dataclass
class Run:
    """A mutant that is being tested."""

    mutant: Mutant
    copy: Path
    stages: list[list[str]]
    started: float = 0.0


def test_all(todo: Iterable[Mutant], workers: int, *, quick: bool) -> Iterator[tuple[Mutant, str]]:
    """Yield each mutant with the test that noticed it, or with "" if none did."""
    os.nice(5)
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # what is cached is told apart by the second of its change only
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]  # no time for a smaller example
    hypothesis.settings.register_profile("mutation", phases=phases, derandomize=True, database=None)
    hypothesis.settings.load_profile("mutation")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    todo = iter(todo)
    running: dict[int, Run] = {}
    with tempfile.TemporaryDirectory(prefix="mutation-") as directory:
        original = copy_project(Path(directory) / "original")
        free = [Path(shutil.copytree(original, Path(directory) / str(number))) for number in range(workers)]
        try:
            while True:
                while free and (mutant := next(todo, None)) is not None:
                    first = FIRST[mutant.file]
                    stages = [first] if quick else [first, [name for name in OTHERS if name not in first], LAST]
                    run = Run(mutant, free.pop(), stages)
                    (run.copy / "batchify" / mutant.file).write_text(mutant.code)
                    running[start(run)] = run
                if not running:
                    return
                pid, code = wait_for_one(running)
                run = running.pop(pid)
                if code == 0 and run.stages:
                    running[start(run)] = run
                    continue
                file = Path("batchify", run.mutant.file)
                shutil.copyfile(original / file, run.copy / file)
                free.append(run.copy)
                yield run.mutant, "" if code == 0 else what_failed(run.copy) or f"exit status {code}"
        finally:
            for pid in running:
                os.killpg(pid, signal.SIGKILL)


def wait_for_one(running: dict[int, Run]) -> tuple[int, int]:
    """Return the process that ended first, and its exit status; one that hangs is ended."""
    while True:
        for pid, run in running.items():
            hangs = time.monotonic() > run.started + ALL_SECONDS
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended or hangs:
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)  # with all that it started
                if not ended:
                    _, status = os.waitpid(pid, 0)
                code = os.waitstatus_to_exitcode(status)
                assert code != 99, "another batchify was imported"
                return pid, code
        time.sleep(0.01)


def copy_project(copy: Path) -> Path:
    """Copy the project, with the tests compiled. They must pass, which is not checked here."""
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", "__pycache__", ".hypothesis", ".venv*"))
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": ""}
    command = [
        sys.executable,
        "-m",
        "pytest",
        *OPTIONS,
        "--collect-only",
        *(f"tests/test_{name}.py" for name in OTHERS + LAST),
    ]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"the tests cannot be collected:\n{done.stdout}{done.stderr}")
    shutil.rmtree(copy / "batchify" / "__pycache__")
    return copy


def start(run: Run) -> int:
    """Begin the next stage of a run in a process of its own."""
    stage = run.stages.pop(0)
    run.started = time.monotonic()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
        os.chdir(run.copy)
        os.environ["PYTHONPATH"] = str(run.copy)
        sys.path.insert(0, str(run.copy))
        output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        try:
            import batchify
        except BaseException as error:
            print(f"FAILED import: {error!r}", flush=True)
            os._exit(1)
        if not str(batchify.__file__).startswith(str(run.copy)):
            os._exit(99)
        timeout = f"timeout={LAST_SECONDS if stage == LAST else SECONDS}"
        code = pytest.main([*OPTIONS, "-o", timeout, *(f"tests/test_{name}.py" for name in stage)])
        sys.stdout.flush()
        os._exit(code)
    finally:
        os._exit(98)


def what_failed(copy: Path) -> str:
    """Return the test that failed, for the record."""
    output = (copy / "output.txt").read_text(errors="replace")
    found = re.search(r"^(?:FAILED|ERROR) (?:tests/)?(\S+)", output, re.MULTILINE)
    if found:
        return found[1]
    return "timeout" if "Timeout" in output else ""


def equivalents() -> dict[str, str]:
    """Return the mutants of `equivalent.md`, with the reasons."""
    entry = re.compile(r"^- (\w+\.py: `.*` -> `.*`(?: \(\d+\))?): (.+)$", re.MULTILINE)
    return dict(entry.findall(EQUIVALENT.read_text())) if EQUIVALENT.exists() else {}


def print_score(results: dict[str, str], current: dict[str, Mutant]) -> None:
    """Print killed / (all - equivalent) by file, and the mutants that are neither."""
    reasons = equivalents()
    rows: dict[str, list[int]] = {}
    for key, mutant in current.items():
        row = rows.setdefault(mutant.file, [0, 0, 0, 0])
        row[0] += 1
        if key in results:
            row[1] += 1
            if results[key]:
                row[2] += 1
            elif key in reasons:
                row[3] += 1
            else:
                print(f"survived: {mutant.line}: {key}")
    for key in sorted(key for key in reasons if key.partition(":")[0] in rows):
        if key not in current:
            print(f"not there (any more): {key}")
        elif results.get(key):
            print(f"not equivalent: {key}: {results[key]}")
    rows["all"] = [sum(column) for column in zip(*rows.values(), strict=True)]
    print(f"{'':15}{'mutants':>9}{'tried':>9}{'killed':>9}{'equivalent':>12}{'score':>9}")
    for file, (mutants_, tried, killed, equivalent) in rows.items():
        score = f"{killed / (tried - equivalent):.1%}" if tried > equivalent else "-"
        print(f"{file:15}{mutants_:9}{tried:9}{killed:9}{equivalent:12}{score:>9}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", default=list(FIRST))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--sample", type=int, help="so many mutants of each file, chosen by a fixed seed")
    parser.add_argument("--shuffle", action="store_true", help="in an order by a fixed seed: a fair sample at any time")
    parser.add_argument("--quick", action="store_true", help="only with the tests named in FIRST")
    parser.add_argument("--new", action="store_true", help="only those not tried yet, and those that survived")
    parser.add_argument("--match", default="", help="only those whose text has this regular expression")
    parser.add_argument("--score", action="store_true", help="run nothing")
    options = parser.parse_args()

    results: dict[str, str] = {}
    if RESULTS.exists():
        for line in RESULTS.read_text().splitlines():
            results.update(json.loads(line))
    reasons = equivalents()
    current: dict[str, Mutant] = {}
    todo: list[Mutant] = []
    for file in options.files:
        found = list(mutants(ROOT / "batchify" / file))
        current |= {mutant.key: mutant for mutant in found}
        if options.sample and options.sample < len(found):
            found = random.Random(file).sample(found, options.sample)
        todo += [
            mutant
            for mutant in found
            if re.search(options.match, mutant.key)
            and (not options.new or not (results.get(mutant.key) or mutant.key in reasons))
        ]
    if options.shuffle:
        random.Random(0).shuffle(todo)
    if not options.score:
        for number, (mutant, test) in enumerate(test_all(todo, options.workers, quick=options.quick), 1):
            results[mutant.key] = test
            with RESULTS.open("a") as file:
                file.write(json.dumps({mutant.key: test}) + "\n")
            print(f"{number}/{len(todo)} line {mutant.line}, {mutant.key}: {test or 'SURVIVED'}", flush=True)
    print_score(results, current)


if __name__ == "__main__":
    main()
