"""Run all benchmarks: `python -m benchmarks [--quick] [--record]`.

First batchify beside other libraries, then its rule beside the best possible one, then what its options cost. With
`--record` the figures go to `benchmarks/recorded`, and the pictures and tables in `docs` are drawn anew.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from . import optimal, peers, plot

RECORDED, DOCS = Path(__file__).parent / "recorded", Path(__file__).parent.parent / "docs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only a little of each, to see whether it works")
    parser.add_argument("--record", action="store_true", help="keep the figures, and draw the pictures anew")
    options = parser.parse_args()
    start = time.monotonic()
    quick = ["--quick"] if options.quick else []

    print("1. batchify beside other libraries\n")
    found = peers.measure(peers.arguments().parse_args(quick))
    print("\n\n2. The rule by which batches are formed, beside the best possible one\n")
    print(optimal.__doc__.split("\n\n    python")[0] if optimal.__doc__ else "")
    solved = optimal.measure(quick=options.quick)
    if options.record:
        RECORDED.mkdir(exist_ok=True)
        for name, figures in (("peers", found), ("optimal", solved)):
            (RECORDED / f"{name}.json").write_text(json.dumps(figures, separators=(",", ":")) + "\n")
        plot.draw(RECORDED, DOCS)
    print("\n\n3. What each option costs\n", flush=True)
    subprocess.run([sys.executable, "-m", "benchmarks.overhead", *quick, "option", "groups"], check=True)
    print(f"\n{(time.monotonic() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
