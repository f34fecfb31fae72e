"""Copies of networks, optionally with some tensors replaced, and of large ones with the weights shared."""

from __future__ import annotations

import copy
import functools
import types
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

Network = TypeVar("Network", bound=nn.Module)
Memo = dict[int, Any]

LARGE = 2**28  # bytes of float32 that the parameters would take, above which a network counts as large
ATOMS = frozenset({int, float, bool, str, type(None)})
CONTAINERS = frozenset({OrderedDict, dict, set})
# The methods by which a class can customise how its instances are copied.
SPECIAL = ("__new__", "__deepcopy__", "__reduce_ex__", "__reduce__", "__getstate__", "__setstate__", "__slots__")
NOTHING: Mapping[int, Tensor] = {}


def copied(network: Network, instead: Mapping[int, Tensor] = NOTHING) -> Network:
    """A deep copy of a network, faster than `copy.deepcopy`. Shared tensors stay shared.

    Hooks and other functions that modules hold, also in containers, refer to modules and containers of the copy where their
    closures or default arguments refer to the network's.

    Tensors that are not leaves are detached; `deepcopy` refuses them. The weights of `torch.nn.utils.weight_norm` and
    `torch.nn.utils.prune` are such tensors.

    Args:
        network: left as it is.
        instead: replacements, by the `id` of the tensor to replace; that tensor is not copied.

    Raises:
        RuntimeError, TypeError: the network holds something that cannot be copied; `engine/inputs/adoption.py` refuses such
            networks.
    """
    try:
        return _twin(network, dict(instead))
    except RuntimeError:
        return _twin(network, {**_detached(network), **instead})


def is_large(network: nn.Module) -> bool:
    """Whether saving memory is worth time. Smaller networks are copied whole."""
    return 4 * sum(parameter.numel() for parameter in network.parameters()) > LARGE


def light(network: Network) -> Network:
    """A copy for passes, which leave weights as they are: a large network's are shared, and all else is copied.

    A parameter of the copy is an object of its own in the same memory, so that what is set on it, or where `to` moves it, stays
    with the copy.
    """
    return copied(network, {id(p): _alias(p) for p in network.parameters()} if is_large(network) else {})


def _alias(parameter: Tensor) -> Tensor:
    return nn.Parameter(parameter.detach(), parameter.requires_grad)


def emptied(network: Network) -> Network:
    """A copy whose parameters lie on the meta device; buffers are copied."""
    return copied(network, {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in network.parameters()})


def live(network: Network) -> Network:
    """Make recurrent layers look their parameters up in every pass, so that they see those that stand in for them.

    Torch's own layers keep a list, which only `setattr` renews. Returns the network itself, which is changed.
    """
    for module in network.modules():
        if isinstance(module, nn.RNNBase):
            kind: Any = type(module)
            module.__class__ = _live(kind)
    return network


@functools.cache
def _live(kind: Any) -> Any:
    """A class of recurrent layers whose list of weights is made anew whenever it is asked for."""
    if isinstance(vars(kind).get("_flat_weights"), property):
        return kind

    def weights(module: Any) -> list[Any]:
        return [module._parameters.get(name) for name in module._flat_weights_names]

    return type(kind.__name__, (kind,), {"_flat_weights": property(weights, lambda module, weights: None)})


def renewed(network: Network) -> Network:
    """Make modules drop what they have cached in eval mode, such as a table of biases, whose sizes may be out of date.

    Modules with a `train` method of their own do so when training mode is set. Returns the network itself, which is changed, in
    the modes that it was in.
    """
    own = [module for module in network.modules() if type(module).train is not nn.Module.train]
    modes = [(module, module.training) for module in network.modules()] if own else []
    for module in own:
        with suppress(Exception):  # one that refuses to be trained drops nothing
            module.train()
        module.eval()
    for module, mode in modes:
        module.training = mode
    return network


