"""Channels that can only be removed together.

A :class:`Group` is a set of channels that run through several layers: the kernels that produce
them, the batch-norms that scale them and the layers that read them. Where a channel of the group
is produced by fewer layers than another - a padded shortcut, a concatenation - the group falls
into :class:`Segment` s whose channels all cost the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Side = Literal["out", "in"]
Indices = NDArray[np.int64]


class Member(NamedTuple):
    """One side of one layer that loses positions when channels of the group go.

    Attributes:
        module: name of the layer.
        side: ``"out"`` if the layer produces (or scales) the channels, ``"in"`` if it reads them.
        positions: ``(n,)`` channels or features on that side of the layer.
        channels: ``(n,)`` the group's channel each position belongs to. A linear layer behind a
            flattened map reads one channel at H * W positions.
    """

    module: str
    side: Side
    positions: Indices
    channels: Indices


class Segment(NamedTuple):
    """Channels of a group that touch the same layers at the same number of positions.

    Attributes:
        root: root of the group.
        channels: ``(n,)`` channels of the group, ascending.
        footprint: (layer, side, positions per channel) of every layer touched.
    """

    root: str
    channels: Indices
    footprint: frozenset[tuple[str, Side, int]]


@dataclass(frozen=True, eq=False)
class Group:
    """Channels ``0 .. width`` of layer ``root`` and all that goes with them.

    Attributes:
        root: name of the layer whose output channels number the group's channels.
        width: number of channels.
        members: every layer side touched, the root's output first.
    """

    root: str
    width: int
    members: tuple[Member, ...]

    @property
    def producers(self) -> tuple[Member, ...]:
        """Members that produce or scale the channels."""
        return tuple(member for member in self.members if member.side == "out")

    @property
    def consumers(self) -> tuple[Member, ...]:
        """Members that read the channels."""
        return tuple(member for member in self.members if member.side == "in")

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """The group's channels by footprint, in order of their first channel."""
        positions = np.stack(
            [np.bincount(member.channels, minlength=self.width) for member in self.members]
        )
        _, first, kind = np.unique(positions, axis=1, return_index=True, return_inverse=True)
        return tuple(
            Segment(
                self.root,
                np.flatnonzero(kind.ravel() == which),
                frozenset(
                    (member.module, member.side, int(count))
                    for member, count in zip(self.members, positions[:, first[which]], strict=True)
                    if count
                ),
            )
            for which in np.argsort(first)
        )
