"""Replay against the full execution of the network with the changed layer output put in.

Outcomes and the bits of the logits, in every number format, with every fault model in every layer,
on networks that take every road through the engine.
"""

from __future__ import annotations

from dataclasses import fields, replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rasp import zoo
from rasp.faults.models import CONTROL_MODELS, FAULT_MODELS, FIDELITY_MODELS, LayerContext
from rasp.faults.population import Stratum
from rasp.faults.sampling import draw
from rasp.faults.values import LayerValues
from rasp.network.float_ops import FloatArithmetic, compute
from rasp.network.graph import (
    Activation,
    Add,
    Concat,
    Conv,
    Flatten,
    Host,
    Input,
    Network,
    PadChannels,
    Pool,
    Scale,
)
from rasp.network.lower import lower
from rasp.nvdla.config import load
from rasp.nvdla.shapes import ConvShape
from rasp.quantization.calibrate import quantize
from rasp.replay import engine, propagate
from rasp.replay.engine import Replay
from rasp.replay.outcomes import OUTCOMES, classify

FORMATS = ["fp32", "fp16", "int8"]
SOME = [*FIDELITY_MODELS, *CONTROL_MODELS, "MAC_SUM", "WEIGHT_LOAD", "LANE_VALID", "ZERO_MASK"]
IMAGES = 10


class Made(nn.Module):
    """A module from a function and the layers it uses."""

    def __init__(self, forward, **layers):
        super().__init__()
        self._forward = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self._forward(self, x)


def in_order(*names):
    def forward(m, x):
        for name in names:
            x = getattr(m, name)(x).relu()
        return m.fc(x.mean((2, 3)))

    return forward


def lenet5():
    return zoo.build(zoo.ModelSpec(model="lenet5", num_classes=10, input_shape=(1, 28, 28)))


def resnet20():
    return zoo.build(zoo.ModelSpec(model="resnet20", num_classes=10, input_shape=(3, 24, 24)))


def everything():
    """Concat, depthwise, grouped, dilated, 5 x 5, strides 2 and 3, clamps, a host node, ceil."""

    def forward(m, x):
        x = m.stem(x).relu()
        x = m.pointwise(x + m.depthwise(x)).clamp(-1, 1)
        x = torch.cat([m.left(x), m.right(x)], 1) + m.dilated(x)
        x = m.third(F.relu6(m.bn(x)))
        x = m.last(torch.sigmoid(x))
        x = F.max_pool2d(x, 2, ceil_mode=True)
        return m.fc(x.mean((2, 3)))

    return Made(
        forward,
        stem=nn.Conv2d(3, 8, 5, stride=2, padding=2),
        depthwise=nn.Conv2d(8, 8, 3, padding=1, groups=8),
        pointwise=nn.Conv2d(8, 12, 1),
        dilated=nn.Conv2d(12, 12, 3, padding=2, dilation=2, groups=3),
        left=nn.Conv2d(12, 5, 3, padding=1),
        right=nn.Conv2d(12, 7, 1),
        bn=nn.BatchNorm2d(12),
        third=nn.Conv2d(12, 10, (3, 5), stride=(3, 2), padding=(1, 2)),
        last=nn.Conv2d(10, 6, 3),
        fc=nn.Linear(6, 4),
    )


def bottlenecks():
    """ResNet's two kinds of block, with and without a projection."""

    def forward(m, x):
        x = m.stem(x).relu()
        y = m.c3(m.c2(m.c1(x).relu()).relu())
        x = (y + m.project(x)).relu()
        x = (m.b2(m.b1(x).relu()) + x).relu()
        return m.fc(x.mean((2, 3)))

    return Made(
        forward,
        stem=nn.Conv2d(3, 8, 3, padding=1),
        c1=nn.Conv2d(8, 6, 1),
        c2=nn.Conv2d(6, 6, 3, stride=2, padding=1),
        c3=nn.Conv2d(6, 12, 1),
        project=nn.Conv2d(8, 12, 1, stride=2),
        b1=nn.Conv2d(12, 12, 3, padding=1),
        b2=nn.Conv2d(12, 12, 3, padding=1),
        fc=nn.Linear(12, 5),
    )


