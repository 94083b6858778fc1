"""Structural pruning on the dependency graph of Torch-Pruning (Fang et al., CVPR 2023).

Only the graph and its ``group.prune`` are used: which channels hang together and how tensors are
cut. Widths are allocated, rounded and budgeted in :mod:`rasp.pruning.allocation`. Every pruning is
checked: the network whose removed channels nobody reads must compute what the pruned one computes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import torch
import torch_pruning as tp
from torch import Tensor, nn

from rasp.errors import ConfigError, StoreMismatchError, UnsupportedModelError, unknown_name
from rasp.progress import Progress, silent
from rasp.pruning.allocation import Budget, Widths
from rasp.pruning.groups import Group, Indices, Member
from rasp.pruning.importance import Taylor
from rasp.pruning.plan import LayerWidth, PruningPlan
from rasp.pruning.selection import Selection, Trade, checked_scores, lowest, remarks
from rasp.pruning.tracing import copy_of, layer_shapes, traceable
from rasp.zoo.resnet import PadShortcut

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rasp.pruning.importance import CalibrationBatch, Importance

Scope = Literal["uniform", "global", "failures"]

_LAYERS = (nn.Conv2d, nn.Linear)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.PReLU)
_TOLERANCE = 1000  # units of rounding in the largest output; a wrong channel is near a million


class PruneResult(NamedTuple):
    """A pruned copy of the network and the plan that made it."""

    model: nn.Module
    plan: PruningPlan


def prune(
    model: nn.Module,
    *,
    example: Tensor,
    importance: Importance,
    budget: Budget,
    calibration: CalibrationBatch | None = None,
    scope: Scope = "uniform",
    trade: Trade | None = None,
    round_to: int = 1,
    iterations: int = 1,
    fine_tune: Callable[[nn.Module, int], None] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> PruneResult:
    """Remove channels until the network fits a budget.

    Args:
        model: dense network; it is copied and stays as it is.
        example: images ``(N, C, H, W)`` of the shape the network takes.
        importance: scores channels, see :data:`rasp.pruning.importance.CRITERIA`.
        budget: what part of the dense network may stay; the nearest widths are taken.
        calibration: images and labels the criterion may look at.
        scope: ``"uniform"`` narrows every group by the same ratio, so that every criterion gives
            the same architecture; ``"global"`` ranks all channels of the network together;
            ``"failures"`` trades Taylor importance for failures per inference.
        trade: what scope ``"failures"`` goes by.
        round_to: channels of an atom that widths are rounded to.
        iterations: equal steps the pruning is spread over, scores taken anew at each.
        fine_tune: called with the network and the step (from 1) after every step; trains in place.
        seed: seed of torch's generator while the criterion runs.
        progress: hears about every step.

    Returns:
        The pruned copy, on which layer modes and frozen parameters are as in ``model``, and the
        plan. With ``fine_tune`` the weights are the tuned ones.

    Raises:
        ConfigError: a value that is not allowed, weights or scores that are not finite, or a
            budget out of reach.
        UnsupportedModelError: no channel can be removed, or the network couples channels in a
            way the dependency graph does not see.
    """
    if scope not in get_args(Scope):
        raise unknown_name("scope", scope, get_args(Scope))
    if (trade is None) == (scope == "failures"):
        raise ConfigError("Scope 'failures' needs a trade, and no other scope takes one.")
    for what, number in (("round_to", round_to), ("iterations", iterations)):
        if number < 1:
            raise ConfigError(f"{what} must be at least 1, got {number}.")
    work = copy_of(model)
    selection: Selection | None = None
    for step in range(1, iterations + 1):
        progress("prune", step - 1, iterations, importance.name)
        with traceable(work):
            graph = _Graph(work, example)
            if selection is None:
                notes = graph.notes
                selection = graph.selection(budget, scope, round_to, trade)
            scores = checked_scores(importance, work, graph.groups, calibration, seed + step - 1)
            needed = scores
            if trade is not None:
                needed = checked_scores(Taylor(), work, graph.groups, calibration, seed)
            kept = selection.kept(graph.widths, scores, needed, step, iterations)
            removed = lowest(graph.widths, kept, scores)
            after = graph.widths.keeping(kept)
            graph.remove(removed)
        selection.record(removed)
        steps = selection.steps() if step == iterations else ()
        if fine_tune is not None:
            fine_tune(work, step)
    progress("prune", iterations, iterations, importance.name)
    assert selection is not None
    before = selection.shapes
    plan = PruningPlan(
        criterion=importance.name,
        scope=scope,
        round_to=round_to,
        iterations=iterations,
        budget=budget,
        seed=seed,
        steps=steps,
        widths={
            old.name: LayerWidth(before=old.K, after=new.K)
            for old, new in zip(before, after, strict=True)
        },
        kept_macs=sum(shape.macs for shape in after) / sum(shape.macs for shape in before),
        notes=(*notes, *remarks(scores, calibration), *selection.notes()),
    )
    return PruneResult(work, plan)


def replay(model: nn.Module, plan: PruningPlan, example: Tensor) -> nn.Module:
    """Remove the channels of a plan from a copy of the dense network.

    The copy has the architecture the plan was made with; the dense network's weights at the
    channels that stay, or any weights saved from the pruned network, make it bit-identical.

    Args:
        model: dense network with the architecture the plan starts from.
        plan: what to remove.
        example: images ``(N, C, H, W)`` of the shape the network takes.

    Raises:
        StoreMismatchError: the plan was made for another network.
    """
    work = copy_of(model)
    with traceable(work):
        graph = _Graph(work, example)
        before = {name: width.before for name, width in plan.widths.items()}
        _compare("starts from", before, {shape.name: shape.K for shape in graph.shapes})
        width = {group.root: group.width for group in graph.groups}
        for step in plan.steps:
            if step.module not in width or step.channels[-1] >= width[step.module]:
                raise StoreMismatchError(
                    f"The plan removes channel {step.channels[-1]} of '{step.module}', which this "
                    f"network cannot lose. Its prunable layers are: {', '.join(width)}."
                )
        graph.remove({step.module: np.array(step.channels) for step in plan.steps})
    after = {name: width.after for name, width in plan.widths.items()}
    _compare("ends at", after, {shape.name: shape.K for shape in layer_shapes(work, example)})
    return work


def _compare(what: str, wanted: Mapping[str, int], got: Mapping[str, int]) -> None:
    for name in sorted(wanted.keys() | got.keys()):
        if wanted.get(name) != got.get(name):
            raise StoreMismatchError(
                f"The plan {what} {wanted.get(name, 'no')} channels in layer '{name}', but this "
                f"network has {got.get(name, 'none')}. Replay it on the network it was made for."
            )


class _PadPruner(tp.BasePruningFunc):  # type: ignore[misc]
    """Teaches the dependency graph option-A shortcuts, whose output channels it numbers.

    Torch-Pruning takes padding of channels for an element-wise operation, so channel c of the
    input would be tied to channel c of the output instead of ``before + c``.
    """

    def __init__(self, spans: dict[nn.Module, list[int]]) -> None:
        super().__init__()
        self.spans = spans

    def prune_out_channels(self, layer: PadShortcut, idxs: Sequence[int]) -> PadShortcut:
        start, end = self.spans[layer]
        front, back = sum(i < start for i in idxs), sum(i >= end for i in idxs)
        layer.before -= front
        layer.after -= back
        self.spans[layer][:] = layer.before, end - len(idxs) + back
        return layer

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer: PadShortcut) -> int:
        return self.spans[layer][1] + layer.after

    def get_in_channels(self, layer: PadShortcut) -> int:
        return self.spans[layer][1] - self.spans[layer][0]


class _Shift:
    """Index map between the input of a padding and its output."""

    def __init__(self, span: list[int], *, back: bool) -> None:
        self.span, self.back = span, back

    def __call__(self, idxs: list[Any]) -> list[Any]:
        start, end = self.span
        if self.back:
            return [i._replace(idx=i.idx - start) for i in idxs if start <= i.idx < end]
        return [i._replace(idx=i.idx + start) for i in idxs]


class _Graph:
    """The dependency graph of one network and its prunable groups.

    Attributes:
        model: the network.
        shapes: shapes of its layers.
        groups: groups that can be pruned.
        notes: groups that cannot, and why.
        widths: layer shapes as a function of the groups' widths.
    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        self.model = model
        self.shapes = layer_shapes(model, example)
        self._probe = example[:2].detach().clone()
        self._names = {module: name for name, module in model.named_modules()}
        self._dg = self._trace()
        modules = [model.get_submodule(shape.name) for shape in self.shapes]
        self._layers = {
            module: shape.K
            for module, shape in zip(modules, self.shapes, strict=True)
            if module in self._dg.module2node
        }
        self.groups, self.notes = self._all_groups()
        self.widths = Widths.of(
            self.shapes, [segment for group in self.groups for segment in group.segments]
        )

    def selection(
        self, budget: Budget, scope: Scope, round_to: int, trade: Trade | None
    ) -> Selection:
        """Start to choose channels; this is the dense network's graph."""
        if not self.shapes:
            raise UnsupportedModelError(
                f"{type(self.model).__name__} has no convolution and no linear layer: there is no "
                "channel to remove."
            )
        if not self.groups:
            raise UnsupportedModelError("No channel can be removed. " + " ".join(self.notes))
        same_ratio = scope == "uniform"
        return Selection(
            self.groups,
            self.widths,
            budget,
            same_ratio=same_ratio,
            round_to=round_to,
            trade=trade,
        )

    def remove(self, channels: Mapping[str, Indices]) -> None:
        """Cut channels out of groups, given by root, and check that nothing else changed.

        The groups of this graph no longer describe the network afterwards.
        """
        for group in self.groups:
            gone = channels.get(group.root, np.empty(0, dtype=np.int64))
            for member in group.consumers:
                weight = self.model.get_parameter(f"{member.module}.weight")
                lost = torch.from_numpy(member.positions[np.isin(member.channels, gone)])
                weight.data[:, lost] = 0
        with torch.no_grad():
            expected = self.model(self._probe)
        for root, gone in channels.items():
            self._tied(self.model.get_submodule(root), gone.tolist()).prune()
        try:
            with torch.no_grad():
                error = (self.model(self._probe) - expected).abs().max()
        except (RuntimeError, ValueError) as problem:
            raise _misunderstood(self.model, f"it no longer runs ({problem})") from problem
        allowed = _TOLERANCE * torch.finfo(expected.dtype).eps * expected.abs().max()
        if not error <= allowed:
            raise _misunderstood(self.model, f"its output moved by {error:.3g}")

    def _trace(self) -> Any:
        spans: dict[nn.Module, list[int]] = {}

        def take(module: PadShortcut, inputs: tuple[Tensor], _: Tensor) -> None:
            spans[module] = [module.before, module.before + inputs[0].shape[1]]

        pads = [module for module in self._names if isinstance(module, PadShortcut)]
        hooks = [pad.register_forward_hook(take) for pad in pads]
        try:
            graph = tp.DependencyGraph().build_dependency(
                self.model,
                self._probe,
                forward_fn=lambda model, images: model(images),
                output_transform=lambda output: output + 0,  # gives the output a node of its own
                customized_pruners={PadShortcut: _PadPruner(spans)},
                verbose=False,
            )
        except (AttributeError, TypeError) as problem:
            raise UnsupportedModelError(
                f"{type(self.model).__name__} cannot be traced for pruning: {problem}. "
                "It must map one batch of images to one tensor of logits."
            ) from problem
        finally:
            for hook in hooks:
                hook.remove()
        for node in [graph.module2node[pad] for pad in spans]:
            for dependency in node.dependencies:
                if dependency.target in node.inputs:
                    dependency.index_mapping[1] = _Shift(spans[node.module], back=True)
            for dependency in [edge for source in node.inputs for edge in source.dependencies]:
                if dependency.target is node:
                    dependency.index_mapping[1] = _Shift(spans[node.module], back=False)
        return graph

    def _tied(self, module: nn.Module, channels: Sequence[int]) -> Any:
        cut = self._dg.get_pruner_of_module(module).prune_out_channels
        return self._dg.get_pruning_group(module, cut, list(channels))

    def _all_groups(self) -> tuple[tuple[Group, ...], tuple[str, ...]]:
        groups, notes, seen = [], [], set[nn.Module]()
        for layer in self._layers:
            if layer in seen:
                continue
            root, tied = self._spanning(layer)
            seen |= {layer, *self._produced(tied)}
            if reason := self._reason(tied):
                notes.append(f"{self._names[root]}: left whole, {reason}.")
            else:
                groups.append(Group(self._names[root], self._layers[root], self._members(tied)))
        return tuple(groups), tuple(notes)

    def _spanning(self, layer: nn.Module) -> tuple[nn.Module, Any]:
        """The layer whose channels number all channels tied to ``layer``, and what they touch."""
        tied = self._tied(layer, range(self._layers[layer]))
        others = sorted(self._produced(tied), key=lambda other: -self._layers[other])
        for root in (layer, *others):
            tied = self._tied(root, range(self._layers[root]))
            if self._spans(tied):
                return root, tied
        return layer, tied

    def _spans(self, tied: Any) -> bool:
        return all(len(index) == self._layers[m] for m, index in self._produced(tied).items())

    def _produced(self, tied: Any) -> dict[nn.Module, set[int]]:
        return {
            dependency.target.module: set(index)
            for dependency, index in tied.items
            if dependency.target.module in self._layers and self._side(dependency) == "out"
        }

    def _side(self, dependency: Any) -> Literal["out", "in"]:
        return "out" if self._dg.is_out_channel_pruning_fn(dependency.handler) else "in"

    def _members(self, tied: Any) -> tuple[Member, ...]:
        return tuple(
            Member(
                self._names[item.dep.target.module],
                self._side(item.dep),
                np.array(item.idxs),
                np.array(item.root_idxs),
            )
            for item in tied.items
            if isinstance(item.dep.target.module, (*_LAYERS, *_NORMS))
        )

    def _reason(self, tied: Any) -> str:
        """Why channels must stay, empty if they need not."""
        for dependency, _ in tied.items:
            module, node = dependency.target.module, dependency.target
            if node.type == tp.ops.OPTYPE.OUTPUT:
                return "it produces the network's output"
            if isinstance(module, (*_LAYERS, *_NORMS, PadShortcut, nn.Parameter)):
                if isinstance(module, nn.Conv2d) and 1 < module.groups != module.out_channels:
                    return f"it touches the grouped convolution '{self._names[module]}'"
            elif type(module).__module__ != tp.ops.__name__:
                return f"it touches '{self._names[module]}', a {type(module).__name__}"
            elif any(getattr(node.grad_fn, "_saved_pad", ())[4:]):
                return "it runs through a padding of channels that is no rasp.zoo PadShortcut"
        return "" if self._spans(tied) else "no layer produces all of its channels"


def _misunderstood(model: nn.Module, symptom: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{type(model).__name__} cannot be pruned: after removing channels that nobody reads "
        f"{symptom}. It joins channels in a way the dependency graph does not see."
    )
