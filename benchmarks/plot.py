"""Draw what was recorded, and write its tables: no figure in `docs/benchmarks.md` is typed by hand.

    python -m benchmarks.plot [--recorded benchmarks/recorded] [--docs docs]

Reads `peers.json` and `optimal.json`; draws `cost.svg` and `latency.svg`, and replaces what stands between the marks
`<!-- table: ... -->` and `<!-- end -->` in `benchmarks.md`. Needs matplotlib, which the group `peers` has.
"""

import argparse
import json
import re
from collections.abc import Callable, Iterable
from math import exp, inf, log
from pathlib import Path
from typing import Any

from .optimal import CURVES, RULES
from .peers import TABLES, TITLES, ahead

Record = dict[str, Any]

# Which lines are drawn, five in each picture: what it is called there, colour, dashes, marker. They differ in grey too.
# The tables have the others.
BEST = ("black", "--", "")
OURS = ("#c1121f", "-", "o")
OURS_WAITING = ("#e07a5f", "-", "D")
PLAIN = ("#8a8a8a", "-", "s")
SECOND = ("#e09f3e", "-.", "^")
BATCHED = ("#1d4e89", ":", "v")
COST = {
    "threads": {
        "floor": ("the least possible", *BEST),
        "batchify": ("batchify", *OURS),
        "queue.Queue": ("queue.Queue, by hand", *PLAIN),
        "service-streamer": ("service-streamer", *SECOND),
        "batched": ("batched", *BATCHED),
    },
    "asyncio": {
        "floor": ("the least possible", *BEST),
        "batchify": ("batchify", *OURS),
        "aiodataloader": ("aiodataloader", *PLAIN),
        "async-batcher": ("async-batcher", *SECOND),
        "batched.aio": ("batched", *BATCHED),
    },
}
LATENCY = {
    "threads": {
        "batchify timeout=0": ("batchify, timeout=0", *OURS),
        "batchify": ("batchify, 5 ms", *OURS_WAITING),
        "service-streamer": ("service-streamer, 5 ms", *SECOND),
        "batched": ("batched, 5 ms", *BATCHED),
    },
    "asyncio": {
        "batchify timeout=0": ("batchify, timeout=0", *OURS),
        "batchify": ("batchify, 5 ms", *OURS_WAITING),
        "dike": ("dike, 5 ms", "#6a994e", "-.", "^"),
        "batched.aio": ("batched, 5 ms", *BATCHED),
    },
}
PANELS = ("threads", "asyncio")
Points = list[tuple[float, float]]


def lines_of(record: Record) -> dict[str, Record]:
    return {line["peer"]: line for line in record["lines"]}


def cells(found: Record, workload: str, path: str) -> list[Record]:
    return [cell for cell in found["cells"] if cell["workload"] == workload and cell["path"] == path]


def number_in(label: str) -> int:
    """Return the first number of a cell's label: callers, or load."""
    match = re.search(r"[\d,]+", label)
    assert match is not None
    return int(match[0].replace(",", ""))


# Pictures


def draw_cost(found: Record, to: Path) -> None:
    """Draw cost per item against the number of callers."""
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.6), sharey=True, layout="constrained")
    for axes, path in zip(panels, PANELS, strict=True):
        points: dict[str, Points] = {peer: [] for peer in COST[path]}
        for cell in cells(found, "closed", path):
            callers = number_in(cell["label"])
            for peer, line in lines_of(cell).items():
                if peer in points and line["status"] == "done" and cell["batch_size"] == min(callers, 32):
                    points[peer].append((callers, line["wall"]))
        axes.set(xscale="log", yscale="log", title=TITLES[path].replace("`", ""), xlabel="callers", ylim=(2, 8000))
        ticks = sorted({callers for each in points.values() for callers, _ in each})
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.set_yticks([3, 10, 30, 100, 300, 1000, 3000], ["3", "10", "30", "100", "300", "1,000", "3,000"])
        draw_lines(axes, [(*COST[path][peer], each) for peer, each in points.items()])
    panels[0].set_ylabel("microseconds per item (less is better)")
    figure.suptitle("What handing an item over and back costs, in batches of up to 32, with a timeout of 5 ms")
    save(figure, to)


