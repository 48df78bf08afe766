"""Is it true what `batchify.tune` says?

Three real functions are measured by `batchify.tune.measure`:

    forest       scikit-learn's random forest, which classifies images
    transformer  a transformer in PyTorch, for texts of mixed length that are padded to the longest of their batch
    postgres     what customers have ordered, from PostgreSQL, `WHERE customer = ANY(...)`

For each, at 50 and 80 % of what it can do, calls come at random from a thread of this process. Printed: the settings
that are recommended at that rate; the median and the 99th percentile of the latency in milliseconds, as expected and as
seen (the median of several runs); and how many times as long as with the best of a grid of settings, each of which is
tried for real, the mean call takes.

    python -m benchmarks.tuned [--only forest,transformer,postgres] [--quick] [--json FILE]

Needs the extra `tune`, scikit-learn, torch, psycopg, and a PostgreSQL that it can start. It takes 20 minutes, and
nothing else should run on the machine.
"""

import argparse
import gc
import json
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy

from batchify import batched
from batchify.tune import Curve, Setting, measure, recommend, simulate

ListFunction = Callable[[list[Any]], Any]
Job = tuple[ListFunction, Sequence[Any]]  # and what callers pass
SIZES = (1, 2, 4, 8, 16, 32, 64)
TITLES = "load", "calls/s", "p50", "seen", "p99", "seen", "over best", "settings"


@contextmanager
def forest() -> Iterator[Job]:
    from sklearn.datasets import load_digits
    from sklearn.ensemble import RandomForestClassifier

    images, digits = load_digits(return_X_y=True)
    model = RandomForestClassifier(100, random_state=0).fit(images, digits)
    yield lambda rows: model.predict(numpy.stack(rows)), list(images)


@contextmanager
def transformer() -> Iterator[Job]:
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)  # one core for the function, the other for its callers
    layer = torch.nn.TransformerEncoderLayer(128, 4, 256, batch_first=True)
    model = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    words = torch.nn.Embedding(1000, 128)

    def embed(texts: list[list[int]]) -> Any:
        lengths = torch.tensor([len(text) for text in texts])
        padded = torch.zeros(len(texts), int(lengths.max()), dtype=torch.long)
        for row, text in zip(padded, texts, strict=True):
            row[: len(text)] = torch.tensor(text)
        is_padding = torch.arange(padded.shape[1])[None] >= lengths[:, None]
        with torch.inference_mode():
            found = model(words(padded), src_key_padding_mask=is_padding)
            return found.masked_fill(is_padding[..., None], 0.0).sum(1) / lengths[:, None]

    chance = random.Random(0)
    lengths = [min(400, 4 + round(chance.lognormvariate(3.5, 0.8))) for _ in range(2000)]
    yield embed, [chance.choices(range(1000), k=length) for length in lengths]


@contextmanager
def postgres() -> Iterator[Job]:
    import psycopg

    from tests.slow.engines.postgres import server

    with server() as running:
        os.environ.update(running.where)
        with psycopg.connect(autocommit=True) as connection:
            connection.execute("SET log_statement = 'none'")
            connection.execute(
                "CREATE TABLE orders AS SELECT id, id % 10000 AS customer, id % 997 AS amount"
                " FROM generate_series(1, 1000000) id"
            )
            connection.execute("CREATE INDEX ON orders (customer)")
            connection.execute("VACUUM ANALYZE orders")
            query = "SELECT customer, count(*), sum(amount) FROM orders WHERE customer = ANY(%s) GROUP BY customer"

            def turnover(customers: list[int]) -> dict[int, tuple[int, int]]:
                rows = connection.execute(query, (customers,)).fetchall()
                return {customer: (orders, amount) for customer, orders, amount in rows}

            yield turnover, random.Random(0).choices(range(10000), k=20000)


JOBS = {"forest": forest, "transformer": transformer, "postgres": postgres}