def padded_pools():
    def forward(m, x):
        x = F.max_pool2d(F.max_pool2d(m.conv(x), 3, 2, 1), 2, 1)
        x = F.avg_pool2d(F.avg_pool2d(x, 3, 1, 1), 2, 2, ceil_mode=True)
        x = F.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False)
        return m.fc(x.flatten(1))

    return Made(forward, conv=nn.Conv2d(3, 8, 3, padding=1), fc=nn.Linear(48, 3))


def plain_pools():
    def forward(m, x):
        x = F.avg_pool2d(F.avg_pool2d(m.first(x), 3, 2), 2, 1)
        x = F.max_pool2d(m.second(F.max_pool2d(x, 2, 1)), (1, 2))
        return m.fc(x.flatten(1))

    return Made(
        forward,
        first=nn.Conv2d(3, 8, 3, padding=1),
        second=nn.Conv2d(8, 7, 3, stride=1),
        fc=nn.Linear(7 * 6 * 2, 3),
    )


def clamps_and_scales():
    def forward(m, x):
        y = m.first(x)
        x = m.outer(F.relu(y) + F.hardtanh(m.inner(y)))
        return m.fc(m.second(x).mean((2, 3)))

    return Made(
        forward,
        first=nn.Conv2d(3, 8, 5, padding=2),
        inner=nn.BatchNorm2d(8),
        outer=nn.BatchNorm2d(8),
        second=nn.Conv2d(8, 7, 3, padding=2, dilation=2),
        fc=nn.Linear(7, 3),
    )


def read_twice():
    def forward(m, x):
        y = m.conv(x)
        return m.fc(torch.cat([y, y + y, y], 1).mean((2, 3)))

    return Made(forward, conv=nn.Conv2d(3, 8, 5, padding=2), fc=nn.Linear(24, 3))


def squeeze_and_excite():
    def forward(m, x):
        y = m.first(x)
        gate = torch.sigmoid(m.excite(m.squeeze(F.adaptive_avg_pool2d(y, 1)).relu()))
        return m.fc(m.second(y * gate).mean((2, 3)))

    return Made(
        forward,
        first=nn.Conv2d(3, 8, 3, padding=1),
        squeeze=nn.Conv2d(8, 2, 1),
        excite=nn.Conv2d(2, 8, 1),
        second=nn.Conv2d(8, 6, 3),
        fc=nn.Linear(6, 3),
    )


def shuffled_channels():
    """Host nodes of five axes between grouped convolutions."""

    def forward(m, x):
        x = m.first(x)
        x = x.view(len(x), 2, 4, 8, 8).transpose(1, 2).reshape(len(x), 8, 8, 8)
        return m.fc(m.second(x).mean((2, 3)))

    return Made(
        forward,
        first=nn.Conv2d(3, 8, 3, padding=1),
        second=nn.Conv2d(8, 6, 3, groups=2),
        fc=nn.Linear(6, 3),
    )


def rows_of_pixels():
    """Host nodes of three axes."""

    def forward(m, x):
        return m.fc(m.conv(x).flatten(2).softmax(2)[:, :, ::2].sum(2))

    return Made(forward, conv=nn.Conv2d(3, 8, 3, padding=1), fc=nn.Linear(8, 3))


def host_sums():
    """Host nodes that sum what other host nodes have laid out in another order."""

    def forward(m, x):
        x = F.group_norm(m.first(x).softmax(1), 2)
        x = m.second(x).sigmoid().transpose(2, 3).contiguous()
        return m.fc(x.sum((2, 3)))

    return Made(
        forward,
        first=nn.Conv2d(3, 8, 3, padding=1),
        second=nn.Conv2d(8, 6, 3),
        fc=nn.Linear(6, 3),
    )


def odd_sigmoids():
    """A host node of 9 elements an image: vectors of 16 or 32 end at another place in each."""

    def forward(m, x):
        return m.fc(torch.sigmoid(m.second(m.first(x))).flatten(1))

    return Made(
        forward,
        first=nn.Conv2d(3, 4, 3, stride=2),
        second=nn.Conv2d(4, 1, 3),
        fc=nn.Linear(9, 3),
    )


