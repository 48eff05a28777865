"""Every wrong table or option of a figure is one clear error that says what to pass."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from deltaw.adapters.errors import DeltawError, OptionError
from deltaw.analysis import figures
from deltaw.analysis.figures import FIGURES, check_path, save

OF_TABLES = [name for name in FIGURES if name != "region"]


def table() -> pd.DataFrame:
    """Columns of every figure, for two methods, three layers and two steps."""
    rows = [
        {
            "run": method, "method": method, "module": f"m.layer.{layer}.query", "layer": layer, "kind": "query",
            "axis": axis, "step": step, "step_from": pd.NA, "step_to": step, "delta_m": step * 1e-3,
            "delta_d": 1e-5 * (layer + 1),
            "index": 1, "singular_value": 1.0, "similarity": 0.4, "dissimilarity": 0.6, "rank": 4, "direction_rank": 4,
            "full_rank": 8, "group": "update", "effective_rank": 2.0, "stable_rank": 1.5, "amplification": 3.0,
            "quantile": 0.5, "seed": 0, "best_mcc": 0.5, "seconds_per_epoch": 1.0, "peak_megabytes": 9.0,
            "run_first": "a", "run_second": "b", "step_first": 1, "step_second": 1, "side": "right", "i": 1, "j": 1,
            "overlap": 0.5, "angle": 0.5,
        }
        for method in ("lora", "dual-lora")
        for layer in range(3)
        for axis in ("row", "column")
        for step in (10, 20)
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize("name", OF_TABLES)
def test_what_is_no_table_is_named(name) -> None:
    for wrong in ("runs/lora", None, 3, {"a": 1}, [table()]):
        with pytest.raises(OptionError, match=f"the table is {type(wrong).__name__}; pass what .* returns"):
            FIGURES[name].draw(wrong)


WRONG = {
    "kind": [3, ["query"], b"query"],
    "kinds": [3, [3], []],
    "methods": [3, [None], []],
    "axis": [3, None, ["row"]],
    "scale": [3, None, ["log"]],
    "share": [3, None],
    "width": ["wide", 0, -1, True, float("nan"), [7]],
    "steps": [2.5, "some", True],
    "rank": ["8", -1, [8]],
    "k": ["1", 0, True, 2.5],
    "epsilon": ["0.5", 0, None, True],
    "quantile": ["0.5", None, 2, [0.5]],
    "layers": [0, "0", [7]],
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_wrong_option_is_named(name) -> None:
    entry, frame = FIGURES[name], table()
    if name == "region":
        frame = {"LoRA": np.eye(3)}
    elif name == "symmetry":
        frame["step_from"] = frame["step_to"] - 10
    assert entry.draw(frame) is not None
    for option in entry.draw_defaults.keys() & WRONG.keys():
        for wrong in WRONG[option]:
            with pytest.raises(DeltawError, match=option.removesuffix("s")):
                entry.draw(frame, **{option: wrong})


def test_region_wants_matrices_by_their_titles() -> None:
    for wrong in ("LoRA", None, np.eye(3), [np.eye(3)]):
        with pytest.raises(OptionError, match="pass matrices by their titles"):
            figures.region(wrong)


def test_save_wants_a_figure_and_a_path(tmp_path) -> None:
    for wrong in (None, "figure", FIGURES["rank"]):
        with pytest.raises(OptionError, match="pass the Figure or Movie"):
            save(wrong, tmp_path / "a.png")
    for wrong in (None, 3, b"a.png"):
        with pytest.raises(OptionError, match=r"path is .*; pass the name of a file that ends in one of .png"):
            save(Figure(), wrong)
    with pytest.raises(OptionError, match=r"a.xyz: a figure has no format '.xyz'; choose one of .png, .svg, .pdf"):
        save(Figure(), tmp_path / "a.xyz")
    (tmp_path / "b.svg").mkdir()
    with pytest.raises(OptionError, match=r"b.svg: is a folder"):
        check_path(tmp_path / "b.svg")
