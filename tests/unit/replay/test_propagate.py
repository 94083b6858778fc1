"""Changes put into a layer by hand, followed and held against the full execution."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rasp.faults.sites import SparseChange
from rasp.network import windows
from rasp.network.float_ops import FloatArithmetic
from rasp.network.graph import Input
from rasp.network.lower import lower
from rasp.network.maps import Maps
from rasp.quantization.calibrate import quantize
from rasp.replay import propagate
from rasp.replay.propagate import Propagation, bits

N = 16
NAN, INF = float("nan"), float("inf")


class Residual(nn.Module):
    """One branch is a clamp, in which a change below 0 dies, the other a convolution."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.branch = nn.Conv2d(4, 4, 3, padding=1)
        self.tail = nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 3)
        with torch.no_grad():
            self.branch.weight[:, 2] = 0
            self.stem.bias[2:] = -9.0

    def forward(self, x):
        x = self.stem(x)
        x = self.branch(x) + F.relu(x)
        return self.fc(self.tail(x).relu().mean((2, 3)))


def prepared(model, number_format, shape=(2, 20, 20)):
    torch.manual_seed(1)
    images = torch.randn(N, *shape)
    network = lower(model.eval(), images)
    if number_format == "int8":
        return quantize(network, images)[0], images
    return network.with_arithmetic(FloatArithmetic(number_format)), images


class Case:
    """A network, its golden values, and the two ways to the logits of changes of one layer."""

    def __init__(self, network, images, layer, whole_run):
        self.network, self.images, self.layer, self._whole_run = network, images, layer, whole_run
        self.golden = network.trace(images)
        self.logits = network.arithmetic.decode(network.output, self.golden[network.output])

    def full(self, image, changes):
        """Logits ``(n, classes)`` with ``changes`` (trial, kernel, row, column, value) put in."""
        output = self.golden[self.layer][image].clone()
        for trial, *at, value in changes:
            output[(trial, *at)] = value
        return self._whole_run(self.network, self.images[image], self.layer, output)

    def replayed(self, image, changes, batch=128):
        """Likewise by replay, and which trials it found changed."""
        _, height, width = self.network[self.layer].shape
        row, kernel, y, x, value = zip(*changes, strict=True)
        place = [torch.tensor(column) for column in (kernel, y, x)]
        element = (place[0] * height + place[1]) * width + place[2]
        stored = self.golden[self.layer].dtype
        change = SparseChange(torch.tensor(row), element, torch.tensor(value).to(stored))
        maps = {name: Maps.of(tensor) for name, tensor in self.golden.items()}
        found = Propagation(self.network, batch=batch).run({self.layer: change}, maps, image)
        logits = self.logits[image].clone()
        logits[found.trial] = found.logits
        return logits, set(found.trial.tolist())


@pytest.fixture
def case(whole_run):
    def make(number_format="fp32", layer="stem", model=None):
        torch.manual_seed(0)
        return Case(*prepared(model or Residual(), number_format), layer, whole_run)

    return make


def check(case, image, changes, same_bits, **options):
    image = torch.tensor(image)
    expected = case.full(image, changes)
    found, hit = case.replayed(image, changes, **options)
    assert same_bits(found, expected)
    differ = (bits(expected) != bits(case.logits[image])).any(1)
    assert hit == set(torch.nonzero(differ).flatten().tolist())
    return hit, expected


@pytest.mark.parametrize("number_format", ["fp32", "fp16"])
def test_nan_and_infinities_and_minus_zero(case, number_format, same_bits):
    values = [NAN, INF, -INF, -0.0, 65504.0, 1e-7]
    changes = [(i, 1, 3 * i, 4, value) for i, value in enumerate(values)]

    hit, logits = check(case(number_format), [0] * len(values), changes, same_bits)

    assert {0, 1, 2} <= hit
    assert logits[:2].isnan().any(1).all()


@pytest.mark.parametrize("number_format", ["fp32", "fp16"])
def test_only_the_sign_of_a_zero(case, number_format, same_bits):
    case = case(
        number_format,
        model=nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(1600, 3)),
        layer="0",
    )
    zero = torch.nonzero(case.golden["0"] == 0)[:5]
    changes = [(i, *at, -0.0) for i, (_, *at) in enumerate(zero.tolist())]

    check(case, zero[:, 0].tolist(), changes, same_bits)


def test_nan_that_stays_nan_is_masked(case, same_bits):
    """Weights beyond fp16 make the golden answer NaN already; nothing that comes on top shows."""
    model = nn.Sequential(
        nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(800, 3)
    )
    case = case("fp32", model=model, layer="0")
    with torch.no_grad():
        case.network["2"].weight.fill_(INF)
    case = Case(case.network, case.images, "0", case._whole_run)
    assert case.logits.isnan().all()

    hit, _ = check(
        case, [0, 1, 2], [(0, 1, 2, 3, 5.0), (1, 0, 0, 0, NAN), (2, 2, 9, 9, -1.0)], same_bits
    )

    assert not hit