NETS = {
    "lenet5": (lenet5, (1, 28, 28)),
    "everything": (everything, (3, 29, 41)),
    "bottlenecks": (bottlenecks, (3, 14, 14)),
    "padded pools": (padded_pools, (3, 21, 17)),
    "plain pools": (plain_pools, (3, 21, 17)),
    "clamps and scales": (clamps_and_scales, (3, 9, 13)),
    "read twice": (read_twice, (3, 9, 13)),
    "squeeze and excite": (squeeze_and_excite, (3, 10, 10)),
    "shuffled channels": (shuffled_channels, (3, 8, 8)),
    "rows of pixels": (rows_of_pixels, (3, 8, 8)),
    "host sums": (host_sums, (3, 12, 12)),
    "odd sigmoids": (odd_sigmoids, (3, 11, 11)),
    "linear layers": (
        lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(36, 40), nn.ReLU(), nn.Linear(40, 30), nn.Linear(30, 5)
        ),
        (1, 6, 6),
    ),
    "stride beyond the kernel": (
        lambda: Made(
            in_order("a", "b", "c"),
            a=nn.Conv2d(3, 8, 3, padding=1),
            b=nn.Conv2d(8, 8, 1, stride=3),
            c=nn.Conv2d(8, 8, 2, stride=3, padding=1),
            fc=nn.Linear(8, 3),
        ),
        (3, 20, 20),
    ),
    "one row": (
        lambda: Made(
            in_order("a", "b", "c"),
            a=nn.Conv2d(3, 8, (1, 3)),
            b=nn.Conv2d(8, 8, (1, 5), stride=(1, 2), padding=(0, 4)),
            c=nn.Conv2d(8, 8, (1, 2)),
            fc=nn.Linear(8, 3),
        ),
        (3, 1, 40),
    ),
    "one pixel": (
        lambda: Made(
            in_order("a", "b", "c"),
            a=nn.Conv2d(6, 18, 3, padding=1),
            b=nn.Conv2d(18, 9, 1, groups=3),
            c=nn.Conv2d(9, 4, 1),
            fc=nn.Linear(4, 3),
        ),
        (6, 1, 1),
    ),
    "one channel": (
        lambda: Made(
            in_order("a", "b", "c"),
            a=nn.Conv2d(1, 1, 3, padding=1),
            b=nn.Conv2d(1, 6, 3),
            c=nn.Conv2d(6, 1, 3),
            fc=nn.Linear(1, 3),
        ),
        (1, 12, 12),
    ),
    "separable": (
        lambda: Made(
            in_order("a", "b", "c", "d"),
            a=nn.Conv2d(3, 8, 3, padding=1, groups=1),
            b=nn.Conv2d(8, 24, 1),
            c=nn.Conv2d(24, 48, 5, stride=2, padding=2, groups=24),
            d=nn.Conv2d(48, 8, 1),
            fc=nn.Linear(8, 3),
        ),
        (3, 16, 16),
    ),
    "wide": (
        lambda: Made(
            in_order("a", "b", "c"),
            a=nn.Conv2d(13, 64, 3, padding=1),
            b=nn.Conv2d(64, 67, 3, padding=1),
            c=nn.Conv2d(67, 40, 1),
            fc=nn.Linear(40, 3),
        ),
        (13, 14, 14),
    ),
}


def in_format(network, images, number_format):
    if number_format == "int8":
        return quantize(network, images)[0]
    return network.with_arithmetic(FloatArithmetic(number_format))


def made(name, number_format):
    build, shape = NETS[name]
    torch.manual_seed(len(name))
    model = build().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    images = torch.randn(IMAGES, *shape)
    return in_format(lower(model, images), images, number_format), images


def population_of(network, models):
    layers = [layer.name for layer in network.layers]
    share = 1 / len(layers) / len(models)
    return [Stratum(layer, model, share) for layer in layers for model in models]


def replayed(network, images, population, trials, **options):
    """Sites, outcomes and the logits they were read off."""
    labels = torch.arange(len(images)) % 3
    replay = Replay(network, load("nv_small"), images, labels, **options)
    with patch.object(engine, "classify", wraps=classify) as spy:
        sites, outcomes = replay.run(population, trials)
    return sites, outcomes, spy.call_args.args[1]


