"""Timeline and register table against the simulated RTL: resident atoms and outputs in reach."""

from __future__ import annotations

import gzip
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from rasp.faults.context import LayerContext
from rasp.faults.records import read_layers
from rasp.nvdla.config import load
from rasp.nvdla.mapping import Mapping
from rasp.nvdla.shapes import ConvShape
from rasp.nvdla.signals import locate
from rasp.nvdla.timeline import Timeline

FOLDER = os.environ.get("RASP_RTL")
pytestmark = pytest.mark.skipif(
    not FOLDER, reason="set RASP_RTL to the folder of nv_small-layer-*.jsonl.gz"
)
START = 7700
"""A cycle before any result."""


def layers():
    return sorted(json.loads((Path(FOLDER) / "layers.json").read_text())) if FOLDER else ["A"]


@pytest.fixture(params=layers(), scope="module")
def recorded(request):
    l = json.loads((Path(FOLDER) / "layers.json").read_text())[request.param]
    shape = ConvShape(
        request.param,
        *(l[key] for key in "CHWKRS"),
        stride=(l["stride"], l["stride"]),
        padding=(l["pad"], l["pad"]),
    )
    with gzip.open(Path(FOLDER) / f"nv_small-layer-{request.param}.jsonl.gz", "rt") as lines:
        records = [json.loads(line) for line in lines]
    return Mapping(shape, load("nv_small")), records


def signal(record):
    return locate(
        record["cls"],
        record["path"],
        record["var"],
        record["bit"],
        rises=record["flip"] == "0->1",
    )


def observed(records):
    seen = [(r["cycle"] - r["stage"], r["atom"]["n"]) for r in records if r["atom"]]
    return [cycle for cycle, _ in seen], [n for _, n in seen]


def test_one_observed_atom_places_every_other(recorded):
    mapping, records = recorded
    cycles, atoms = observed(records)
    timeline = Timeline.fitted(mapping, cycles[:1], atoms[:1])
    assert timeline.atom(cycles).tolist() == atoms


def test_stage_and_cycle_give_the_recorded_atom_or_its_absence(recorded):
    mapping, records = recorded
    timeline = Timeline.fitted(mapping, *observed(records))
    checked = 0
    for record in records:
        found = signal(record)
        if found is None or found.effect == "none" or record["stage"] is None:
            continue
        assert found.stage == record["stage"]
        n = record["atom"]["n"] if record["atom"] else -1
        assert int(timeline.atom(record["cycle"] - found.stage)) == n
        checked += 1
    assert checked > 1000


def reach(mapping, timeline, record):
    """Outputs in reach as (kernel, pixel), None if the register is not modelled."""
    found = signal(record)
    if found is None:
        return None
    if found.effect == "none":
        return set()
    held = timeline.resident(found, record["cycle"], found.stage, found.kernel, found.lane)
    n, kernel = int(held.atom), int(held.kernel)
    if n < 0:
        return set()
    at = mapping.reach(found.reach, n, kernel)
    kernels = [int(at.kernel) + i * int(at.step) for i in range(int(at.kernels))]
    if found.unused:
        kernels = [int(at.kernel)]
    first = int(at.pixel)
    return {(k, p) for k in kernels for p in range(first + found.skip, first + int(at.pixels))}


def test_changed_accumulators_are_within_reach(recorded):
    mapping, records = recorded
    timeline = Timeline.fitted(mapping, *observed(records))
    modelled = changed = full = 0
    for record in records:
        allowed = reach(mapping, timeline, record)
        if allowed is None:
            continue
        modelled += 1
        found = {(k, y * mapping.shape.Wo + x) for k, y, x, _, _ in record["acc"]}
        assert found <= allowed, record["id"]
        assert record["outcome"] != "hang"
        changed += bool(found)
        full += bool(found) and found == allowed
    assert modelled / len(records) > 0.5
    assert full / changed > 0.7


def test_every_record_the_closed_form_covers_is_located(recorded):
    _, records = recorded
    assert all(signal(r) is not None for r in records if r["model_exact"] is not None)


def golden_bit(layer, found, timeline, cycle):
    """Bit of the last value that came through an SDP register, 0 before the first."""
    held = timeline.resident(
        found, np.arange(START, cycle + 1), found.stage, found.kernel, found.lane
    )
    (live,) = np.nonzero(held.atom >= 0)
    if not live.size:
        return 0
    shape, arithmetic = layer.conv.conv, layer.network.arithmetic
    context = LayerContext(layer.conv, arithmetic, load("nv_small"))
    at = context.mapping.atom(held.atom[live[-1:]])
    kernel = int(at.kgroup[0]) * 8 + int(held.kernel[live[-1]])
    sums = arithmetic.accumulate(layer.conv, layer.x).reshape(shape.K, -1)
    integers = arithmetic.layers[layer.conv.name]
    result = int(sums[kernel, at.pixel[0]]) if kernel < shape.K else 0
    biased = result + int(integers.bias[kernel])
    scale, shift = int(integers.converter.multiplier[kernel]), integers.converter.shift
    rectified = max(biased, 0) if integers.converter.low == 0 else biased
    rounded = math.copysign((abs(rectified * scale) + (1 << (shift - 1))) >> shift, rectified)
    value = {
        "result": result,
        "bias": int(integers.bias[kernel]),
        "operand": int(integers.bias[kernel]),
        "biased": biased,
        "saturated": biased,
        "rectified": rectified,
        "offset": rectified,
        "scaled": rectified * scale,
        "shifted": int(rounded),
        "output": max(-128, min(127, int(rounded))),
    }[found.effect]
    return value >> found.bit & 1


@pytest.mark.parametrize("name", ["A", "B", "D"])
def test_registers_of_the_sdp_held_the_bit_that_was_inverted(name):
    """The direction of every upset tells what the register held, whether it changed anything."""
    path = Path(FOLDER) / f"nv_small-layer-{name}.jsonl.gz"
    layer = read_layers(path)[1][name]
    with gzip.open(path, "rt") as lines:
        records = [json.loads(line) for line in lines]
    mapping = Mapping(layer.conv.conv, load("nv_small"))
    timeline = Timeline.fitted(mapping, *observed(records))
    checked = 0
    for record in records:
        found = signal(record)
        if not record["cls"].startswith("sdp") or found is None or found.effect == "none":
            continue
        if found.held == "word":  # commands to memory pass through it too
            continue
        expected = golden_bit(layer, found, timeline, record["cycle"])
        assert expected == (record["flip"] == "1->0"), record["id"]
        checked += 1
    assert checked > {"A": 300, "B": 50, "D": 25}[name]


def test_counts_of_the_whole_set():
    total = np.zeros(2, dtype=int)
    for path in sorted(Path(FOLDER).glob("nv_small-layer-[ABD].jsonl.gz")):
        with gzip.open(path, "rt") as lines:
            found = [signal(json.loads(line)) is not None for line in lines]
        total += sum(found), len(found)
    assert total.tolist() == [19_867, 34_170]
