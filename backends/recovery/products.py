"""The products of a forward pass while it runs: what reaches each weight, what comes of it, and a way to put in another one.

Weights are found where the operators use them, not by the class of a module, so that functional layers and parameters that are
used without a module count as well.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ...common import Inputs, Skeleton
from ...errors import FreePruneError
from ...lending import origin, storage_of, storage_read
from ..tracing.passes import plain_kernels, undisturbed
from .sums import Ends, Summed


@dataclass(frozen=True)
class Site:
    """How a weight lies in its product, and what may be solved for.

    Seen as matrices `(groups, outputs, columns)`: a column is an input at a kernel position. Where there would be too many
    columns, the kernel positions share their coefficients: they count as outputs, and a column is an input.

    Attributes:
        name: of the parameter.
        bias: of the parameter that is added to its outputs; None where none is.
        outputs, inputs: the parameter's dimensions of that role; all others are kernel positions.
        groups: of a convolution.
        positions: how many kernel positions there are.
        shared: whether the positions share their coefficients.
    """

    name: str
    bias: str | None
    outputs: int
    inputs: int
    groups: int
    positions: int
    shared: bool

    def matrices(self, weight: Tensor) -> Tensor:
        """A tensor of the parameter's shape as `(groups, outputs, columns)`."""
        rows = weight.movedim((self.outputs, self.inputs), (0, 1)).flatten(2) if weight.dim() > 2 else self._upright(weight)
        if self.shared:
            return rows.movedim(2, 1).reshape(1, -1, rows.shape[1])
        return rows.reshape(self.groups, rows.shape[0] // self.groups, -1)

    def restored(self, matrices: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of `matrices`, for a parameter of this shape."""
        if len(shape) == 2:
            return self._upright(matrices[0])
        if self.shared:
            rows = matrices.reshape(shape[0], self.positions, -1).movedim(1, 2)
            return rows.reshape(shape)
        return matrices.reshape(shape)

    def _upright(self, matrix: Tensor) -> Tensor:
        return matrix if self.outputs == 0 else matrix.T

    def columns(self, inputs: Tensor) -> Tensor:
        """The columns of these inputs, `(n,)` positions along the parameter's dimension of inputs."""
        if self.shared or self.positions == 1:
            return inputs
        return (inputs[:, None] * self.positions + torch.arange(self.positions, device=inputs.device)).ravel()


@dataclass(frozen=True)
class Call:
    """One product with a whole parameter, about to be computed.

    Attributes:
        site: how the parameter lies in it.
        number: how many products with this parameter came before.
        samples: how many rows of inputs there are.
        rows: the inputs of some samples, given by their numbers `(R,)`, as `(groups, R, columns)`.
        results: the outputs of the same samples `(R, outputs)`, from the product's result.
        run: the product with another weight and bias.
    """

    site: Site
    number: int
    samples: int
    rows: Callable[[Tensor], Tensor]
    results: Callable[[Tensor, Tensor], Tensor]
    run: Callable[[Tensor, Tensor | None], Tensor]
    weight: Tensor
    bias: Tensor | None


class Watched(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lets a visitor compute the products of a forward pass whose weights are whole parameters, of real numbers.

    Args:
        tensors: the parameters, by name, as the network holds them while it runs.
        visit: computes the product.
        largest: columns of a convolution that are solved for together; where there are more, its kernel positions share their
            coefficients.
        left: how many inputs will be left of a parameter, where they are not all; the columns are those of these.
        ran: told of every operator, by name, arguments and result.
        summed: told of sums that end a branch, as in `Ends`.

    Attributes:
        ends: what products give, followed to where it is read; None without `summed`.
        calls: how many products each parameter had.
        elsewhere: the parameters that other operators read as well, or products in which they lie differently.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], visit: Callable[[Call], Tensor], largest: int,
        ran: Callable[[str, Any, Any], None] | None = None, summed: Summed | None = None,
        left: Mapping[str, int] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()  # type: ignore[no-untyped-call]
        self._visit, self._largest, self._ran, self._left = visit, largest, ran, left or {}
        # Least squares are of real numbers, so that complex products stay as they are.
        self._parameters = {storage_of(t): (name, t) for name, t in tensors.items() if t.is_floating_point()}
        self.ends = None if summed is None else Ends(summed, self._whole)
        self._last: tuple[str, Tensor] | None = None
        self._sites: dict[str, Site] = {}
        self._normalised: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.elsewhere: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind = func.overloadpacket.__name__
        if "batch_norm" in kind and self._last is not None and args[0] is self._last[1]:
            self._normalised[self._last[0]] += 1
        call = None
        if kind == "convolution":
            call = self._convolution(func, args)
        elif kind in ("mm", "addmm"):
            call = self._matrix_product(func, args, kwargs or {})
        if call is None:
            if not func.is_view:
                read = (x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor))
                self.elsewhere.update(name for x in read if (name := self._name(x)) is not None)
            given = args if self.ends is None or kwargs else self.ends.operands(kind, args)
            return self._told(kind, args, func(*given, **(kwargs or {})))
        if self._sites.setdefault(call.site.name, call.site) != call.site:
            self.elsewhere.add(call.site.name)
        self.calls[call.site.name] += 1
        made = self._visit(call)
        self._last = call.site.name, made
        self._told(kind, args, made)
        if self.ends is not None:
            self.ends.begin((call.site.name, call.number), made)
        return made

    def _told(self, kind: str, args: Any, result: Any) -> Any:
        if self._ran is not None:
            self._ran(kind, args, result)
        if self.ends is not None:
            self.ends.ran(kind, args, result)
        return result

    @property
    def normalised(self) -> set[str]:
        """The parameters whose products all go straight into a batch norm, which takes any constant away again."""
        return {name for name, count in self._normalised.items() if count == self.calls[name]}

    def _name(self, tensor: Tensor) -> str | None:
        """The parameter of two or more dimensions that a tensor is, or is a view of."""
        name, parameter = self._parameters.get(storage_read(tensor), ("", tensor))
        return name if name and parameter.dim() > 1 else None

    def _whole(self, tensor: Any) -> str | None:
        """The parameter that a tensor is the whole of, in its own shape."""
        if not isinstance(tensor, Tensor):
            return None
        name, parameter = self._parameters.get(storage_read(tensor), ("", tensor))
        given = origin(tensor)
        if given is not None and given is not parameter:  # a pruned network's
            return None
        same = tensor.shape == parameter.shape and tensor.stride() == parameter.stride()
        return name if name and same and tensor.storage_offset() == parameter.storage_offset() else None

    def _convolution(self, func: Any, args: Any) -> Call | None:
        x, weight, bias, stride, padding, dilation, transposed, *rest = args
        name = self._whole(weight)
        if name is None or transposed or (bias is not None and self._whole(bias) is None):
            return None
        groups = rest[1]
        kernel = weight.shape[2:]
        positions = math.prod(kernel)
        samples = x.shape[0] * math.prod(_sizes(x, kernel, stride, padding, dilation))
        shared = groups == 1 and positions > 1 and self._left.get(name, weight.shape[1]) * positions > self._largest
        site = Site(name, None if bias is None else self._whole(bias), 0, 1, groups, positions, shared)

        def rows(picked: Tensor) -> Tensor:
            if shared:
                return _pixels(x)[picked % (x.numel() // x.shape[1])][None]
            found = _patches(x, picked, kernel, stride, padding, dilation)
            return found.reshape(len(picked), groups, -1).movedim(1, 0)

        def run(w: Tensor, b: Tensor | None) -> Tensor:
            made: Tensor = func(x, w, b, stride, padding, dilation, transposed, *rest)
            return made

        return Call(site, self.calls[name], samples, rows, lambda made, picked: _pixels(made)[picked], run, weight, bias)

    def _matrix_product(self, func: Any, args: Any, kwargs: Any) -> Call | None:
        *added, x, weight = args
        name, outputs = self._whole(weight), 1
        if name is None:
            name, outputs = self._whole(weight.T), 0
        bias = self._whole(added[0]) if added else None
        if name is None or kwargs or (added and (bias is None or added[0].dim() != 1)) or self._name(x) is not None:
            return None  # a product of two parameters is the making of a weight
        site = Site(name, bias, outputs, 1 - outputs, 1, 1, False)

        def run(w: Tensor, b: Tensor | None) -> Tensor:
            upright = w.T if outputs == 0 else w
            made: Tensor = func(*([] if b is None else [b]), x, upright)
            return made

        own = weight.T if outputs == 0 else weight
        return Call(
            site, self.calls[name], len(x), lambda picked: x[picked][None], lambda made, picked: made[picked], run, own,
            added[0] if added else None,
        )  # fmt: skip


def run(skeleton: Skeleton, watched: Watched, inputs: Inputs) -> None:
    """One pass under the statistics of the images, watched."""
    network = skeleton.network
    with undisturbed(network), torch.no_grad(), plain_kernels(network), skeleton.batch_statistics(), watched:
        network(*inputs)


def finite(call: Call) -> Tensor:
    """The product, if it is all finite."""
    made = call.run(call.weight, call.bias)
    if not torch.isfinite(made).all():
        raise FreePruneError(
            f"layer {call.site.name.removesuffix('.weight')!r} gives numbers that are not finite on the calibration images, so "
            "no weights can be made good; check the images and the weights, or use `recovery=False`"
        )
    return made


def sample(samples: int, count: int, generator: torch.Generator, among: Tensor | None = None) -> Tensor:
    """So many of the samples, or of those with the numbers `among`, drawn at random; all if there are fewer."""
    if among is not None:
        return among[sample(len(among), count, generator)]
    return torch.randperm(samples, generator=generator)[:count] if count < samples else torch.arange(samples)


def _sizes(x: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any) -> list[int]:
    """The sizes of a convolution's result along its spatial dimensions."""
    sizes = zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)
    return [(size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in sizes]


def _pixels(x: Tensor) -> Tensor:
    """`(N, C, ...)` as `(samples, C)`."""
    return x.movedim(1, -1).reshape(-1, x.shape[1])


def _patches(x: Tensor, picked: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Tensor:
    """What a convolution reads for some of its outputs: `(R, C, positions)`."""
    sizes = _sizes(x, kernel, stride, padding, dilation)
    padded = F.pad(x, [p for p in reversed(padding) for _ in range(2)]) if any(padding) else x
    image = picked // math.prod(sizes)
    where, left = image[:, None], picked % math.prod(sizes)
    for axis, (size, k, s, d) in enumerate(zip(sizes, kernel, stride, dilation, strict=True)):
        after = math.prod(sizes[axis + 1 :])
        start = (left // after) % size * s
        offsets = torch.arange(k, device=x.device) * d
        places = start[:, None] + offsets  # (R, k)
        where = (where[:, :, None] * padded.shape[2 + axis] + places[:, None, :]).flatten(1)
    return _pixels(padded)[where.ravel()].reshape(len(picked), -1, x.shape[1]).movedim(2, 1)
