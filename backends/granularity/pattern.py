"""Granularity `pattern`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ..criteria import Importance
from ..tracing.weights import TORN, Layout
from .kernel import whole_kernels
from .masked import Masked, Ranks, Scores, ranked

LIBRARY = 8  # number of patterns; PatDNN's accuracy saturates at six to eight (section 6)
ENTRIES = 4  # of the nine weights, how many a pattern keeps


class Pattern(Masked):
    """3x3 kernels keep one of a few 4-of-9 patterns, or nothing beyond a rate of 5/9; other kernels go whole.

    Kernels with the least loss are cut first. The patterns are the most common among the best patterns of all kernels.

    Source: PatDNN, Niu et al. 2020, arXiv:2001.00138, section 4.
    Differs: kernels are cut to patterns one at a time, so that a layer can have any rate; whole kernels go only after all have
    been cut (PatDNN prunes both at fixed rates); search and fine-tuning replace the optimisation by ADMM.
    """

    name = "pattern"
    gain: ClassVar[str] = "only compilers written for such patterns gain from them"

    def refusal(self, layout: Layout) -> str | None:
        return TORN if layout.torn else None

    def order(self, matrices: Mapping[str, Scores], importance: Importance) -> dict[str, Ranks]:
        kernels = {n: values.reshape(-1, 9) for n, values in matrices.items() if self.layouts[n].kernel == (3, 3)}
        library = _library(list(kernels.values()), importance)
        return {
            name: _switched(kernels[name], library, importance).reshape(values.shape)
            if name in kernels
            else whole_kernels(values, importance)
            for name, values in matrices.items()
        }


def _library(layers: list[Scores], importance: Importance) -> NDArray[np.bool_]:
    """The most common patterns, `(up to 8, 9)`; a kernel's own is its centre and the three most important others."""
    if not layers:
        return np.zeros((0, 9), bool)
    scores = importance.total(np.concatenate(layers))
    scores[:, 4] = np.inf  # the centre is part of every pattern: Gaussian and Laplacian filters have it (PatDNN, section 4.2)
    best = np.zeros(scores.shape, bool)
    np.put_along_axis(best, np.argsort(-scores, axis=1, kind="stable")[:, :ENTRIES], True, axis=1)
    patterns, counts = np.unique(best, axis=0, return_counts=True)
    library: NDArray[np.bool_] = patterns[np.argsort(-counts, kind="stable")[:LIBRARY]]
    return library


def _switched(kernels: Scores, library: NDArray[np.bool_], importance: Importance) -> Ranks:
    """Ranks of two units per kernel: the four weights of its pattern, and the five others. All the others go first."""
    kept = kernels @ library.T.astype(np.float64)  # (kernels, patterns)
    choice = np.abs(kept).argmax(axis=1)
    pattern = library[choice]
    inside = ranked(importance.total(kept[np.arange(len(kernels)), choice]))
    outside = ranked(importance.total(np.where(pattern, 0.0, kernels).sum(axis=1))) + len(kernels)
    ranks: Ranks = np.where(pattern, inside[:, None], outside[:, None])
    return ranks
