"""Golden INT8 inference against fp32, ResNet-18, batch 64, one thread, as ratios of one run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from rasp import zoo
from rasp.network.lower import lower
from rasp.quantization.calibrate import quantize

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = 5


def cpu_seconds(runs: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Least CPU time of each run; rounds interleave them, so that all see the same machine."""
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(ROUNDS):
        for name, run in runs.items():
            started = time.process_time()
            run()
            best[name] = min(best[name], time.process_time() - started)
    return best


def test_int8_against_fp32() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    spec = zoo.ModelSpec(model="resnet18", num_classes=10, input_shape=(3, 32, 32))
    model = zoo.build(spec).eval()
    images = torch.randn(64, 3, 32, 32)
    network = lower(model, images)
    quantised, _ = quantize(network, images, observer="minmax")
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    last = images.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        best = cpu_seconds(
            {
                "int8": lambda: quantised(images),
                "fp32 graph": lambda: network(images),
                "fp32 module, channels last": lambda: model(last),
            }
        )
    print()
    for name, seconds in best.items():
        print(f"{name:28s} {seconds:6.3f} CPU-s   {seconds / best['int8']:.2f}x int8")
