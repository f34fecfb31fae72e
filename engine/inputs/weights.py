"""Fills a network with the weights of a file, whatever they lie under and whatever stands before their names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ...copies import copied
from ...errors import FreePruneError, brief, nearest, with_article
from ...options import as_path
from .checkpoints import Checkpoint, needs_code, read_checkpoint
from .values import tensors as tensors_of

# What training scripts call the weights in a checkpoint, and what wrappers put before the name of every tensor.
USUAL = {
    "state_dict", "model_state_dict", "model_state", "model", "network", "net", "weights", "params", "state", "module",
    "_orig_mod",
}  # fmt: skip
# Parts of a name that come from wrapping a part of the network. "module" is last, since it may be a part of the network itself.
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module")
AVERAGES = {"ema", "swa", "averaged", "shadow"}  # in the name of weights averaged over training
# A part of the name of tensors by the names of weights that are none: of an optimizer's state, not of an "optimized_model".
OTHERS = re.compile(r"(.*_)?(optim(izers?)?|grad(ient)?s?|moment(um|s)?\d*|exp_avg)(_.*)?")
COUNTED = "num_batches_tracked"  # of batch norms, read in training alone
COUNTER = "n_averaged"  # that `AveragedModel` adds
PART = re.compile(r"-\d+-of-\d+$")  # in the name of one of several files
SHOWN = 3  # names of each kind in a sentence


@dataclass(frozen=True)
class Fit:
    """Tensors of a checkpoint held against a network.

    Attributes:
        prefix: what stands before their names in the checkpoint, without the last dot.
        given: by the network's names.
        missing: names that the network needs.
        unexpected: names that it does not have.
        reshaped: in words, those of another shape.
        retyped: in words, those that hold whole numbers instead of fractions, or fractions instead of whole numbers.
    """

    prefix: str
    given: dict[str, Tensor]
    missing: list[str]
    unexpected: list[str]
    reshaped: list[str]
    retyped: list[str]

    @property
    def troubles(self) -> str:
        """What does not fit, in words; "" if all does."""
        kinds = {
            "missing": self.missing, "unexpected": self.unexpected, "of another shape": self.reshaped,
            "of another type": self.retyped,
        }  # fmt: skip
        return ", ".join(f"{len(names)} {what} ({_shortened(names)})" for what, names in kinds.items() if names)


def load_weights(network: nn.Module, path: str | Path, key: str | None = None) -> nn.Module:
    """Fills a network that was just built with the weights of a file, in place, and returns it.

    The weights may lie under any keys of a checkpoint (`state_dict`, `model`, `net` ...), beside whatever else, and their names
    may begin with what wrappers put there (`module.`, `_orig_mod.`, `model.` ...) in any order: what counts is that they fit
    the network. Averaged (EMA) weights are taken only if they are asked for.

    A name that the file lacks is tolerated when it is a batch norm's `num_batches_tracked`, or tied to a tensor that the
    file has; and so is whatever the network's own `load_state_dict` makes fit.

    Args:
        network: changed only if everything fits.
        path: `.safetensors`, or a file of `torch.save`: `.pt`, `.pth`, `.pth.tar`, `.ckpt`, `.bin` (read without running code);
            or the `.index.json` that names several of them as parts.
        key: the keys, joined by dots, that the weights lie under, such as `ema` or `state_dict.teacher`; None to find them.

    Raises:
        FreePruneError: the file is missing or unreadable, holds something else, several things that fit or nothing that does,
            or values that are not finite.
    """
    if not isinstance(path, str | Path):
        raise FreePruneError(
            f"`weights` is {with_article(type(path).__name__)}; give the path of a file, or load the weights into the network "
            "and leave it out"
        )
    expected = tensors_of(network)
    checkpoint = read_checkpoint(as_path(path, "weights"))
    tensors = checkpoint.tensors if key is None else _under(checkpoint, key)
    if not tensors:
        raise _without_tensors(checkpoint)
    fits = list(_fits(tensors, expected))
    fitting = [fit for fit in fits if not fit.troubles]
    if not fitting:
        closest = min(fits, key=_distance)
        if not _is_taken(closest, network):
            raise _misfit(checkpoint, closest, len(expected))
        fitting = [closest]
    chosen = _chosen(fitting, checkpoint, averages=key is not None)
    for name, tensor in chosen.given.items():
        _check_values(name, tensor, checkpoint.path)
    network.load_state_dict(chosen.given, strict=False)
    return network


def _under(checkpoint: Checkpoint, key: str) -> dict[str, Tensor]:
    """The tensors under a key, or whose names begin with it, by what follows."""
    found = {name.removeprefix(f"{key}."): tensor for name, tensor in checkpoint.tensors.items() if name.startswith(f"{key}.")}
    if key in checkpoint.strange:
        raise needs_code(checkpoint.path, checkpoint.strange[key], key)
    if not found:
        known = list(dict.fromkeys([*checkpoint.holders, *(name.partition(".")[0] for name in checkpoint.tensors)]))
        raise FreePruneError(f"{str(checkpoint.path)!r} has no weights under `weights_key={key!r}`; {nearest(key, known[:20])}")
    return found


def _fits(tensors: dict[str, Tensor], expected: Mapping[str, Tensor]) -> Iterator[Fit]:
    """The tensors held against the network, under every prefix that may be meant; simple readings first."""
    yielded = False
    for removed in ((), WRAPPERS[:-1], WRAPPERS):
        read = _without(tensors, removed, expected)
        if read is None:
            continue
        for prefix in _prefixes(read, expected):
            fit = _held(prefix, read, expected)
            yield fit
            yielded = yielded or not fit.troubles
        if yielded:
            return


def _without(tensors: dict[str, Tensor], parts: tuple[str, ...], expected: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The tensors without these parts of their names; None if there are none, or names would coincide."""
    own = {part for name in expected for part in name.split(".")}
    gone = {part for part in parts if part not in own}
    if parts and not any(gone & {*name.split(".")} for name in tensors):
        return None
    found = {".".join(part for part in name.split(".") if part not in gone): tensor for name, tensor in tensors.items()}
    return found if len(found) == len(tensors) else None


