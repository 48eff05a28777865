"""Every wrong table or option of a figure is one clear error that says what to pass."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from deltaw.adapters.errors import DeltawError, OptionError
from deltaw.analysis import figures
from deltaw.analysis.figures import FIGURES, check_path, save

OF_TABLES = [name for name in FIGURES if name != "region"]


@pytest.mark.parametrize("name", OF_TABLES)
def test_what_is_no_table_is_named(name, whole) -> None:
    for wrong in ("runs/lora", None, 3, {"a": 1}, [whole("rank")]):
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
    "measure": [3, "delta", ["delta_m"]],
    "over": [3, "steps", ["layers"]],
    "ax": [3, "ax", [], np.zeros(2)],
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_wrong_option_is_named(name, whole) -> None:
    entry, frame = FIGURES[name], whole(name)
    assert entry.draw(frame) is not None
    for option in entry.draw_defaults.keys() & WRONG.keys():
        for wrong in WRONG[option]:
            if wrong is None and entry.draw_defaults[option] is None:
                continue
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
