"""Rows a second that a store takes, and seconds to sum it up: `python benchmarks/store.py --json`.

Trials look like those of ResNet-18 on 200 images: 84 strata, weighted, most of them masked.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from rasp.campaign import result, store
from rasp.campaign.merge import merge
from rasp.campaign.spec import CampaignSpec
from rasp.campaign.store import COLUMNS, OUTCOMES, ImageFacts, StratumFacts

LAYERS, MODELS, IMAGES = 21, 4, 200


def spec_of(trials: int) -> CampaignSpec:
    return CampaignSpec(
        network_digest="benchmark",
        model="resnet18",
        data="noise",
        images=IMAGES,
        format="int8",
        accelerator="nv_small",
        accelerator_digest="benchmark",
        fault_models={f"MODEL{model}": 1.0 for model in range(MODELS)},
        trials=trials,
    )


def block(span: range) -> tuple[np.ndarray, np.ndarray]:
    """Columns and weights of a chunk that nothing was injected for."""
    generator = np.random.default_rng(span.start)
    n = len(span)
    columns = {name: generator.integers(0, 64, n) for name in COLUMNS}
    columns["trial"] = np.arange(span.start, span.stop)
    columns["stratum"] = generator.integers(0, LAYERS * MODELS, n)
    columns["image"] = generator.integers(0, IMAGES, n)
    columns["bit"] = generator.integers(-1, 32, n)
    columns["value"] = generator.integers(-(2**15), 2**15, n)
    for name in OUTCOMES:
        columns[name] = (generator.random(n) < 0.05).astype(np.int64)
    columns["masked"] = (generator.random(n) < 0.8).astype(np.int64)
    return np.column_stack([columns[name] for name in COLUMNS]), generator.uniform(0.5, 2, n)


class Clock:
    """Adds up wall and processor seconds of the blocks it is entered for."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def __enter__(self) -> None:
        self._started = time.perf_counter(), time.process_time()

    def __exit__(self, *error: object) -> None:
        self.wall += time.perf_counter() - self._started[0]
        self.cpu += time.process_time() - self._started[1]


def measure(path: Path, trials: int) -> dict[str, float]:
    names = ("append", "read", "read_and_overall", "by_layer", "resume_check", "merge")
    clocks = {name: Clock() for name in names}
    count = LAYERS * MODELS
    strata = [
        StratumFacts(f"layer{i // MODELS}", f"MODEL{i % MODELS}", 1 / count) for i in range(count)
    ]
    with store.open_or_create(path, spec_of(trials)) as opened:
        opened.describe(strata, [ImageFacts(i % 10, i % 10, 0.5, 1.0) for i in range(IMAGES)])
        for chunk in opened.missing():
            columns, weight = block(opened.span(chunk))
            with clocks["append"]:
                opened.commit(chunk, columns, weight)
    with clocks["read"]:
        tallies = store.read(path).tallies
    with clocks["read_and_overall"]:
        summary = result.read(path)
        assert summary.overall
    with clocks["by_layer"]:
        assert summary.by_layer
    with clocks["resume_check"]:
        store.open_or_create(path, spec_of(trials)).close()
    with clocks["merge"]:
        merge(path.with_name("merged.sqlite"), [path])
    found: dict[str, float] = {
        "trials": trials,
        "append_rows_per_second": trials / clocks["append"].wall,
        "file_bytes": path.stat().st_size,
        "tallies": len(tallies.trials),
    }
    for name, clock in clocks.items():
        found |= {f"{name}_seconds": clock.wall, f"{name}_cpu_seconds": clock.cpu}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, help="where the store is put; deleted at the end")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        found = measure(Path(folder) / "campaign.sqlite", arguments.trials)
    if arguments.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name.replace('_', ' '):26}{value:,.2f}")


if __name__ == "__main__":
    main()