@pytest.mark.parametrize("number_format", ["fp32", "fp16", "int8"])
def test_a_change_dies_in_one_branch_and_lives_in_the_other(case, number_format, same_bits):
    """Channel 2 is below 0 and no convolution reads it, 3 is below 0, 0 and 1 may be above."""
    case = case(number_format)
    low, high = (-120, 100) if number_format == "int8" else (-7.5, 6.0)
    assert bool((case.golden["stem"][:, 2:] < 0).all())
    changes = [
        (0, 2, 5, 5, low),  # dies in both
        (1, 3, 5, 5, low),  # dies in the clamp
        (2, 2, 5, 5, high),  # lives in the clamp alone
        (3, 0, 5, 5, high),  # lives in both
        (4, 2, 0, 19, low),  # two of a trial: the first dies in both
        (4, 3, 19, 0, low),
        (5, 2, 10, 10, low),  # all die
        (5, 2, 11, 12, low),
    ]

    hit, _ = check(case, [3, 3, 3, 3, 4, 5], changes, same_bits)

    assert hit <= {1, 2, 3, 4}
    if number_format == "fp32":
        assert hit == {1, 2, 3, 4}
    assert hit or number_format == "int8"


@pytest.mark.parametrize("number_format", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize(("batch", "worth"), [(1, 0), (2, 0), (128, 0), (128, 2e9)])
def test_changes_far_apart_and_of_any_extent_together(
    case, number_format, batch, worth, same_bits, monkeypatch
):
    monkeypatch.setattr(propagate, "_WORTH", worth)
    value = 90 if number_format == "int8" else 3.25
    changes = [
        (0, 0, 0, 0, value),
        (0, 1, 19, 19, value),
        (1, 0, 19, 0, value),
        (2, 1, 0, 3, value),
        (2, 1, 0, 16, value),
        (3, 3, 7, 7, value),
        (4, 0, 19, 19, value),
        (4, 1, 18, 19, value),
        (6, 1, 2, 2, value),
        *((7, 0, y, x, value) for y in range(20) for x in range(20)),
        *((8, 1, y, 4, value) for y in range(20)),
    ]

    hit, _ = check(
        case(number_format), [0, 1, 2, 3, 4, 5, 6, 7, 8], changes, same_bits, batch=batch
    )

    assert 5 not in hit
    assert len(hit) >= (3 if number_format == "int8" else 7)


def test_trials_repeat_images(case, same_bits):
    changes = [(i, i % 2, 3 + i, 19 - i, 2.0 + i) for i in range(9)]

    hit, expected = check(case(), [7, 7, 7, 0, 7, 7, 0, 7, 7], changes, same_bits)

    assert hit == set(range(9))
    assert len(expected.unique(dim=0)) == 9


def test_what_is_put_back_to_the_golden_value_is_masked(case, same_bits):
    case = case()
    golden = case.golden["stem"][3, 1, 4, 4].item()

    hit, _ = check(case, [3], [(0, 1, 4, 4, golden)], same_bits)

    assert not hit


def test_nothing_changed_is_no_answer(case):
    case = case()
    nothing = torch.zeros(0, dtype=torch.int64)
    maps = {name: Maps.of(tensor) for name, tensor in case.golden.items()}

    found = Propagation(case.network, batch=8).run(
        {"stem": SparseChange(nothing, nothing, torch.zeros(0))}, maps, torch.tensor([1, 2])
    )

    assert len(found.trial) == 0
    assert found.logits.shape == (0, 3)


@pytest.mark.parametrize("number_format", ["fp32", "fp16", "int8"])
def test_a_change_of_the_logits_is_the_answer(number_format, whole_run, same_bits):
    torch.manual_seed(0)
    network, images = prepared(Residual(), number_format)
    golden = network.trace(images)
    value = torch.tensor([5, 7]).to(golden["fc"].dtype)
    change = SparseChange(torch.tensor([0, 2]), torch.tensor([1, 2]), value)
    image = torch.tensor([4, 5, 6])
    maps = {name: Maps.of(tensor) for name, tensor in golden.items()}

    found = Propagation(network, batch=8).run({"fc": change}, maps, image)

    output = golden["fc"][image].clone()
    output[0, 1], output[2, 2] = value
    assert found.trial[:2].tolist() == [0, 2]
    assert same_bits(found.logits[:2], whole_run(network, images[image], "fc", output)[[0, 2]])


class OtherBits(FloatArithmetic):
    """Windows come out one part in a million off; ``ran`` counts those computed for a replay."""

    def __init__(self, number_format):
        super().__init__(number_format)
        object.__setattr__(self, "ran", [])

    def accumulate(self, conv, x, *, padded=False):
        sums = super().accumulate(conv, x, padded=padded)
        return sums * (1 + 2**-20) if padded else sums

    def run_window(self, conv, padded):
        self.ran.append(conv.name)
        return super().run_window(conv, padded)


CHANGES = [(0, 1, 9, 9, 2.0), (1, 0, 3, 16, 1.5), (2, 1, 0, 0, -4.0)]


def test_windows_with_other_bits_are_not_used(case, same_bits):
    case = case()
    arithmetic = OtherBits("fp32")
    case = Case(case.network.with_arithmetic(arithmetic), case.images, "stem", case._whole_run)

    hit, _ = check(case, [0, 1, 2], CHANGES, same_bits)

    assert hit == {0, 1, 2}
    assert not arithmetic.ran


def test_without_the_trial_they_would_be_wrong(case, same_bits, monkeypatch):
    case = case()
    arithmetic = OtherBits("fp32")
    case = Case(case.network.with_arithmetic(arithmetic), case.images, "stem", case._whole_run)
    monkeypatch.setattr(propagate, "exact", lambda *_: True)

    image = torch.tensor([0, 1, 2])
    found, _ = case.replayed(image, CHANGES)

    assert arithmetic.ran
    assert not same_bits(found, case.full(image, CHANGES))


def test_a_window_size_is_tried_once_a_layer(case, monkeypatch):
    asked = []

    def counted(arithmetic, conv, height, width):
        asked.append((conv.name, height, width))
        return windows.exact(arithmetic, conv, height, width)

    monkeypatch.setattr(propagate, "exact", counted)
    case, image = case(), torch.arange(9)
    changes = [(i, 1, 2 * i, 9, 2.0) for i in range(9)]

    case.replayed(image, changes, batch=2)

    assert ("branch", 3, 3) in asked
    assert len(asked) == len(set(asked))


@pytest.mark.parametrize("number_format", ["fp32", "fp16", "int8"])
def test_single_pixels_are_followed_in_windows(case, number_format, monkeypatch):
    """The point of it all: most of a map is not computed again."""
    sizes = []
    real = propagate.touched

    def seen(node, changed):
        part = real(node, changed)
        sizes.append((node.name, part and (part.output.height, part.output.width)))
        return part

    monkeypatch.setattr(propagate, "touched", seen)
    case = case(number_format)

    value = 90 if number_format == "int8" else 3.0
    case.replayed(torch.tensor([2]), [(0, 1, 9, 9, value)])

    by_name = dict(sizes)
    assert by_name["branch"] == (3, 3)
    assert by_name["tail"] == (5, 5)
    assert [type(node) for node in case.network.nodes].count(Input) == 1


@pytest.mark.parametrize("number_format", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("batch", [1, 5, 128])
@pytest.mark.parametrize("together", [7, 1024])
def test_changes_of_all_layers_go_together(
    case, number_format, batch, together, whole_run, same_bits, monkeypatch
):
    monkeypatch.setattr(propagate, "_TOGETHER", together)
    monkeypatch.setattr(propagate, "_WORTH", 0)
    base = case(number_format)
    network, golden = base.network, base.golden
    n, generator = 40, torch.Generator().manual_seed(4)
    image = torch.randint(0, N, (n,), generator=generator)
    layers = [layer.name for layer in network.layers]
    expected, changes = base.logits[image].clone(), {}
    for index, name in enumerate(layers):
        mine = torch.arange(n)[index :: len(layers)]
        output = golden[name][image[mine]]
        flat = output.reshape(len(mine), -1).clone()
        row = torch.arange(len(mine)).repeat_interleave(2)[:-3]
        element = torch.randint(0, flat.shape[1] // 2, (len(row),), generator=generator) * 2
        element += torch.arange(len(row)) % 2  # the two of a trial are not the same
        value = torch.randint(-100, 100, (len(row),), generator=generator) / 16
        value = (16 * value if number_format == "int8" else value).to(flat.dtype)
        kept = bits(value) != bits(flat[row, element])
        row, element, value = row[kept], element[kept], value[kept]
        flat[row, element] = value
        output.copy_(flat.view(output.shape))
        changes[name] = SparseChange(mine[row], element, value)
        expected[mine] = whole_run(network, base.images[image[mine]], name, output)
    maps = {name: Maps.of(tensor) for name, tensor in golden.items()}

    found = Propagation(network, batch=batch).run(changes, maps, image)

    logits = base.logits[image].clone()
    logits[found.trial] = found.logits
    assert same_bits(logits, expected)
    differ = (bits(expected) != bits(base.logits[image])).any(1)
    assert set(found.trial.tolist()) == set(torch.nonzero(differ).flatten().tolist())
