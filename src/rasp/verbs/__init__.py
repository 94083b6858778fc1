"""The verbs of the command line as functions, with the same names and arguments.

Each verb reads what an earlier one wrote and writes one directory. Calling it again with the same
arguments on the same directory finishes what is missing and changes nothing else. Every verb
raises :class:`rasp.errors.RaspError` for what a user can mend, and has then written nothing new.
"""

from __future__ import annotations

from rasp.verbs._compare import Compared, Comparisons, compare
from rasp.verbs._export import Exported, export
from rasp.verbs._fit import Fit, fit
from rasp.verbs._harden import Hardened, harden
from rasp.verbs._inject import Injected, inject
from rasp.verbs._layer import LayerInjected, inject_layer
from rasp.verbs._merge import Merged, merge
from rasp.verbs._prune import Pruned, prune
from rasp.verbs._quantize import Quantized, quantize
from rasp.verbs._report import Reported, report
from rasp.verbs._train import Evaluated, Trained, evaluate, train

__all__ = [
    "Compared",
    "Comparisons",
    "Evaluated",
    "Exported",
    "Fit",
    "Hardened",
    "Injected",
    "LayerInjected",
    "Merged",
    "Pruned",
    "Quantized",
    "Reported",
    "Trained",
    "compare",
    "evaluate",
    "export",
    "fit",
    "harden",
    "inject",
    "inject_layer",
    "merge",
    "prune",
    "quantize",
    "report",
    "train",
]
