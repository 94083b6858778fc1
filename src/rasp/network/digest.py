"""Identity of a lowered network."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields

from torch import Tensor

from rasp.network.graph import Bound, Network


def digest(network: Network) -> str:
    """SHA-256 over the graph, its constants and the arithmetic's scales, 64 hex digits.

    Two networks with the same digest compute the same bits, up to host operations, which enter by
    name and by their constants' absence: their code is torch's.
    """
    hasher = hashlib.sha256()
    scales = getattr(network.arithmetic, "scales", None)
    header = [network.format, network.output, scales and dict(sorted(scales.items()))]
    hasher.update(json.dumps(header).encode())
    for node in network.nodes:
        hasher.update(type(node).__name__.encode())
        for attribute in fields(node):
            value = getattr(node, attribute.name)
            if isinstance(value, Tensor):
                _add(hasher, value)
            elif isinstance(value, Bound):
                hasher.update(f"bound={value.zero};".encode())
                _add(hasher, value.low)
                _add(hasher, value.high)
            elif attribute.name not in ("bound", "call"):
                hasher.update(f"{attribute.name}={value!r};".encode())
    return hasher.hexdigest()


def _add(hasher: hashlib._Hash, tensor: Tensor) -> None:
    hasher.update(str(tuple(tensor.shape)).encode())
    hasher.update(tensor.contiguous().numpy().tobytes())
