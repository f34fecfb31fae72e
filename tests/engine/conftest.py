"""Runs here write their ONNX files quickly, and studies draw no plots."""

import pytest
from no_pictures import no_pictures
from quick_export import quick_export


@pytest.fixture(autouse=True, scope="module")
def _quick_export():
    with quick_export():
        yield


@pytest.fixture(autouse=True, scope="module")
def _no_pictures():
    with no_pictures():
        yield
