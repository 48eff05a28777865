"""The figures: what the artists hold, not how the pixels fall."""

import re
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path

import matplotlib
import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from deltaw.adapters import METHODS, OptionError, WriteError
from deltaw.analysis.figures import FIGURES, check_path, rank, save, symmetry, updates
from deltaw.analysis.figures.drawing.axes import letter
from deltaw.analysis.figures.drawing.style import paper_style
from deltaw.analysis.tables.tidy import display_name, in_order

FIVE = ["ft", "lora", "dora", "dora-row", "bora"]
BLUE, GREEN = "#0072b2", "#009e73"


def changes(
    methods: list[str], steps: int = 6, layers: int = 3, pairs: str = "consecutive", kinds: tuple[str, ...] = ("query",)
) -> pd.DataFrame:
    """A value tells where it comes from: (1 + method) · (1 + layer) · step, rows ten times columns."""
    rows = [
        {
            "run": f"runs-{method}",
            "method": method,
            "module": f"layer.{layer}.{kind}",
            "layer": layer,
            "kind": kind,
            "axis": axis,
            "step_from": 50 * (step - 1) if pairs == "consecutive" else 0,
            "step_to": 50 * step,
            "delta_m": 1e-3 * (1 + place) * (1 + layer) * step * (10 if axis == "row" else 1),
            "delta_d": 1e-7 * (1 + place) * (1 + layer) * step * (10 if axis == "row" else 1),
        }
        for place, method in enumerate(methods)
        for layer in range(layers)
        for kind in kinds
        for axis in ("row", "column")
        for step in range(1, steps + 1)
    ]
    return pd.DataFrame(rows).astype({"layer": "Int64", "step_from": "Int64", "step_to": "Int64"})


def spectra(methods: list[str], layers: int = 4, full: int = 64) -> pd.DataFrame:
    rows = []
    for method in methods:
        for layer in range(layers):
            for kind in ("query", "value"):
                for step in (0, 100):
                    groups = {"update": 8 if method == "lora" else full}
                    if method == "dual-lora":
                        groups |= {"magnitude": 30 + layer, "direction": full - 1}
                    rows += [
                        (method, method, f"{layer}.{kind}", layer, kind, step, group, value if step else 0, full)
                        for group, value in groups.items()
                    ]
    columns = ["run", "method", "module", "layer", "kind", "step", "group", "rank", "full_rank"]
    return pd.DataFrame(rows, columns=columns).astype({"layer": "Int64", "step": "Int64"})


def panel(figure: Figure, method: str, axis: str, column: str = "delta_m") -> Axes:
    return next(ax for ax in figure.axes if ax.get_label() == f"{method} {axis} {column}")


def titles(figure: Figure) -> list[str]:
    return [ax.get_title("left") for ax in figure.axes if ax.get_title("left")]


def test_symmetry_has_columns_above_rows_and_a_column_of_panels_a_method() -> None:
    figure = symmetry(changes(FIVE))
    figure.draw_without_rendering()
    names = [display_name(method) for method in FIVE]
    expected = [f"({letter}) {name}" for letter, name in zip("abcdefghij", names * 2, strict=True)]
    assert titles(figure) == expected
    upper = [panel(figure, method, "column").get_position() for method in FIVE]
    lower = [panel(figure, method, "row").get_position() for method in FIVE]
    assert all(up.y0 > low.y1 and up.x0 == pytest.approx(low.x0) for up, low in zip(upper, lower, strict=True))
    assert all(left.x1 < right.x0 for left, right in pairwise(upper))


