"""One forward pass of a network under a tracer, which leaves the network as it was."""

from __future__ import annotations

import random
import traceback
from collections import OrderedDict
from collections.abc import Container, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ...common import Inputs
from ...copies import light, live, plain_tensors, renewed
from ...errors import FreePruneError, brief, cause, first_line, with_article
from ...lending import storage_of, widened
from ...reading import leaves
from .caches import forget_results
from .labeller import Known
from .meta import on_meta
from .reasons import known
from .record import ENDS, FAILS, HOLDS, OUTPUT, TRAINING, Op, Trace
from .tracer import Tracer

LONGER = 8  # times as many decisions as in the first pass may be taken in one of another kind, or it has no end
MOST_RUNS = 16  # passes that a trace takes at most to end at each condition that may end one
PASSES = 3  # that a trace takes at most, if what was preferred stays anyway


@contextmanager
def plain_kernels(network: nn.Module) -> Iterator[None]:
    """Disables fused fast paths that hide several operators of a network in one."""
    before, library = torch.backends.mha.get_fastpath_enabled(), torch._C._get_mkldnn_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    if any(isinstance(module, nn.LSTM) for module in network.modules()):
        torch._C._set_mkldnn_enabled(False)  # the flags of torch.backends warn of other hardware
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
        torch._C._set_mkldnn_enabled(library)


@contextmanager
def undisturbed(network: nn.Module) -> Iterator[None]:
    """Restores the attributes of every module at the end, including what a forward pass cached in dictionaries and lists."""
    before = []
    for module in network.modules():
        values = dict(vars(module))
        held = [(value, value.copy()) for value in values.values() if type(value) in (dict, list, set, OrderedDict)]
        before.append((module, values, held))
    try:
        yield
    finally:
        for module, values, held in before:
            vars(module).clear()
            vars(module).update(values)
            for value, content in held:  # the very object: the handle of a hook knows it
                if value or content:
                    _refill(value, content)


def _refill(value: Any, content: Any) -> None:
    value.clear()
    if isinstance(value, list):
        value.extend(content)
    else:
        value.update(content)


class _SameDraws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Every operator that draws at random begins at the same seed: how much dropout draws depends on sizes."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            torch.default_generator.manual_seed(0)  # `torch.manual_seed` would seed every device's for good
        return func(*args, **(kwargs or {}))


