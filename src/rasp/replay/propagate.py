"""From changed layers to the logits: only what a change reaches is computed again.

Trials of all layers go through the network together, node by node. A change of a few pixels is
followed as a window that grows until it is most of a map. After every node the new values are held
against the golden ones: a trial without a difference left has been masked and is dropped. All of it
is exact, bit for bit, in every format.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from rasp.network.graph import Conv, Network, Node
from rasp.network.maps import by_pixel
from rasp.network.windows import Window, area, exact, filled, touched

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from rasp.faults.sites import SparseChange
    from rasp.network.maps import Maps

_WORD = 8  # bytes that are held against each other at once
_TOGETHER = 16  # batches that go through the network side by side
_WORTH = 2e9  # operations that a part of its own has to save
_KEPT = 0.85  # share of live trials below which the others are taken out


class Changed(NamedTuple):
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

    @classmethod
    def joined(cls, parts: Sequence[_Patch]) -> _Patch:
        """Patches in windows of one size as one."""
        windows, values, dirty, first, last = zip(*parts, strict=True)
        window = windows[0]._replace(
            top=torch.cat([w.top for w in windows]), left=torch.cat([w.left for w in windows])
        )
        bounds = (torch.cat(bound, 1) for bound in (first, last))
        return cls(window, torch.cat(values), torch.cat(dirty), *bounds)

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
    """Trials that wait at the same node: their numbers, and the nodes before it that differ."""

    trial: Tensor
    patches: Mapping[str, _Patch]

    @property
    def kind(self) -> _Kind:
        """What states must share to be joined: nodes, and windows of about the same size."""
        windows = {name: patch.window for name, patch in self.patches.items()}
        return tuple(
            sorted((name, _octave(w.height), _octave(w.width)) for name, w in windows.items())
        )

    def pick(self, trials: Tensor) -> _State:
        patches = {name: patch.pick(trials) for name, patch in self.patches.items()}
        return _State(self.trial[trials], patches)


_Kind = tuple[tuple[str, int, int], ...]


def _octave(size: int) -> int:
    return round(2 * math.log2(size))


class Propagation:
    """Follows changes of layers' outputs through a network.

    Args:
        network: what runs.
        batch: trials that run at once, about.
    """

    def __init__(self, network: Network, *, batch: int) -> None:
        self._network = network
        self._arithmetic = network.arithmetic
        self._batch = batch
        self._tried: dict[tuple[str, int, int], bool] = {}
        self._readers: dict[str, list[int]] = {node.name: [] for node in network.nodes}
        for index, node in enumerate(network.nodes):
            for source in dict.fromkeys(node.inputs):
                self._readers[source].append(index)

    def run(
        self, changes: Mapping[str, SparseChange], golden: Mapping[str, Maps], image: Tensor
    ) -> Changed:
        """Follow changes.

        Args:
            changes: for each layer the values that differ from the golden ones; ``row`` counts
                trials, and a trial is in one layer only.
            golden: golden maps of every node.
            image: ``(n,)`` image of each trial among the golden ones.
        """
        found = [Changed(image[:0], self._decode(golden[self._network.output], image[:0]))]
        trials = torch.unique(torch.cat([image[:0], *(c.row for c in changes.values())]))
        waves = -(-len(trials) // (_TOGETHER * self._batch))
        for part in torch.tensor_split(trials, waves) if waves else ():
            low, high = int(part[0]), int(part[-1])
            chosen = {
                name: change.pick((change.row >= low) & (change.row <= high))
                for name, change in changes.items()
            }
            found.extend(self._wave(chosen, golden, image))
        trial, logits = zip(*found, strict=True)
        return Changed(torch.cat(trial), torch.cat(logits))

    def _wave(
        self, changes: Mapping[str, SparseChange], golden: Mapping[str, Maps], image: Tensor
    ) -> Iterator[Changed]:
        """Logits of trials that go through the network together."""
        output = self._network.output
        waiting: dict[int, list[_State]] = {}
        end = len(self._network.nodes)
        for name, change in changes.items():
            states = [
                _State(trial, {name: patch})
                for trial, patch in self._batches(change, golden[name], image)
            ]
            waiting.setdefault(self._next(-1, [name]), []).extend(states)
        for index, node in enumerate(self._network.nodes):
            for whole in self._joined(waiting.pop(index, []), golden, image):
                for state in self._split(node, whole):
                    changed = {k: state.patches[k] for k in node.inputs if k in state.patches}
                    patches = {
                        name: patch
                        for name, patch in state.patches.items()
                        if self._readers[name][-1:] > [index] or name == output
                    }
                    patches[node.name] = self._compute(node, changed, golden, image[state.trial])
                    after = self._live(_State(state.trial, patches))
                    if after.patches:
                        later = self._next(index, after.patches)
                        waiting.setdefault(later, []).append(after)
        for state in waiting.pop(end, []):
            if output in state.patches:
                answer = state.patches[output]
                (found,) = torch.nonzero(answer.dirty, as_tuple=True)
                stored = answer.values[found].view(len(found), *self._network[output].shape)
                yield Changed(state.trial[found], self._arithmetic.decode(output, stored))

    def _next(self, index: int, names: Iterable[str]) -> int:
        """The next node after ``index`` that reads one of the nodes, or the number of nodes."""
        later = (reader for name in names for reader in self._readers[name] if reader > index)
        return min(later, default=len(self._network.nodes))

    def _joined(
        self, states: Sequence[_State], golden: Mapping[str, Maps], image: Tensor
    ) -> Iterator[_State]:
        """States of the same kind together, in batches."""
        kinds: dict[_Kind, list[_State]] = {}
        for state in states:
            alike = kinds.setdefault(state.kind, [])
            alike.append(state)
            if sum(len(member.trial) for member in alike) >= self._batch:
                yield _join(kinds.pop(state.kind), golden, image)
        for alike in kinds.values():
            yield _join(alike, golden, image)

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

    def _split(self, node: Node, state: _State) -> list[_State]:
        """Trials with small and with large changes apart, where that saves enough arithmetic."""
        if not isinstance(node, Conv):
            return [state]
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


def _join(states: Sequence[_State], golden: Mapping[str, Maps], image: Tensor) -> _State:
    """States of one kind as one, their windows as large as the largest."""
    first, *others = states
    if not others:
        return first
    patches = {}
    for name, maps in ((name, golden[name]) for name in first.patches):
        parts = [state.patches[name] for state in states]
        height = max(part.window.height for part in parts)
        width = max(part.window.width for part in parts)
        for index, (part, state) in enumerate(zip(parts, states, strict=True)):
            if (part.window.height, part.window.width) != (height, width):
                top = part.window.top.clamp(max=maps.size[0] - height)
                left = part.window.left.clamp(max=maps.size[1] - width)
                window = Window(top, left, height, width)
                values = _cut(maps, part, image[state.trial], window)
                parts[index] = part._replace(window=window, values=values)
        patches[name] = _Patch.joined(parts)
    return _State(torch.cat([state.trial for state in states]), patches)


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
