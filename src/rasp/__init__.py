"""Reliability-aware structural pruning: prune, quantise, and measure what an upset does.

The verbs are the front door; the nouns are what they pass on. Everything is imported when it is
first used, so ``import rasp`` costs no torch.

Example:
    >>> import rasp
    >>> "inject" in dir(rasp)
    True
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rasp.campaign.result import CampaignResult
    from rasp.campaign.spec import CampaignSpec
    from rasp.data import Dataset, Split
    from rasp.errors import RaspError
    from rasp.network.graph import Network
    from rasp.network.lower import lower
    from rasp.nvdla.config import AcceleratorConfig
    from rasp.pruning.allocation import Budget
    from rasp.pruning.plan import PruningPlan
    from rasp.replay.engine import Replay
    from rasp.statistics import Rate, Ratio
    from rasp.verbs import compare, evaluate, harden, inject, prune, quantize, train
    from rasp.verbs import report as write_report
    from rasp.zoo import ModelSpec

_HOMES = {
    "AcceleratorConfig": "rasp.nvdla.config",
    "Budget": "rasp.pruning.allocation",
    "CampaignResult": "rasp.campaign.result",
    "CampaignSpec": "rasp.campaign.spec",
    "Dataset": "rasp.data",
    "ModelSpec": "rasp.zoo",
    "Network": "rasp.network.graph",
    "PruningPlan": "rasp.pruning.plan",
    "RaspError": "rasp.errors",
    "Rate": "rasp.statistics",
    "Ratio": "rasp.statistics",
    "Replay": "rasp.replay.engine",
    "Split": "rasp.data",
    "compare": "rasp.verbs",
    "evaluate": "rasp.verbs",
    "harden": "rasp.verbs",
    "inject": "rasp.verbs",
    "lower": "rasp.network.lower",
    "prune": "rasp.verbs",
    "quantize": "rasp.verbs",
    "train": "rasp.verbs",
    "write_report": "rasp.verbs:report",  # rasp.report is the package that draws
}

__all__ = [
    "AcceleratorConfig",
    "Budget",
    "CampaignResult",
    "CampaignSpec",
    "Dataset",
    "ModelSpec",
    "Network",
    "PruningPlan",
    "RaspError",
    "Rate",
    "Ratio",
    "Replay",
    "Split",
    "compare",
    "evaluate",
    "harden",
    "inject",
    "lower",
    "prune",
    "quantize",
    "train",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rasp' has no attribute '{name}'")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(import_module(module), attribute or name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
