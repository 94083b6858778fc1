r"""Vulnerability of channels from a few faults each, injected on the network itself.

In INT8 an answer changes where a fault's small effect meets a small margin, and both are rare
together: most faults tell nothing. So the effect is measured and the margin is taken as drawn
anew. A fault that lowers the lead of the top class over some rival by :math:`d` is given the share
of the images whose margin is smaller,

.. math:: P = F(d), \qquad d = \max_j (z'_j - z_j) - (z'_{top} - z_{top}),

half of those whose margin is :math:`d`, and 1 if a logit is no number. Every fault on every image
tells something then, and rounding, saturation and masking are those of the network. A margin and
an effect on the same image are not independent, so this ranks channels and is no measured rate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rasp.errors import ConfigError
from rasp.faults.population import Stratum
from rasp.faults.sampling import draw
from rasp.progress import Progress, silent
from rasp.replay.engine import Replay

if TYPE_CHECKING:
    from rasp.network.graph import Network
    from rasp.nvdla.config import AcceleratorConfig

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
    if not len(images):
        raise ConfigError("The calibration set is empty. Give at least one image.")
    if trials < 1:
        raise ConfigError(f"At least one fault must be injected, got {trials}.")
    channels = sum(layer.conv.K for layer in network.layers)
    population = [
        Stratum(layer.name, "RD_BFLIP", layer.conv.K / channels) for layer in network.layers
    ]
    replay = Replay(network, accelerator, images, torch.zeros(len(images), dtype=torch.int64))
    margins = torch.from_numpy(replay.golden.margin).sort().values
    lost = {layer.name: torch.zeros(2, layer.conv.K).double() for layer in network.layers}
    for start in range(0, trials, _BLOCK):
        span = range(start, min(start + _BLOCK, trials))
        drawn = draw(population, images=len(images), seed=seed, trials=span)
        answers = replay.answers(population, drawn)
        chance = _chance(answers.golden, answers.faulty, margins)
        kernel, stratum = torch.from_numpy(answers.sites.kernel), torch.from_numpy(drawn.stratum)
        for index, part in enumerate(population):
            mine = stratum == index
            sums, hit = lost[part.layer], kernel[mine]
            sums[0].index_add_(0, hit, chance[mine])
            sums[1].index_add_(0, hit, torch.ones(len(hit)).double())
        progress("inject for vulnerability", span.stop, trials)
    return {name: _rates(sums) for name, sums in lost.items()}


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
