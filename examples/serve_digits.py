"""Serve a random forest to 64 threads that each ask about one image at a time.

Shows what batching does for a model that costs nearly as much for one image as for many. The digits come with
scikit-learn: the forest is trained on half of them and serves the other half, over and over. The same threads then ask
the forest without batching, on fewer images. Every answer is compared with one direct call on all images; the exit
status is 1 if any differs.

Run it, after `pip install -e '.[examples]'`, with:

    python examples/serve_digits.py                # some 20 seconds
    python examples/serve_digits.py --items 400    # a few seconds
"""

import argparse
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

import numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import train_test_split

from batchify import batched

THREADS = 64
BATCH_SIZE = 64
MOST_UNBATCHED = 1_500
UNANSWERED = -1


def serve(name: str, answer: Callable[[np.ndarray], int], images: np.ndarray, items: int) -> tuple[np.ndarray, float]:
    """Let `THREADS` threads ask about `items` images, one at a time; return the answers and items/s.

    Args:
        name: Stands before each line of progress.
        answer: Returns the digit on one image; called by all threads at once.
        images: What is asked about, in order and from the start again after the last.
        items: How many questions there are, all threads together.
    """
    answers = np.full(items, UNANSWERED)

    def ask(first: int) -> None:
        for item in range(first, items, THREADS):
            answers[item] = answer(images[item % len(images)])

    start = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as pool:
        running = {pool.submit(ask, first) for first in range(THREADS)}
        while running:
            done, running = wait(running, timeout=2.0, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
            answered = np.count_nonzero(answers != UNANSWERED)
            print(f"  {name}: {answered} of {items} after {time.perf_counter() - start:.1f} s", flush=True)
    return answers, items / (time.perf_counter() - start)


def print_histogram(sizes: Mapping[int, int], width: int = 8) -> None:
    """Print how many batches there were of each `width` sizes; the longest bar has 40 characters."""
    bins: Counter[int] = Counter()
    for size, count in sizes.items():
        bins[(size - 1) // width] += count
    longest = max(bins.values())
    for number in range(BATCH_SIZE // width):
        count = bins[number]
        print(f"  {f'{number * width + 1}-{(number + 1) * width}':>5}: {'#' * -(-40 * count // longest):40} {count}")


def main() -> int:
    """Train, serve with and without batching, compare, and return the exit status."""
    parser = argparse.ArgumentParser(description="Serve a random forest to 64 threads, with and without batching.")
    parser.add_argument("--items", type=int, default=40_000, help="images to classify with batching (default: 40000)")
    items: int = parser.parse_args().items
    if items < 1:
        parser.error(f"--items must be at least 1, got {items}")

    digits = load_digits()
    known, unseen, labels, truth = train_test_split(digits.data, digits.target, test_size=0.5, random_state=0)
    print(f"training 100 trees on {len(known)} images", flush=True)
    forest = RandomForestClassifier(n_estimators=100, n_jobs=1, random_state=0).fit(known, labels)
    expected = forest.predict(unseen)
    print(
        f"{THREADS} threads ask about {len(unseen)} others; {np.mean(expected == truth):.1%} are recognised", flush=True
    )

    @batched(batch_size=BATCH_SIZE, timeout=0.0)
    def predict(images: list[np.ndarray]) -> np.ndarray:
        return np.asarray(forest.predict(np.stack(images)))

    # Called by many threads at once, scikit-learn 1.9 is no faster, and floods the terminal with warnings.
    one_at_a_time = threading.Lock()

    def predict_one(image: np.ndarray) -> int:
        with one_at_a_time:
            return int(forest.predict(image[np.newaxis])[0])

    with predict:
        answers, rate = serve("batched", predict, unseen, items)
    single_answers, single_rate = serve("unbatched", predict_one, unseen, min(items, MOST_UNBATCHED))

    stats = predict.stats
    print(f"batched:   {rate:7.0f} items/s, {rate / single_rate:.1f} times as many")
    print(f"unbatched: {single_rate:7.0f} items/s")
    print(f"{stats.batches} batches of {stats.mean_size:.1f} images on average; how many of each size:")
    print_histogram(stats.sizes)

    # resize repeats the expected answers just as the images were repeated.
    wrong = sum(np.count_nonzero(got != np.resize(expected, len(got))) for got in (answers, single_answers))
    print(f"{wrong} of {len(answers) + len(single_answers)} answers differ from the forest asked directly")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
