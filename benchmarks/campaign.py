"""How fast a campaign is, as ratios inside one run: against full execution and public injectors.

    python benchmarks/campaign.py --json [--quick]

ResNet-18 in its CIFAR shape with random weights and calibrated batch-norms, one thread. fp32:
``RD_BFLIP``, layers drawn by their cycles on nv_small, neurons and bits uniformly. INT8: the
register-level population of nv_small. Baselines run the plain module: a bare forward hook (one
fault an image, any layer) at its best batch size and memory format, PyTorchFI 0.6.0 and MRFI 2.1.0
in an environment of their own (``--peers DIR``, made if it is not there), and the loop of a golden
and a faulty run at batch 1 with hooks set anew for every trial; ``thesis_loop`` also opens a CSV
file and collects garbage in every trial. Rates are trials per CPU-second; ours
include drawing, replay and classification, and leave the golden run out (``golden_seconds``).

Statistical efficiency is the variance of uniform sampling over that of adaptive sampling at equal
trials and on the same images, all rounds of the campaign included; it needs ``RASP_WEIGHTS``
(ResNet-20) and ``RASP_DATA`` (CIFAR-10). ``limit`` is what the arithmetic of the changed windows
alone would allow at the rate of the network's own convolutions.
"""

from __future__ import annotations

import argparse
import csv
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

import executors
import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from rasp import zoo
from rasp.campaign.job import Job, Task, Worker
from rasp.campaign.runner import inject, specify
from rasp.data import registry
from rasp.faults.models import nvdla_mix
from rasp.network.lower import lower
from rasp.nvdla.config import load
from rasp.quantization.calibrate import quantize

ACCELERATOR = load("nv_small")
HERE = Path(__file__).parent


def calibrated(images):
    """ResNet-18 with random weights whose batch-norms fit the images."""
    torch.manual_seed(0)
    model = zoo.build(zoo.ModelSpec(model="resnet18", num_classes=10, input_shape=(3, 32, 32)))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(images[:256])
    return model.eval()


def pictures(count):
    """CIFAR-10 test images, or noise where there is no data."""
    folder = os.environ.get("RASP_DATA")
    if folder:
        data = registry.load("cifar10", data_dir=Path(folder), download=False)
        return data.tensor(data.test)[:count], torch.from_numpy(data.test.labels[:count])
    return torch.randn(count, 3, 32, 32), torch.zeros(count, dtype=torch.int64)


def job(network, images, labels, models, **options):
    spec = specify(
        network,
        images,
        ACCELERATOR,
        model="benchmark",
        data="cifar10",
        fault_models=models,
        trials=10**9,
        **options,
    )
    return Job(spec, network, ACCELERATOR, images, labels)


def convolutions(model):
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


def flip_one(output, index, rng):
    """Invert a random bit of a random element of one image's output, in place."""
    one = output[index] if output.is_contiguous() else output[index].permute(1, 2, 0)
    flat = one.view(-1).view(torch.int32)
    bit = np.uint32(1) << np.uint32(rng.integers(32))
    flat[int(rng.integers(flat.numel()))] ^= int(bit.astype(np.int32))


class Hook:
    """Full execution with a forward hook: one fault an image, layers by their shares."""

    def __init__(self, model, shares, images, batch, layout):
        self.model = model.to(memory_format=layout)
        self.images = images.contiguous(memory_format=layout)
        self.batch, self.shares, self.rng = batch, shares, np.random.default_rng(0)
        self.layer = np.zeros(batch, dtype=int)
        for number, module in enumerate(convolutions(model)):
            module.register_forward_hook(self.hook(number))

    def hook(self, number):
        def strike(_, __, output):
            for index in np.nonzero(self.layer == number)[0]:
                flip_one(output, index, self.rng)

        return strike

    @torch.inference_mode()
    def run(self, batches):
        start = time.process_time()
        for _ in range(batches):
            self.layer = self.rng.choice(len(self.shares), size=self.batch, p=self.shares)
            chosen = torch.from_numpy(self.rng.integers(len(self.images), size=self.batch))
            self.model(self.images[chosen]).argmax(1)
        return batches * self.batch / (time.process_time() - start)


