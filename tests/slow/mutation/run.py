"""Mutation testing: change one thing in `batchify/` at a time, and see whether a test notices.

    pip install -e '.[test]' --group mutation
    python tests/slow/mutation/run.py                  # all files: hours, as what no test notices costs most
    python tests/slow/mutation/run.py _buffer.py --workers 4
    python tests/slow/mutation/run.py --seconds 10     # a first look: only the likeliest tests for each mutant
    python tests/slow/mutation/run.py --only survived  # again, when there are new tests
    python tests/slow/mutation/run.py --score          # only the figures of what has been run

It ends with the score, the share of mutants that a test noticed, and with those that survived: where they are, and what
was changed. Some of these change nothing that a caller can notice, so the score is never 100 %.

First each test is run once under coverage, to learn which lines it executes and how long it takes. A mutant is then
shown to the tests that execute its line, the quickest first: another one cannot notice.

Each worker collects the tests once, in a copy of the project. For a mutant it forks, and the child puts the code of the
changed function in the place of the old one. What is executed by the import already needs a fresh process.
What came of each mutant is kept in `results.jsonl`. POSIX only.
"""

import argparse
import ast
import gc
import hashlib
import inspect
import json
import os
import pickle
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import accumulate
from math import inf
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import coverage
import hypothesis
import pytest
from operators import Mutant, mutants

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
RESULTS = HERE / "results.jsonl"
SEEN = HERE / "__pycache__" / "seen.json"
FILES = sorted(path.name for path in (ROOT / "batchify").glob("*.py"))

# Those in `tests/slow` take too long, or need tools of their own.
DIRECTORIES = [f"tests/{name}" for name in ("core", "promises", "threads", "loops", "face")]
OPTIONS = ["-q", "-x", "--tb=line", "-rfE", "--capture=sys", "-p", "no:cacheprovider", "-p", "no:run_parallel"]
OPTIONS += ["-p", "no:faulthandler", "-p", "no:randomly"]
OPTIONS += ["-o", "timeout_method=thread", "-W", "ignore::pytest.PytestAssertRewriteWarning", *DIRECTORIES]
SECONDS = 4  # for one test, beside four times what it took
AROUND = 4  # lines before and after that of a mutant
LONG = 200.0  # for one test alone
ALL_SECONDS = 900  # for a run that does not end by itself
BYTES = 8 << 30
IMPORT = ""  # the "test" that executes what collecting executes
OUR_FAULT = 98


@dataclass
class Seen:
    """What a test did."""

    version: str  # of the test, and of the package
    seconds: float
    lines: dict[str, list[int]]  # by file
    all: bool  # it may have executed more than coverage can tell: in other processes, or while it traced by itself


# What the tests execute


def what_tests_execute(copy: Path) -> dict[str, Seen]:
    """Run each test in a process of its own, but for those that are as they were the last time."""
    pid = os.fork()
    if not pid:
        os.setsid()
        import_lines = watched_lines(copy)
        with_collected(copy, lambda session: watch_each(session, import_lines))
    if wait_for(pid, seconds=inf):
        sys.exit("the tests cannot be collected")
    return {test: Seen(**seen) for test, seen in json.loads(SEEN.read_text()).items()}


def watched_lines(copy: Path) -> coverage.Coverage:
    watcher = coverage.Coverage(data_file=None, include=[f"{copy}/batchify/*"])
    watcher.set_option("run:disable_warnings", ["no-data-collected", "trace-changed"])
    watcher.start()
    return watcher


