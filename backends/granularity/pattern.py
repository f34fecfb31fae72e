"""Granularity `pattern`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ..criteria import Importance
from .kernel import whole_kernels
from .masked import Masked, Ranks, Scores, ranked

LIBRARY = 8  # patterns; PatDNN's accuracy saturates at six to eight (section 6)
ENTRIES = 4  # weights of nine that a pattern keeps


class Pattern(Masked):
    """3x3 kernels are cut to 4-of-9 patterns, least loss first, and beyond a rate of 5/9 removed; other kernels go whole.

    The patterns are a small library, the commonest among the best patterns of all kernels of the network.

    Source: PatDNN, Niu et al. 2020, arXiv:2001.00138, section 4.
    Differs: kernels are switched one at a time, so that a layer can have any rate; whole kernels go only after all have been
    switched (PatDNN prunes both at fixed rates); the optimisation by ADMM is left to the search and one fine-tuning.
    """

    name = "pattern"
    gain: ClassVar[str] = "only compilers written for such patterns gain from them"

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
    """The commonest patterns, `(up to 8, 9)`: for each kernel its centre and the three most important others."""
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
    """Two units a kernel: the four weights of its pattern, and the five others, all of which go before any of the former."""
    kept = kernels @ library.T.astype(np.float64)  # (kernels, patterns)
    choice = np.abs(kept).argmax(axis=1)
    pattern = library[choice]
    inside = ranked(importance.total(kept[np.arange(len(kernels)), choice]))
    outside = ranked(importance.total(np.where(pattern, 0.0, kernels).sum(axis=1))) + len(kernels)
    ranks: Ranks = np.where(pattern, inside[:, None], outside[:, None])
    return ranks