def best_hook(make, shares, images, sizes):
    """The fastest of batch sizes and memory formats."""
    hooks = [
        Hook(make(), shares, images, batch, layout)
        for batch in sizes
        for layout in (torch.contiguous_format, torch.channels_last)
    ]
    rates = [hook.run(1) and hook.run(max(1, 256 // hook.batch)) for hook in hooks]
    return hooks[int(np.argmax(rates))]


@torch.inference_mode()
def loop(model, shares, images, trials, *, thesis=False):
    """A golden and a faulty run at batch 1, the hook registered and removed for every trial.

    Each trial of the ``thesis`` opens a CSV file for its row and collects garbage, as its public
    code does (FIdelityFramework, 2025); here that walks the objects of this benchmark too.
    """
    rng, layers = np.random.default_rng(0), convolutions(model)
    with tempfile.TemporaryDirectory() as scratch:
        start = time.process_time()
        for trial in range(trials):
            image = images[int(rng.integers(len(images)))][None]
            golden = model(image).argmax(1)
            chosen = layers[int(rng.choice(len(shares), p=shares))]
            handle = chosen.register_forward_hook(lambda _, __, out: flip_one(out, 0, rng))
            faulty = model(image).argmax(1)
            handle.remove()
            row = trial, int(golden), int(faulty), bool(golden != faulty)
            if thesis:
                with (Path(scratch) / "rows.csv").open("a", newline="") as file:
                    csv.writer(file).writerow(row)
                gc.collect()
        return trials / (time.process_time() - start)


def peers(folder, model, shares, images, seconds):
    """Trials per CPU-second of PyTorchFI and MRFI, run by a Python of their own."""
    folder = Path(folder)
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--no-deps"]
        subprocess.run([*pip, "pytorchfi==0.6.0", "mrfi==2.1.0", "pyyaml"], check=True)
        (packages,) = folder.glob("lib/python*/site-packages")
        shared = [path for path in sys.path if path.endswith("site-packages")]
        (packages / "shared.pth").write_text("\n".join([*shared, str(HERE.parent / "src")]))
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "work.safetensors"
        tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
        work = {"images": images[:128].contiguous(), "shares": torch.from_numpy(shares)}
        save_file(tensors | work, path)
        command = [python, HERE / "peers.py", path, str(seconds)]
        found = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(found.stdout.splitlines()[-1])


class Counted:
    """Counts the operations of the convolutions that an arithmetic runs, and their time."""

    def __init__(self, arithmetic):
        self.operations, self.seconds = 0.0, 0.0
        run, run_window = type(arithmetic).run, type(arithmetic).run_window
        inside = []

        def timed(call, node, *inputs):
            if inside or not hasattr(node, "conv"):
                return call(arithmetic, node, *inputs)
            inside.append(node)
            start = time.process_time()
            output = call(arithmetic, node, *inputs)
            self.seconds += time.process_time() - start
            shape = inside.pop().conv
            self.operations += 2.0 * output.numel() * shape.R * shape.S * shape.C // shape.groups
            return output

        object.__setattr__(arithmetic, "run", lambda node, inputs: timed(run, node, inputs))
        object.__setattr__(arithmetic, "run_window", lambda node, x: timed(run_window, node, x))

    def reset(self):
        self.operations, self.seconds = 0.0, 0.0


class Ours:
    """A campaign's worker, run in blocks of trials."""

    def __init__(self, campaign):
        start = time.process_time()
        self.worker = Worker(campaign)
        self.worker.run(Task(0, range(64)))
        self.golden_seconds = time.process_time() - start
        self.next = 64

    def run(self, trials):
        start = time.process_time()
        self.worker.run(Task(0, range(self.next, self.next + trials)))
        self.next += trials
        return trials / (time.process_time() - start)


def limit(worker, images, trials):
    """Trials per second if only the convolutions of changed windows took time, at full speed."""
    arithmetic = worker.replay.network.arithmetic
    counted = Counted(arithmetic)
    with torch.inference_mode():
        worker.replay.network.trace(images[:64])
    whole = counted.operations / counted.seconds
    counted.reset()
    worker.run(Task(0, range(trials)))
    return {
        "gop_per_trial": counted.operations / trials / 1e9,
        "gop_per_second": whole / 1e9,
        "trials_per_second": whole * trials / counted.operations,
    }


def efficiency(number_format, models, trials, images):
    """Variance of uniform sampling over that of adaptive sampling, on the public ResNet-20."""
    weights, folder = os.environ.get("RASP_WEIGHTS"), os.environ.get("RASP_DATA")
    if not weights or not folder:
        return None
    model = zoo.build(zoo.ModelSpec(model="resnet20", num_classes=10, input_shape=(3, 32, 32)))
    zoo.load_weights(model, Path(weights) / "resnet20-12fca82f.th")
    data = registry.load("cifar10", data_dir=Path(folder), download=False)
    chosen, labels = data.tensor(data.test)[:images], torch.from_numpy(data.test.labels[:images])
    network = lower(model.eval(), chosen[:1])
    if number_format == "int8":
        network = quantize(network, data.tensor(data.train)[:256])[0]
    spec = specify(
        network,
        chosen,
        ACCELERATOR,
        model="resnet20",
        data="cifar10",
        fault_models=models,
        trials=trials,
        sampling="adaptive",
        split="given",
    )
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "store.sqlite"
        rate = inject(network, chosen, labels, ACCELERATOR, spec, path).overall["sdc1"]
    return {"efficiency": rate.n_effective / rate.n, "sdc1": str(rate), "events": rate.events}


def measure(options):
    images, labels = pictures(192)  # whose golden tensors fit in memory
    model = calibrated(images)
    network = lower(model, images[:1])
    int8 = quantize(network, images)[0]
    fp32_job = job(network, images, labels, {"RD_BFLIP": 1.0})
    int8_job = job(int8, images, labels, nvdla_mix(ACCELERATOR))
    fp32, registers = Ours(fp32_job), Ours(int8_job)
    strata = fp32.worker.population
    by_layer = dict.fromkeys((stratum.layer for stratum in strata), 0.0)
    for stratum in strata:
        by_layer[stratum.layer] += stratum.weight
    modules = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    shares = np.array([by_layer[name] for name in modules])
    shares /= shares.sum()
    hook = best_hook(lambda: calibrated(images), shares, images, (32, 128))
    rounds = 2 if options.quick else 5
    rates = {"hook": [], "fp32": [], "int8": []}
    for _ in range(rounds):
        rates["hook"].append(hook.run(max(1, 512 // hook.batch)))
        rates["fp32"].append(fp32.run(4096 if options.quick else 8192))
        rates["hook"].append(hook.run(max(1, 512 // hook.batch)))
        rates["int8"].append(registers.run(65536))
    middle = {name: statistics.median(found) for name, found in rates.items()}
    seconds = 5 if options.quick else 30
    loops = {
        "loop": loop(calibrated(images), shares, images, 4 * seconds),
        "thesis_loop": loop(calibrated(images), shares, images, 4 * seconds, thesis=True),
    }
    others = peers(options.peers, model, shares, images, seconds) if options.peers else {}
    trials = 49_152 if options.quick else 262_144
    result = {
        "fp32_vs_hook": middle["fp32"] / middle["hook"],
        "fp32_vs_loop": middle["fp32"] / loops["loop"],
        "fp32_vs_thesis_loop": middle["fp32"] / loops["thesis_loop"],
        "fp32_vs_pytorchfi": None,
        "fp32_vs_mrfi": None,
        "int8_vs_hook": middle["int8"] / middle["hook"],
        "efficiency_fp32": None,
        "efficiency_int8": None,
        "two_workers": None,
        "ray": None,
        "trials_per_cpu_second": middle | loops | others,
        "hook_batch": hook.batch,
        "golden_seconds": {"fp32": fp32.golden_seconds, "int8": registers.golden_seconds},
        "limit": {
            "fp32": limit(fp32.worker, images, 2048),
            "int8": limit(registers.worker, images, 8192),
        },
        "images": len(images),
    }
    for name in ("pytorchfi", "mrfi"):
        if name in others:
            result[f"fp32_vs_{name}"] = middle["fp32"] / others[name]
    for name, number_format, models in (
        ("efficiency_fp32", "fp32", {"RD_BFLIP": 1.0}),
        ("efficiency_int8", "int8", nvdla_mix(ACCELERATOR)),
        ("efficiency_int8_rd_bflip", "int8", {"RD_BFLIP": 1.0}),
    ):
        if options.quick and name.endswith("rd_bflip"):
            continue
        found = efficiency(number_format, models, trials, 1000)
        if found:
            result[name] = found["efficiency"]
            result[f"{name}_sdc1"] = found["sdc1"]
    ratios = executors.measure(
        executors.campaign("int8", 200),
        workers=2,
        chunk=4096,
        aim=24 if options.quick else 120,
        repeats=1 if options.quick else 3,
    )
    result["two_workers"] = ratios["ratios"]["processes / one worker"]
    result["ray"] = ratios["ratios"].get("ray / one worker")
    return result | {"scaling": ratios}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="finish in five minutes")
    parser.add_argument(
        "--peers",
        metavar="DIR",
        default="runs/peers",
        help="environment of the public injectors; empty to leave them out",
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(options)
    if options.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:28} {value}")


if __name__ == "__main__":
    main()
