"""From a changed layer to the logits: only what a change reaches is computed again.

A change of a few pixels is followed as a window that grows from node to node until it is most of a
map. After every node the new values are held against the golden ones: a trial without a difference
left has been masked and is dropped. Both are exact, bit for bit, in every format.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from rasp.network.graph import Conv, Network, Node
from rasp.network.maps import by_pixel
from rasp.network.windows import Window, area, exact, filled, touched

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rasp.faults.sites import SparseChange
    from rasp.network.maps import Maps

_WORD = 8  # bytes that are held against each other at once
_WORTH = 2e9  # operations that a part of its own has to save
_KEPT = 0.85  # share of live trials below which the others are taken out


class Answers(NamedTuple):
    """Trials whose logits differ from the golden ones, some perhaps twice, and these logits.

    ``trial`` is int64 ``(m,)``, ``logits`` fp32 ``(m, classes)``.
    """

    trial: Tensor
    logits: Tensor


class _Patch(NamedTuple):
    """New values of a node for ``n`` trials, ``(n, height, width, C)``; golden around them.

    ``dirty`` ``(n,)`` says in which of the trials they differ from the golden ones, ``first`` and
    ``last`` ``(2, n)`` in which rows and columns.
    """

    window: Window
    values: Tensor
    dirty: Tensor
    first: Tensor
    last: Tensor

    @classmethod
    def of(cls, window: Window, values: Tensor, golden: Tensor) -> _Patch:
        differs = _differs(values, golden)
        corner = torch.stack([window.top, window.left])
        along = [differs.any(2), differs.any(1)]
        ends = [
            (seen.byte().argmax(1), seen.shape[1] - 1 - seen.flip(1).byte().argmax(1))
            for seen in along
        ]
        first, last = (corner + torch.stack(end) for end in zip(*ends, strict=True))
        return cls(window, values, along[0].any(1), first, torch.maximum(first, last))

    @property
    def extent(self) -> Tensor:
        """``(2, n)`` rows and columns of the box around the differences."""
        return self.last - self.first + 1

    def pick(self, trials: Tensor) -> _Patch:
        """Some of the trials, in a window no larger than their differences need."""
        first, last = self.first[:, trials], self.last[:, trials]
        height, width = (last - first + 1).amax(1).tolist()
        window, values = self.window.pick(trials), self.values[trials]
        if height * width < window.height * window.width:
            top = torch.minimum(first[0], window.top + window.height - height)
            left = torch.minimum(first[1], window.left + window.width - width)
            inner = Window(top, left, height, width)
            y = (inner.rows() - window.top[:, None])[:, :, None]
            x = (inner.columns() - window.left[:, None])[:, None, :]
            row = torch.arange(len(trials), device=trials.device)[:, None, None]
            window, values = inner, values[row, y, x]
        return _Patch(window, values, self.dirty[trials], first, last)


class _State(NamedTuple):
    """Trials on their way: the next step, their numbers, and the nodes that differ."""

    step: int
    trial: Tensor
    patches: Mapping[str, _Patch]

    def pick(self, trials: Tensor) -> _State:
        patches = {name: patch.pick(trials) for name, patch in self.patches.items()}
        return _State(self.step, self.trial[trials], patches)


class _Step(NamedTuple):
    """A node after the faulted layer, and its inputs that no later node reads."""

    node: Node
    done: tuple[str, ...]


class Propagation:
    """Follows changes of a layer's output through a network.

    Args:
        network: what runs.
        batch: trials that are followed at once.
    """

    def __init__(self, network: Network, *, batch: int) -> None:
        self._network = network
        self._arithmetic = network.arithmetic
        self._batch = batch
        self._tried: dict[tuple[str, int, int], bool] = {}
        self._steps = lru_cache(maxsize=None)(self._steps_after)

    def run(
        self, name: str, change: SparseChange, golden: Mapping[str, Maps], image: Tensor
    ) -> Answers:
        """Follow the changes of one layer.

        Args:
            name: the layer.
            change: values that differ from the golden ones; ``row`` counts trials.
            golden: golden maps of every node.
            image: ``(n,)`` image of each trial among the golden ones.
        """
        parts = [
            self._follow(name, patch, golden, image, trial)
            for trial, patch in self._batches(change, golden[name], image)
        ]
        parts.append(Answers(image[:0], self._decode(golden[self._network.output], image[:0])))
        trials, logits = zip(*parts, strict=True)
        return Answers(torch.cat(trials), torch.cat(logits))

    def _batches(
        self, change: SparseChange, golden: Maps, image: Tensor
    ) -> Iterator[tuple[Tensor, _Patch]]:
        """Trials whose changes have about the same extent, and the changes as patches."""
        size, area = golden.size, math.prod(golden.size)
        trials, row = torch.unique(change.row, return_inverse=True)
        kernel, pixel = change.element // area, change.element % area
        place = torch.stack([pixel // size[1], pixel % size[1]])
        first, last = (
            torch.zeros((2, len(trials)), dtype=torch.int64, device=row.device).scatter_reduce(
                1, row.expand(2, -1), place, how, include_self=False
            )
            for how in ("amin", "amax")
        )
        extent = last - first + 1
        kinds, kind = torch.unique(extent.double().log2().ceil(), dim=1, return_inverse=True)
        for which in range(kinds.shape[1]):
            (alike,) = torch.nonzero(kind == which, as_tuple=True)
            for part in torch.split(alike, self._batch):
                mine = part[filled(torch.arange(len(part), device=part.device), self._arithmetic)]
                height, width = extent[:, part].amax(1).tolist()
                top, left = first[:, mine]
                window = Window(
                    top.clamp(max=size[0] - height), left.clamp(max=size[1] - width), height, width
                )
                values = golden.window(image[trials[mine]], window)
                position = torch.full_like(trials, -1)
                position[part] = torch.arange(len(part), device=part.device)
                at = position[row]
                hit = at >= 0
                at = at[hit]
                y, x = place[0][hit] - window.top[at], place[1][hit] - window.left[at]
                values[at, y, x, kernel[hit]] = change.value[hit]
                dirty = torch.arange(len(mine), device=mine.device) < len(part)
                patch = _Patch(window, values, dirty, first[:, mine], last[:, mine])
                yield trials[mine], patch

    def _follow(
        self, name: str, patch: _Patch, golden: Mapping[str, Maps], image: Tensor, trial: Tensor
    ) -> Answers:
        """Run the nodes after a layer for one batch, in parts where extents differ much."""
        steps, output = self._steps(name), self._network.output
        parts = [Answers(trial[:0], self._decode(golden[output], trial[:0]))]
        waiting = [_State(0, trial, {name: patch})]
        while waiting:
            state = waiting.pop()
            while state.step < len(steps) and state.patches:
                node, done = steps[state.step]
                if isinstance(node, Conv) and node.inputs[0] in state.patches:
                    state, *large = self._split(node, state)
                    waiting.extend(large)
                changed = {k: state.patches[k] for k in node.inputs if k in state.patches}
                patches = dict(state.patches)
                if changed:
                    patches[node.name] = self._compute(node, changed, golden, image[state.trial])
                for source in done:
                    patches.pop(source, None)
                state = self._live(_State(state.step + 1, state.trial, patches))
            if output in state.patches:
                answer = state.patches[output]
                (found,) = torch.nonzero(answer.dirty, as_tuple=True)
                stored = answer.values[found].view(len(found), *self._network[output].shape)
                logits = self._arithmetic.decode(output, stored)
                parts.append(Answers(state.trial[found], logits))
        trials, logits = zip(*parts, strict=True)
        return Answers(torch.cat(trials), torch.cat(logits))

    def _live(self, state: _State) -> _State:
        """The state without nodes that differ nowhere and, if they are many, masked trials."""
        patches = {name: p for name, p in state.patches.items() if bool(p.dirty.any())}
        state = state._replace(patches=patches)
        if not patches:
            return state
        dirty = torch.stack([patch.dirty for patch in patches.values()]).any(0)
        (live,) = torch.nonzero(dirty, as_tuple=True)
        if len(live) >= _KEPT * len(dirty):
            return state
        return state.pick(filled(live, self._arithmetic))

    def _split(self, node: Conv, state: _State) -> list[_State]:
        """Trials with small and with large changes apart, where that saves enough arithmetic."""
        extent = state.patches[node.inputs[0]].extent
        most = extent.amax(1, keepdim=True)
        small = (2 * extent <= most + 1).all(0)
        (few,), (many,) = (torch.nonzero(part, as_tuple=True) for part in (small, ~small))
        if not len(few) or not len(many):
            return [state]
        saved = area(node, most[:, 0]) - area(node, extent[:, few].amax(1))
        shape = node.conv
        each = 2 * shape.K * shape.R * shape.S * shape.C // shape.groups
        if len(few) * saved * each < _WORTH:
            return [state]
        return [state.pick(filled(part, self._arithmetic)) for part in (few, many)]

    def _compute(
        self, node: Node, changed: Mapping[str, _Patch], golden: Mapping[str, Maps], image: Tensor
    ) -> _Patch:
        """New values of a node where its inputs have changed."""
        part = touched(node, [patch.window for patch in changed.values()])
        if part and isinstance(node, Conv) and not self._exact(node, part.output):
            part = None
        inputs = []
        for name in node.inputs:
            needed = part.inputs if part else Window.whole(golden[name].size, image)
            values = _cut(golden[name], changed.get(name), image, needed).permute(0, 3, 1, 2)
            inputs.append(values.view(-1, *self._network[name].shape) if not part else values)
        if part and isinstance(node, Conv):
            output = self._arithmetic.run_window(node, inputs[0])
        else:
            output = self._arithmetic.run(node, inputs)
        values = by_pixel(output).contiguous()
        window = part.output if part else Window.whole(golden[node.name].size, image)
        return _Patch.of(window, values, golden[node.name].window(image, window))

    def _exact(self, node: Conv, window: Window) -> bool:
        key = (node.name, window.height, window.width)
        if key not in self._tried:
            self._tried[key] = exact(self._arithmetic, node, window.height, window.width)
        return self._tried[key]

    def _decode(self, maps: Maps, image: Tensor) -> Tensor:
        return self._arithmetic.decode(self._network.output, maps.images(image))

    def _steps_after(self, name: str) -> tuple[_Step, ...]:
        reached, nodes = {name}, []
        for node in self._network.nodes:
            if reached.intersection(node.inputs):
                reached.add(node.name)
                nodes.append(node)
        steps = []
        for index, node in enumerate(nodes):
            later = {source for after in nodes[index + 1 :] for source in after.inputs}
            later.add(self._network.output)
            steps.append(_Step(node, tuple(set(node.inputs) - later)))
        return tuple(steps)


def _cut(maps: Maps, patch: _Patch | None, image: Tensor, window: Window) -> Tensor:
    """Values ``(n, height, width, C)`` of a window, with a patch laid over the golden ones."""
    if patch is not None and window.equals(patch.window):
        return patch.values
    values = maps.window(image, window)
    if patch is None:
        return values
    y = patch.window.rows() - window.top[:, None]
    x = patch.window.columns() - window.left[:, None]
    row = torch.arange(len(image), device=image.device)[:, None]
    index = ((row * window.height + y) * window.width)[:, :, None] + x[:, None, :]
    across = (x >= 0) & (x < window.width)
    inside = ((y >= 0) & (y < window.height))[:, :, None] & across[:, None, :]
    target, source = values.view(-1, values.shape[3]), patch.values.view(-1, values.shape[3])
    if bool(inside.all()):
        target.index_copy_(0, index.flatten(), source)
    else:
        target.index_copy_(0, index[inside], source[inside.flatten()])
    return values


def bits(values: Tensor) -> Tensor:
    """Values as integers, so that NaN equals itself and -0 differs from 0."""
    integer = {torch.float32: torch.int32, torch.float16: torch.int16}.get(values.dtype)
    return values if integer is None else values.contiguous().view(integer)


def _differs(new: Tensor, golden: Tensor) -> Tensor:
    """``(n, height, width)`` whether any bit of a pixel ``(..., C)`` differs."""
    words = new.shape[3] * new.element_size() % _WORD == 0
    a, b = (
        flat.view(torch.int64) if words else bits(flat)
        for flat in (new.flatten(), golden.flatten())
    )
    return (a != b).view(*new.shape[:3], -1).any(3)
