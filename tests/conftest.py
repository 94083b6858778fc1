"""What tests share: torchvision beside a torch it was not built for, and an audible Ctrl-C."""

from __future__ import annotations

import signal
import sys
from importlib import import_module
from importlib.util import find_spec

import pytest
import torch


@pytest.fixture(scope="session")
def vision():
    """Make torchvision and timm importable, or skip.

    The wheel on PyPI is linked to CUDA, so that beside a CPU torch its operators are missing and
    it cannot be imported; networks need no more than that they are declared.
    """
    if find_spec("torchvision") is None or find_spec("timm") is None:
        pytest.skip("the vision extra is not installed")
    library = None
    try:
        import_module("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import_module("torchvision")
    return library


@pytest.fixture
def interruptible():
    """Hear SIGINT, and let child processes hear it, where the suite was started in the background.

    A shell starts background jobs with the signal ignored, and children inherit that.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