def plain_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The floating tensors that are attributes of a module without being parameters or buffers, by their names.

    Those whose name the class has as well are left out: as buffers they would be hidden by it.
    """
    held = {k: v for k, v in vars(module).items() if isinstance(v, Tensor) and v.is_floating_point()}
    return {k: v for k, v in held.items() if not hasattr(type(module), k)}


def with_buffers(network: Network) -> Network:
    """Make plain tensors buffers that are not saved, so that `replaced` finds them. Returns the network itself, changed."""
    for module in network.modules():
        for name, tensor in plain_tensors(module).items():
            del vars(module)[name]
            module.register_buffer(name, tensor, persistent=False)
    return network


@contextmanager
def replaced(network: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """With these tensors in place of a network's own, by name; in every module that holds them.

    Differs from `torch.func.functional_call`: that one puts a tensor back once for each path to its module, and thereby leaves
    the replacement in a module that lies at two.
    """
    own = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    instead = {id(own[name]): tensor for name, tensor in tensors.items() if name in own}
    held: list[dict[str, Any]] = [x for module in network.modules() for x in (module._parameters, module._buffers)]
    slots = [(places, key, tensor) for places in held for key, tensor in places.items() if id(tensor) in instead]
    try:
        for places, key, tensor in slots:
            places[key] = instead[id(tensor)]
        yield
    finally:
        for places, key, tensor in slots:
            places[key] = tensor


def held_tensors(network: nn.Module) -> list[Tensor]:
    """The tensors that are neither parameters nor buffers but plain attributes of modules, also in containers."""
    places = ("_parameters", "_buffers", "_modules")
    held = [value for module in network.modules() for name, value in vars(module).items() if name not in places]
    return [leaf for leaf in tree_leaves(held) if isinstance(leaf, Tensor)]


def _detached(network: nn.Module) -> Memo:
    return {id(tensor): tensor.detach().clone() for tensor in held_tensors(network) if not tensor.is_leaf}


def _twin(network: Network, memo: Memo) -> Network:
    kinds: list[tuple[nn.Module, Any]] = [(module, type(module)) for module in network.modules()]
    plain = [module for module, kind in kinds if _is_plain(kind) and not module._compiled_call_impl]
    for module in plain:
        memo[id(module)] = object.__new__(type(module))
    for module in reversed(plain):  # children first: a parent with its own `__setstate__` may look into them
        memo[id(module)].__dict__.update({name: _copied(value, memo) for name, value in vars(module).items()})
    twin = copy.deepcopy(network, memo)
    made = {id(value) for value in memo.values()}
    for module in twin.modules():
        vars(module).update({name: _rebound(value, memo, made) for name, value in vars(module).items()})
    return twin


def _rebound(value: Any, memo: Memo, made: set[int]) -> Any:
    """What stands in a copy for a value, with functions in it that refer to copies; itself if nothing of that was copied.

    Lists and dictionaries that were copied are changed in place; those that no module holds stay shared.

    Args:
        made: the `id` of all copies; those of lists and dictionaries are taken out as they are changed, once each.
    """
    if type(value) is types.FunctionType:
        return _rebound_function(value, memo, made)
    value = memo.get(id(value), value)
    kind = type(value)
    if kind in (list, dict, OrderedDict) and id(value) in made:
        made.remove(id(value))
        for place, entry in list(enumerate(value) if kind is list else value.items()):
            value[place] = _rebound(entry, memo, made)
    elif kind is tuple:
        entries = tuple(_rebound(entry, memo, made) for entry in value)
        return entries if _differ(value, entries) else value
    elif kind is functools.partial:
        before = (value.func, *value.args, *value.keywords.values())
        function, *after = (_rebound(entry, memo, made) for entry in before)
        if _differ(before, (function, *after)):
            count = len(value.args)
            twin = functools.partial(function, *after[:count], **dict(zip(value.keywords, after[count:], strict=True)))
            vars(twin).update(vars(value))
            return twin
    elif kind is types.MethodType and id(value.__self__) in memo:
        return types.MethodType(value.__func__, memo[id(value.__self__)])
    return value


def _rebound_function(function: Any, memo: Memo, made: set[int]) -> Any:
    """A function whose closure and defaults refer to copies of what they referred to; itself if nothing of that was copied."""
    if id(function) in memo:
        return memo[id(function)]
    memo[id(function)] = function  # it may refer to itself
    cells, defaults, named = function.__closure__ or (), function.__defaults__, function.__kwdefaults__ or {}
    before = (*(cell.cell_contents if _is_full(cell) else None for cell in cells), defaults, *named.values())
    after = [_rebound(value, memo, made) for value in before]
    if _differ(before, after):
        own = tuple(map(types.CellType, after[: len(cells)]))
        twin = types.FunctionType(function.__code__, function.__globals__, function.__name__, after[len(cells)], own or None)
        twin.__qualname__ = function.__qualname__
        twin.__kwdefaults__ = dict(zip(named, after[len(cells) + 1 :], strict=True)) or None
        vars(twin).update(vars(function))
        for cell in own:
            if cell.cell_contents is function:
                cell.cell_contents = twin
        memo[id(function)] = twin
    return memo[id(function)]


def _differ(before: Iterable[Any], after: Iterable[Any]) -> bool:
    return any(one is not other for one, other in zip(before, after, strict=True))


def _is_full(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _copied(value: Any, memo: Memo) -> Any:
    """A deep copy. Numbers, strings and empty containers, which modules mostly hold, do not go through `deepcopy`."""
    kind = type(value)
    if kind in ATOMS or (kind is tuple and ATOMS.issuperset(map(type, value))):
        return value
    known = memo.get(id(value))
    if known is not None:
        return known
    if kind in CONTAINERS and not value:
        memo[id(value)] = made = kind()
    elif kind is dict and all(type(key) is str for key in value):
        memo[id(value)] = made = {}
        made.update({key: _copied(entry, memo) for key, entry in value.items()})
    else:
        made = copy.deepcopy(value, memo)
    return made


@functools.cache
def _is_plain(kind: Any) -> bool:
    """Whether a module of this class is copied by copying its `__dict__`. torch's own `__setstate__` only serves old files."""
    makers = {name: next((c for c in kind.__mro__ if name in vars(c)), object) for name in SPECIAL}
    own = makers.pop("__setstate__").__module__.startswith("torch.nn.modules.")
    return own and all(maker in (object, nn.Module) for maker in makers.values())
