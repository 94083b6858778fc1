"""Accelerator configurations: what differs between one NVDLA build and the next.

The six builds shipped as TOML follow NVIDIA's specification files (nvdla/hw, ``spec/defs``); a
user's own file has the same keys.
"""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from rasp.errors import ConfigError, unknown_name

CONFIGS = (
    "nv_small",
    "nv_small_256",
    "nv_medium_512",
    "nv_medium_1024",
    "nv_large",
    "nv_full",
)
"""Names of the configurations shipped with the package, smallest first."""

FORMATS = ("int8", "fp16", "fp32")
"""Number formats a network can run in; NVDLA itself has no fp32 datapath."""


class Atoms(NamedTuple):
    """Operands of one cycle: one output pixel x ``channels`` x ``kernels``."""

    channels: int
    kernels: int


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StripeRule(_Table):
    """How the sequencer cuts the raster of output pixels into stripes.

    With ``n`` pixels left, a stripe takes all of them if ``n <= upper``; else ``upper`` if
    ``upper_first`` and ``n >= 2 * upper``; else ``lower``. Source: ``CSC_sg.v`` of the branches
    nv_small and master (``upper_first``) and nvdlav1 (not).
    """

    lower: PositiveInt
    upper: PositiveInt
    upper_first: bool = True

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.lower <= self.upper <= 2 * self.lower:
            raise ValueError(
                f"lower <= upper <= 2 * lower must hold, got {self.lower}, {self.upper}"
            )
        return self


class Datapath(_Table):
    """The convolution pipeline in one number format.

    Attributes:
        atomic_c: input channels of an atom.
        atomic_k: kernels of an atom, the size of a kernel group.
        operand_bits: width of an activation or weight.
        mac_bits: width of the sum one MAC cell delivers.
        sum_bits: width of the accumulator's adder.
        partial_bits: width of the running sum, saturated after every atom.
        final_bits: width of the result handed to the SDP.
        kernels_per_cycle: kernels whose weights are loaded in one cycle.
    """

    atomic_c: PositiveInt
    atomic_k: PositiveInt
    operand_bits: PositiveInt
    mac_bits: PositiveInt
    sum_bits: PositiveInt
    partial_bits: PositiveInt
    final_bits: PositiveInt = 32
    kernels_per_cycle: PositiveInt = 1

    @model_validator(mode="after")
    def _whole_halves(self) -> Self:
        if self.atomic_k % 2:
            raise ValueError(
                f"atomic_k is split over CMAC A and B and must be even: {self.atomic_k}"
            )
        return self


class AcceleratorConfig(_Table):
    """One NVDLA build.

    Attributes:
        name: label used in reports and stores.
        source: where the parameters come from.
        cbuf_bytes: size of the convolution buffer.
        sdp_throughput: elements the SDP takes per cycle.
        minimum_package: least cycles of a package (one weight load and its stripe).
        stripe: the stripe rule of direct convolution.
        formats: native datapaths by format; ``int8`` is always there.
        flip_flops: counted flip-flops per register class (``registers.py``); empty if nobody
            counted them, then they are estimated.
    """

    name: str = Field(min_length=1)
    source: str = ""
    cbuf_bytes: PositiveInt
    sdp_throughput: PositiveInt
    minimum_package: PositiveInt
    stripe: StripeRule
    formats: dict[str, Datapath]
    flip_flops: dict[str, PositiveInt] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _known_formats(self) -> Self:
        if "int8" not in self.formats:
            raise ValueError("formats.int8 is missing")
        if foreign := set(self.formats) - set(FORMATS):
            raise ValueError(f"formats not known: {', '.join(sorted(foreign))}")
        return self

    def native(self, format: str) -> bool:  # noqa: A002
        """Whether the hardware has a datapath for ``format``."""
        return _checked(format) in self.formats

    def datapath(self, format: str = "int8") -> Datapath:  # noqa: A002
        """Pipeline of ``format``; where there is none, the int8 pipeline lends its geometry.

        A network in a format that is not native is an arithmetic model: sequence and reach are
        those of int8, the values are the format's own. Reports have to say so.

        Raises:
            ConfigError: the format does not exist.
        """
        return self.formats.get(_checked(format), self.formats["int8"])

    def atoms(self, format: str = "int8") -> Atoms:  # noqa: A002
        """Atom size of ``format``, of int8 where the format is not native."""
        path = self.datapath(format)
        return Atoms(path.atomic_c, path.atomic_k)


def load(name_or_path: str | Path) -> AcceleratorConfig:
    """Read a configuration by its shipped name or from a TOML file.

    Args:
        name_or_path: one of :data:`CONFIGS`, or a path that ends in ``.toml``.

    Raises:
        ConfigError: unknown name, missing file, no TOML, or a value that is not allowed.

    Example:
        >>> load("nv_full").atoms("fp16")
        Atoms(channels=64, kernels=16)
        >>> load("nv_small").native("fp16")
        False
    """
    text = str(name_or_path)
    if text in CONFIGS:
        shipped = resources.files(__package__) / "configs" / f"{text}.toml"
        return _parse(shipped.read_text(encoding="utf-8"), text)
    if not text.endswith(".toml"):
        raise unknown_name("accelerator", text, CONFIGS)
    try:
        return _parse(Path(text).read_text(encoding="utf-8"), text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"Cannot read the accelerator configuration '{text}': {error}."
        ) from error


def _parse(toml: str, origin: str) -> AcceleratorConfig:
    try:
        return AcceleratorConfig.model_validate(tomllib.loads(toml))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"'{origin}' is not TOML: {error}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "file"
        raise ConfigError(f"'{origin}': {key}: {first['msg']}.") from error


def _checked(name: str) -> str:
    if name not in FORMATS:
        raise unknown_name("format", name, FORMATS)
    return name