def test_a_curve_is_the_mean_over_layers_magnitude_left_blue_direction_right_green() -> None:
    figure = symmetry(changes(["lora", "bora"]))
    for axis, factor in (("column", 1), ("row", 10)):
        (magnitude,) = panel(figure, "bora", axis, "delta_m").lines
        (direction,) = panel(figure, "bora", axis, "delta_d").lines
        assert list(magnitude.get_xdata()) == [50, 100, 150, 200, 250, 300]
        np.testing.assert_allclose(magnitude.get_ydata(), 1e-3 * factor * 2 * 2 * np.arange(1, 7))
        np.testing.assert_allclose(direction.get_ydata(), 1e-7 * factor * 2 * 2 * np.arange(1, 7))
        assert (to_hex(magnitude.get_color()), magnitude.get_linestyle()) == (BLUE, "-")
        assert (to_hex(direction.get_color()), direction.get_linestyle()) == (GREEN, "--")
    assert panel(figure, "lora", "row").yaxis.get_label_position() == "left"
    assert panel(figure, "lora", "row", "delta_d").yaxis.get_label_position() == "right"


def test_the_band_is_one_standard_deviation_no_further_than_the_layers() -> None:
    frame = changes(["lora"])
    first = panel(symmetry(frame), "lora", "column").collections[0].get_paths()[0].vertices
    at_50 = np.unique(first[first[:, 0] == 50, 1])
    np.testing.assert_allclose(at_50, [1e-3, 3e-3])  # 1, 2, 3: one deviation up and down is as far as they reach
    assert "standard deviation" in symmetry(frame).legends[0].get_texts()[2].get_text()
    for without in (symmetry(frame, band=False), symmetry(frame[frame["layer"] == 0])):
        assert not panel(without, "lora", "column").collections
        assert len(without.legends[0].get_texts()) == 2


@pytest.mark.parametrize("share", ["all", "adapters", "none"])
def test_scales_are_shared_as_asked(share) -> None:
    figure = symmetry(changes(FIVE), share=share)
    for column in ("delta_m", "delta_d"):
        limits = {method: panel(figure, method, "row", column).get_ylim() for method in FIVE}
        for method in FIVE:  # a method's own two panels always compare
            assert panel(figure, method, "column", column).get_ylim() == limits[method]
            assert limits[method][0] == 0
            highest = max(
                float(np.max(line.get_ydata()))
                for axis in ("row", "column")
                for line in panel(figure, method, axis, column).lines
            )
            assert limits[method][1] > highest
        assert len(set(limits.values())) == {"all": 1, "adapters": 2, "none": 5}[share]
        assert (limits["ft"] == limits["lora"]) == (share == "all")
    assert len({ax.get_xlim() for ax in figure.axes}) == 1


def test_no_method_is_a_flat_line_unless_that_is_asked_for() -> None:
    frame = changes(FIVE)
    frame.loc[frame["method"] == "ft", ["delta_m", "delta_d"]] /= 40  # as with a learning rate that is 40 times smaller
    figure = symmetry(frame)
    for method in FIVE:
        for column in ("delta_m", "delta_d"):
            panels = [panel(figure, method, axis, column) for axis in ("column", "row")]
            highest = max(float(np.max(ax.lines[0].get_ydata())) for ax in panels)
            assert highest > panels[0].get_ylim()[1] / 6
            assert panels[0].get_ylim() == panels[1].get_ylim()
    limits = {method: panel(figure, method, "row").get_ylim() for method in FIVE}
    assert limits["lora"] == limits["bora"] != limits["ft"]
    assert panel(figure, "ft", "row").get_ylabel()
    assert panel(figure, "lora", "row").get_ylabel()  # another scale begins
    assert "within a factor of 5 share a scale" in figure.get_supxlabel()
    assert "factor" not in symmetry(changes(FIVE)).get_supxlabel()
    flat = symmetry(frame, share="all")
    assert panel(flat, "ft", "row").get_ylim() == panel(flat, "bora", "row").get_ylim()


