"""What a register lane still holds where the current operand is 0.

A lane is written only when its zero mask is set, so behind a mask that is 0 lies the last non-zero
operand that went through.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rasp.faults.operands import Operands, tensor
from rasp.nvdla.timeline import packages

if TYPE_CHECKING:
    from collections.abc import Callable

    from rasp.faults.context import LayerContext
    from rasp.faults.sites import Integers
    from rasp.nvdla.registers import Held

_FIRST, _MOST = 32, 4096  # operands looked back at once


def last_activation(
    context: LayerContext,
    operands: Operands,
    held: Held,
    row: Tensor,
    atom: Tensor,
    kernel: Tensor,
    lane: Tensor,
) -> Tensor:
    """Last non-zero activation of each lane before each atom, 0 if there was none.

    Args:
        context: the layer.
        operands: its operands.
        held: not read.
        row: ``(m,)`` row of the batch.
        atom: ``(m,)`` atom in the register.
        kernel: not read.
        lane: ``(m,)`` channel lane.
    """
    del held, kernel
    mapping = context.mapping

    def values(which: Tensor, index: Integers) -> Tensor:
        at = mapping.atom(index)
        channel = at.cblock * mapping.atoms.channels + lane[which].cpu().numpy()[:, None]
        columns = (tensor(c, row) for c in (at.group, channel, at.r, at.s, at.pixel))
        return operands.activation(row[which][:, None], *columns).value

    return _search(values, atom)


def last_weight(
    context: LayerContext,
    operands: Operands,
    held: Held,
    row: Tensor,
    atom: Tensor,
    kernel: Tensor,
    lane: Tensor,
) -> Tensor:
    """Last non-zero weight of each lane before the one that is multiplied in each atom.

    Args:
        context: the layer.
        operands: its operands.
        held: ``"loading"``: kernels of one half pass one after the other; ``"shadow"``: the
            register sees one kernel lane; ``"active"``: masked lanes hold 0.
        row: ``(m,)`` row of the batch; not read.
        atom: ``(m,)`` an atom of the package.
        kernel: ``(m,)`` kernel lane.
        lane: ``(m,)`` channel lane.
    """
    del row
    mapping = context.mapping
    table = packages(mapping)
    lanes = mapping.atoms.kernels // 2 if held == "loading" else 1
    cell = kernel.cpu().numpy()
    package = np.searchsorted(table.first, atom.cpu().numpy(), side="right") - 1
    start = package * lanes + (cell % lanes)
    per_group = mapping.shape.K // mapping.shape.groups

    def values(which: Tensor, index: Integers) -> Tensor:
        chosen = cell[which.cpu().numpy()][:, None]
        before = index // lanes
        loaded = chosen // lanes * lanes + index % lanes
        at = mapping.atom(table.first[before])
        absolute = at.group * per_group + at.kgroup * mapping.atoms.kernels + loaded
        channel = at.cblock * mapping.atoms.channels + lane[which].cpu().numpy()[:, None]
        columns = (tensor(c, lane) for c in (absolute, channel, at.r, at.s))
        found = operands.weight(*columns)
        present = tensor((loaded < table.kernels[before]).astype(np.int64), lane) > 0
        return torch.where(present, found, torch.zeros_like(found))

    if held == "active":
        start = np.zeros_like(start)
    return _search(values, tensor(start, lane))


def _search(values: Callable[[Tensor, Integers], Tensor], start: Tensor) -> Tensor:
    """Nearest non-zero value before each ``start``; ``values`` gives those at indices."""
    which = torch.arange(len(start), device=start.device)
    done, size = 0, _FIRST
    result = torch.zeros_like(values(which, np.zeros((len(start), 1), dtype=np.int64))[:, 0])
    while len(which):
        back = torch.arange(done + 1, done + 1 + size, device=start.device)
        index = start[which][:, None] - back
        found = values(which, index.clamp(min=0).cpu().numpy())
        found = torch.where(index >= 0, found, torch.zeros_like(found))
        hit = (found != 0).to(torch.int8)
        first = hit.argmax(1, keepdim=True)
        result[which] = found.gather(1, first).squeeze(1)
        which = which[(hit.amax(1) == 0) & (index[:, -1] > 0)]
        done, size = done + size, min(2 * size, _MOST)
    return result
