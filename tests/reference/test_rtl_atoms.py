"""The sequence of atoms against the ``atom`` fields of the simulated RTL."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest

from rasp.nvdla.config import load
from rasp.nvdla.mapping import Mapping
from rasp.nvdla.shapes import ConvShape

FOLDER = os.environ.get("RASP_RTL")
pytestmark = pytest.mark.skipif(
    not FOLDER, reason="set RASP_RTL to the folder of nv_small-layer-*.jsonl.gz"
)


def layers():
    return sorted(json.loads((Path(FOLDER) / "layers.json").read_text())) if FOLDER else ["A"]


@pytest.fixture(params=layers())
def recorded(request):
    l = json.loads((Path(FOLDER) / "layers.json").read_text())[request.param]
    shape = ConvShape(
        request.param,
        *(l[key] for key in "CHWKRS"),
        stride=(l["stride"], l["stride"]),
        padding=(l["pad"], l["pad"]),
    )
    with gzip.open(Path(FOLDER) / f"nv_small-layer-{request.param}.jsonl.gz", "rt") as lines:
        atoms = [record["atom"] for record in map(json.loads, lines)]
    return Mapping(shape, load("nv_small")), [atom for atom in atoms if atom]


def test_the_numbered_atom_has_the_coordinates_the_rtl_recorded(recorded):
    mapping, atoms = recorded
    assert atoms
    n = np.array([atom["n"] for atom in atoms])
    found = mapping.atom(n)
    y, x = np.divmod(found.pixel, mapping.shape.Wo)
    ours = {
        "kgroup": found.kgroup,
        "y": y,
        "x": x,
        "cblock": found.cblock,
        "r": found.r,
        "s": found.s,
        "pos_in_stripe": found.position,
        "stripe_len": found.length,
    }
    for field, values in ours.items():
        assert values.tolist() == [atom[field] for atom in atoms], field