def test_one_axis_of_one_method_is_one_panel() -> None:
    figure = symmetry(changes(FIVE), methods=["bora"], axis="row")
    assert titles(figure) == ["(a) BoRA"]
    np.testing.assert_allclose(panel(figure, "bora", "row").lines[0].get_ydata(), 1e-3 * 10 * 5 * 2 * np.arange(1, 7))
    with pytest.raises(
        OptionError, match="axis is 'diagonal'; choose one of 'row', 'column', 'matrix', 'head', 'expert'"
    ):
        symmetry(changes(FIVE), axis="diagonal")
    with pytest.raises(OptionError, match=r"no rows of axis 'matrix'; make it with axes=\('matrix',\)"):
        symmetry(changes(FIVE), axis="matrix")


def test_the_groups_of_dual_lora_have_colours_and_markers_of_their_own() -> None:
    (ax,) = rank(spectra(["lora", "dual-lora"])).axes
    assert len({to_hex(line.get_color()) for line in ax.lines}) == 5
    assert len({line.get_marker() for line in ax.lines[1:]}) == 4


def test_numbers_stand_only_at_the_outer_panels_of_a_shared_scale() -> None:
    def numbered(figure: Figure, column: str) -> list[str]:
        return [method for method in FIVE if panel(figure, method, "row", column).get_ylabel()]

    shared = symmetry(changes(FIVE))
    assert (numbered(shared, "delta_m"), numbered(shared, "delta_d")) == (["ft"], ["bora"])
    adapters = symmetry(changes(FIVE), share="adapters")
    assert (numbered(adapters, "delta_m"), numbered(adapters, "delta_d")) == (["ft", "lora"], ["ft", "bora"])
    assert numbered(symmetry(changes(FIVE), share="none"), "delta_m") == FIVE


def test_the_unit_stands_in_the_label_and_ticks_are_short() -> None:
    figure = symmetry(changes(["lora"]))
    figure.draw_without_rendering()
    right = panel(figure, "lora", "row", "delta_d")
    assert right.get_ylabel() == "ΔD ($10^{-6}$)"
    ticks = [label.get_text() for label in right.get_yticklabels()]
    assert all(re.fullmatch(r"\d+(\.\d)?", tick) for tick in ticks)


def test_log_scale_leaves_zero_out_and_keeps_the_rest_inside() -> None:
    frame = changes(["lora", "bora"])
    frame.loc[frame["step_to"] == 100, "delta_m"] = 0.0
    figure = symmetry(frame, scale="log")
    figure.draw_without_rendering()
    left = panel(figure, "lora", "column")
    low, high = left.get_ylim()
    values = np.asarray(left.lines[0].get_ydata())
    assert left.get_yscale() == "log"
    assert 0 < low < values[values > 0].min()
    assert high > values.max()


def test_no_change_at_all_is_drawn() -> None:
    frame = changes(["lora"]).assign(delta_m=0.0, delta_d=0.0)
    for scale in ("linear", "log"):
        symmetry(frame, scale=scale).draw_without_rendering()


def test_one_point_has_a_marker() -> None:
    figure = symmetry(changes(["lora"], steps=1))
    (line,) = panel(figure, "lora", "row").lines
    assert line.get_marker() == "o"
    (line,) = panel(symmetry(changes(["lora"])), "lora", "row").lines
    assert line.get_marker() == ""


def test_updates_marks_and_writes_the_end() -> None:
    figure = updates(changes(FIVE, pairs="initial"))
    for column, end in (("delta_m", 0.6), ("delta_d", 6e-5)):
        ax = panel(figure, "bora", "row", column)  # (1 + 4) · 2 · 6 · 10 of 1e-3 and 1e-7
        marked = ax.lines[-1]
        assert (list(marked.get_xdata()), marked.get_marker()) == ([300], "o")
        assert marked.get_ydata()[0] == pytest.approx(end)
        # The whole value, not one in the unit of an axis that has its label elsewhere.
        assert ax.texts[0].get_text().split()[1] == {"delta_m": "0.6", "delta_d": "6×10⁻⁵"}[column]
        assert to_hex(ax.texts[0].get_color()) == {"delta_m": BLUE, "delta_d": GREEN}[column]


