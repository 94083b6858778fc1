"""From exported ATen operations to nodes, one to one and not yet fused."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.export.graph_signature import InputKind

from rasp.errors import UnsupportedModelError
from rasp.network.graph import (
    Activation,
    Add,
    Clip,
    Concat,
    Conv,
    Flatten,
    Host,
    Input,
    Node,
    PadChannels,
    Pool,
    Scale,
)
from rasp.network.host import HostCall, Slot
from rasp.nvdla.shapes import ConvShape

_SAME = {"dropout", "feature_dropout", "contiguous", "clone", "detach", "alias", "to", "identity"}
_VIEWS = {"view", "reshape", "flatten", "squeeze", "_unsafe_view"}
_SIZED = {"view", "reshape", "_unsafe_view", "expand"}


@dataclass
class _Graph:
    """What has been translated so far."""

    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, Tensor] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)  # fx node -> our node
    taken: Counter[str] = field(default_factory=Counter)

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        return tuple(int(size) for size in node.meta["val"].shape[1:])

    def constant(self, argument: Any) -> Tensor | None:
        return self.constants.get(argument.name) if isinstance(argument, fx.Node) else None

    def is_activation(self, argument: Any) -> bool:
        return isinstance(argument, fx.Node) and argument.name in self.names

    def fresh(self, node: fx.Node, op: str) -> str:
        stack = node.meta.get("nn_module_stack") or {}
        path = str(next(reversed(stack.values()))[0]) if stack else ""
        leaf = op in {"conv2d", "linear", "batch_norm", "relu", "hardtanh", "clamp"} and path
        name = path if leaf else ".".join(filter(None, [path, op]))
        self.taken[name] += 1
        return name if self.taken[name] == 1 else f"{name}@{self.taken[name]}"


def translate(program: torch.export.ExportedProgram) -> tuple[list[Node], str]:
    """Nodes in topological order and the output's name.

    Raises:
        UnsupportedModelError: more than one input or output, or an operation that cannot even run
            on the host; the message names the node.
    """
    graph = _Graph()
    values = {**program.state_dict, **program.constants}
    for spec in program.graph_signature.input_specs:
        if spec.kind is not InputKind.USER_INPUT:
            graph.constants[spec.arg.name] = values[str(spec.target)].detach()
    output = ""
    for node in program.graph.nodes:
        if node.op == "placeholder":
            if node.name not in graph.constants:
                graph.taken["input"] += 1
                graph.nodes.append(Input("input", (), graph.shape(node)))
                graph.names[node.name] = "input"
        elif node.op == "call_function":
            _call(graph, node)
        elif node.op == "output":
            (results,) = node.args
            if len(results) != 1 or results[0].name not in graph.names:
                raise UnsupportedModelError(
                    f"The model must return one tensor of logits, it returns {len(results)} values."
                )
            output = graph.names[results[0].name]
    return graph.nodes, output


def _call(graph: _Graph, node: fx.Node) -> None:
    op = str(getattr(node.target, "__name__", node.target)).split(".")[0]
    op = op.rstrip("_") if not op.startswith("_") else op
    source = node.args[0] if node.args else None
    if isinstance(source, fx.Node) and graph.is_activation(source):
        result = node.meta.get("val")
        same_shape = isinstance(result, Tensor) and result.shape == source.meta["val"].shape
        if same_shape and (op in _SAME or op in _VIEWS or _keeps_all(node, op)):
            graph.names[node.name] = graph.names[source.name]
            return
    on_engine = op in _ENGINE_OPS and graph.is_activation(next(iter(node.all_input_nodes), None))
    translated = _ENGINE_OPS[op](graph, node, op) if on_engine else None
    if translated is not None:
        graph.nodes.extend(translated)
        graph.names[node.name] = translated[-1].name
        return
    made = _host(graph, node, op)
    graph.nodes.append(made)
    graph.names[node.name] = made.name


def _argument(node: fx.Node, index: int, name: str, default: Any) -> Any:
    value = node.args[index] if len(node.args) > index else node.kwargs.get(name, default)
    return default if value is None else value


def _pair(value: Any) -> tuple[int, int]:
    items = list(value) if isinstance(value, list | tuple) else [value]
    return (int(items[0]), int(items[-1]))


def _inputs(graph: _Graph, node: fx.Node) -> tuple[str, ...]:
    return tuple(graph.names[a.name] for a in node.all_input_nodes if a.name in graph.names)


def _keeps_all(node: fx.Node, op: str) -> bool:
    return op == "slice" and int(_argument(node, 4, "step", 1)) == 1


def _conv(graph: _Graph, node: fx.Node, op: str) -> list[Node] | None:
    weight = graph.constant(node.args[1])
    given = _argument(node, 2, "bias", None)
    bias = graph.constant(given)
    if weight is None or (given is not None and bias is None):
        return None
    source = node.all_input_nodes[0]
    shape = graph.shape(source)
    dilation = _pair(_argument(node, 5, "dilation", 1)) if op == "conv2d" else (1, 1)
    linear = op == "linear"
    if linear:
        if len(shape) != 1:
            return None
        weight = weight[:, :, None, None]
        shape = (*shape, 1, 1)
    padding = _argument(node, 4, "padding", 0) if op == "conv2d" else 0
    if padding == "same":
        spans = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        if any(span % 2 for span in spans):
            return None
        padding = [span // 2 for span in spans]
    elif padding == "valid":
        padding = 0
    name = graph.fresh(node, op)
    K, _, R, S = weight.shape
    conv = ConvShape(
        name,
        C=shape[0],
        H=shape[1],
        W=shape[2],
        K=K,
        R=R,
        S=S,
        stride=_pair(_argument(node, 3, "stride", 1)) if op == "conv2d" else (1, 1),
        padding=_pair(padding),
        dilation=dilation,
        groups=int(_argument(node, 6, "groups", 1)) if op == "conv2d" else 1,
    )
    bias = torch.zeros(K) if bias is None else bias
    made = Conv(
        name,
        (graph.names[source.name],),
        graph.shape(node),
        weight.float().contiguous(),
        bias.float(),
        conv,
        linear=linear,
    )
    return [made]


def _batch_norm(graph: _Graph, node: fx.Node, op: str) -> list[Node] | None:
    mean, variance = graph.constant(node.args[3]), graph.constant(node.args[4])
    if mean is None or variance is None or node.args[5]:
        return None
    weight, bias = graph.constant(node.args[1]), graph.constant(node.args[2])
    eps = float(_argument(node, 7, "eps", 1e-5))
    scale = (variance.double() + eps).rsqrt()
    scale = scale if weight is None else scale * weight.double()
    shift = -mean.double() * scale if bias is None else bias.double() - mean.double() * scale
    name = graph.fresh(node, op)
    made = Scale(name, _inputs(graph, node), graph.shape(node), scale.float(), shift.float())
    return [made]


def _clamp(graph: _Graph, node: fx.Node, op: str) -> list[Node] | None:
    bounds: Clip = (0.0, math.inf)
    if op == "relu6":
        bounds = (0.0, 6.0)
    elif op != "relu":
        low = _argument(node, 1, "min_val" if op == "hardtanh" else "min", -math.inf)
        high = _argument(node, 2, "max_val" if op == "hardtanh" else "max", math.inf)
        if op == "hardtanh" and len(node.args) == 1:
            low, high = -1.0, 1.0
        if not isinstance(low, int | float) or not isinstance(high, int | float):
            return None
        bounds = (float(low), float(high))
    return [Activation(graph.fresh(node, op), _inputs(graph, node), graph.shape(node), bounds)]


def _add(graph: _Graph, node: fx.Node, op: str) -> list[Node] | None:
    left, right = node.args[0], node.args[1]
    if node.kwargs or not (graph.is_activation(left) and graph.is_activation(right)):
        return None
    inputs = tuple(graph.names[a.name] for a in (left, right) if isinstance(a, fx.Node))
    shape = graph.shape(node)
    if any(isinstance(a, fx.Node) and graph.shape(a) != shape for a in (left, right)):
        return None
    return [Add(graph.fresh(node, op), inputs, shape)]


def _pool(graph: _Graph, node: fx.Node, op: str) -> list[Node] | None:
    kernel = _pair(node.args[1])
    stride = _pair(_argument(node, 2, "stride", kernel) or kernel)
    padding = _pair(_argument(node, 3, "padding", 0))
    if op == "max_pool2d":
        if _pair(_argument(node, 4, "dilation", 1)) != (1, 1):
            return None
        ceil, counted = bool(_argument(node, 5, "ceil_mode", False)), True
    else:
        ceil = bool(_argument(node, 4, "ceil_mode", False))
        counted = bool(_argument(node, 5, "count_include_pad", True))
        if _argument(node, 6, "divisor_override", None) is not None:
            return None
    kind = "max" if op == "max_pool2d" else "avg"
    name, inputs = graph.fresh(node, op), _inputs(graph, node)
    return [Pool(name, inputs, graph.shape(node), kind, kernel, stride, padding, counted, ceil)]


def _average_all(graph: _Graph, node: fx.Node, op: str) -> list[Node] | None:
    """Adaptive pooling to a size that divides the map, and the mean over rows and columns."""
    source = node.all_input_nodes[0]
    shape = graph.shape(source)
    if len(shape) != 3:
        return None
    C, H, W = shape
    rows, columns = 1, 1
    if op == "mean":
        dims = {int(d) % 4 for d in _argument(node, 1, "dim", [])}
        if dims != {2, 3}:
            return None
    else:
        rows, columns = _pair(node.args[1])
    if H % rows or W % columns:
        return None
    window = (H // rows, W // columns)
    inputs = (graph.names[source.name],)
    made: list[Node] = [
        Pool(graph.fresh(node, op), inputs, (C, rows, columns), "avg", window, window)
    ]
    if len(graph.shape(node)) == 1:
        made.append(Flatten(graph.fresh(node, "flatten"), (made[0].name,), (C,)))
    return made


def _flatten(graph: _Graph, node: fx.Node, op: str) -> list[Node] | None:
    shape = graph.shape(node)
    if len(shape) != 1 or shape[0] != math.prod(graph.shape(node.all_input_nodes[0])):
        return None
    return [Flatten(graph.fresh(node, op), _inputs(graph, node), shape)]


def _concat(graph: _Graph, node: fx.Node, op: str) -> list[Node] | None:
    parts = node.args[0]
    dim = int(_argument(node, 1, "dim", 0))
    rank = len(graph.shape(node)) + 1
    if not isinstance(parts, list | tuple) or dim % rank != 1:
        return None
    if not all(graph.is_activation(part) for part in parts):
        return None
    inputs = tuple(graph.names[part.name] for part in parts if isinstance(part, fx.Node))
    return [Concat(graph.fresh(node, op), inputs, graph.shape(node))]


def _slice(graph: _Graph, node: fx.Node, op: str) -> list[Node] | None:
    """Every n-th row or column from the first: a 1 x 1 pooling with that stride."""
    dim, start = int(_argument(node, 1, "dim", 0)), _argument(node, 2, "start", 0)
    end, step = int(_argument(node, 3, "end", 2**62)), int(_argument(node, 4, "step", 1))
    before = graph.shape(node.all_input_nodes[0])
    if dim not in {2, 3} or start != 0 or len(before) != 3 or end < before[dim - 1]:
        return None
    del op
    stride = (step, 1) if dim == 2 else (1, step)
    name = graph.fresh(node, "subsample")
    return [Pool(name, _inputs(graph, node), graph.shape(node), "max", (1, 1), stride)]


def _pad(graph: _Graph, node: fx.Node, op: str) -> list[Node] | None:
    """Zero channels; zeros around the map are the host's."""
    padding: Any = node.args[1]
    amounts = [int(amount) for amount in padding]
    mode = _argument(node, 2, "mode", "constant") if op == "pad" else "constant"
    value = _argument(node, 3, "value", 0) if op == "pad" else _argument(node, 2, "value", 0)
    if mode != "constant" or value or len(amounts) != 6 or any(amounts[:4]) or min(amounts) < 0:
        return None
    name, inputs = graph.fresh(node, "pad"), _inputs(graph, node)
    return [PadChannels(name, inputs, graph.shape(node), amounts[4], amounts[5])]


