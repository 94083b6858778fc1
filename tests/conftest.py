"""What tests share: full runs, torchvision beside a torch it was not built for, audible Ctrl-C."""

from __future__ import annotations

import signal
import sys
from importlib import import_module
from importlib.util import find_spec

import pytest
import torch

from rasp.network.graph import Input


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


@pytest.fixture(scope="session")
def whole_run():
    """Logits of a full execution in which one layer's stored output is replaced.

    Called with the network, images ``(n, C, H, W)``, the layer and its output ``(n, *shape)``. It
    runs whole blocks of 16 rows, as floating-point rows keep their bits in those alone.
    """

    def run(network, images, layer, output):
        n = len(images)
        block = torch.arange(-(-n // 16) * 16) % n
        values = {}
        with torch.inference_mode():
            for node in network.nodes:
                if isinstance(node, Input):
                    values[node.name] = network.arithmetic.encode(images[block])
                elif node.name == layer:
                    values[node.name] = output[block]
                else:
                    inputs = [values[name] for name in node.inputs]
                    values[node.name] = network.arithmetic.run(node, inputs)
            return network.arithmetic.decode(network.output, values[network.output])[:n]

    return run


@pytest.fixture(scope="session")
def same_bits():
    """Whether two tensors have the same bits, all NaN alike: which of two NaN an addition keeps is
    the compiler's choice."""

    def same(a, b):
        integer = {torch.float32: torch.int32, torch.float16: torch.int16}.get(a.dtype, a.dtype)
        equal = a.contiguous().view(integer) == b.contiguous().view(integer)
        return bool((equal | (a.isnan() & b.isnan())).all())

    return same
