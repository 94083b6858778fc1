"""Fault models by name, and the mixes in which they occur."""

from __future__ import annotations

from rasp.errors import unknown_name
from rasp.faults.context import FaultModel, LayerContext
from rasp.faults.control import StreamShift, StripeRandom
from rasp.faults.fidelity import Input, Input16, OutputBitFlip, OutputRandom, Weight, Weight16
from rasp.faults.registers import RegisterModel, nvdla_mix
from rasp.faults.writes import BufferWrite
from rasp.nvdla.layout import GROUPS

__all__ = [
    "CONTROL_MODELS",
    "FAULT_MODELS",
    "FIDELITY_MIX",
    "FIDELITY_MODELS",
    "REGISTER_MODELS",
    "FaultModel",
    "LayerContext",
    "fault_model",
    "nvdla_mix",
]

FIDELITY_MODELS: dict[str, FaultModel] = {
    model.name: model
    for model in (Input(), Weight(), Input16(), Weight16(), OutputBitFlip(), OutputRandom())
}
"""FIdelity's models by the names its authors gave them."""

REGISTER_MODELS: dict[str, FaultModel] = {
    name: BufferWrite() if name == "BUFFER_WRITE" else RegisterModel(name) for name in GROUPS
}
"""The groups of NVDLA's registers by name."""

CONTROL_MODELS: dict[str, FaultModel] = {
    model.name: model for model in (StreamShift(), StripeRandom())
}
"""Patterns of control upsets; never part of a datapath mix."""

FAULT_MODELS: dict[str, FaultModel] = {**FIDELITY_MODELS, **REGISTER_MODELS, **CONTROL_MODELS}
"""Every fault model by name."""

FIDELITY_MIX: dict[str, float] = {
    "INPUT": 0.018 * 0.31,
    "WEIGHT": 0.035 * 0.42,
    "INPUT16": 0.117 * 0.27,
    "WEIGHT16": 0.156 * 0.27,
    "RD_BFLIP": 0.272 * 0.27,
    "RD": 0.041 * 0.27,
}
"""Flip-flop share times activeness of each model, from FIdelity's public ``fit_calc`` example for
ResNet-50 on nv_full; global control is left out."""


def fault_model(name: str) -> FaultModel:
    """Look a fault model up by name.

    Raises:
        ConfigError: no fault model has that name.
    """
    if name not in FAULT_MODELS:
        raise unknown_name("fault model", name, FAULT_MODELS)
    return FAULT_MODELS[name]