_Translator = Callable[[_Graph, fx.Node, str], list[Node] | None]
_ENGINE_OPS: dict[str, _Translator] = {
    "conv2d": _conv,
    "linear": _conv,
    "batch_norm": _batch_norm,
    **dict.fromkeys(("relu", "relu6", "hardtanh", "clamp"), _clamp),
    "add": _add,
    "max_pool2d": _pool,
    "avg_pool2d": _pool,
    "adaptive_avg_pool2d": _average_all,
    "mean": _average_all,
    **dict.fromkeys(_VIEWS, _flatten),
    "cat": _concat,
    "slice": _slice,
    "pad": _pad,
    "constant_pad_nd": _pad,
}


def _host(graph: _Graph, node: fx.Node, op: str) -> Host:
    """Anything else: the ATen operation itself, with its constants bound."""
    if not isinstance(node.meta.get("val"), Tensor):
        raise UnsupportedModelError(
            f"Node '{node.name}' ({node.target}) does not return one tensor; "
            f"models with such operations cannot be lowered."
        )
    sources = [a for a in node.all_input_nodes if a.name in graph.names]
    if not sources:
        raise UnsupportedModelError(
            f"Node '{node.name}' ({node.target}) does not depend on the image; "
            f"make it a buffer of the module."
        )
    batch = int(node.meta["val"].shape[0]) if node.meta["val"].ndim else 0
    slots = {source.name: Slot(index) for index, source in enumerate(sources)}

    def bound(argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            return slots.get(argument.name) or graph.constants[argument.name]
        if isinstance(argument, list | tuple):
            return [bound(item) for item in argument]
        return argument

    args = tuple(bound(argument) for argument in node.args)
    kwargs = {name: bound(value) for name, value in node.kwargs.items()}
    call = HostCall(str(node.target), args, kwargs, op in _SIZED and args[1][0] == batch)
    names = tuple(graph.names[source.name] for source in sources)
    return Host(graph.fresh(node, op), names, graph.shape(node), op, call)
