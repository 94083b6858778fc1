r"""Vulnerability from a few faults each, injected on the network itself.

In INT8 an answer changes where a fault's small effect meets a small margin, and both are rare
together: most faults tell nothing. So the effect is measured and the margin is taken as drawn
anew. A fault that lowers the lead of the top class over some rival by :math:`d` is given the share
of the images whose margin is smaller,

.. math:: P = F(d), \qquad d = \max_j (z'_j - z_j) - (z'_{top} - z_{top}),

half of those whose margin is :math:`d`, and 1 if a logit is no number. Every fault on every image
tells something then, and rounding, saturation and masking are those of the network. A margin and
an effect on the same image are not independent, so this ranks channels and layers and is no
measured rate.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rasp.errors import ConfigError
from rasp.faults.population import Stratum, mix, strata
from rasp.faults.sampling import draw
from rasp.nvdla.cycles import layer_cycles
from rasp.progress import Progress, silent
from rasp.replay.engine import Replay

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rasp.network.graph import Network
    from rasp.nvdla.config import AcceleratorConfig
    from rasp.nvdla.shapes import ConvShape

_BLOCK = 1 << 16
_SAME = 1e-5  # of the largest margin: what is nearer to each other is equal


def injected_vulnerability(
    network: Network,
    accelerator: AcceleratorConfig,
    images: Tensor,
    *,
    trials: int,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, Tensor]:
    """Probability that one flipped bit in a channel's stored output changes the top-1 answer.

    Args:
        network: lowered, in the format it is to run in.
        accelerator: what it runs on.
        images: normalised images ``(N, C, H, W)``; margins of images that the network was trained
            on are larger than those of others.
        trials: faults (``RD_BFLIP``), spread evenly over all channels; about 100 a channel rank
            well.
        seed: of the faults.
        progress: hears of trials.

    Returns:
        For each layer fp64 ``(K,)``; channels that no fault hit have the mean of their layer.

    Raises:
        ConfigError: no images, or no trials.
    """
    channels = sum(layer.conv.K for layer in network.layers)
    population = [
        Stratum(layer.name, "RD_BFLIP", layer.conv.K / channels) for layer in network.layers
    ]
    lost = {layer.name: torch.zeros(2, layer.conv.K).double() for layer in network.layers}
    for part in _injected(network, accelerator, images, population, trials, seed, progress):
        for index, stratum in enumerate(population):
            mine = part.stratum == index
            sums, hit = lost[stratum.layer], part.kernel[mine]
            sums[0].index_add_(0, hit, part.chance[mine])
            sums[1].index_add_(0, hit, torch.ones(len(hit)).double())
    return {name: _rates(sums) for name, sums in lost.items()}


@dataclass(frozen=True, eq=False)
class PredictedFailures:
    """Failures per inference as a function of layer shapes: register bits x cycles x rate.

    A layer's rate per fault is taken as that of the network it was measured on. Narrower layers
    fail more often per fault than that, so this tells widths apart and is no measured rate.

    Attributes:
        accelerator: what the network runs on.
        format: number format.
        rates: failures per fault of each layer.

    Example:
        >>> from rasp.nvdla.config import load
        >>> from rasp.nvdla.shapes import ConvShape
        >>> failures = PredictedFailures(load("nv_small"), "int8", {"fc": 0.5})
        >>> failures([ConvShape("fc", C=16, H=1, W=1, K=16, R=1, S=1)])
        16.0
    """

    accelerator: AcceleratorConfig
    format: str
    rates: Mapping[str, float]
    _cycles: dict[ConvShape, int] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, shapes: Sequence[ConvShape]) -> float:
        """Failures per inference, up to the number of register bits and the upset rate."""
        for shape in shapes:
            if shape not in self._cycles:
                cycles = layer_cycles(shape, self.accelerator, self.format).total
                self._cycles[shape] = cycles
        return sum(self.rates.get(shape.name, 0.0) * self._cycles[shape] for shape in shapes)


def predicted_failures(
    network: Network,
    accelerator: AcceleratorConfig,
    images: Tensor,
    *,
    faults: str = "fidelity",
    trials: int = 1 << 14,
    seed: int = 0,
    progress: Progress = silent,
) -> PredictedFailures:
    """Rate per fault of each layer of a network, for :class:`PredictedFailures`.

    Args:
        network: lowered, in the format it is to run in.
        accelerator: what it runs on.
        images: normalised images ``(N, C, H, W)``.
        faults: population, see :func:`rasp.faults.population.mix`; every layer gets as many.
        trials: faults of all layers together.
        seed: of the faults.
        progress: hears of trials.

    Raises:
        ConfigError: no images, or no trials.
    """
    population = strata(
        network, accelerator, models=mix(faults, accelerator), layer_weights="uniform"
    )
    sums = np.zeros((2, len(population)))
    for part in _injected(network, accelerator, images, population, trials, seed, progress):
        stratum = part.stratum.numpy()
        sums[0] += np.bincount(stratum, part.chance.numpy(), len(population))
        sums[1] += np.bincount(stratum, minlength=len(population))
    rates = {}
    for layer in network.layers:
        mine = [index for index, one in enumerate(population) if one.layer == layer.name]
        rates[layer.name] = float(sums[0, mine].sum() / max(sums[1, mine].sum(), 1))
    return PredictedFailures(accelerator, network.format, rates)


class _Injected(NamedTuple):
    """A block of faults: where, and the chance that each changes an answer."""

    stratum: Tensor
    kernel: Tensor
    chance: Tensor


def _injected(
    network: Network,
    accelerator: AcceleratorConfig,
    images: Tensor,
    population: Sequence[Stratum],
    trials: int,
    seed: int,
    progress: Progress,
) -> Iterator[_Injected]:
    if not len(images):
        raise ConfigError("The calibration set is empty. Give at least one image.")
    if trials < 1:
        raise ConfigError(f"At least one fault must be injected, got {trials}.")
    replay = Replay(network, accelerator, images, torch.zeros(len(images), dtype=torch.int64))
    margins = torch.from_numpy(replay.golden.margin).sort().values
    for start in range(0, trials, _BLOCK):
        span = range(start, min(start + _BLOCK, trials))
        drawn = draw(population, images=len(images), seed=seed, trials=span)
        answers = replay.answers(population, drawn)
        yield _Injected(
            torch.from_numpy(drawn.stratum),
            torch.from_numpy(answers.sites.kernel),
            _chance(answers.golden, answers.faulty, margins),
        )
        progress("inject for vulnerability", span.stop, trials)


def _chance(golden: Tensor, faulty: Tensor, margins: Tensor) -> Tensor:
    """Share of the margins ``(m,)``, ascending, that each fault would use up, fp64 ``(n,)``."""
    top = golden.argmax(1, keepdim=True)
    change = (faulty - golden).double()
    drop = (change - change.gather(1, top)).amax(1).contiguous()
    ulp = _SAME * float(margins[-1])
    below = torch.searchsorted(margins, drop - ulp)
    upto = torch.searchsorted(margins, drop + ulp, right=True)
    share = (below + upto).double() / (2 * len(margins))
    share = torch.where(drop > 0, share, 0.0)
    return torch.where(faulty.isfinite().all(1), share, 1.0)


def _rates(sums: Tensor) -> Tensor:
    events, faults = sums
    mean = events.sum() / faults.sum().clamp(min=1)
    return torch.where(faults > 0, events / faults.clamp(min=1), mean)