@contextmanager
def same_numbers() -> Iterator[None]:
    """The generators of Python and NumPy begin at the same seed, and go on afterwards where they were."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def training_branches(network: nn.Module) -> Iterator[None]:
    """Sets all modules that contain others to training mode, for branches such as auxiliary heads; layers stay in eval mode.

    What the code draws at random, such as layers that it leaves out or tokens that it masks, is the same each time.
    """
    containers = [module for module in network.modules() if any(True for _ in module.children())]
    try:
        for module in containers:
            module.training = True
        with torch.random.fork_rng(devices=[]), _SameDraws(), same_numbers():  # type: ignore[no-untyped-call]
            yield
    finally:
        for module in containers:
            module.training = False


def trace(network: nn.Module, inputs: Inputs, stays: Known | None = None) -> Trace:
    """Trace the couplings of a network in eval mode. The network and the inputs are left as they are.

    Further passes are traced as well. Where the input decides what runs, as it chooses among experts, one takes all that it may
    choose, and one what runs where conditions fail; where a condition ends the pass, as at an exit of several, another ends at
    each of them. If parameters, or channels that a layer makes, do not lead to the output, another takes the branches of
    training mode, so that auxiliary heads shrink with their inputs. Where such a pass fails, as without labels, what it alone
    uses stays.

    Args:
        network: on the meta device, so that nothing is computed, or on another if its forward pass needs values.
        inputs: what the forward pass takes, on the same device; the first dimension is the batch.
        stays: what is known to stay anyway, so that no other channels give way to it.

    Raises:
        FreePruneError: the network rejects the inputs.
    """
    stays = stays or {}
    for _ in range(PASSES):
        found = _pass(network, inputs, stays)
        more = known(found)
        if more.keys() <= stays.keys():
            break
        stays = {**more, **stays}
    found.settle_boxes()
    return found


def _pass(network: nn.Module, inputs: Inputs, stays: Known) -> Trace:
    tracer = Tracer(network, stays)
    tracer.count_from(inputs)
    tracer.watch_modules()
    output: list[Any] = []
    try:
        with undisturbed(network), torch.no_grad(), plain_kernels(network):
            network.eval()
            with tracer:
                output.append(network(*inputs))
            decided = [value for op in tracer.trace.ops for value in op.decided]
            runs = [_conditions(tracer.trace.ops)]
            for kind, other in ((HOLDS, False), (FAILS, True)):
                if any(value is other for value in decided) or (decided and tracer.unused(leaves(output))[0]):
                    start = len(tracer.trace.ops)
                    some = _further_pass(network, inputs, tracer, kind, [True], some=True) if kind == HOLDS else []
                    output += some or _further_pass(network, inputs, tracer, kind, [not other])
                    runs.append(_conditions(tracer.trace.ops[start:]))
            while len(runs) < MOST_RUNS and (conditions := _other_end(runs)):
                start = len(tracer.trace.ops)
                output += (there := _further_pass(network, inputs, tracer, ENDS, conditions))
                runs.append(_conditions(tracer.trace.ops[start:]) if there else conditions)
            unseen, dropped = tracer.unused(leaves(output))
            if unseen or dropped.size:
                output += (trained := _further_pass(network, inputs, tracer, TRAINING))
                if not trained:
                    tracer.trace.dropped = dropped
    except Exception as error:
        raise rejected(inputs, error) from error
    finally:
        for tensor in leaves(output):
            tracer.at(OUTPUT)
            tracer.note_read(tensor)
            for layer in [*tracer.labels(tensor), *tracer.picks.labels(tensor)]:
                tracer.freeze(layer)
        tracer.close()
    if not leaves(output[0]):
        raise without_tensors(output[0])
    tracer.trace.settle_rows()
    if tracer.origins is not None:
        tracer.trace.constants = _named(network, tracer.origins.constants)
    return tracer.trace


def _named(network: nn.Module, memory: Container[int]) -> list[str]:
    """The names of the buffers and plain tensors of two or more dimensions that lie there."""
    held = [(path, {**module._buffers, **plain_tensors(module)}) for path, module in network.named_modules()]
    tensors = {f"{path}.{key}".lstrip("."): tensor for path, some in held for key, tensor in some.items() if tensor is not None}
    return [name for name, tensor in tensors.items() if tensor.dim() > 1 and storage_of(tensor) in memory]


def _conditions(ops: Sequence[Op]) -> list[bool]:
    """The truth values on which code decided between these operators."""
    return [value for op in ops for value in op.decided if isinstance(value, bool)]


def _other_end(runs: Sequence[Sequence[bool]]) -> list[bool] | None:
    """What to take conditions for in a pass that goes on to one of them and ends there, as at an exit of several.

    Args:
        runs: the conditions of the passes so far, none of one that failed.

    Returns:
        The conditions, the last for all further ones; None where none of them ends a pass, or all that do are among the runs.
    """
    longest = max(runs, key=len)
    if len(set(map(len, runs))) > 1:
        for place, value in enumerate(longest):
            conditions = [*longest[:place], not value, *longest[place + 1 :]]
            if not any(run and run == conditions[: len(run)] for run in runs):
                return conditions
    return None


def _further_pass(
    network: nn.Module, inputs: Inputs, tracer: Tracer, kind: str, conditions: Sequence[bool] = (), *, some: bool = False
) -> list[Any]:
    """What the network gives in a further pass, which is traced too; nothing where it fails.

    Args:
        conditions: what conditions on the input are taken for, in their order, the last for all further ones.
        some: whether counts of zero that code reads are taken for one.
    """
    go_back = tracer.bookmark()
    tracer.most_assumed = LONGER * sum(bool(op.decided) for op in tracer.trace.ops)
    tracer.trace.further.append(kind)
    tracer.assumed, tracer.assumes_some = conditions, some
    try:
        with undisturbed(network), further(network, kind), tracer:
            return [network(*inputs)]
    except Exception:
        go_back()
        return []
    finally:
        tracer.assumed, tracer.assumes_some = (), False


def further(network: nn.Module, kind: str) -> AbstractContextManager[None]:
    """The mode that a further pass of this kind runs in."""
    forget_results(network)  # those of a pass that failed, which the pruned network does not run, would be found here
    return training_branches(network) if kind == TRAINING else nullcontext()


def trace_example(network: nn.Module, inputs: Inputs) -> tuple[nn.Module, Inputs, Trace]:
    """Trace a copy of a network on one example: on the meta device, or on the CPU if the forward pass needs values.

    Returns:
        The copy in eval mode and the example, both on the device that the trace was made on, and the trace.

    Raises:
        FreePruneError: the network rejects the inputs, or cannot be copied.
    """
    try:
        example = tuple(x[:1].to("meta") for x in inputs)
        twin = live(on_meta(network))
        return twin, example, trace(twin, example)
    except FreePruneError:  # a forward pass that needs values fails here; a wrong shape fails again below, with a better reason
        example = tuple(x[:1].cpu() for x in inputs)
        twin = live(renewed(light(widened(network)).eval())).cpu()
        return twin, example, trace(twin, example)


def rejected(inputs: Inputs, error: Exception) -> FreePruneError:
    """What is said of a network that raises this on these inputs."""
    if 'missing the required "forward"' in str(error):  # torch's words; operators without a kernel for a type raise the same
        return FreePruneError(f"the network cannot be run: {sentence(error)}; give a module whose `forward` makes the outputs")
    shapes = " and ".join("x".join(map(str, x.shape)) for x in inputs)
    types = "" if all(x.is_floating_point() for x in inputs) else " and ".join(str(x.dtype)[6:] for x in inputs)
    given, wanted = (f" and type {types}", " and type") if types else ("", "")
    return FreePruneError(
        f"the network rejects an input of shape {shapes}{given}: {sentence(error)}; "
        f"give data of the shape{wanted} that the network was trained on"
    )


def without_tensors(given: Any) -> FreePruneError:
    """What is said of a network that returns this, in which there is no tensor."""
    what = "nothing" if given is None else with_article(type(given).__name__)
    return FreePruneError(
        f"the network returns {what}, in which there is no tensor; let its forward pass return tensors, or tuples, lists, "
        "dictionaries or dataclasses of them"
    )


def sentence(error: Exception) -> str:
    """The first line of an error's text, with its class where the text alone says little, as of a KeyError.

    What code raises itself, as a check of its own, comes with its line: the operator that runs next says nothing of it.
    """
    told = first_line(error) if isinstance(error, RuntimeError | TypeError | ValueError) else ""
    check = check_of(error)
    return (told or cause(error)) + (f", raised by `{check[0]}` ({check[1]})" if check else "")


def check_of(error: BaseException) -> tuple[str, str] | None:
    """The statement of the network's code that raised an error, and its place; None where torch or an operator did."""
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if Path(torch.__file__).parent not in Path(f.filename).parents
    ]
    line = (frames[-1].line or "") if frames else ""
    if not line.startswith(("assert ", "raise ", "torch._assert(")):
        return None
    return brief(line), f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"
