"""Identity of a lowered network."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields

from torch import Tensor

from rasp.network.graph import Host, Network


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
                hasher.update(str(tuple(value.shape)).encode())
                hasher.update(value.contiguous().numpy().tobytes())
            elif not (isinstance(node, Host) and attribute.name == "call"):
                hasher.update(f"{attribute.name}={value!r};".encode())
    return hasher.hexdigest()