def draw_latency(found: Record, solved: list[Record], to: Path) -> None:
    """Draw latency against load."""
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 2, figsize=(11, 8), sharex=True, sharey="row", layout="constrained")
    best = [each for each in solved if each["curve"] == CURVES[0].name and each["load"] >= 20]
    for column, path in enumerate(PANELS):
        for row, name in enumerate(("p50", "p99")):
            points: dict[str, Points] = {peer: [] for peer in LATENCY[path]}
            for cell in cells(found, "arriving", path):
                for peer, line in lines_of(cell).items():
                    if peer in points and line["status"] == "done" and line["unanswered"] < 0.01:
                        points[peer].append((number_in(cell["label"]), line[name]))
            axes = panels[row][column]
            axes.set(yscale="log")
            axes.set_yticks([3, 5, 10, 20, 50, 100, 200], ["3", "5", "10", "20", "50", "100", "200"])
            axes.set_xticks([20, 50, 80, 95], ["20 %", "50 %", "80 %", "95 %"])
            optimum: Points = [(each["load"], each["optimum"][name]) for each in best]
            ours = [(*LATENCY[path][peer], each) for peer, each in points.items()]
            draw_lines(axes, [("the best possible", *BEST, optimum), *ours])
        panels[0][column].set_title(TITLES[path].replace("`", ""))
        panels[1][column].set_xlabel("load")
    panels[0][0].set_ylabel("median latency, ms")
    panels[1][0].set_ylabel("99th percentile, ms")
    figure.suptitle("A model that takes 2 ms + 0.05 ms per item, batches of up to 16, calls at random times")
    save(figure, to)


def draw_lines(axes: Any, lines: Iterable[tuple[str, str, str, str, Points]]) -> None:
    """Draw lines, on axes that are logarithmic upwards, each with its name at its end, and the names apart."""
    ends = []
    for name, colour, dashes, marker, points in lines:
        points.sort()
        axes.plot(*zip(*points, strict=True), color=colour, linestyle=dashes, marker=marker, markersize=4)
        ends.append((log(points[-1][1]), name, colour))
    axes.minorticks_off()
    axes.grid(visible=True, alpha=0.3)
    gap = (log(axes.get_ylim()[1]) - log(axes.get_ylim()[0])) * 0.06
    lowest = -inf
    for height, name, colour in sorted(ends):
        lowest = max(height, lowest + gap)
        axes.text(1.02, exp(lowest), name, color=colour, transform=axes.get_yaxis_transform(), va="center")


