"""The options of the built-in granularities. Does not import torch, so that `freeprune prune --help` is quick.

The class of a granularity takes its `options` from here; in another package the class declares them itself.
"""

from __future__ import annotations

from collections.abc import Mapping

from .options import Kind, Option, declare, named

LAYOUTS: dict[str, Mapping[str, Option]] = {
    "channel": named(
        {
            "round_to": declare(
                "auto",
                "remove channels in steps of this number; auto: widths that runtimes are fast at; or conv=8,linear=4.",
                kind=Kind.STEPS,
            ),
            "min_width": declare(1, "fewest channels to keep in a layer.", least=1),
            "depth": declare(
                None,
                "let whole residual branches go; the default with a target on latency.",
                kind=Kind.PAIR,
                implied=True,
                shown="with a target on latency; in inspect yes",
            ),
            "repair": declare(True, "change size attributes of modules to fit the pruned widths.", kind=Kind.PAIR),
        }
    ),
    "nm": named({"nm": declare("2:4", "2:4 keeps two of every four inputs; 4 lets each layer keep any number of every four.")}),
    "block": named({"block": declare("1x4", "shape of the vectors: 1x4 along inputs, 4x1 along outputs.")}),
}
