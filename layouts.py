"""The options of the built-in granularities. Does not import torch, so that `freeprune prune --help` is quick.

The class of a granularity takes its `options` from here; in another package the class declares them itself.
"""

from __future__ import annotations

from collections.abc import Mapping

from .options import Kind, Option, declare, named

LAYOUTS: dict[str, Mapping[str, Option]] = {
    "channel": named(
        {
            "round_to": declare(1, "remove channels in steps of 8, or conv=8,linear=4.", kind=Kind.STEPS),
            "min_width": declare(1, "keep at least so many channels of a layer.", least=1),
            "repair": declare(True, "let sizes in module attributes follow.", kind=Kind.PAIR),
        }
    ),
    "nm": named({"nm": declare("2:4", "2:4, or 4 for any number of four.")}),
    "block": named({"block": declare("1x4", "1x4 along inputs, 4x1 along outputs.")}),
}