def watch_each(session: pytest.Session, import_lines: coverage.Coverage) -> bool:
    import_lines.stop()
    known = json.loads(SEEN.read_text()) if SEEN.exists() else {}
    seen = {IMPORT: asdict(Seen("", 0.0, lines_of(import_lines), all=False))}
    package = "".join((ROOT / "batchify" / file).read_text() for file in FILES)
    SEEN.parent.mkdir(exist_ok=True)
    for number, item in enumerate(session.items):
        version = hashlib.sha256((package + source_of(item)).encode()).hexdigest()
        if known.get(item.nodeid, {}).get("version") == version:
            seen[item.nodeid] = known[item.nodeid]
            continue
        pid = os.fork()
        if not pid:
            watch(item, version)
        failed = wait_for(pid, LONG)  # a tracer may disturb it
        found = Seen(version, LONG, {}, all=True) if failed else Seen(**json.loads(Path("seen.json").read_text()))
        seen[item.nodeid] = asdict(found)
        if number % 50 == 0:
            SEEN.write_text(json.dumps(known | seen))  # who stops here need not begin anew
    SEEN.write_text(json.dumps(seen))
    return True


def source_of(item: Any) -> str:
    return inspect.getsource(item.module if item.cls else item.function)


def watch(item: pytest.Item, version: str) -> None:
    os.setsid()
    watcher = watched_lines(Path.cwd())
    others: list[str] = []
    sys.addaudithook(lambda event, _: others.append(event) if event in ("os.fork", "subprocess.Popen") else None)
    for module in (sys, threading):
        module.settrace = noted(module.settrace, others)  # type: ignore[attr-defined]
    began = time.perf_counter()
    item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
    seconds = time.perf_counter() - began
    watcher.stop()
    seen = Seen(version, round(seconds, 4), lines_of(watcher), all=bool(others))
    Path("seen.json").write_text(json.dumps(asdict(seen)))
    if item.session.testsfailed:
        print(f"fails without a mutant: {item.nodeid}", file=sys.stderr, flush=True)
    os._exit(0)


def noted(settrace: Callable[[Any], None], others: list[str]) -> Callable[[Any], None]:
    """Return what does the same, and notes if it is a test that traces by itself."""

    def set_and_note(function: Any) -> None:
        if Path(sys._getframe(1).f_code.co_filename).is_relative_to(Path.cwd() / "tests"):
            others.append("settrace")
        settrace(function)

    return set_and_note


def lines_of(watcher: coverage.Coverage) -> dict[str, list[int]]:
    data = watcher.get_data()
    return {Path(path).name: sorted(data.lines(path) or ()) for path in data.measured_files()}


class Order:
    """Says which tests are shown a mutant, and in which order."""

    def __init__(self, tests: dict[str, Seen], seconds: float) -> None:
        self.tests = tests
        self.seconds = seconds  # at most, of tests for one mutant
        self.all = seconds == inf
        self.at: dict[tuple[str, int], set[str]] = defaultdict(set)
        for test, seen in tests.items():
            for file, lines in seen.lines.items():
                for line in lines:
                    self.at[file, line].add(test)
        self.spans = {file: dict(_statements(ast.parse((ROOT / "batchify" / file).read_text()))) for file in FILES}
        # Of the tests of one function, the second is worth half of the first: it does much the same.
        alike: Counter[str] = Counter()
        self.cost: dict[str, float] = {}
        for test, seen in sorted(tests.items(), key=lambda pair: pair[1].seconds):
            function = test.partition("[")[0]
            alike[function] += 1
            self.cost[test] = seen.seconds * alike[function]

    def executing(self, file: str, line: int) -> set[str]:
        first, last = self.spans[file].get(line, (line, line))
        return set().union(*(self.at[file, each] for each in range(first, last + 1)))

    def of(self, mutant: Mutant) -> list[str]:
        """Return the tests that can notice, those first that are quick, and execute what few do around the line."""
        surely = self.executing(mutant.file, mutant.line)
        perhaps = surely | {test for test, seen in self.tests.items() if seen.all or surely == {IMPORT}}
        aim: defaultdict[str, float] = defaultdict(float)
        for line in range(mutant.line - AROUND, mutant.line + AROUND + 1):
            there = self.at[mutant.file, line]
            for test in there:
                aim[test] += 1 / len(there)
        late = {test: test not in surely or self.is_slow(test) for test in perhaps - {IMPORT}}
        key = {test: (late[test], self.cost[test] / (aim[test] or 1e-3)) for test in late}
        ordered = sorted(key, key=key.__getitem__)
        until = accumulate(self.tests[test].seconds for test in ordered)
        return [test for test, seconds in zip(ordered, until, strict=True) if seconds <= self.seconds]

    def is_slow(self, test: str) -> bool:
        return self.tests[test].all and self.tests[test].seconds > 1


