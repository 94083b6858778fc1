"""Networks that rasp knows by name, and how any other network is named and loaded."""

from __future__ import annotations

from rasp.zoo.build import build
from rasp.zoo.spec import MODELS, ModelSpec
from rasp.zoo.weights import load_state, load_weights

__all__ = ["MODELS", "ModelSpec", "build", "load_state", "load_weights"]
