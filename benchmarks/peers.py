"""Public injectors on the benchmark's network; run by a Python that has them installed.

Usage: ``peers.py WORK SECONDS``, where WORK holds weights, images and shares of the layers. One
fault a trial, random layer by its share and random neuron. PyTorchFI writes a given value (its own
bit flip would cost more), MRFI flips a random bit; neither run of golden images is counted.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from rasp import zoo


def pytorchfi(model, images, shares, seconds):
    from pytorchfi.core import fault_injection

    injector = fault_injection(model, 1, input_shape=[3, 32, 32], layer_types=[nn.Conv2d])
    rng, trials, start = np.random.default_rng(0), 0, time.process_time()
    while time.process_time() - start < seconds:
        layer = int(rng.choice(len(shares), p=shares))
        _, channels, height, width = injector.get_layer_shape(layer)
        faulty = injector.declare_neuron_fi(
            batch=[0],
            layer_num=[layer],
            dim1=[int(rng.integers(channels))],
            dim2=[int(rng.integers(height))],
            dim3=[int(rng.integers(width))],
            value=[float(rng.normal())],
        )
        faulty(images[trials % len(images)][None]).argmax(1)
        trials += 1
    return trials / (time.process_time() - start)


def mrfi(model, images, shares, seconds, batch):
    from mrfi import MRFI, EasyConfig

    config = EasyConfig(
        {
            "faultinject": [
                {
                    "type": "activation_out",
                    "enabled": True,
                    "error_mode": {"method": "FloatRandomBitFlip"},
                    "selector": {
                        "method": "RandomPositionByNumber",
                        "n": 1,
                        "per_instance": True,
                    },
                    "module_type": ["Conv2d"],
                }
            ]
        }
    )
    injector = MRFI(model, config)
    configs = injector.get_activation_configs
    layers = [configs(is_out=True, module_fullname=name) for name in names(model)]
    for layer in layers:
        layer.enabled = False
    rng, trials, start = np.random.default_rng(0), 0, time.process_time()
    while time.process_time() - start < seconds:
        layer = layers[int(rng.choice(len(shares), p=shares))]
        layer.enabled = True
        injector(images[rng.integers(len(images), size=batch)]).argmax(1)
        layer.enabled = False
        trials += batch
    return trials / (time.process_time() - start)


def names(model):
    return [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]


def main():
    path, seconds = sys.argv[1], float(sys.argv[2])
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    state = load_file(path)
    images, shares = state.pop("images"), state.pop("shares").numpy()

    def built():
        spec = zoo.ModelSpec(model="resnet18", num_classes=10, input_shape=(3, 32, 32))
        model = zoo.build(spec).eval()
        model.load_state_dict(state)
        return model

    with torch.inference_mode():
        result = {
            "pytorchfi": pytorchfi(built(), images, shares, seconds),
            "mrfi": max(mrfi(built(), images, shares, seconds, batch) for batch in (1, 32)),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