def _statements(tree: ast.Module) -> Iterator[tuple[int, tuple[int, int]]]:
    """Yield for each line the first and the last one of its statement; of one with a body, of its head."""
    for node in ast.walk(tree):  # from outside in, so that the innermost is the last to say so
        if isinstance(node, (ast.stmt, ast.ExceptHandler)):
            body = getattr(node, "body", None)
            last = max(node.lineno, body[0].lineno - 1) if body else node.end_lineno or node.lineno
            for line in range(node.lineno, last + 1):
                yield line, (node.lineno, last)


# How a mutant is tried


def try_all(todo: list[Mutant], workers: int, seconds: float) -> Iterator[tuple[Mutant, str]]:
    """Yield each mutant with the test that noticed it, or with "" if none did."""
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # what is cached is told apart by the second of its change only
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    with tempfile.TemporaryDirectory(prefix="mutation-") as directory:
        ignored = shutil.ignore_patterns(".git", "__pycache__", ".hypothesis", ".venv*", "mutation")
        copies = [Path(shutil.copytree(ROOT, Path(directory, str(n)), ignore=ignored)) for n in range(workers)]
        order = Order(what_tests_execute(copies[0]), seconds)
        read, write = os.pipe()
        pids = []
        try:
            for number, copy in enumerate(copies):
                pids.append(os.fork())
                if not pids[-1]:
                    os.close(read)
                    mine = range(number, len(todo), workers)
                    with_collected(copy, lambda session: Worker(session, order).try_each(todo, mine, write))  # noqa: B023
            os.close(write)
            with open(read) as lines:
                for line in lines:
                    index, test = json.loads(line)
                    yield todo[index], test
        finally:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
                os.waitpid(pid, 0)


def with_collected(copy: Path, do: Callable[[pytest.Session], bool | None]) -> None:
    """Collect the tests of a copy, in this process, which then ends. If `do` returns None, they are run first."""
    try:
        phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]  # no time for a smaller example
        hypothesis.settings.register_profile("mutation", phases=phases, derandomize=True, database=None)
        hypothesis.settings.load_profile("mutation")
        os.chdir(copy)
        os.environ["PYTHONPATH"] = str(copy)
        sys.path.insert(0, str(copy))

        class Plugin:
            @pytest.hookimpl(tryfirst=True)
            def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
                assert str(sys.modules["batchify"].__file__).startswith(str(copy)), "another batchify was imported"
                return do(session)

        code = pytest.main(OPTIONS, plugins=[Plugin()])
        sys.stdout.flush()
        os._exit(code)
    except SystemExit:
        os._exit(0)
    finally:
        os._exit(OUR_FAULT)


