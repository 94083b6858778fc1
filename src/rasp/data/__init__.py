"""Image sets: own readers on NumPy, no pickle, one normalisation per set. Torch-free at import."""

from __future__ import annotations

from rasp.data.dataset import Dataset, Split
from rasp.data.registry import DATASETS, load

__all__ = ["DATASETS", "Dataset", "Split", "load"]