@pytest.mark.parametrize(
    ("draw", "methods"), [(symmetry, FIVE[:1]), (updates, FIVE[:2]), (updates, FIVE), (symmetry, list(METHODS))]
)
def test_any_number_of_methods_fits_a_paper(draw, methods) -> None:
    figure = draw(changes(methods, pairs="consecutive" if draw is symmetry else "initial"))
    figure.draw_without_rendering()
    assert figure.get_figwidth() <= 7
    assert len(titles(figure)) == 2 * len(methods)
    assert [title[:3] for title in titles(figure)[:3]] == ["(a)", "(b)", "(c)"][: len(titles(figure))]
    assert len(set(titles(figure))) == 2 * len(methods)
    whole = figure.bbox.padded(1)
    for ax in figure.axes:
        assert ax.get_window_extent().width / figure.dpi > 0.7
        box = ax.get_tightbbox()
        assert whole.x0 <= box.x0
        assert box.x1 <= whole.x1
        sizes = [text.get_fontsize() for text in [*ax.texts, *ax.get_xticklabels(), *ax.get_yticklabels(), ax.title]]
        assert min(sizes) >= 7


def test_order_is_that_of_methods_unless_it_is_given() -> None:
    shuffled = changes(["bora", "mine", "ft", "lora"])
    assert titles(symmetry(shuffled))[:4] == ["(a) Full FT", "(b) LoRA", "(c) BoRA", "(d) mine"]
    assert titles(symmetry(shuffled, methods=["bora", "ft"])) == ["(a) BoRA", "(b) Full FT", "(c) BoRA", "(d) Full FT"]
    assert in_order(METHODS) == list(METHODS)
    assert all(display_name(method) != method for method in METHODS)


def test_runs_of_a_method_are_averaged_over_the_steps_they_share() -> None:
    one, two = changes(["lora"]), changes(["lora"], steps=4).assign(run="again")
    two["delta_m"] *= 3
    figure = symmetry(pd.concat([one, two]))
    (line,) = panel(figure, "lora", "column").lines
    np.testing.assert_allclose(line.get_ydata(), 1e-3 * 2 * 2 * np.arange(1, 5))
    assert "mean of 2 runs" in figure.get_supxlabel()
    assert "share" in figure.get_supxlabel()
    two["step_to"] += 7
    with pytest.raises(OptionError, match="no pair of steps in common"):
        symmetry(pd.concat([one, two]))


def test_undefined_values_are_left_out_and_counted() -> None:
    frame = changes(["lora"])
    frame.loc[(frame["layer"] == 2) & (frame["step_to"] == 50), "delta_d"] = np.nan
    frame.loc[frame["step_to"] == 100, "delta_m"] = np.inf
    figure = symmetry(frame)
    (direction,) = panel(figure, "lora", "column", "delta_d").lines
    assert direction.get_ydata()[0] == pytest.approx(1.5e-7)  # layers 0 and 1
    (magnitude,) = panel(figure, "lora", "column").lines
    assert 100 not in magnitude.get_xdata()
    assert "8 of 72 values are undefined and left out" in figure.get_supxlabel()
    nothing = symmetry(frame.assign(delta_d=np.nan))
    assert panel(nothing, "lora", "row", "delta_d").texts[0].get_text() == "ΔD undefined"