class Worker:
    """Tries mutants, one after the other."""

    def __init__(self, session: pytest.Session, order: Order) -> None:
        self.session = session
        self.order = order
        self.items = {item.nodeid: item for item in session.items}
        gc.unfreeze()  # conftest.py froze all, and what is frozen is not among the objects
        self.functions: dict[tuple[str, str, int], list[FunctionType]] = defaultdict(list)
        for each in gc.get_objects():
            if type(each) is FunctionType:
                code = each.__code__
                self.functions[code.co_filename, code.co_qualname, code.co_firstlineno].append(each)
        self.sources = {file: Path("batchify", file).read_text() for file in FILES}
        gc.collect()
        gc.freeze()  # so that the collections of the tests are short

    def try_each(self, todo: list[Mutant], indices: Iterable[int], to: int) -> bool | None:
        for index in indices:
            mutant = todo[index]
            path = Path("batchify", mutant.file)
            path.write_text(mutant.code)  # for processes that tests start
            tests = [test for test in self.order.of(mutant) if test in self.items]
            new_codes = self.new_codes(mutant)
            failed = ""
            if new_codes is not None:
                pid = os.fork()
                if not pid:
                    begin_run()
                    for function, code in new_codes:
                        function.__code__ = code
                    run_only(self.session, {test: self.order.tests[test].seconds for test in tests})
                    return None
                failed = what_failed(wait_for(pid))
            by_import = IMPORT in self.order.executing(mutant.file, mutant.line)
            if not failed and (new_codes is None or (by_import and self.order.all)):
                failed = self.in_a_fresh_process(tests)
            path.write_text(self.sources[mutant.file])
            os.write(to, (json.dumps([index, failed]) + "\n").encode())
        return True

    def new_codes(self, mutant: Mutant) -> list[tuple[FunctionType, CodeType]] | None:
        """Return the functions that get other code; None if the import of their module already does something else."""
        path = str(Path("batchify", mutant.file).absolute())
        found = []
        try:
            old, new = (compile(code, path, "exec") for code in (self.sources[mutant.file], mutant.code))
            for was, becomes in _different_functions(old, new):
                functions = self.functions[path, was.co_qualname, was.co_firstlineno]
                if not functions or len(was.co_freevars) != len(becomes.co_freevars):
                    return None
                found += [(function, becomes) for function in functions]
        except ImportDiffersError:
            return None
        return found

    def in_a_fresh_process(self, tests: list[str]) -> str:
        order = self.order
        if order.all:  # all others too, as each needs what the import executes
            rest = self.items.keys() - set(tests)
            tests = tests + sorted(rest, key=lambda test: (order.is_slow(test), order.cost[test]))
        Path("tests.json").write_text(json.dumps({test: order.tests[test].seconds for test in tests}))
        pid = os.fork()
        if not pid:
            begin_run()
            os.execv(sys.executable, [sys.executable, str(HERE / "run.py"), "--fresh", os.getcwd()])
        return what_failed(wait_for(pid))


def begin_run() -> None:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)


def run_only(session: pytest.Session, seconds: dict[str, float]) -> None:
    """Let only these tests be run, in this order, and end those that take much longer than they did."""
    items = {item.nodeid: item for item in session.items}
    session.items = [items[test] for test in seconds if test in items]
    for item in session.items:
        item.add_marker(pytest.mark.timeout(SECONDS + 4 * seconds[item.nodeid]), append=False)


def wait_for(pid: int, seconds: float = ALL_SECONDS) -> int:
    """Return the exit status of a process; one that hangs is ended, and in any case what it left behind."""
    until = time.monotonic() + seconds
    ended, status = 0, 0
    try:
        while not ended and time.monotonic() < until:
            ended, status = os.waitpid(pid, os.WNOHANG)
            time.sleep(0.005)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        if not ended:
            _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def what_failed(code: int) -> str:
    """Return the test that failed, for the record."""
    if code == 0:
        return ""
    output = Path("output.txt").read_text(errors="replace")
    found = re.search(r"^(?:FAILED|ERROR) (?:tests/)?(\S+)", output, re.MULTILINE)
    if found:
        return found[1]
    assert code not in (pytest.ExitCode.INTERNAL_ERROR, OUR_FAULT), output
    return "timeout" if "Timeout" in output else f"exit status {code}"


# The code of a mutant


class ImportDiffersError(Exception):
    """Raised when a module does something else already when it is imported."""


def _different_functions(old: CodeType, new: CodeType) -> Iterator[tuple[CodeType, CodeType]]:
    if old.co_flags & inspect.CO_OPTIMIZED:  # a function, and no module or class
        if _meaning(old) != _meaning(new):
            yield old, new
        return
    (olds, news) = ([const for const in code.co_consts if isinstance(const, CodeType)] for code in (old, new))
    if _meaning(old, whole=False) != _meaning(new, whole=False) or len(olds) != len(news):
        raise ImportDiffersError
    for one, other in zip(olds, news, strict=True):
        yield from _different_functions(one, other)


