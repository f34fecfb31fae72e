"""The fixes for sizes in the user's code, tried one after the other at the place of the code where a mismatch shows."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ...errors import FreePruneError
from ..surgery.trial import Key, Repair
from ..tracing.labels import Labels, Layer, collapse, support
from ..tracing.record import Op, Trace
from ..tracing.rules import takes_part
from .certificate import Mismatch
from .code import integers
from .hypotheses import explains_scale, hypotheses, outwards
from .ties import Ties

MAX_HYPOTHESES = 64  # assignments of sizes to attributes tried at one place of the code
MAX_TAKEN_BACK = 24  # times that the hypothesis at one place is replaced for a mismatch at another
PART = 3  # the first number of the key of a size that is a part of another, behind those of `_sizes`

Place = tuple[str, str]


class Fixes:
    """The repairs found so far, and what is still to be tried at each place of the code.

    At the place of a mismatch (a module and a line) hypotheses about the attributes of the module, then of those that it lies
    in, are tried one after the other. Then equal pieces of a split are tied, then widths that the code takes for one; then an
    earlier repair of the same modules is taken back, for its next hypothesis. A number that scales a tensor may then follow the
    size that it is computed from. As the last resort what the operator touches stays, and if that does not help, all that the
    line touches.

    Args:
        network: as it was traced; its attributes are read.
        trace: what cannot be explained is frozen in it.
        repair, rescale: as for `settle`.
    """

    def __init__(self, network: nn.Module, trace: Trace, *, repair: bool, rescale: bool) -> None:
        self._network, self._trace, self._rescale = network, trace, rescale
        self._most = MAX_HYPOTHESES if repair else 0  # hypotheses at one place
        self._accepted: dict[Place, tuple[Repair, ...]] = {}
        self._untried: dict[Place, Iterator[tuple[Repair, ...]]] = {}
        self._leaders: dict[Place, Place] = {}  # whose hypothesis a place at the same line has taken over
        self._taken_back: Counter[Place] = Counter()
        self._refuted: dict[Place, str] = {}  # what showed that the hypotheses at a place are wrong
        self._scaling: dict[Place, Op] = {}  # where that is a number that scales a tensor
        self._last: tuple[Mismatch, NDArray[np.bool_]] | None = None  # that the last hypothesis is about
        self._checked: set[str] = set()  # lines before which code checks sizes, of what came earlier in its module
        self._idle: dict[int, Repair] = {}  # those that change nothing about a mismatch when they are tried alone
        self._at: dict[str, dict[str, list[Op]]] = {}  # the operators of each line, by module
        for op in trace.ops:
            self._at.setdefault(op.line, {}).setdefault(op.module, []).append(op)
        self._ties = Ties(trace, self._at)

    @property
    def repairs(self) -> list[Repair]:
        return [repair for found in self._accepted.values() for repair in found]

    def stop_explaining(self) -> None:
        """Take all repairs back; what they were for stays from now on."""
        self._most, self._last = 0, None
        self._accepted.clear()
        self._untried.clear()

    def fix(self, mismatch: Mismatch, kept: NDArray[np.bool_]) -> None:
        """Apply the next fix for a mismatch."""
        last = self._last
        idle = last is not None and (mismatch.index, str(mismatch)) == (last[0].index, str(last[0]))
        if last is not None and mismatch.index < last[0].index and np.array_equal(kept, last[1]):
            mismatch = last[0]  # what was tried for it broke what ran before it
        self._last = None
        op = self._trace.ops[mismatch.index]
        place = (op.module, op.line)
        if mismatch.checked:
            self._checked.add(op.line)
        if idle and len(self._accepted[place]) == 1:
            self._idle.update({id(repair): repair for repair in self._accepted[place]})
        if place not in self._untried and not mismatch.computes:  # nor can another attribute explain such a number
            self._untried[place] = itertools.islice(self._explanations(place, kept), self._most)
        if not mismatch.computes and self._next(place, kept):
            self._last = mismatch, kept
            return
        if not mismatch.computes and self._ties.more(op.line, op.name if mismatch.checked else None):
            for module in self._at[op.line]:  # the attributes may follow other sizes now
                self._accepted.pop((module, op.line), None)
                self._untried.pop((module, op.line), None)
            return
        scaling = op if mismatch.computes and op.scales else None
        here = [found for found in self._accepted.values() if any(repair.module == op.module for repair in found)]
        if scaling is not None and self._rescale and explains_scale(mismatch.becomes, here, kept) and self._scale(op):
            return
        if self._take_back(place, kept, f"{op}: {mismatch}", scaling):
            return
        scaling = scaling or self._scaling.pop(place, None)
        if self._rescale and scaling is not None and self._scale(scaling):
            self._accepted.pop(place, None)
            self._untried.pop(place, None)  # what the number refuted may be right
            self._refuted.pop(place, None)
            self._ties.begin_again(op.line)
            return
        self._accepted.pop(place, None)
        self._give_up(mismatch, op, kept)

    def _explanations(self, place: Place, kept: NDArray[np.bool_]) -> Iterator[tuple[Repair, ...]]:
        """Hypotheses about the attributes of the module that ran, then of each that it lies in.

        If there is none, all sizes that changed inside of these count, which a module may check before it hands them on. In the
        end parts of the sizes count that the module takes elsewhere, as states are of what Mamba splits off with its heads.
        """
        sizes, none = self._sizes(place, kept), True
        for module in outwards(place[0]):
            for found in hypotheses(self._network, module, place[1], sizes, kept):
                none = False
                yield found
        for module in outwards(place[0]) if none else ():
            yield from hypotheses(self._network, module, place[1], self._sizes((module, place[1]), kept, inside=True), kept)
        parts = self._parts(place, sizes, kept)
        for module in outwards(place[0]) if parts else ():
            for found in hypotheses(self._network, module, place[1], {**sizes, **parts}, kept):
                if any(repair.key in parts for repair in found):
                    yield found

    def _next(self, place: Place, kept: NDArray[np.bool_]) -> bool:
        """Accept the next hypothesis at a place, and the like in other modules at its line; False if there is none."""
        elsewhere = {r.place for there in self._untried if there != place for r in self._accepted.get(there, ())}
        left = (tuple(r for r in found if r.place not in elsewhere) for found in self._untried[place])
        left = (some for some in left if len(some) == 1 or not all(id(r) in self._idle for r in some))
        found = next((some for some in left if some), None)  # what another place has explained is no choice here
        if found is None:
            return False
        self._accepted[place] = found
        decided = {*elsewhere, *(r.place for r in found)}
        kind = type(self._network.get_submodule(place[0]))
        for module in self._at[place[1]]:
            sister = (module, place[1])
            if sister in self._untried or (self._accepted.get(sister) and self._leaders.get(sister) != place):
                continue  # it has another explanation
            if type(self._network.get_submodule(module)) is kind:
                self._leaders[sister] = place
                sizes = self._sizes(sister, kept)
                if any(repair.key[0] == PART for repair in found):
                    sizes |= self._parts(sister, sizes, kept)
                likewise = self._likewise(found, place[0], module, sizes)
                self._accepted[sister] = tuple(r for r in likewise if r.place not in decided)
        return True

    def _take_back(self, place: Place, kept: NDArray[np.bool_], why: str, scaling: Op | None) -> bool:
        """Replace the last repair elsewhere of an attribute that may be read here; False if there is none.

        A wrong hypothesis may show at another line than its own: heads four times as wide as their number are explained by
        either.
        """
        around = set(outwards(place[0]))
        for other in reversed(list(self._accepted)):
            if other == place or other not in self._untried:
                continue
            repairs = itertools.chain(*(self._accepted.get(there, ()) for there in self._alike(other)))
            if not any(repair.module in around for repair in repairs):
                continue
            if self._taken_back[other] >= MAX_TAKEN_BACK:
                continue
            self._taken_back[other] += 1
            self._refuted.setdefault(other, why)  # the likeliest hypothesis is refuted first
            if scaling is not None:
                self._scaling.setdefault(other, scaling)
            if not self._next(other, kept):
                for module in self._at[other[1]]:
                    self._accepted.pop((module, other[1]), None)
            for there in self._alike(place):
                self._accepted.pop(there, None)
            self._untried.pop(place, None)
            return True
        return False

    def _scale(self, op: Op) -> bool:
        """Let an operator, and those like it at its line, scale by what code computes; no longer, and False, if they did."""
        scaled = self._trace.scaled
        new = str(op) not in scaled
        alike = {str(o) for ops in self._at[op.line].values() for o in ops if o.name == op.name and o.scales}
        self._trace.scaled = scaled | alike if new else scaled - alike
        return new

    def _alike(self, place: Place) -> list[Place]:
        """A place, and those of its line that have no hypotheses of their own, but take them over."""
        places = [(module, place[1]) for module in self._at[place[1]]]
        return [there for there in places if there == place or there not in self._untried]

    def _sizes(self, place: Place, kept: NDArray[np.bool_], *, inside: bool = False) -> dict[Key, Layer]:
        """The nodes of every size that changed at a place: made by the operator, then of results, then of inputs."""
        module, line = place
        found: dict[Key, Layer] = {}
        if inside:
            ops = [op for other, some in self._at[line].items() if other.startswith(f"{module}.") or not module for op in some]
        elif line in self._checked:
            ops = [op for op in self._trace.ops if op.module == module or (module and op.module.startswith(f"{module}."))]
        else:
            ops = self._at[line][module]
        for kind in range(3):
            for number, op in enumerate(ops):
                tensors = [op.fresh] if kind == 0 else [layers for _, layers in (op.outputs if kind == 1 else op.inputs)]
                for position, layers in enumerate(tensors):
                    for index, layer in enumerate(layers):
                        if not kept[layer].all():
                            nodes = collapse(self._trace.roots[layer])
                            if len(support(nodes)) == 1:
                                found[kind, number, position, index] = nodes.ravel()
        for key, nodes in list(found.items()):
            heads = _heads(nodes)
            if heads is not None:
                found[*key, 1] = heads
        return found

    def _parts(self, place: Place, sizes: dict[Key, Layer], kept: NDArray[np.bool_]) -> dict[Key, Layer]:
        """The nodes of the pieces of these sizes that the module at a place takes at other lines."""
        found: dict[Key, Layer] = {}
        ops = [op for op in self._trace.ops if op.module == place[0] and takes_part(op.name)]
        for number, op in enumerate(ops):
            for position, (_, layers) in enumerate(op.outputs):
                for index, layer in enumerate(layers):
                    nodes = collapse(self._trace.roots[layer]).ravel()
                    inside = any(nodes.size < whole.size and np.isin(nodes, whole).all() for whole in sizes.values())
                    if inside and len(support(layer)) == 1 and not kept[layer].all():
                        found[PART, number, position, index] = nodes
        return found

    def _likewise(self, repairs: Sequence[Repair], first: str, module: str, sizes: dict[Key, Layer]) -> tuple[Repair, ...]:
        """The same repairs in another module that runs the same line, as far as its attributes hold the sizes found there."""
        result = []
        outer = dict(zip(outwards(first), outwards(module), strict=False))
        for repair in repairs:
            owner, nodes = outer.get(repair.module), sizes.get(repair.key)
            if owner is None or nodes is None:
                continue
            values = {(name, position): value for name, position, value in integers(self._network.get_submodule(owner))}
            if values.get((repair.name, repair.position), 0) * repair.divisor == nodes.size * repair.factor:
                result.append(replace(repair, module=owner, nodes=nodes))
        return tuple(result)

    def _give_up(self, mismatch: Mismatch, op: Op, kept: NDArray[np.bool_]) -> None:
        """Freeze what an operator touches, in all modules without a better fix; the next time all at its line."""
        trace, modules = self._trace, self._at[op.line]
        free = {module: ops for module, ops in modules.items() if not self._accepted.get((module, op.line))}
        kind = type(self._network.get_submodule(op.module))
        place = next(k for k, other in enumerate(modules[op.module]) if other is op)
        alike = {module: ops for module, ops in free.items() if type(self._network.get_submodule(module)) is kind}
        here = [ops[place] for ops in alike.values() if len(ops) > place and ops[place].name == op.name]
        for wider in (here, itertools.chain(*alike.values()), itertools.chain(*free.values())):
            here = list(wider)
            if _live(here, kept):
                break
        given = [layer for op in here for _, layers in op.inputs[:1] for layer in layers if not kept[layer].all()]
        touched, culprit = (mismatch.checked and given) or _live(here, kept), mismatch.index
        touched = [layer for layer in touched if mismatch.along.issuperset(support(layer))] or touched
        while not touched and culprit >= 0:  # the operator that made the size may lie further up
            touched = _live([trace.ops[culprit]], kept)
            culprit -= not touched
        if not touched and self._drop(op.module):
            return
        if not touched:
            raise FreePruneError(
                f"no channel may be removed: at {trace.ops[mismatch.index]} {mismatch}; use `granularity=weight`"
            )
        why = self._refuted.get((op.module, op.line), f"{trace.ops[culprit]}: {mismatch}")
        for layer in touched:
            trace.freeze(layer, why)

    def _drop(self, module: str) -> bool:
        """Take back the repairs that code in a module may read, and keep the sizes that they were for; False without any."""
        around, found = set(outwards(module)), False
        for place, repairs in list(self._accepted.items()):
            for repair in repairs:
                if repair.module in around:
                    self._trace.freeze(repair.nodes, self._refuted.get(place, f"{place[1]}: code elsewhere reads its size"))
                    found = True
            self._accepted[place] = tuple(repair for repair in repairs if repair.module not in around)
        return found


def _heads(nodes: Layer) -> Layer | None:
    """One node of each of the equally long runs that are removed as one, as the widths of a head are; None without such."""
    starts = np.flatnonzero(np.diff(nodes, prepend=-1))
    width = nodes.size // starts.size
    return nodes[starts] if width > 1 and starts.size > 1 and np.array_equal(starts, np.arange(0, nodes.size, width)) else None


def _fills(op: Op) -> bool:
    """Whether all that varies in what an operator made is its own."""
    own = np.concatenate([np.zeros(0, np.int64), *op.fresh])
    return own.size > 0 and all(np.isin(x, own).all() for _, labels in op.outputs for x in labels)


def _live(ops: Sequence[Op], kept: NDArray[np.bool_]) -> Labels:
    """What shrank of the operands and results; of an operator that fills a tensor like another one, of its results."""
    layers = {id(x): x for op in ops for _, labels in (op.outputs if _fills(op) else [*op.inputs, *op.outputs]) for x in labels}
    return [x for x in layers.values() if not kept[x].all()]
