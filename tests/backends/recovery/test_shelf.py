"""Tensors put away in a file come back as they were."""

import tempfile

import pytest
import torch

from freeprune.backends.recovery.shelf import Shelf, held
from freeprune.errors import FreePruneError

TENSORS = [torch.randn(3, 4), torch.arange(6).reshape(2, 3).T, torch.zeros(0, 5), torch.ones(2, 2, dtype=torch.float64)]


@pytest.mark.parametrize("keep", [held, Shelf()])
def test_tensors_come_back_as_they_were_kept(keep):
    kept = [keep(tensor) for tensor in TENSORS]
    for _ in range(2):
        for give, tensor in zip(reversed(kept), reversed(TENSORS), strict=True):
            assert give().dtype is tensor.dtype
            assert torch.equal(give(), tensor)


def test_a_full_disk_is_a_sentence(monkeypatch):
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: open("/dev/full", "wb", buffering=0))  # noqa: SIM115
    with pytest.raises(FreePruneError, match="set TMPDIR to another folder, or use `recovery=False`"):
        Shelf()(torch.ones(2**16))