def test_wrong_calls_name_the_choices() -> None:
    frame = changes(["lora", "bora"], kinds=("query", "value"))
    with pytest.raises(OptionError, match="kind 'key'; there are query, value"):
        symmetry(frame, kind="key")
    with pytest.raises(OptionError, match="bora has no matrix of kind 'value', only query"):
        symmetry(frame[(frame["method"] == "lora") | (frame["kind"] == "query")], kind="value")
    with pytest.raises(OptionError, match="no method 'ft'; there are lora, bora"):
        symmetry(frame, methods=["ft"])
    with pytest.raises(OptionError, match="'all', 'adapters', 'none'"):
        symmetry(frame, share="some")
    with pytest.raises(OptionError, match="'linear', 'log'"):
        rank(spectra(["lora"]), scale="cubic")
    with pytest.raises(OptionError, match="no column delta_d"):
        symmetry(frame.drop(columns="delta_d"))
    with pytest.raises(OptionError, match="no rows"):
        symmetry(frame[:0])
    with pytest.raises(OptionError, match="axis 'column'"):
        symmetry(frame[frame["axis"] == "row"])
    with pytest.raises(OptionError, match=re.escape('Trajectory.changes("initial")')):
        updates(frame)
    with pytest.raises(OptionError, match=re.escape('Trajectory.changes("consecutive")')):
        symmetry(changes(["lora"], pairs="initial"))


def test_all_kinds_together() -> None:
    figure = symmetry(changes(["lora"], kinds=("query", "value")), kind=None)
    np.testing.assert_allclose(panel(figure, "lora", "column").lines[0].get_ydata(), 2e-3 * np.arange(1, 7))


def test_rank_draws_a_line_a_method_at_the_last_step_and_full_rank_dashed() -> None:
    (ax,) = rank(spectra(["lora", "dual-lora"])).axes
    assert [line.get_label() for line in ax.lines] == [
        "full rank (64)",
        "LoRA (8)",
        "Dual LoRA, magnitude group (31.5)",
        "Dual LoRA, direction group (63)",
        "Dual LoRA, overall (64)",
    ]
    full, lora, magnitude, *_ = ax.lines
    assert full.get_linestyle() == "--"
    assert set(full.get_ydata()) == {64}
    assert list(lora.get_xdata()) == [0, 1, 2, 3]
    assert list(lora.get_ydata()) == [8, 8, 8, 8]
    assert list(magnitude.get_ydata()) == [30, 31, 32, 33]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [line.get_label() for line in ax.lines]


def test_rank_reads_well_at_8_and_at_full_rank() -> None:
    (ax,) = rank(spectra(["ft", "lora"], full=4096)).axes
    heights = ax.transScale.transform([(0, y) for y in (*ax.get_ylim(), 8, 4096)])[:, 1]
    low, high, eight, full = heights
    assert (eight - low) / (high - low) > 0.04
    assert (high - full) / (high - low) > 0.02
    assert {8, 4096} <= set(ax.get_yticks())
    assert rank(spectra(["ft"]), scale="linear").axes[0].get_ylim()[0] == 0


def test_rank_zero_has_a_place() -> None:
    frame = spectra(["lora"])
    frame.loc[frame["layer"] == 0, "rank"] = 0
    (ax,) = rank(frame).axes
    assert ax.get_ylim()[0] < 0
    assert 0 in ax.get_yticks()


def test_lines_on_each_other_take_turns() -> None:
    (ax,) = rank(spectra(["ft", "lora", "dora", "bora"])).axes
    lines = {line.get_label(): line for line in ax.lines}
    stacked = [lines[name] for name in ("Full FT (64)", "DoRA (column) (64)", "BoRA (64)")]
    assert all(line.get_markevery() is None for line in stacked)  # every point is marked, beside those of the others
    ax.figure.draw_without_rendering()
    places = [line.get_transform().transform(line.get_xydata())[:, 0] for line in ax.lines[1:]]
    assert all((np.diff(found) > 2).all() for found in np.array(places).T)
    assert lines["LoRA (8)"].get_linestyle() == "-"
    assert all(line.get_linestyle() == "--" for line in stacked)
    assert len({to_hex(line.get_color()) for line in ax.lines}) == 5


