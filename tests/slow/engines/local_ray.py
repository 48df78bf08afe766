"""A Ray cluster of this machine alone."""

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .components import component


@contextmanager
def local_ray() -> Iterator[Any]:
    """Start one that needs no network and leaves no files behind; programs started meanwhile find it."""
    ours = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),  # else Ray makes one and puts it into the home folder
    }
    before = {name: os.environ.get(name) for name in (*ours, "RAY_ADDRESS")}
    os.environ.update(ours)
    ray = component("ray")
    try:
        # Not pytest's folder: the path of a Unix socket may have 107 bytes, and Ray needs most of them.
        with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
            try:
                os.environ["RAY_ADDRESS"] = _started(ray, folder)
                yield ray
            finally:
                ray.shutdown()
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _started(ray: Any, folder: str) -> str:
    """Start it; return its address."""
    for attempts_left in (2, 1, 0):
        try:
            context = ray.init(
                num_cpus=4,
                include_dashboard=False,
                object_store_memory=80 * 1024 * 1024,
                log_to_driver=False,
                _node_ip_address="127.0.0.1",
                _temp_dir=folder,
            )
        except Exception:  # it gives its own processes 30 s to start, which a machine that is very busy may need
            ray.shutdown()
            if not attempts_left:
                raise
        else:
            break
    address: str = context.address_info["address"]
    return address