def _prefixes(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Everything that stands before a name of the network in a name of the file; nothing, and usual words, in any case."""
    found = {"": None}
    first = {name.partition(".")[0] for name in expected}
    for name in tensors:
        parts = name.split(".")
        usual = True
        for i, part in enumerate(parts[:-1], start=1):
            usual = usual and part in USUAL
            prefix = ".".join(parts[:i])
            if usual or (parts[i] in first and name.removeprefix(f"{prefix}.") in expected):
                found[prefix] = None
    return [prefix for prefix in found if not any(map(OTHERS.fullmatch, prefix.split(".")))]


def _held(prefix: str, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Fit:
    lead = f"{prefix}." if prefix else ""
    given = {name.removeprefix(lead): tensor for name, tensor in tensors.items() if name.startswith(lead)}
    if COUNTER not in expected:
        given.pop(COUNTER, None)
    for name in [name for name, tensor in given.items() if name.endswith(COUNTED) and not _is_whole(tensor)]:
        del given[name]  # averaged, or too large for half precision
    both = [name for name in expected if name in given]
    loaded = {id(expected[name]) for name in both}
    return Fit(
        prefix,
        given,
        missing=[
            name
            for name, tensor in expected.items()
            if name not in given and not name.endswith(COUNTED) and id(tensor) not in loaded
        ],
        unexpected=[name for name in given if name not in expected],
        reshaped=[
            f"{name} {tuple(given[name].shape)} instead of {tuple(expected[name].shape)}"
            for name in both
            if given[name].shape != expected[name].shape
        ],
        retyped=[
            f"{name} {given[name].dtype} instead of {expected[name].dtype}"
            for name in both
            if (given[name].is_complex() and not expected[name].is_complex())
            or (
                given[name].is_floating_point() != expected[name].is_floating_point()
                and (expected[name].is_floating_point() or not _is_whole(given[name]))
            )
        ],
    )


def _is_whole(tensor: Tensor) -> bool:
    """Whether these are whole numbers, in any type: tensors of a file are often cast to half precision all together."""
    if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.is_meta:
        return not tensor.is_floating_point()
    found = tensor.double()
    return bool((torch.isfinite(found) & (found == found.round())).all())


def _distance(fit: Fit) -> tuple[int, int]:
    """How far tensors are from fitting: what is not there weighs most."""
    return len(fit.missing), len(fit.unexpected) + len(fit.reshaped) + len(fit.retyped)


def _is_taken(fit: Fit, network: nn.Module) -> bool:
    """Whether the network itself makes tensors fit as it loads them, as weight norm does with those of earlier versions."""
    if fit.retyped:  # which torch would convert, whatever is lost
        return False
    try:
        copied(network).load_state_dict(fit.given)
    except Exception:  # of whatever its own code does
        return False
    return True


def _chosen(fitting: list[Fit], checkpoint: Checkpoint, *, averages: bool) -> Fit:
    """The weights that are meant, of those that fit.

    Args:
        averages: whether averaged weights may be.
    """
    plain = fitting if averages else [fit for fit in fitting if not _is_average(fit.prefix)]
    path = repr(str(checkpoint.path))
    if not plain:
        key = fitting[0].prefix
        raise FreePruneError(
            f"the only weights in {path} that fit the network are averaged ones, under {key!r}; ask for them with "
            f"`weights_key={key!r}`"
        )
    usual = [fit for fit in plain if {*fit.prefix.split(".")} <= {"", *USUAL}] or plain
    if any(not _same(usual[0], fit) for fit in usual[1:]):
        places = " and ".join(repr(fit.prefix) for fit in usual[:SHOWN])
        raise FreePruneError(
            f"{path} holds several weights that fit the network, under {places}; say which with "
            f"`weights_key={usual[0].prefix!r}`"
        )
    return usual[0]


def _is_average(prefix: str) -> bool:
    return bool(AVERAGES & {*re.split(r"[^a-z]+", prefix.lower())})


def _same(one: Fit, other: Fit) -> bool:
    return one.given.keys() == other.given.keys() and all(torch.equal(one.given[name], other.given[name]) for name in one.given)


def _misfit(checkpoint: Checkpoint, fit: Fit, count: int) -> FreePruneError:
    whole = next((key for key in checkpoint.strange if key in USUAL), None)
    if whole is not None and len(fit.unexpected) == len(fit.given):  # nothing in common, and a network beside it
        return needs_code(checkpoint.path, checkpoint.strange[whole], whole)
    under = f" under {fit.prefix!r}" if fit.prefix else ""
    wanted = "the .index.json of all parts" if PART.search(checkpoint.path.stem) else "the weights of this very network"
    return FreePruneError(
        f"the weights in {str(checkpoint.path)!r} do not fit the network: of its {count} tensors and the file's "
        f"{len(fit.given)}{under}, {fit.troubles}; give {wanted}"
    )


def _without_tensors(checkpoint: Checkpoint) -> FreePruneError:
    if checkpoint.strange:
        key, wanted = next(iter(checkpoint.strange.items()))
        return needs_code(checkpoint.path, wanted, key)
    what = "; expected a state dict with at least one tensor"
    if " under " in checkpoint.content:
        what = "; expected a state dict: names and tensors only"
    return FreePruneError(f"{str(checkpoint.path)!r} holds {checkpoint.content}{what}")


def _check_values(name: str, tensor: Tensor, path: Path) -> None:
    where = f"tensor {brief(repr(name))} in {str(path)!r}"
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        raise FreePruneError(f"{where} holds no plain numbers; expected dense, unquantised weights")
    if not bool(torch.isfinite(tensor.double() if tensor.is_floating_point() else tensor).all()):  # float8 has no isfinite
        raise FreePruneError(f"{where} has NaN or infinite values; give sound weights")


def _shortened(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(map(brief, names[:SHOWN])) + (", ..." if len(names) > SHOWN else "")
