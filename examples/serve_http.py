"""Serve a random forest over HTTP: each request brings one image, requests that come together share a batch.

Run it, after `pip install -e '.[examples]'`, with:

    python examples/serve_http.py --port 8000

and ask it about an image of 8 x 8 pixels, each from 0 to 16, row by row; this one it takes for a 1:

    curl -s localhost:8000/classify -H 'content-type: application/json' -d '{"pixels":
        [0,0,0,12,13,5,0,0, 0,0,0,11,16,9,0,0, 0,0,3,15,16,6,0,0, 0,7,15,16,16,2,0,0,
         0,0,1,16,16,3,0,0, 0,0,1,16,16,6,0,0, 0,0,1,16,16,6,0,0, 0,0,0,11,16,10,0,0]}'
"""

import argparse
import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import numpy as np
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, Field
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier

from batchify import batched

BATCH_SIZE = 64


class Image(BaseModel):
    """The body of a request."""

    pixels: Annotated[list[float], Field(min_length=64, max_length=64)]


class Digit(BaseModel):
    """The answer to it."""

    digit: int


class Figures(BaseModel):
    """What batching did so far."""

    images: int
    batches: int
    mean_size: float


def train() -> RandomForestClassifier:
    """Return a forest that knows the digits of scikit-learn."""
    digits = load_digits()
    return RandomForestClassifier(n_estimators=500, n_jobs=1, random_state=0).fit(digits.data, digits.target)


forest = train()


@batched(batch_size=BATCH_SIZE)
def predict(images: list[np.ndarray]) -> list[int]:
    """Classify images, in a thread of its own, so that the event loop goes on meanwhile."""
    return [int(digit) for digit in forest.predict(np.stack(images))]


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Serve, and at the end answer what was accepted."""
    yield
    await asyncio.to_thread(predict.close)


app = FastAPI(lifespan=lifespan)


@app.post("/classify")
async def classify(image: Image) -> Digit:
    """Return the digit on an image."""
    return Digit(digit=await predict.aio(np.array(image.pixels)))


@app.get("/figures")
async def figures() -> Figures:
    """Return what batching did so far."""
    stats = predict.stats
    return Figures(images=stats.answered, batches=stats.batches, mean_size=stats.mean_size)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve a random forest over HTTP.")
    parser.add_argument("--port", type=int, default=8000, help="port on 127.0.0.1; 0 for any (default: 8000)")
    uvicorn.run(app, host="127.0.0.1", port=parser.parse_args().port)