def _meaning(code: CodeType, *, whole: bool = True) -> Any:
    """Return what is the same for code that does the same, on whatever lines it stands."""
    consts = [
        (_meaning(const) if whole else None) if isinstance(const, CodeType) else repr(const) for const in code.co_consts
    ]
    signature = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags
    names = code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars
    return code.co_code, code.co_exceptiontable, consts, signature, names


# What came of it


def print_score(results: dict[str, str], current: dict[str, Mutant]) -> None:
    """Print the mutants that survived, and how many were killed of those that were tried."""
    rows: dict[str, list[int]] = {}
    for key, mutant in current.items():
        row = rows.setdefault(mutant.file, [0, 0, 0])
        row[0] += 1
        if key in results:
            row[1] += 1
            row[2] += bool(results[key])
            if not results[key]:
                print(f"survived: batchify/{mutant.file}:{mutant.line}: {mutant.change}")
    rows["all"] = [sum(column) for column in zip(*rows.values(), strict=True)]
    print(f"{'':15}{'mutants':>9}{'tried':>9}{'killed':>9}{'score':>9}")
    for file, (mutants_, tried, killed) in rows.items():
        print(f"{file:15}{mutants_:9}{tried:9}{killed:9}{f'{killed / tried:.1%}' if tried else '-':>9}")


def all_mutants(file: str) -> list[Mutant]:
    """Return the mutants of a file, which take a minute to make."""
    source, operators = ROOT / "batchify" / file, HERE / "operators.py"
    version = hashlib.sha256(source.read_bytes() + operators.read_bytes()).hexdigest()
    cache = HERE / "__pycache__" / f"{file}.mutants"
    if cache.exists():
        known = pickle.loads(cache.read_bytes())
        if known[0] == version:
            return list(known[1])
    found = list(mutants(source))
    cache.parent.mkdir(exist_ok=True)
    cache.write_bytes(pickle.dumps((version, found)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", default=FILES)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--sample", type=int, help="so many mutants of each file, chosen by a fixed seed")
    parser.add_argument("--only", choices=["untried", "survived"], help="only mutants of which that is known")
    parser.add_argument("--match", default="", help="only mutants whose text has this regular expression")
    parser.add_argument("--seconds", type=float, default=inf, help="of tests for each mutant: at most so many")
    parser.add_argument("--score", action="store_true", help="run nothing")
    parser.add_argument("--fresh", type=Path, help=argparse.SUPPRESS)  # a copy whose tests are to be run
    options = parser.parse_args()
    if options.fresh:
        tests = json.loads((options.fresh / "tests.json").read_text())
        with_collected(options.fresh, lambda session: run_only(session, tests))

    results: dict[str, str] = {}
    if RESULTS.exists():
        for line in RESULTS.read_text().splitlines():
            results.update(json.loads(line))
    wanted = {"untried": None, "survived": ""}
    current: dict[str, Mutant] = {}
    todo: list[Mutant] = []
    for file in options.files:
        found = all_mutants(file)
        current |= {mutant.key: mutant for mutant in found}
        if options.sample and options.sample < len(found):
            found = random.Random(file).sample(found, options.sample)
        for mutant in found:
            asked_for = not options.only or results.get(mutant.key) == wanted[options.only]
            if asked_for and re.search(options.match, mutant.key):
                todo.append(mutant)
    if not options.score:
        for number, (mutant, test) in enumerate(try_all(todo, options.workers, options.seconds), 1):
            results[mutant.key] = test
            with RESULTS.open("a") as file:
                file.write(json.dumps({mutant.key: test}) + "\n")
            print(f"{number}/{len(todo)} line {mutant.line}, {mutant.key}: {test or 'SURVIVED'}", flush=True)
    print_score(results, current)


if __name__ == "__main__":
    main()
