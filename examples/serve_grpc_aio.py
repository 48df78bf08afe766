"""Serve the digits with gRPC, from an event loop.

Run it, after `pip install -e '.[examples]' grpcio`, with:

    python examples/serve_grpc_aio.py --port 8000

and ask it as `serve_grpc.py` is asked.
"""

import argparse
import asyncio
import json
import signal
import sys

import grpc
import numpy as np
from digits import figures, image_of, predict


async def classify(request: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
    """Return the digit on an image."""
    try:
        image = image_of(np.frombuffer(request, np.uint8))
    except ValueError as error:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
    return bytes([await predict.aio(image)])


async def get_figures(_: bytes, __: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
    """Return what batching did so far."""
    return json.dumps(figures()).encode()


async def serve(port: int) -> None:
    """Serve until SIGINT or SIGTERM, then finish what is under way."""
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)

    server = grpc.aio.server()
    methods = {
        "Classify": grpc.unary_unary_rpc_method_handler(classify),
        "Figures": grpc.unary_unary_rpc_method_handler(get_figures),
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("Digits", methods)])
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print(f"listening at 127.0.0.1:{port}", file=sys.stderr, flush=True)
    await stopped.wait()
    await server.stop(grace=10)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve the digits with gRPC, from an event loop.")
    parser.add_argument("--port", type=int, default=8000, help="port on 127.0.0.1; 0 for any (default: 8000)")
    asyncio.run(serve(parser.parse_args().port))
