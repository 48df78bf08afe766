"""Serve the digits with FastAPI, under uvicorn: an `async def` endpoint and a `def` endpoint share batches.

Run it, after `pip install -e '.[examples]'`, with:

    python examples/serve_fastapi.py --port 8000

and ask it about an image; this one it takes for a 1:

    curl -s localhost:8000/classify -H 'content-type: application/json' -d '{"pixels":
        [0,0,0,12,13,5,0,0, 0,0,0,11,16,9,0,0, 0,0,3,15,16,6,0,0, 0,7,15,16,16,2,0,0,
         0,0,1,16,16,3,0,0, 0,0,1,16,16,6,0,0, 0,0,1,16,16,6,0,0, 0,0,0,11,16,10,0,0]}'
"""

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import numpy as np
import uvicorn
from anyio import to_thread
from digits import THREADS, figures, image_of, predict
from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel


class Body(BaseModel):
    """The body of a request."""

    pixels: list[float]


class Digit(BaseModel):
    """The answer to it."""

    digit: int


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Serve, with more threads than the usual 40 for `def` endpoints, and at the end answer what was accepted."""
    to_thread.current_default_thread_limiter().total_tokens = THREADS
    async with predict:
        yield


app = FastAPI(lifespan=lifespan)


async def image_in(body: Body) -> np.ndarray:
    """Return the image that a request brings; refuse one that would hurt the others in its batch."""
    try:
        return image_of(body.pixels)
    except ValueError as error:
        raise HTTPException(422, str(error)) from None


Image = Annotated[np.ndarray, Depends(image_in)]


@app.post("/classify")
async def classify(image: Image) -> Digit:
    """Return the digit on an image."""
    return Digit(digit=await predict.aio(image))


@app.post("/classify-in-thread")
def classify_in_thread(image: Image) -> Digit:
    """Return the digit on an image; FastAPI calls this in a thread."""
    return Digit(digit=predict(image))


@app.get("/figures")
async def get_figures() -> dict[str, float]:
    """Return what batching did so far."""
    return figures()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve the digits with FastAPI.")
    parser.add_argument("--port", type=int, default=8000, help="port on 127.0.0.1; 0 for any (default: 8000)")
    uvicorn.run(app, host="127.0.0.1", port=parser.parse_args().port)