def save(figure: Any, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    # Without the date, so that it changes only with what it shows.
    figure.savefig(to, metadata={"Date": None} if to.suffix == ".svg" else None)
    print(to)


# Tables

SHOWN: dict[str, tuple[str, ...]] = {
    "closed": ("wall", "cpu"),
    "bulk": ("wall", "cpu"),
    "lone": ("p50", "p99", "cpu"),
    "serving": ("wall", "p50", "p99"),
    "arriving": ("p50", "p99"),
    "early": ("batches", "all_after"),
    "window": ("batches",),
    "idle": ("idle_cpu", "wake_ups"),
    "memory": ("memory",),
}


def value(line: Record | None, workload: str) -> str:
    if line is None:
        return ""
    if line["status"] != "done":
        return str(line["status"])
    if workload == "arriving" and line["unanswered"] >= 0.01:
        return "cannot"
    formats = {name: form for name, _, form in TABLES[workload].columns}
    return ", ".join(figure(line[name], formats[name]) for name in SHOWN[workload])


def figure(number: float | None, form: str) -> str:
    """Write a number with three digits at most."""
    if number is None:
        return "-"
    return format(number, ",.0f" if abs(number) >= 100 else form.replace(".2f", ".1f") if abs(number) >= 10 else form)


def headed(workload: str) -> str:
    headings = {name: heading for name, heading, _ in TABLES[workload].columns}
    return ", ".join(headings[name] for name in SHOWN[workload])


def markdown(corner: str, columns: list[str], rows: Iterable[tuple[str, list[str]]]) -> str:
    lines = [f"| {corner} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(values) + " |" for name, values in rows]
    return "\n".join(lines)


def by_cell(found: Record, workload: str, path: str) -> str:
    """Return a table with a column for each cell."""
    records = [lines_of(cell) for cell in cells(found, workload, path)]
    labels = [cell["label"] for cell in cells(found, workload, path)]
    peers = list(dict.fromkeys(peer for record in records for peer in record))
    rows = [(peer, [value(record.get(peer), workload) for record in records]) for peer in peers]
    return markdown(headed(workload), labels, rows)


def by_path(found: Record, workload: str) -> str:
    """Return a table with a column for each way to call."""
    there = [path for path in TITLES if cells(found, workload, path)]
    records = [lines_of(cells(found, workload, path)[0]) for path in there]
    peers = list(dict.fromkeys(peer for record in records for peer in record))
    rows = [(peer, [value(record.get(peer), workload) for record in records]) for peer in peers]
    return markdown(headed(workload), [TITLES[path] for path in there], rows)


def best_policy(solved: list[Record]) -> str:
    """Return how many times the best mean latency each rule takes."""
    some = (5, 20, 50, 80, 95)
    rows = []
    for costs in CURVES:
        points = {each["load"]: each for each in solved if each["curve"] == costs.name}
        rows.append((f"**{costs.name}**: the best, in ms", [f"{points[load]['best']:.2f}" for load in some]))
        exact = [f"{points[load]['serve_all'] / points[load]['best']:.3f}" for load in some]
        rows.append(("timeout=0", exact))
        for rule in list(RULES)[1:]:
            ratios = [points[load][rule] for load in some]
            rows.append((rule, [f"{each['ratio']:.2f}" if each else "-" for each in ratios]))
    return markdown("load", [f"{load} %" for load in some], rows)


def about(found: Record, solved: list[Record]) -> str:
    on = found["machine"]
    names = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    worst = max(each["serve_all"] / each["best"] for each in solved)
    where = "\n".join(f"- {line}" for cell in found["cells"] if (line := ahead(cell))) or "- nowhere"
    return (
        f"Recorded on {on['cores']} cores with Python {on['python']}, beside {names}.\n\n"
        f"With `timeout=0` the mean latency is at most {worst:.3f} times the best possible.\n\n"
        "Where a library that batches is more than 5 % ahead of batchify, whichever way that is called, and the part "
        f"that it needs of batchify's figure:\n\n{where}"
    )


def fill(text: str, found: Record, solved: list[Record]) -> str:
    """Replace the tables between the marks."""
    makers: dict[str, Callable[[], str]] = {
        "about": lambda: about(found, solved),
        "optimal": lambda: best_policy(solved),
        **{workload: lambda workload=workload: by_path(found, workload) for workload in TABLES},  # type: ignore[misc]
        **{
            f"{workload} {path}": lambda workload=workload, path=path: by_cell(found, workload, path)  # type: ignore[misc]
            for workload in ("closed", "arriving")
            for path in TITLES
        },
    }
    return re.sub(
        r"(<!-- table: (.*?) -->\n).*?(<!-- end -->)",
        lambda match: f"{match[1]}\n{makers[match[2]]()}\n\n{match[3]}",
        text,
        flags=re.DOTALL,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recorded", type=Path, default=Path("benchmarks/recorded"), help="where the JSON is")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where pictures and tables go")
    options = parser.parse_args()
    draw(options.recorded, options.docs)


def draw(recorded: Path, docs: Path) -> None:
    found = json.loads((recorded / "peers.json").read_text())
    solved = json.loads((recorded / "optimal.json").read_text())
    page = docs / "benchmarks.md"
    page.write_text(fill(page.read_text(), found, solved))
    print(page)
    try:
        import matplotlib as mpl
    except ImportError:
        print("matplotlib is not installed: no pictures")
        return
    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "batchify"  # the same picture for the same figures
    mpl.rcParams["svg.fonttype"] = "none"  # text stays text
    draw_cost(found, docs / "cost.svg")
    draw_latency(found, solved, docs / "latency.svg")


if __name__ == "__main__":
    main()
