"""What is refused, with a sentence."""

from __future__ import annotations

import pytest

from freeprune.errors import FreePruneError


def raises(sentence):
    """Expects a `FreePruneError` in whose text this regular expression is found."""
    return pytest.raises(FreePruneError, match=sentence)
