"""Serve the digits with gRPC, from threads.

Run it, after `pip install -e '.[examples]' grpcio`, with:

    python examples/serve_grpc.py --port 8000

and ask it about an image, one byte a pixel; this one it takes for a 1:

    python - <<'PYTHON'
    import grpc
    rows = "000cd500 000bg900 003fg600 07fgg200 001gg300 001gg600 001gg600 000bga00"
    image = bytes(int(pixel, 17) for row in rows.split() for pixel in row)
    print(grpc.insecure_channel("localhost:8000").unary_unary("/Digits/Classify")(image)[0])
    PYTHON

Messages are plain bytes, so that no generated code is needed; with it the servicer's methods are these functions.
"""

import argparse
import json
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import grpc
import numpy as np
from digits import THREADS, figures, image_of, predict


def classify(request: bytes, context: grpc.ServicerContext) -> bytes:
    """Return the digit on an image."""
    try:
        image = image_of(np.frombuffer(request, np.uint8))
    except ValueError as error:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
    return bytes([predict(image)])


def get_figures(_: bytes, __: grpc.ServicerContext) -> bytes:
    """Return what batching did so far."""
    return json.dumps(figures()).encode()


def main() -> None:
    """Serve until SIGINT or SIGTERM, then finish what is under way."""
    parser = argparse.ArgumentParser(description="Serve the digits with gRPC, from threads.")
    parser.add_argument("--port", type=int, default=8000, help="port on 127.0.0.1; 0 for any (default: 8000)")

    server = grpc.server(ThreadPoolExecutor(THREADS))
    methods = {
        "Classify": grpc.unary_unary_rpc_method_handler(classify),
        "Figures": grpc.unary_unary_rpc_method_handler(get_figures),
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("Digits", methods)])
    port = server.add_insecure_port(f"127.0.0.1:{parser.parse_args().port}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        server.start()
        print(f"listening at 127.0.0.1:{port}", file=sys.stderr, flush=True)
        server.wait_for_termination()
    server.stop(grace=10).wait()


if __name__ == "__main__":
    main()
