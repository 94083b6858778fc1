"""A host operation with its constants bound, as a value that other processes can be sent."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Slot:
    """Stands in the arguments of a call for the input of this number."""

    index: int


@dataclass(frozen=True, slots=True, eq=False)
class HostCall:
    """An ATen operation with all its arguments but the input tensors.

    Attributes:
        op: its name below ``torch.ops``.
        args: positional arguments; :class:`Slot` where an input belongs.
        kwargs: named arguments, likewise.
        sized: whether the second argument is a shape that starts with the number of images.

    Example:
        >>> HostCall("aten.mul.Tensor", (Slot(0), torch.tensor([2.0, 3.0])))(torch.ones(1, 2))
        tensor([[2., 3.]])
    """

    op: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] | None = None
    sized: bool = False

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Run it on the inputs, batch first."""

        def bind(argument: Any) -> Any:
            if isinstance(argument, Slot):
                return inputs[argument.index]
            if isinstance(argument, Tensor):
                return argument.to(inputs[0].device)
            if isinstance(argument, list | tuple):
                return type(argument)(bind(item) for item in argument)
            return argument

        args = [bind(argument) for argument in self.args]
        if self.sized:
            args[1] = [len(inputs[0]), *args[1][1:]]
        kwargs = {name: bind(value) for name, value in (self.kwargs or {}).items()}
        result: Tensor = attrgetter(self.op)(torch.ops)(*args, **kwargs)
        return result
