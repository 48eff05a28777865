"""Figures in one format, where a test looks at something else: fonts in SVG and PDF cost more than the training."""

import pytest

from deltaw.trainers.reproduce import common


@pytest.fixture
def draw_png_alone(monkeypatch):
    """Call it, and from then on every figure is written as PNG alone."""
    return lambda: monkeypatch.setattr(common, "FORMATS", ("png",))
