"""What a trial costs in campaigns of a thousand to a million: `python benchmarks/scale.py --json`.

Whole campaigns with their stores in one process, golden tensors and a first chunk not counted, on
the ResNet-20 of :mod:`executors`. Milliseconds of processor time a trial.
"""

from __future__ import annotations

import argparse
import json
import resource

import torch
from executors import campaign, seconds

from rasp.campaign.chunks import TRIALS
from rasp.campaign.executors import InProcess
from rasp.campaign.job import Task, Worker


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--format", choices=("fp32", "fp16", "int8"), default="int8")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--powers", type=int, nargs="+", default=[10, 13, 16, 20], help="of two")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    job = campaign(asked.format, asked.images)
    executor = InProcess(Worker(job))
    most = TRIALS[job.network.format]
    list(executor.run([Task(0, range(most))]))
    cost = {}
    for power in asked.powers:
        chunk = min(most, 2**power)
        _, used = seconds(executor, job, 2**power // chunk, chunk)
        cost[2**power] = round(1000 * used / 2**power, 4)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    found = {"format": asked.format, "milliseconds": cost, "peak_gib": round(peak, 2)}
    print(json.dumps(found) if asked.json else found)


if __name__ == "__main__":
    main()
