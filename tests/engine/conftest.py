"""Runs here write their ONNX files quickly."""

import pytest
from quick_export import quick_export


@pytest.fixture(autouse=True, scope="module")
def _quick_export():
    with quick_export():
        yield
