"""Networks are values: what another process is sent computes the same bits."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rasp.network.digest import digest
from rasp.network.float_ops import FloatArithmetic
from rasp.network.graph import Host
from rasp.network.lower import lower
from rasp.quantization.calibrate import quantize


class HostWork(nn.Module):
    """Host operations with a bound tensor, a named argument, a list of inputs and a batch size."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 3, padding=1)
        self.fc = nn.Linear(64, 5)
        self.register_buffer("gain", torch.rand(8, 1, 1) + 0.5)

    def forward(self, x):
        x = self.conv(x) * self.gain
        x = F.gelu(x, approximate="tanh")
        x = torch.cat([x, x.roll(1, dims=3)], dim=2)
        x = x.reshape(x.shape[0], 4, 2, 12, 6).amax(dim=2)
        x = F.adaptive_avg_pool2d(x, (4, 4))
        return self.fc(x.flatten(1))


@pytest.fixture(scope="module")
def images():
    return torch.randn(5, 2, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("number_format", ["fp32", "fp16", "int8"])
def test_a_network_comes_out_of_a_pickle_with_its_bits(images, number_format):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = lower(HostWork().eval(), images)
    assert len([node for node in network.nodes if isinstance(node, Host)]) >= 4
    if number_format == "int8":
        network, _ = quantize(network, images)
    elif number_format == "fp16":
        network = network.with_arithmetic(FloatArithmetic("fp16"))
    expected = network(images)

    received = pickle.loads(pickle.dumps(network))

    assert torch.equal(received(images), expected)
    assert digest(received) == digest(network)
