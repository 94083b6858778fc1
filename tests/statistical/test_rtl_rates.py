"""Rates of the register models on the recorded layers against the rates of the records.

Buffer writes are drawn over a layer's whole window; the records begin when most are done. Both
shares are below 2 %.

The chance that a correct model fails a check is that of ``SIGMAS`` standard errors, 6e-5, times the
number of checks; seeds are fixed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import numpy as np
import pytest
import torch

from rasp.campaign.runner import inject, specify
from rasp.faults.models import nvdla_mix
from rasp.faults.population import Stratum
from rasp.faults.records import read_layers, read_records
from rasp.faults.sampling import draw
from rasp.nvdla.config import load
from rasp.nvdla.layout import shares
from rasp.nvdla.signals import locate
from rasp.replay.engine import Replay

FOLDER = os.environ.get("RASP_RTL")
pytestmark = pytest.mark.skipif(
    not FOLDER, reason="set RASP_RTL to the folder of nv_small-layer-*.jsonl.gz"
)
SIGMAS = 4.0
TRIALS = 20_000


class Share(NamedTuple):
    estimate: float
    variance: float


def recorded(layer, group=None):
    """Flip-flop-weighted share of records of modelled registers that change an output."""
    flops: dict[str, float] = {}
    for field, count in shares(load("nv_small")):
        if group in (field.group, None):
            flops[field.cls] = flops.get(field.cls, 0.0) + count
    hits: dict[str, list[bool]] = {name: [] for name in flops}
    for record in read_records(Path(FOLDER) / f"nv_small-layer-{layer}.jsonl.gz"):
        if record.cls not in hits:
            continue
        found = locate(record.cls, record.path, record.var, record.bit, rises=record.rises)
        by_rate = record.var == "wt_data_remain" or record.cls == "cbuf_wr_data"
        if found is not None or by_rate:
            hits[record.cls].append(record.n_outputs > 0)
    estimate = variance = 0.0
    for name, count in flops.items():
        weight, seen = count / sum(flops.values()), np.array(hits[name], dtype=float)
        # one pseudo-event a class, so that a class without events has a variance
        smoothed = (seen.sum() + 0.5) / (len(seen) + 1)
        estimate += weight * seen.mean()
        variance += weight**2 * smoothed * (1 - smoothed) / len(seen)
    return Share(float(estimate), float(variance))


def layer_of(name):
    _, layers = read_layers(Path(FOLDER) / f"nv_small-layer-{name}.jsonl.gz")
    return layers[name]


def modelled(layer, group):
    found = layer_of(layer)
    label = torch.zeros(1, dtype=torch.int64)
    replay = Replay(found.network, load("nv_small"), found.x.float(), label, batch=512)
    population = [Stratum(layer, group, 1.0)]
    seed = crc32(f"{layer} {group}".encode())
    _, outcomes = replay.run(
        population, draw(population, images=1, seed=seed, trials=range(TRIALS))
    )
    share = float((outcomes.changed > 0).mean())
    return Share(share, max(share, 1 / TRIALS) * (1 - share) / TRIALS)


def agree(a, b):
    return abs(a.estimate - b.estimate) < SIGMAS * (a.variance + b.variance) ** 0.5


@pytest.mark.parametrize("layer", ["A", "B", "D"])
def test_each_group_of_registers_changes_outputs_as_often_as_the_rtl(layer):
    differing = {
        group: (model, records)
        for group in nvdla_mix(load("nv_small"))
        if not agree(model := modelled(layer, group), records := recorded(layer, group))
    }
    assert not differing


@pytest.mark.parametrize("layer", ["A", "D"])
def test_a_campaign_on_a_recorded_layer_has_the_rate_of_its_records(layer, tmp_path):
    found, small = layer_of(layer), load("nv_small")
    images, labels = found.x.float(), torch.zeros(1, dtype=torch.int64)
    spec = specify(
        found.network,
        images,
        small,
        model=layer,
        data="rtl",
        fault_models=nvdla_mix(small),
        trials=TRIALS,
    )
    result = inject(found.network, images, labels, small, spec, tmp_path / "store.sqlite")
    share = 1 - result.overall["masked"].estimate
    model = Share(share, share * (1 - share) / TRIALS)
    assert agree(model, recorded(layer))
