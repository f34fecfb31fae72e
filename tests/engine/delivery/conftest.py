"""Runs here write their ONNX files as users do."""

import pytest
from quick_export import present_export


@pytest.fixture(autouse=True, scope="module")
def _present_export():
    with present_export():
        yield
