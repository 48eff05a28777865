"""Rotation, off-principal share and visible changes: what the artists hold."""

import numpy as np
import pandas as pd
import pytest

from deltaw.adapters.errors import OptionError
from deltaw.analysis import figure_tables
from deltaw.analysis.figures import FIGURES, off_principal, rotation, visible

TWO = ("ft", "lora")


def frame(random=True) -> pd.DataFrame:
    rows = [
        {
            "run": method, "method": method, "module": f"m.layer.{layer}.query", "layer": layer, "kind": "query",
            "step": step, "k": 4, "rotation_left": (1 + place) * step * (1 + layer) / 100, "rotation_right": step / 50,
            "rotation_expected": 88.0, "rotation_random": step / 200 if random and step < 100 else np.nan,
            "off_principal": 0.95 - 0.01 * layer, "off_principal_expected": 0.99, "off_principal_left": 0.7,
            "off_principal_left_expected": 0.9, "visible_bfloat16": step / 200, "visible_path_not_taken": step / 400,
        }
        for place, method in enumerate(TWO)
        for layer in range(3)
        for step in (10, 50, 100)
    ]  # fmt: skip
    return pd.DataFrame(rows).astype({"layer": "Int64", "step": "Int64"})


def lines(ax) -> dict[str, list[float]]:
    return {line.get_label(): [float(y) for y in line.get_ydata()] for line in ax.lines}


def dashed(ax) -> list[list[float]]:
    return [[float(y) for y in line.get_ydata()] for line in ax.lines if line.get_linestyle() == "--"]


def test_rotation_has_a_row_a_side_and_chance_beside_it() -> None:
    left, ends, right, _ = rotation(frame()).axes
    assert left.get_ylabel() == "left rotation (°)"
    assert lines(left)["Full FT"] == pytest.approx([0.2, 1.0, 2.0])  # the mean over the layers
    assert lines(left)["LoRA"] == pytest.approx([0.4, 2.0, 4.0])
    assert lines(ends)["Full FT"] == pytest.approx([1.0, 2.0, 3.0])
    assert lines(right)["LoRA"] == pytest.approx([0.2, 1.0, 2.0])
    assert lines(left)["random subspaces"] == [88.0, 88.0]
    assert np.allclose(dashed(left), [[0.05, 0.25]] * 2)  # where first order tells it
    assert not dashed(ends)


def test_rotation_without_chance_has_the_angles_alone() -> None:
    bare = frame().drop(columns=["rotation_random", "rotation_expected", "k"])
    (ax,) = rotation(bare, side="right", over="training", scale="linear").axes
    assert set(lines(ax)) == {"Full FT", "LoRA"}
    (ax,) = rotation(frame(random=False), side="right", over="training").axes
    assert not dashed(ax)


def test_off_principal_shows_the_rest_on_a_logarithm() -> None:
    ax = off_principal(frame()).axes[0]
    assert lines(ax)["LoRA"] == pytest.approx([0.06] * 3)
    assert lines(ax)["random update"] == pytest.approx([0.01] * 2)
    ax = off_principal(frame(), sides="left", scale="linear").axes[0]
    assert lines(ax)["LoRA"] == pytest.approx([0.7] * 3)
    assert lines(ax)["random update"] == pytest.approx([0.9] * 2)
    with pytest.raises(OptionError, match="off_principal_right"):
        off_principal(frame(), sides="right")
    with pytest.raises(OptionError, match="sides is 'up'"):
        off_principal(frame(), sides="up")


def test_visible_by_either_rule() -> None:
    assert lines(visible(frame()).axes[0])["LoRA"] == pytest.approx([0.05, 0.25, 0.5])
    assert lines(visible(frame(), rule="path-not-taken").axes[0])["LoRA"] == pytest.approx([0.025, 0.125, 0.25])
    with pytest.raises(OptionError, match="visible_float16"):
        visible(frame(), rule="float16")
    with pytest.raises(OptionError, match="rule is 'int8'"):
        visible(frame(), rule="int8")


@pytest.mark.parametrize("name", ["rotation", "off-principal", "visible"])
def test_a_figure_asks_only_for_its_own_measure(name, monkeypatch) -> None:
    asked = {}
    monkeypatch.setattr(figure_tables, "_over_training", lambda *given, **options: asked.update(options))
    FIGURES[name].make(["run"])
    assert asked["measures"] == (name.replace("-", "_"),)