def test_rank_by_kind_and_without_layers() -> None:
    frame = spectra(["lora"])
    frame.loc[frame["kind"] == "value", "rank"] *= 2
    assert list(rank(frame).axes[0].lines[1].get_ydata()) == [12] * 4
    assert list(rank(frame, kind="value").axes[0].lines[1].get_ydata()) == [16] * 4
    frame.loc[frame["module"] == "3.value", "layer"] = pd.NA
    assert "1 matrices without a layer number" in rank(frame).axes[0].get_xlabel()
    with pytest.raises(OptionError, match="no matrix has a layer number"):
        rank(frame.assign(layer=pd.NA))


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_files_are_whole_and_the_same_every_time(tmp_path: Path, suffix: str) -> None:
    frame = changes(["lora", "bora"])
    path = save(symmetry(frame), tmp_path / "made" / f"one.{suffix}")
    data = path.read_bytes()
    assert save(symmetry(frame), tmp_path / f"two.{suffix}").read_bytes() == data
    assert sorted(p.name for p in tmp_path.iterdir()) == ["made", f"two.{suffix}"]
    assert len(data) > 10_000
    if suffix == "png":
        picture = matplotlib.image.imread(path)
        figure = symmetry(frame)
        assert picture.shape[1] >= 200 * figure.get_figwidth()
        assert len(np.unique(picture.reshape(-1, picture.shape[2])[::50], axis=0)) > 3
    elif suffix == "svg":
        assert ET.parse(path).getroot().tag.endswith("svg")
    else:
        assert data.startswith(b"%PDF")
        assert data.rstrip().endswith(b"%%EOF")
        assert b"CreationDate" not in data


def test_an_unknown_suffix_is_refused_and_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(OptionError, match=r"choose one of \.png, \.svg, \.pdf"):
        check_path(tmp_path / "figure.bmp")
    with pytest.raises(OptionError, match="no format ''"):
        save(Figure(), tmp_path / "figure")
    old = save(Figure(), tmp_path / "figure.svg").read_bytes()

    def fail(self, file, **_) -> None:
        Path(file).write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(WriteError, match="disk full"):
        save(Figure(), tmp_path / "figure.svg")
    assert [p.name for p in tmp_path.iterdir()] == ["figure.svg"]
    assert (tmp_path / "figure.svg").read_bytes() == old


def test_nothing_global_is_touched(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"font.size": 30, "figure.figsize": (1, 1)}), paper_style():
        figure = symmetry(changes(["lora"]))
        dressed = save(figure, tmp_path / "a.png").read_bytes()
    assert save(symmetry(changes(["lora"])), tmp_path / "b.png").read_bytes() == dressed
    with matplotlib.rc_context(matplotlib.rcParamsDefault):  # written later, in another style
        assert save(figure, tmp_path / "c.png").read_bytes() == dressed
        matplotlib.rcParams.update(before)
    rank(spectra(["lora"]))
    assert dict(matplotlib.rcParams) == before
    pyplot = __import__("sys").modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_the_table_is_left_alone() -> None:
    for draw, frame in ((symmetry, changes(FIVE)), (updates, changes(FIVE, pairs="initial")), (rank, spectra(FIVE))):
        copy = frame.copy()
        draw(frame)
        pd.testing.assert_frame_equal(frame, copy)


def test_a_table_read_back_from_csv_draws_the_same(tmp_path: Path) -> None:
    for name, frame in (("symmetry", changes(FIVE)), ("rank", spectra([*FIVE, "dual-lora"]))):
        frame.to_csv(tmp_path / "table.csv", index=False)
        again = FIGURES[name].draw(pd.read_csv(tmp_path / "table.csv"))
        for ax, other in zip(FIGURES[name].draw(frame).axes, again.axes, strict=True):
            for line, same in zip(ax.lines, other.lines, strict=True):
                np.testing.assert_allclose(line.get_ydata(), same.get_ydata(), rtol=1e-12)


def test_letters_go_on_after_z() -> None:
    assert [letter(index) for index in (0, 25, 26, 27)] == ["a", "z", "aa", "ab"]
