"""Reading RTL injection records and the layers they were made on."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from rasp.errors import ConfigError, unknown_name
from rasp.network.graph import Conv, Flatten, Input, Network
from rasp.network.int8_converter import HIGH, LOW, Converter
from rasp.network.int8_ops import Int8Arithmetic, Int8Layer
from rasp.nvdla.shapes import ConvShape

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

Element = tuple[int, int, int, int | None, int | None]
"""A changed value: result lane, row, column, golden, faulty."""

RTL = "rtl:"
"""What the name of a recorded layer begins with."""

LAYERS = "layers.json"
"""Name of the file beside the records."""

_LANES = 8  # result lanes are padded to whole kernel groups of nv_small
_MOST_BITS, _MOST_CYCLES = 2**16, 2**48
_CUT = 96  # changed values a record lists at most


class Observed(NamedTuple):
    """Atom that the simulation saw in a pipeline stage."""

    stage: int
    atom: int


class Record(NamedTuple):
    """One simulated upset.

    ``place`` is file and line, ``rises`` whether 0 became 1, ``observed`` the atom in the register
    where the simulation named it, ``sums`` and ``outputs`` the changed values, of which there were
    ``n_sums`` and ``n_outputs``.
    """

    place: str
    layer: str
    cls: str
    path: str
    var: str
    bit: int
    cycle: int
    rises: bool
    hang: bool
    observed: Observed | None
    n_sums: int
    n_outputs: int
    sums: frozenset[Element]
    outputs: frozenset[Element]

    def difference(self, sums: set[Element], outputs: set[Element]) -> str:
        """How predicted values differ from the recorded ones; empty where they are equal."""
        if self.hang:
            return "the accelerator hung"
        for what, count, recorded, predicted in (
            ("sums", self.n_sums, self.sums, sums),
            ("outputs", self.n_outputs, self.outputs, outputs),
        ):
            if count != len(predicted):
                return f"{count} {what} changed, {len(predicted)} predicted"
            if not recorded <= predicted or len(recorded) < min(count, _CUT):
                return f"changed {what} have other values or places"
        return ""


class RtlLayer(NamedTuple):
    """A layer the records were made on.

    ``network`` is the convolution with its outputs as logits, ``conv`` the layer in it and ``x``
    the one image, int8 ``(1, C, H, W)``.
    """

    network: Network
    conv: Conv
    x: Tensor


Flag = Annotated[int, Field(ge=0, le=1)]


class _Shape(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    C: PositiveInt
    H: PositiveInt
    W: PositiveInt
    K: PositiveInt
    R: PositiveInt
    S: PositiveInt
    stride: PositiveInt = 1
    pad: int = Field(0, ge=0)
    dilation: PositiveInt = 1
    seed: int = Field(ge=0, lt=2**32)
    relu: Flag | bool = 0
    scale: int = Field(ge=1, lt=2**15)
    shift: int = Field(ge=0, lt=64)
    truncate: int = Field(0, ge=0, lt=32)
    sparse: Flag | bool = 0


def read_layers(records: str | Path) -> tuple[str, dict[str, RtlLayer]]:
    """The layers beside a file of records, and the folder they are in.

    Raises:
        ConfigError: ``layers.json`` is missing or a layer in it is not described completely.
    """
    path = Path(records).resolve().parent / LAYERS
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"'{records}' needs a {LAYERS} beside it that describes its layers: {error}."
        ) from error
    if not isinstance(entries, dict):
        raise ConfigError(f"'{path}' must be an object of layers by name.")
    return str(path.parent), {name: _layer(path, name, entry) for name, entry in entries.items()}


def open_layer(name: str) -> RtlLayer:
    """The layer that ``rtl:FOLDER#LAYER`` names; the folder's ``layers.json`` may be named too.

    Raises:
        ConfigError: the text is not of this form, or there is no such layer.
    """
    place, separator, layer = name.removeprefix(RTL).rpartition("#")
    if not (name.startswith(RTL) and separator and place and layer):
        raise ConfigError(f"A recorded layer is named {RTL}FOLDER#LAYER, got '{name}'.")
    path = Path(place)
    _, known = read_layers(path if path.name == LAYERS else path / LAYERS)
    if layer not in known:
        raise unknown_name("layer", layer, known)
    return known[layer]


def read_records(path: str | Path) -> Iterator[Record | str]:
    """Records of a file, gzipped or plain; a sentence with file and line for what is none.

    Raises:
        ConfigError: the file cannot be opened.
    """
    name, number = Path(path).name, 0
    try:
        with Path(path).open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if zipped else Path(path).open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _record(f"{name}:{number}", line)
    except (EOFError, gzip.BadGzipFile, OSError) as error:
        if not number and not isinstance(error, EOFError):
            raise ConfigError(f"Cannot read the records '{path}': {error}.") from error
        yield f"{name}:{number + 1}: the file is cut off or damaged: {error}"


def _record(place: str, line: bytes) -> Record | str:
    try:
        entry = _of(dict, json.loads(line), "a record")
        flip, outcome = entry["flip"], entry["outcome"]
        if flip not in ("0->1", "1->0") or outcome not in ("masked", "sdc", "hang"):
            return f"{place}: flip {flip!r} or outcome {outcome!r} is not known"
        record = Record(
            place=place,
            layer=_of(str, entry["layer"], "layer"),
            cls=_of(str, entry["cls"], "cls"),
            path=_of(str, entry["path"], "path"),
            var=_of(str, entry["var"], "var"),
            bit=_of(int, entry["bit"], "bit"),
            cycle=_of(int, entry["cycle"], "cycle"),
            rises=flip == "0->1",
            hang=outcome == "hang",
            observed=_observed(entry.get("stage"), entry.get("atom")),
            n_sums=_of(int, entry["n_acc"], "n_acc"),
            n_outputs=_of(int, entry["n_out"], "n_out"),
            sums=_elements(entry, "acc"),
            outputs=_elements(entry, "out"),
        )
    except json.JSONDecodeError as error:
        return f"{place}: not JSON: {error}"
    except UnicodeDecodeError:
        return f"{place}: not text"
    except KeyError as error:
        return f"{place}: field {error} is missing"
    except (TypeError, AttributeError, ValueError) as error:
        return f"{place}: {error}"
    if not 0 <= record.bit < _MOST_BITS or not 0 <= record.cycle < _MOST_CYCLES:
        return f"{place}: there is no bit {record.bit} or no cycle {record.cycle}"
    return record


def _of(kind: type, value: Any, key: str) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{key} must be {kind.__name__}, got {value!r}")
    return value


def _observed(stage: Any, atom: Any) -> Observed | None:
    if stage is None or atom is None:
        return None
    return Observed(_of(int, stage, "stage"), _of(int, atom["n"], "atom.n"))


def _elements(entry: dict[str, Any], key: str) -> frozenset[Element]:
    found = []
    for item in _of(list, entry[key], key):
        k, y, x, golden, faulty = _of(list, item, key)
        found.append((k, y, x, golden, faulty))
    return frozenset(found)


def _layer(path: Path, name: str, entry: object) -> RtlLayer:
    try:
        layer = _Shape.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "entry"
        raise ConfigError(f"'{path}': layer '{name}': {key}: {first['msg']}.") from error
    shape = ConvShape(
        name,
        layer.C,
        layer.H,
        layer.W,
        layer.K,
        layer.R,
        layer.S,
        stride=(layer.stride,) * 2,
        padding=(layer.pad,) * 2,
        dilation=(layer.dilation,) * 2,
    )
    if shape.Ho < 1 or shape.Wo < 1:
        raise ConfigError(f"'{path}': layer '{name}': the kernel is larger than the padded input.")
    x, weight, bias = tensors(shape, seed=layer.seed, sparse=bool(layer.sparse))
    conv = Conv(
        name,
        ("input",),
        (shape.K, shape.Ho, shape.Wo),
        weight.float(),
        bias.float(),
        shape,
        (0.0, float("inf")) if layer.relu else None,
    )
    lanes = shape.K + -shape.K % _LANES
    converter = Converter(
        torch.full((lanes,), layer.scale), layer.shift, 0 if layer.relu else LOW, HIGH
    )
    # lanes without a kernel run through the SDP too, with a bias of 0
    padded = torch.cat([bias, bias.new_zeros(lanes - shape.K)])
    integers = Int8Layer(shape, weight, padded, converter, layer.truncate)
    image = Input("input", (), (shape.C, shape.H, shape.W))
    logits = Flatten("logits", (name,), (shape.K * shape.pixels,))
    nodes = (image, conv, logits)
    scales = {node.name: 1.0 for node in nodes}
    arithmetic = Int8Arithmetic(scales, {name: integers}, {}, {})
    return RtlLayer(Network(nodes, logits.name, arithmetic), conv, x[None])


class Tensors(NamedTuple):
    """Input ``(C, H, W)`` and weight ``(K, C, R, S)`` in int8, bias ``(K,)`` in int64."""

    x: Tensor
    weight: Tensor
    bias: Tensor


def tensors(shape: ConvShape, *, seed: int, sparse: bool) -> Tensors:
    """The tensors of a recorded layer: uniform bytes, or rectified inputs and normal weights."""
    draw = np.random.RandomState(seed)  # the generator the records were made with
    x = draw.randint(LOW, HIGH + 1, size=(shape.C, shape.H, shape.W))
    w = draw.randint(LOW, HIGH + 1, size=(shape.K, shape.C, shape.R, shape.S))
    b = draw.randint(-4096, 4097, size=(shape.K,))
    if sparse:
        x = np.maximum(x, 0)
        w = np.clip(np.round(draw.randn(*w.shape) * 20), -127, 127)
    return Tensors(
        torch.from_numpy(x.astype(np.int8)),
        torch.from_numpy(w.astype(np.int8)),
        torch.from_numpy(b.astype(np.int64)),
    )
