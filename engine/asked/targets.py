"""Targets: what a user allows the pruned network to cost."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Real

import numpy as np
from numpy.typing import NDArray

from ...backends import Backend
from ...errors import FreePruneError, nearest
from ...options import in_words
from ...search import Space

LATENCY = "latency"  # measured; the others are counted
COSTS = ("macs", "params", "nonzero", LATENCY)
FACTORS = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9}
FORM = "write it as NAME=50%, NAME=60M or latency=5ms, with NAME one of " + ", ".join(COSTS)
NUMBER = re.compile(r"((?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)([kKMG%]|ms)?")


@dataclass(frozen=True)
class Target:
    """An upper bound on a cost: a fraction of the dense network's, or an absolute amount (milliseconds for latency).

    Attributes:
        budget: whether it was given as one of the budgets of a sweep, without the name of its cost.
    """

    cost: str
    value: float
    relative: bool
    budget: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        return f"{self.cost}={self.amount}"

    @property
    def amount(self) -> str:
        """What may remain, as a text from which the same value is read again: 50%, 0.3333333333333333, 60M, 5ms."""
        if self.relative:
            percents = (f"{self.value * 100:.{digits}g}" for digits in range(6, 18))
            exact = (f"{percent}%" for percent in percents if float(percent) / 100 == self.value)
            return next(exact, repr(self.value))
        return f"{in_words(self.value)}ms" if self.cost == LATENCY else _amount(self.value)

    @property
    def named(self) -> str:
        """The argument and its value, for sentences."""
        return _named(self.amount if self.budget else str(self), self.budget)

    def resolve(self, dense: float) -> float:
        """The absolute bound: a whole number of multiplications, parameters or weights, or milliseconds of latency."""
        if self.cost == LATENCY:
            return self.value * dense if self.relative else self.value
        return float(math.floor(self.value * dense + 1e-9)) if self.relative else float(math.floor(self.value))


def _named(text: str, budget: bool) -> str:
    return f"`{'budgets' if budget else 'target'}` {text!r}"


def _amount(value: float) -> str:
    """A number of multiplications, parameters or weights, with all its digits: 300000, 1.5M, 12345678."""
    for unit in ("G", "M"):
        text = f"{value / FACTORS[unit]:g}"
        if value >= FACTORS[unit] and float(text) * FACTORS[unit] == value:
            return f"{text}{unit}"
    text = f"{value:g}"
    return text if float(text) == value else f"{value:.17g}"


def parse_target(text: str) -> Target:
    """The target that a text states, such as `macs=50%`, `params=0.5`, `macs=60M` or `latency=5ms`.

    Raises:
        FreePruneError: the text has another form, or the value is not above 0 and at most 100%.
    """
    return _parsed(text, budget=False)


def _parsed(text: str, *, budget: bool) -> Target:
    cost, equals, value = text.partition("=")
    number = NUMBER.fullmatch(value.strip())
    if not equals or number is None:
        raise FreePruneError(f"`target` {text!r} is malformed; {FORM}")
    amount, unit = float(number[1]), number[2] or ""
    if unit not in ("", "%") and (unit == "ms") != (cost.strip() == LATENCY):
        raise FreePruneError(f"`target` {text!r} has the wrong unit; {FORM}")
    said = value.strip() if budget else text
    if unit == "ms":
        return _target(cost.strip(), amount, False, said, budget)
    if unit == "%":
        return _target(cost.strip(), amount / 100, True, said, budget)
    absolute = amount * FACTORS[unit]
    return _target(cost.strip(), absolute, absolute <= 1 and not unit, said, budget)


def parse_targets(targets: Iterable[str] | Mapping[str, float | str]) -> tuple[Target, ...]:
    """Targets from the command line, or from a mapping such as `{"macs": 0.5, "params": "300k"}`.

    A number up to 1 is a fraction of the dense network's cost, a larger one an absolute amount.

    Raises:
        FreePruneError: a target is malformed, impossible or given twice, or there is none.
    """
    if isinstance(targets, str):
        targets = [targets]
    texts = [*targets] if isinstance(targets, Iterable) else None
    if texts is None or not all(isinstance(text, str) for text in texts):
        raise FreePruneError(f"`target` is {targets!r}; give a mapping such as {{'macs': 0.5}}, or texts such as 'macs=50%'")
    if isinstance(targets, Mapping):
        found = [
            parse_target(f"{name}={value}") if isinstance(value, str) else _number(name, value)
            for name, value in targets.items()
        ]
    else:
        found = [parse_target(text) for text in texts]
    if not found:
        raise FreePruneError(f"no `target` was given; {FORM}")
    names = [target.cost for target in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise FreePruneError(f"two targets were given for {twice}; give the tighter one only")
    return tuple(found)


def on_latency(targets: Iterable[Target]) -> Target | None:
    """The target on latency; None without one."""
    return next((target for target in targets if target.cost == LATENCY), None)


def parse_budget(cost: str, budget: float | str) -> Target:
    """A target on a cost from its value alone: 0.5, "50%", "60M"."""
    counted = [name for name in COSTS if name != LATENCY]
    if cost not in counted:
        why = "is measured, and budgets limit what is counted" if cost == LATENCY else "is no cost"
        raise FreePruneError(f"`cost` is {cost!r}, which {why}; {nearest(cost, counted)}")
    if isinstance(budget, str) and NUMBER.fullmatch(budget.strip()) is None:
        raise FreePruneError(f"`budgets` has {budget!r}; write each as 50% or 60M, and what they limit as `cost`, here {cost}")
    return _parsed(f"{cost}={budget}", budget=True) if isinstance(budget, str) else _number(cost, budget, budget=True)


def _number(cost: str, value: object, *, budget: bool = False) -> Target:
    if isinstance(value, bool) or not isinstance(value, Real):
        given = f"`budgets` has {value!r}" if budget else f"`target` {cost!r} is {value!r}"
        raise FreePruneError(f"{given}; give a number, or a text such as '50%'")
    try:
        amount = float(value)
    except OverflowError:
        amount = -math.inf if value < 0 else math.inf
    return _target(cost, amount, amount <= 1, f"{amount:g}" if budget else f"{cost}={amount:g}", budget)


def _target(cost: str, value: float, relative: bool, text: str, budget: bool) -> Target:
    named = _named(text, budget)
    if cost not in COSTS:
        raise FreePruneError(f"{named} limits an unknown cost; {nearest(cost, list(COSTS))}")
    if not value > 0:
        raise FreePruneError(f"{named} leaves nothing; give more than 0%")
    if (relative and value > 1) or not math.isfinite(value):
        raise FreePruneError(f"{named} is more than the dense network has; give at most 100%")
    return Target(cost, value, relative, budget)


SHARE = 1e-3  # below this part of the dense network a number up to 100 was meant as a percentage


def resolve(
    targets: Iterable[Target], dense: Mapping[str, float], backend: Backend, *, timed: bool = False
) -> dict[str, float]:
    """The absolute bounds of the targets on counted costs.

    Args:
        timed: whether a target on latency, which is measured later, is allowed.

    Raises:
        FreePruneError: the granularity does not change that cost, no target asks for the zeros that it sets, the dense network
            has none of the cost, or the target is above the dense network's or hardly above nothing.
    """
    result = {}
    for target in targets:
        if target.cost == LATENCY:
            _check_latency(target, backend, timed)
            _check_counted(target, "macs", dense)  # the layers that take time
            continue
        if target.cost not in dense:
            raise FreePruneError(
                f"{target.named} means nothing at granularity {backend.name}, which sets weights to zero in place; "
                f"limit {' or '.join(sorted(dense))} instead, or use `granularity='channel'`"
            )
        _check_counted(target, target.cost, dense)
        amount = target.resolve(dense[target.cost])
        if amount > dense[target.cost]:
            raise FreePruneError(
                f"{target.named} is more than the dense network has ({_amount(dense[target.cost])}); give at most 100%"
            )
        if not target.relative and amount <= 100 and amount < SHARE * dense[target.cost]:
            raise FreePruneError(
                f"{target.named} is a number of {label(target.cost)}, of which the dense network has "
                f"{_amount(dense[target.cost])}; write a share as {'60%' if target.budget else f'{target.cost}=60%'!r} or 0.6"
            )
        result[target.cost] = amount
    if not result and backend.shrinks and "params" not in dense:
        raise FreePruneError(
            f"a `target` on latency alone sets no weight to zero at granularity {backend.name}, since zeros that stay in place "
            f"save no time; limit {' or '.join(sorted(dense))} as well, or use `granularity='channel'`"
        )
    return result


def _check_counted(target: Target, cost: str, dense: Mapping[str, float]) -> None:
    if not dense[cost]:
        raise FreePruneError(
            f"{target.named} means nothing, since the network has no convolution, linear layer or other matrix "
            f"product; limit {' or '.join(sorted(name for name, amount in dense.items() if amount))} instead"
        )


def _check_latency(target: Target, backend: Backend, timed: bool) -> None:
    if not timed:
        raise FreePruneError(
            f"{target.named} is for prune and pick alone, since studies compare networks of one counted cost; "
            "limit macs, params or nonzero instead"
        )
    if not backend.shrinks:
        raise FreePruneError(
            f"{target.named} cannot be met at granularity {backend.name}, since zeros that stay in place "
            "leave the ONNX file as slow as the dense one; use `granularity='channel'`"
        )


def binding(space: Space, kept: NDArray[np.int64]) -> frozenset[str]:
    """The costs that adding one more unit to some group would raise above their target.

    Where no group but branches can grow, those that putting back any one branch would raise above it.

    Args:
        space: with the targets.
        kept: `(L,)` kept units of a network in it.
    """
    room = kept < space.units
    widths = room & ~space.switches
    more = kept + np.eye(space.size, dtype=np.int64)[widths if widths.any() else room]
    if not len(more):
        return frozenset()
    costs, limits = space.costs(more), np.any if widths.any() else np.all
    return frozenset(name for name, target in space.targets.items() if limits(costs[name] > target))


def used(space: Space, kept: NDArray[np.int64]) -> float:
    """How much of its targets a network `(L,)` takes, 0 to 1: of the one that it comes nearest to."""
    costs = space.costs(kept[None])
    return max((float(costs[name][0]) / target for name, target in space.targets.items() if target), default=1.0)


LABELS = {"macs": "MACs", "params": "parameters", "nonzero": "non-zero weights", LATENCY: "predicted latency, ms"}


def label(cost: str) -> str:
    """The name of a cost for people."""
    return LABELS.get(cost, cost)