class Executed:
    """The same by full execution, layer by layer.

    Attributes:
        golden, faulty: ``(n, classes)`` logits.
        changed: ``(n,)`` output elements of the layer whose bits differ.
    """

    def __init__(self, network, images, population, trials, whole_run):
        n = len(trials)
        with torch.inference_mode():
            block = torch.arange(-(-len(images) // 16) * 16) % len(images)
            golden = network.trace(images[block])
            decoded = network.arithmetic.decode(network.output, golden[network.output])
            image = torch.from_numpy(trials.image)
            self.golden = decoded[image]
            self.faulty, self.changed = self.golden.clone(), torch.zeros(n, dtype=torch.int64)
            for layer in network.layers:
                strata = [i for i, stratum in enumerate(population) if stratum.layer == layer.name]
                (rows,) = np.nonzero(np.isin(trials.stratum, strata))
                if not len(rows):
                    continue
                output = golden[layer.name][image[rows]]
                flat = output.reshape(len(rows), -1).clone()
                before = flat.clone()
                for index in np.unique(trials.stratum[rows]):
                    (mine,) = np.nonzero(trials.stratum[rows] == index)
                    change = self._change(
                        network, layer, population[index].model, golden, trials, rows[mine]
                    )
                    flat[torch.from_numpy(mine)[change.row], change.element] = change.value
                differs = torch.ne(*(t.view(torch.uint8).view(-1) for t in (flat, before)))
                differs = differs.view(*flat.shape, -1).any(2)
                self.changed[rows] = differs.sum(1)
                output.copy_(flat.view(output.shape))
                self.faulty[rows] = whole_run(network, images[image[rows]], layer.name, output)

    @staticmethod
    def _change(network, layer, model, golden, trials, rows):
        context = LayerContext(layer, network.arithmetic, load("nv_small"))
        sites = FAULT_MODELS[model].draw(context, trials.words[rows])
        some = torch.from_numpy(trials.image[np.resize(rows, -(-len(rows) // 16) * 16)])
        return FAULT_MODELS[model].change(
            sites, LayerValues.of(context, golden[layer.inputs[0]][some])
        )


def assert_exact(network, images, models, count, whole_run, same_bits, *, worth=None, **options):
    """``worth`` replaces the arithmetic that a part of a batch has to save to run on its own.

    With it fewer trials go together too.
    """
    population = population_of(network, models)
    trials = draw(population, images=len(images), seed=4, trials=range(count))
    expected = Executed(network, images, population, trials, whole_run)

    kept = (propagate._WORTH, propagate._TOGETHER)
    parts = kept if worth is None else (worth, 100)
    with patch.multiple(propagate, _WORTH=parts[0], _TOGETHER=parts[1]):
        _, outcomes, logits = replayed(network, images, population, trials, **options)

    assert np.array_equal(outcomes.changed, expected.changed)
    assert same_bits(logits, expected.faulty)
    labels = (torch.arange(len(images)) % 3)[trials.image]
    found = classify(expected.golden, expected.faulty, labels, expected.changed)
    for outcome in OUTCOMES:
        assert np.array_equal(getattr(outcomes, outcome), getattr(found, outcome)), outcome
    return trials, outcomes


@pytest.mark.parametrize("number_format", FORMATS)
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("worth", [None, 0], ids=["together", "in parts"])
def test_replay_is_full_execution(name, number_format, worth, whole_run, same_bits):
    network, images = made(name, number_format)

    trials, outcomes = assert_exact(network, images, SOME, 400, whole_run, same_bits, worth=worth)

    layer = trials.stratum // len(SOME)
    assert set(layer[outcomes.changed > 0]) == set(range(len(network.layers)))
    assert 0.2 < outcomes.masked.mean() < 0.95


@pytest.mark.parametrize("number_format", FORMATS)
def test_shortcuts_that_subsample_and_pad_channels(number_format, whole_run, same_bits):
    torch.manual_seed(0)
    images = torch.randn(IMAGES, 3, 24, 24)
    network = in_format(lower(resnet20(), images), images, number_format)
    kinds = [type(node) for node in network.nodes]
    assert PadChannels in kinds
    assert any(isinstance(n, Pool) and n.kernel == (1, 1) for n in network.nodes)

    assert_exact(network, images, SOME, 250, whole_run, same_bits)


@pytest.mark.parametrize("number_format", FORMATS)
def test_every_fault_model_in_every_layer(number_format, whole_run, same_bits):
    network, images = made("everything", number_format)

    trials, outcomes = assert_exact(network, images, list(FAULT_MODELS), 2500, whole_run, same_bits)

    assert len(np.unique(trials.stratum)) == len(FAULT_MODELS) * len(network.layers)
    if number_format != "int8":
        assert outcomes.due.any()


@pytest.mark.parametrize("number_format", FORMATS)
@pytest.mark.parametrize("name", ["everything", "lenet5"])
def test_rows_depend_on_neither_batch_nor_order_nor_memory(name, number_format, same_bits):
    network, images = made(name, number_format)
    population = population_of(network, list(FAULT_MODELS))
    trials = draw(population, images=IMAGES, seed=9, trials=range(300))
    order = np.random.default_rng(0).permutation(300)

    def columns(sites, outcomes):
        names = [(record, field.name) for record in (sites, outcomes) for field in fields(record)]
        return {name: getattr(record, name) for record, name in names}

    def part(index):
        return replace(trials, **{f.name: getattr(trials, f.name)[index] for f in fields(trials)})

    *first, logits = replayed(network, images, population, trials)
    for batch, memory in ((3, 1), (1, 1), (50, 1 << 30)):
        *other, found = replayed(
            network, images, population, part(order), batch=batch, memory=memory
        )
        assert same_bits(logits[order], found)
        for key, value in columns(*first).items():
            assert np.array_equal(value[order], columns(*other)[key]), key
    for index in (slice(0, 1), slice(100, 117)):
        *other, found = replayed(network, images, population, part(index))
        assert same_bits(logits[index], found)
        for key, value in columns(*first).items():
            assert np.array_equal(value[index], columns(*other)[key]), key


def test_golden_rows_have_the_same_bits_in_any_block(same_bits):
    for name in ("everything", "wide", "one pixel", "host sums"):
        network, images = made(name, "fp32")
        runs = [
            Replay(network, load("nv_small"), images, torch.zeros(IMAGES).long(), **options)
            for options in ({}, {"batch": 3, "memory": 1}, {"batch": 7, "memory": 1 << 30})
        ]
        for run in runs[1:]:
            assert same_bits(runs[0]._tensors.logits, run._tensors.logits)
            for block in range(-(-IMAGES // run._tensors.block)):
                size = run._tensors.block
                rows = torch.arange(IMAGES)[block * size : (block + 1) * size]
                whole = runs[0]._tensors.of_block(0)
                for node, maps in run._tensors.of_block(block).items():
                    assert same_bits(maps.images(rows - block * size), whole[node].images(rows))


def shuffle(x):
    return x.flip(1).sigmoid()


@pytest.mark.parametrize("shape", [(9,), (1, 1, 9), (3, 5, 7), (2, 3)])
def test_host_rows_depend_on_neither_place_nor_strides(shape, same_bits):
    node = Host("n", ("x",), shape, "shuffle", shuffle)
    x = torch.randn(48, *shape, generator=torch.Generator().manual_seed(0))
    turned = x.permute(*range(x.ndim - 1, -1, -1)).contiguous().permute(*range(x.ndim - 1, -1, -1))
    rows = torch.randperm(48, generator=torch.Generator().manual_seed(1))

    found = compute(node, [x])

    assert torch.allclose(found, shuffle(x))
    assert same_bits(compute(node, [turned]), found)
    for part in (rows, rows[:16], rows[:3], rows[:1]):
        assert same_bits(compute(node, [x[part]]), found[part])


def grown(pick):
    """A random graph; ``pick`` is a :class:`random.Random`."""
    sides = pick.choice([(7, 9), (12, 12), (1, 11), (1, 1), (16, 6)])
    nodes = [Input("input", (), (pick.choice([1, 3, 8]), *sides))]

    def add(kind, inputs, shape, *rest, **more):
        name = f"n{len(nodes)}"
        names = tuple(node.name for node in inputs)
        if kind is Conv:
            conv = replace(rest[2], name=name)
            nodes.append(Conv(name, names, shape, *rest[:2], conv, *rest[3:], **more))
        else:
            nodes.append(kind(name, names, shape, *rest, **more))

    def clip():
        return pick.choice([None, (0.0, float("inf")), (-0.5, 1.0)])

    def convolution(source):
        C, H, W = source.shape
        groups = pick.choice([g for g in (1, 1, 2, 3, C) if C % g == 0])
        R, S = pick.randint(1, 3), pick.randint(1, 5)
        K = groups * pick.choice([1, 2, 5, 8])
        shape = ConvShape(
            "",
            C=C,
            H=H,
            W=W,
            K=min(K, 24 // groups * groups) or groups,
            R=R,
            S=S,
            stride=(pick.randint(1, 3), pick.randint(1, 2)),
            padding=(pick.randint(0, R - 1), pick.randint(0, S - 1)),
            dilation=(pick.randint(1, 2), pick.randint(1, 2)),
            groups=groups,
        )
        if (R - 1) * shape.dilation[0] >= H + 2 * shape.padding[0]:
            return
        if (S - 1) * shape.dilation[1] >= W + 2 * shape.padding[1]:
            return
        weight = torch.randn(shape.K, C // groups, R, S)
        weight /= weight[0].numel() ** 0.5
        out = (shape.K, shape.Ho, shape.Wo)
        add(Conv, [source], out, weight, torch.randn(shape.K) / 4, shape, clip())

    def pool(source):
        C, H, W = source.shape
        kernel = (pick.randint(1, min(3, H)), pick.randint(1, min(3, W)))
        padding = tuple(pick.randint(0, size // 2) for size in kernel)
        stride = (pick.randint(1, 2), pick.randint(1, 3))
        if kernel == (1, 1):
            padding = (0, 0)
        made = Pool(
            "",
            (),
            (C, H, W),
            pick.choice(["max", "avg"]),
            kernel,
            stride,
            padding,
            pick.random() < 0.5,
            pick.random() < 0.3,
        )
        shape = tuple(compute(made, [torch.zeros(1, C, H, W)]).shape[1:])
        rest = (made.kind, kernel, stride, padding, made.count_padding, made.ceil)
        add(Pool, [source], shape, *rest)

    for _ in range(pick.randint(2, 9)):
        source = pick.choice(nodes[-3:])
        shape = source.shape
        alike = [node for node in nodes if node.shape == shape]
        beside = [node for node in nodes if node.shape[1:] == shape[1:]]
        match pick.choice(
            ["conv"] * 4 + ["pool", "add", "concat", "scale", "clamp", "pad", "host"]
        ):
            case "conv":
                convolution(source)
            case "pool":
                pool(source)
            case "add":
                add(Add, [source, pick.choice(alike)], shape, clip())
            case "concat":
                parts = [source, pick.choice(beside)]
                add(Concat, parts, (sum(p.shape[0] for p in parts), *shape[1:]))
            case "scale":
                add(Scale, [source], shape, torch.randn(shape[0]), torch.randn(shape[0]), clip())
            case "clamp":
                add(Activation, [source], shape, (0.0, float("inf")))
            case "pad":
                add(PadChannels, [source], (shape[0] + 3, *shape[1:]), 1, 2)
            case "host":
                add(Host, [source], shape, "shuffle", shuffle)
    convolution(nodes[-1])
    size = int(np.prod(nodes[-1].shape))
    add(Flatten, [nodes[-1]], (size,))
    head = ConvShape("", C=size, H=1, W=1, K=4, R=1, S=1)
    weight = torch.randn(4, size, 1, 1) / size**0.5
    add(Conv, [nodes[-1]], (4,), weight, torch.randn(4), head, linear=True)
    return Network(tuple(nodes), nodes[-1].name, FloatArithmetic("fp32"))


@pytest.mark.parametrize("number_format", FORMATS)
@given(pick=st.randoms(use_true_random=False), seed=st.integers(0, 2**20))
@settings(max_examples=25, deadline=None)
def test_random_graphs(number_format, pick, seed, whole_run, same_bits):
    torch.manual_seed(seed)
    network = grown(pick)
    images = torch.randn(5, *network.input_shape)
    network = in_format(network, images, number_format)
    options = {
        "batch": pick.choice([1, 6, 128]),
        "memory": pick.choice([1, 1 << 30]),
        "worth": pick.choice([0, None]),
    }

    assert_exact(network, images, SOME, 120, whole_run, same_bits, **options)