def seen(function: ListFunction, setting: Setting, job: Job, rate: float, seconds: float, seed: int) -> list[float]:
    """Return the latencies of calls that come at random, in seconds: from when each was to come."""
    chance, latencies = random.Random(seed), list[float]()
    moments = [0.0]
    while moments[-1] < seconds:
        moments.append(moments[-1] + chance.expovariate(rate))

    def note(planned: float, _: object) -> None:
        latencies.append(time.perf_counter() - planned)

    with batched(**options_of(setting))(lambda items: function(items)) as f:
        f(job[1][0])
        began = time.perf_counter()
        for moment in moments:
            planned = began + moment  # it comes later if the function keeps the interpreter: that counts, too
            left = planned - time.perf_counter()
            if left > 0:
                time.sleep(left)
            f.submit(chance.choice(job[1])).add_done_callback(partial(note, planned))
    return latencies


def options_of(setting: Setting) -> dict[str, Any]:
    size, timeout, concurrency, width = setting
    group_by = None if width is None else lambda item: len(item) // width
    return {"batch_size": size, "timeout": timeout, "concurrency": concurrency, "group_by": group_by}


def grid(curve: Curve, best: Setting) -> Iterator[Setting]:
    """Yield the settings of which one must be about the best."""
    widths = [None] if best.width is None else [None, best.width, best.width * 4]
    unit = curve.points[0].seconds
    for size, timeout, width in product((64, 16, 4), (0.0, unit, 8 * unit), widths):
        yield Setting(size, float(f"{timeout:.1g}"), best.concurrency, width)


def most(function: ListFunction, setting: Setting, job: Job, rate: float, seconds: float) -> float:
    """Return how many calls per second are answered of those that come at a rate that is too high."""
    began = time.perf_counter()
    return len(seen(function, setting, job, rate, seconds, 0)) / (time.perf_counter() - began)


def compare(name: str, *, quick: bool) -> Iterator[dict[str, Any]]:
    """Measure a job, and return what is expected and what is seen, at each load."""
    seconds, repeats = (0.5, 1) if quick else (6.0, 5)
    with JOBS[name]() as job:
        function, items = job
        gc.collect()
        gc.freeze()  # else a full collection among all that torch has takes a tenth of a second

        def means(setting: Setting, rate: float, seconds: float) -> float:
            return median([fmean(seen(function, setting, job, rate, seconds, seed)) for seed in range(min(3, repeats))])

        for load in (50, 80):
            # Each time anew, as the machine is faster or slower after some minutes.
            curve = measure(function, items, seconds=4 if quick else 20, sizes=SIZES)
            full = recommend(curve, callers=4 * SIZES[-1])
            rate = most(function, full.setting, job, 1.5 * full.expected.throughput, seconds / 2) * load / 100
            found = recommend(curve, rate=rate)
            runs = [seen(function, found.setting, job, rate, seconds, seed) for seed in range(repeats)]
            row: dict[str, Any] = {"job": name, "load": load, "rate": rate, "line": found.line}
            for percent in (50, 99):
                row[f"expected p{percent}"] = found.expected.percentile(percent) * 1e3
                row[f"seen p{percent}"] = median([float(numpy.percentile(run, percent)) for run in runs]) * 1e3
            tried = {}
            for setting in {found.setting, *([] if quick else grid(curve, found.setting))}:
                expected = simulate(curve, rate=rate, items=4000, **options_of(setting))
                if setting == found.setting or expected.keeps_up:  # else it would not end
                    tried[setting] = means(setting, rate, seconds / 3)
            best, over = min(tried, key=tried.__getitem__), 1.0
            if best != found.setting:  # the lowest of many figures is low by chance, too: so both are tried once more
                over = means(found.setting, rate, seconds) / means(best, rate, seconds)
            yield {**row, "best": best.line(curve), "over best": over}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(JOBS), metavar="NAMES", help="these functions")
    parser.add_argument("--quick", action="store_true", help="a little of each, to see whether it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to record the figures")
    options = parser.parse_args()
    rows = []
    line = "{:<12} {:>5} {:>8}  {:>6} {:>6}  {:>6} {:>6}  {:>9}  {}"
    print(line.format("", *TITLES))
    for name in options.only.split(","):
        for row in compare(name, quick=options.quick):
            rows.append(row)
            latencies = [f"{row[f'{which} p{p}']:.2f}" for p in (50, 99) for which in ("expected", "seen")]
            settings = row["line"] + f" (best: {row['best']})" * (row["best"] != row["line"])
            over = f"{row['over best']:.2f}"
            print(line.format(name, f"{row['load']}%", f"{row['rate']:.0f}", *latencies, over, settings), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
