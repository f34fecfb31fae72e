"""Two granularities at once: channels are removed, then weights are masked (`channel+nm`, `channel+weight`, ...)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...common import Candidate, Inputs, Profile
from ...errors import FreePruneError
from ...options import Option
from ..base import Counts, Group
from ..criteria import Importance
from ..plan import Plan
from ..tracing.record import IN
from ..tracing.weights import Layout
from .channel import Channel
from .masked import Masked, Scores
from .widths import steps_of


class Composed:
    """Removal of whole channels, then of weights among those that are left.

    The rate vector holds first the rates of the channel groups, then those of the masked layers. The units of the second
    granularity are formed again on the kept channels, and the same fraction of them stays as in the dense layer, rounded down.

    Args:
        network, inputs, importance, max_rate: as for both granularities.
        options: of both. If a unit of the second spans several channels, `round_to` defaults to that span and must be `auto`
            or a multiple of it for every kind of layer, so that every smaller layer divides into whole units. Layers that
            still would not are not masked.

    Attributes:
        dense: why the second granularity does not mask a layer, by the name of its weight.
        channel, mask: the two granularities, each made for the dense network.
        split: the number of channel groups, which come first.
    """

    second: ClassVar[type[Masked]]
    name: ClassVar[str]
    options: ClassVar[Mapping[str, Option]]
    shrinks: ClassVar[bool] = True
    factors: ClassVar[bool] = False
    warm_starts: ClassVar[tuple[str, ...]] = Channel.warm_starts
    uncompacted: ClassVar[str | None]
    gain: ClassVar[str]
    dense: Mapping[str, str]
    channel: Channel
    mask: Masked

    @staticmethod
    def of(second: type[Masked]) -> type[Composed]:
        """The composition of `channel` with a masking granularity."""
        name = f"channel+{second.name}"
        members = {
            "second": second, "name": name, "options": {**Channel.options, **second.options}, "uncompacted": second.uncompacted,
            "gain": second.gain, "__doc__": second.__doc__,
        }  # fmt: skip
        return type(name, (Composed,), members)

    def __init__(
        self, network: nn.Module, inputs: Inputs, importance: Importance, *, max_rate: float = 0.9, **options: Any
    ) -> None:
        own = {name: options.pop(name) for name in self.second.options if name in options}
        along, span = self.second.span(**own)
        round_to = options.setdefault("round_to", span)
        if not all(step is None or step % span == 0 for step in steps_of(round_to).values()):
            raise FreePruneError(
                f"`round_to={round_to}` leaves widths that {self.second.name} cannot divide by {span}; "
                f"give a multiple of {span} for conv and linear"
            )
        self.channel = Channel(network, inputs, importance, max_rate=max_rate, span=span, **options)

        def leave(layout: Layout) -> str | None:
            if layout.in_parts:
                return "it is used in parts, each as often as its own channels say"
            width: int | None = layout.summed() if along == IN else layout.made()
            if width is not None and width % span == 0:
                width = self.channel.ragged(layout.name, layout.along(along), span)
            return None if width is None else f"its channels come in groups of {width}, no multiple of {span}"

        self.mask = self.second(network, inputs, importance, max_rate=max_rate, leave=leave, **own)
        self.dense = self.mask.dense
        self._entries = self.channel.sizes.entries(self.mask.layouts)
        self._times = self.channel.sizes.times(self.mask.layouts.values())
        self._importance = importance
        self.split = len(self.channel.groups)
        layers = [Group(f"{g.name}:{self.second.name}", g.units, g.minimum, g.tied) for g in self.mask.groups]
        self.groups = (*self.channel.groups, *layers)

    @classmethod
    def is_masked(cls, group: str) -> bool:
        return group.endswith(f":{cls.second.name}")

    @property
    def described(self) -> str:
        return f"{self.channel.described}+{self.mask.described}"

    def costs(self, kept: Counts) -> dict[str, NDArray[np.float64]]:
        rows = np.atleast_2d(kept)
        costs, channels = self.channel.costs(rows[:, : self.split]), self.channel.channels(rows[:, : self.split])
        entries = self._entries(channels)
        left = self.mask.weights_left(rows[:, self.split :], entries)
        gone = entries - np.minimum(left, entries)  # of a layer whose branch is gone there are none
        saved = (gone * self._times(channels)).sum(axis=1)
        return {"macs": costs["macs"] - saved, "nonzero": costs["nonzero"] - gone.sum(axis=1)}

    def candidate(self, kept: Counts) -> Candidate:
        channels = self.channel.candidate(kept[: self.split])
        masks = self._masks(kept, self.channel.kept_indices(kept[: self.split]))
        masks = {name: mask for name, mask in masks.items() if name not in channels.gone}
        dense = channels.skeleton.tensors
        weights = {name: channels.tensors.get(name, dense[name]) for name in masks}
        return replace(channels, tensors={**channels.tensors, **{n: w * masks[n].to(w.device) for n, w in weights.items()}})

    def plan(self, kept: Counts) -> Plan:
        """The plan; its channels are certified by `Channel.plan`."""
        channels = self.channel.plan(kept[: self.split])
        layers = zip(self.groups[self.split :], kept[self.split :], strict=True)
        rates = {**channels.rates, **{group.name: 1 - int(k) / group.units for group, k in layers}}
        masks = self._masks(kept, channels.kept)
        there = {name: mask for name, mask in masks.items() if not channels.is_gone(name)}
        return replace(channels, granularity=self.name, rates=rates, masks=there)

    def profile(self, importance: Importance) -> Profile:
        """The profiles of both granularities, each with densities relative to their mean."""
        parts = [part.profile(importance) for part in (self.channel, self.mask)]
        return Profile(
            tuple(values for part in parts for values in part.importance),
            np.concatenate([part.erk / part.erk.mean() for part in parts]),
            np.concatenate([part.shared for part in parts]),
        )

    def _masks(self, kept: Counts, indices: Any) -> dict[str, Tensor]:
        """The mask of each weight that loses elements, in the shape after channels are removed."""
        scores = {name: _sliced(self._importance.elements[name], indices.get(name, {})) for name in self.mask.layouts}
        ranks = self.mask.ranks(scores, self._importance)
        sizes = np.array([places.size for places in ranks.values()])
        units = self.mask.units_left(kept[self.split :], sizes)
        masks = {}
        for (name, places), stay in zip(ranks.items(), units, strict=True):
            mask = places < stay
            if not mask.all():
                masks[name] = torch.from_numpy(np.ascontiguousarray(mask))
        return masks


def _sliced(scores: Scores, kept: Any) -> Scores:
    for dim, ids in kept.items():
        scores = np.take(scores, ids, axis=dim)
    return scores
