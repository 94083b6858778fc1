"""Trials per second of one worker, of local processes and of Ray on the same campaign.

    python benchmarks/executors.py --seconds 20 --json

Every figure is a whole campaign with its store, from the first chunk handed out to the last one
committed. Starting workers, golden tensors and a first chunk for every worker are warm-up and not
counted. The three take turns, so that a ratio compares neighbours in time. Trials per second of
processor time, of this process and all below it, say what two idle cores would give where others
keep them busy (Linux).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rasp import data, zoo
from rasp.campaign.executors import InProcess, Processes, Ray
from rasp.campaign.job import Job, Task, Worker
from rasp.campaign.runner import run_chunks, specify
from rasp.campaign.store import ImageFacts, StratumFacts, open_or_create
from rasp.faults.models import FIDELITY_MIX
from rasp.network.lower import lower
from rasp.nvdla import config
from rasp.quantization.calibrate import quantize

if TYPE_CHECKING:
    from rasp.campaign.executors import Executor

ONE, PROCESSES, RAY = "one worker", "processes", "ray"


def campaign(number_format: str, images: int) -> Job:
    """ResNet-20 with public weights if RASP_WEIGHTS has them, on CIFAR-10 if RASP_DATA has it."""
    torch.manual_seed(0)
    spec = zoo.ModelSpec(model="resnet20", num_classes=10, input_shape=(3, 32, 32))
    model = zoo.build(spec).eval()
    found = sorted(Path(os.environ.get("RASP_WEIGHTS", ".")).glob("resnet20*.th"))
    if found:
        zoo.load_weights(model, found[0])
    inputs, labels = torch.randn(images, 3, 32, 32), torch.randint(0, 10, (images,))
    if "RASP_DATA" in os.environ:
        dataset = data.load("cifar10", data_dir=Path(os.environ["RASP_DATA"]), download=False)
        split = dataset.test.take(images)
        inputs, labels = dataset.tensor(split), torch.from_numpy(split.labels)
    network = lower(model, inputs[:1])
    if number_format == "int8":
        network, _ = quantize(network, inputs)
    accelerator = config.load("nv_small")
    asked = specify(
        network,
        inputs,
        accelerator,
        model="resnet20",
        data="cifar10",
        fault_models=FIDELITY_MIX,
        trials=1,
    )
    return Job(asked, network, accelerator, inputs, labels)


def processor_time() -> float:
    """Seconds that this process and all below it have had a processor."""
    parent, used = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            pid = int(path.parent.name)
            parent[pid] = int(fields[1])
            used[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    family = {os.getpid()}
    while below := {pid for pid in parent if parent[pid] in family} - family:
        family |= below
    return sum(used.get(pid, 0.0) for pid in family)


def seconds(executor: Executor, job: Job, chunks: int, chunk: int) -> tuple[float, float]:
    """Time and processor time of a campaign of so many chunks."""
    spec = job.spec.model_copy(update={"trials": chunks * chunk})
    with (
        tempfile.TemporaryDirectory() as folder,
        open_or_create(Path(folder) / "campaign.sqlite", spec, chunk=chunk) as store,
    ):
        store.describe([StratumFacts("-", "-", 1.0)], [ImageFacts(0, 0, 1.0, 1.0)])
        started, used = time.perf_counter(), processor_time()
        tasks = [Task(number, store.span(number)) for number in store.missing()]
        run_chunks(executor, store, tasks)
        return time.perf_counter() - started, processor_time() - used


def medians(rates: dict[str, list[float]]) -> dict[str, float]:
    return {name: round(statistics.median(values), 1) for name, values in rates.items()}


def ratios(rates: dict[str, list[float]], pairs: list[tuple[str, str]]) -> dict[str, float]:
    """Medians over the repeats of the ratio within a repeat."""
    return {
        f"{a} / {b}": round(
            statistics.median(x / y for x, y in zip(rates[a], rates[b], strict=True)), 3
        )
        for a, b in pairs
        if a in rates
    }


def measure(job: Job, *, workers: int, chunk: int, aim: float, repeats: int) -> dict[str, object]:
    """Rates of every executor and their ratios, repeat by repeat."""
    with ExitStack() as stack:
        executors: dict[str, Executor] = {
            ONE: InProcess(Worker(job)),
            PROCESSES: stack.enter_context(closing(Processes(job, workers))),
        }
        try:
            import ray

            ray.init(
                num_cpus=workers,
                address="local",
                log_to_driver=False,
                include_dashboard=False,
                logging_level="ERROR",
            )
            stack.callback(ray.shutdown)
            executors[RAY] = stack.enter_context(closing(Ray(job)))
        except ModuleNotFoundError:
            print("Ray is not installed and left out.")
        first = chunk // 4
        warm_up = [Task(n, range(n * first, (n + 1) * first)) for n in range(4 * workers)]
        for executor in executors.values():
            list(executor.run(warm_up))
        chunks = max(4 * workers, round(4 * aim / seconds(executors[ONE], job, 4, chunk)[0]))
        chunks -= chunks % workers
        rates: dict[str, list[float]] = {name: [] for name in executors}
        spent: dict[str, list[float]] = {name: [] for name in executors}
        for _ in range(repeats):
            for name, executor in executors.items():
                elapsed, used = seconds(executor, job, chunks, chunk)
                rates[name].append(chunks * chunk / elapsed)
                spent[name].append(chunks * chunk / used)
    pairs = [(PROCESSES, ONE), (RAY, ONE), (RAY, PROCESSES)]
    return {
        "trials": chunks * chunk,
        "chunk": chunk,
        "workers": workers,
        "trials_per_second": medians(rates),
        "trials_per_processor_second": medians(spent),
        "every_repeat": {name: [round(v, 1) for v in values] for name, values in rates.items()},
        "ratios": ratios(rates, pairs),
        "processor_ratios": ratios(spent, pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--format", choices=("fp32", "int8"), default="int8")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--chunk", type=int, default=1024, help="trials of a chunk")
    parser.add_argument("--seconds", type=float, default=20.0, help="of one worker's campaign")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "torch": torch.__version__,
    }
    found = measure(
        campaign(asked.format, asked.images),
        workers=asked.workers,
        chunk=asked.chunk,
        aim=asked.seconds,
        repeats=asked.repeats,
    )
    found = {"model": "resnet20", "format": asked.format, **found, "machine": machine}
    if asked.json:
        print(json.dumps(found, indent=2))
        return
    print(f"resnet20 {asked.format}, {found['trials']} trials, warm-up excluded")
    for group in ("trials_per_second", "ratios", "processor_ratios"):
        print(group.replace("_", " "))
        for name, value in found[group].items():
            print(f"  {name:22} {value}")


if __name__ == "__main__":
    main()
