"""Buffer writes: every stored byte once, and the two that the RTL records show."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from rasp.faults.context import LayerContext
from rasp.faults.models import REGISTER_MODELS
from rasp.faults.records import read_layers, read_records
from rasp.faults.sites import Sites
from rasp.faults.values import LayerValues
from rasp.nvdla.config import load
from rasp.nvdla.cycles import layer_window
from rasp.nvdla.layout import shares

SAMPLE = Path(__file__).parents[2] / "data" / "rtl"
FOLDER = Path(os.environ.get("RASP_RTL", SAMPLE))
MODEL = REGISTER_MODELS["BUFFER_WRITE"]


def recorded(name, folder=SAMPLE):
    layer = read_layers(folder / "any.jsonl")[1][name]
    return layer, LayerContext(layer.conv, layer.network.arithmetic, load("nv_small"))


@pytest.mark.parametrize("name", ["A", "B", "D"])
def test_every_bit_of_every_input_and_weight_passes_each_stage_once(name):
    layer, context = recorded(name)
    window = np.arange(layer_window(layer.conv.conv, context.accelerator))
    layout = [
        share.field for share in shares(context.accelerator) if share.field.group == MODEL.name
    ]
    for number, field in enumerate(layout):
        seen = []
        for position in range(field.bits):
            n = len(window)
            sites = MODEL.sites(context, np.full(n, number), np.full(n, position), window)
            (live,) = np.nonzero((sites.kernel >= 0) | (sites.pixel >= 0))
            columns = (
                getattr(sites, c)[live] for c in ("kernel", "channel", "r", "s", "pixel", "bit")
            )
            seen.append(np.stack(list(columns), 1))
        found = np.concatenate(seen)
        stored = 8 * (layer.x.numel() + context.conv.weight.numel())
        assert len(found) == len(np.unique(found, axis=0)) == stored


def changed(context, layer, sites):
    """Sums and outputs of one flipped byte, by the model and the whole layer run again."""
    y = layer.network.trace(layer.x.float())[layer.conv.name]
    found = MODEL.change(sites, LayerValues.of(context, layer.x))
    kept = found.value != y.flatten()[found.element]
    return dict(zip(found.element[kept].tolist(), found.value[kept].tolist(), strict=True))


@pytest.mark.skipif(
    "RASP_RTL" not in os.environ, reason="set RASP_RTL to the folder of nv_small-layer-*.jsonl.gz"
)
@pytest.mark.parametrize("name", ["A", "D"])
def test_recorded_upsets_of_the_write_registers_are_one_stored_weight_bit(name):
    layer, context = recorded(name, FOLDER)
    shape = layer.conv.conv
    records = [
        record
        for record in read_records(FOLDER / f"nv_small-layer-{name}.jsonl.gz")
        if record.cls == "cbuf_wr_data" and record.n_outputs
    ]
    assert len(records) == 1
    [record] = records
    kernel = min(k for k, *_ in record.outputs)
    expected = {(k * shape.Ho + y) * shape.Wo + x: new for k, y, x, _, new in record.outputs}
    bit, matches = record.bit % 8, 0
    for channel, r, s in np.ndindex(shape.C, shape.R, shape.S):
        at = {"kernel": kernel, "channel": channel, "r": r, "s": s, "bit": bit}
        sites = Sites.of(1, **{key: np.array([value]) for key, value in at.items()})
        matches += changed(context, layer, sites) == expected
    assert 1 <= matches <= 3  # channels with the same input at the only pixel of D


def test_an_input_and_a_weight_change_what_they_do_in_memory():
    layer, context = recorded("A")
    x = layer.x.clone()
    x[0, 3, 2, 4] ^= 16
    pixel = 2 * layer.conv.conv.W + 4
    at = {"channel": 3, "pixel": pixel, "bit": 4}
    sites = Sites.of(1, **{key: np.array([value]) for key, value in at.items()})
    golden = layer.network.trace(layer.x.float())["A"].flatten()
    faulty = layer.network.trace(x.float())["A"].flatten()
    different = torch.nonzero(golden != faulty).flatten().tolist()
    assert changed(context, layer, sites) == {i: int(faulty[i]) for i in different}
