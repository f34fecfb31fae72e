"""Folders of images."""

from __future__ import annotations

import pytest
from data_sets import two_classes


@pytest.fixture
def folder(tmp_path):
    """The images of `two_classes`."""
    return two_classes(tmp_path / "images")
