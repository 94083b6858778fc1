"""Faults per second of a campaign on LeNet-5, one thread: `make bench` prints them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
import torch

from rasp import data, zoo
from rasp.campaign import runner
from rasp.faults.models import FIDELITY_MIX
from rasp.loading import Loaded, network_of
from rasp.nvdla import config

if TYPE_CHECKING:
    from pathlib import Path

TRIALS = 16_384


@pytest.mark.parametrize("number_format", ["fp32", "fp16", "int8"])
def test_campaign_throughput(number_format: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    dataset = data.load("digits")
    spec = zoo.ModelSpec(
        model="lenet5", num_classes=dataset.classes, input_shape=dataset.input_shape
    )
    loaded = Loaded(zoo.build(spec).eval(), spec, dataset)
    network = network_of(loaded, number_format, calibration=256, seed=0)
    split = dataset.test.take(200)
    images = dataset.tensor(split)
    accelerator = config.load("nv_small")
    campaign = runner.specify(
        network,
        images,
        accelerator,
        model="lenet5",
        data="digits",
        fault_models=FIDELITY_MIX,
        trials=TRIALS,
    )
    started = time.perf_counter()
    runner.inject(
        network,
        images,
        torch.from_numpy(split.labels),
        accelerator,
        campaign,
        tmp_path / "campaign.sqlite",
    )
    print(f"\nlenet5 {number_format}: {TRIALS / (time.perf_counter() - started):,.0f} faults/s")
