"""The model that the servers here serve: a random forest that knows the digits of scikit-learn.

Each server takes an image of 8 x 8 pixels, each from 0 to 16, row by row, and asks `predict` about it; images that come
together share a batch.
"""

import json

import numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier

from batchify import batched

BATCH_SIZE = 64
THREADS = 2 * BATCH_SIZE  # of a server with threads: each brings one image, so one batch gathers while another one runs
PIXELS = 64
BRIGHTEST = 16


def train() -> RandomForestClassifier:
    """Return a forest that knows the digits."""
    digits = load_digits()
    return RandomForestClassifier(n_estimators=200, n_jobs=1, random_state=0).fit(digits.data, digits.target)


forest = train()


@batched(batch_size=BATCH_SIZE)
def predict(images: list[np.ndarray]) -> list[int]:
    """Classify images, in a thread of its own, so that an event loop goes on meanwhile."""
    return [int(digit) for digit in forest.predict(np.stack(images))]


def image_of(pixels: object) -> np.ndarray:
    """Return an image that `predict` can take.

    What is wrong with an image must show before it shares a batch, where it would hurt the others: one NaN, which JSON
    readers let pass, and the forest refuses them all.

    Raises:
        ValueError: That is none.
    """
    try:
        image = np.asarray(pixels, dtype=float)
    except (TypeError, ValueError):
        raise ValueError("pixels must be numbers") from None
    if image.shape != (PIXELS,) or not ((image >= 0) & (image <= BRIGHTEST)).all():
        raise ValueError(f"an image has {PIXELS} pixels from 0 to {BRIGHTEST}")
    return image


def image_of_json(body: bytes) -> np.ndarray:
    """Return the image in the body of a request, `{"pixels": [0, 0, 12, ...]}`.

    Raises:
        ValueError: There is none.
    """
    try:
        pixels = json.loads(body)["pixels"]
    except (KeyError, TypeError):
        raise ValueError('the body must be {"pixels": [...]}') from None
    return image_of(pixels)


def figures() -> dict[str, float]:
    """Return what batching did so far."""
    stats = predict.stats
    return {
        "images": stats.answered,
        "batches": stats.batches,
        "mean_size": stats.mean_size,
        "largest": max(stats.sizes, default=0),
    }
