"""The figures of SBoRA's regions and costs and of Dual LoRA's sweep: what the artists hold."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from deltaw.adapters import OptionError
from deltaw.analysis.figure_tables import Updates
from deltaw.analysis.figures import costs, region, save, sweep
from deltaw.analysis.figures.drawing.style import method_styles
from deltaw.analysis.figures.kinds.region import POINTS, untouched


def sparse(rows=(), columns=(), size=(16, 12)) -> np.ndarray:
    update = np.zeros(size)
    generator = np.random.default_rng(0)
    for row in rows:
        update[row] = generator.normal(size=size[1])
    for column in columns:
        update[:, column] = generator.normal(size=size[0])
    return update


def panels(figure: Figure) -> list:
    return [ax for ax in figure.axes if ax.images and ax.get_title("left")]


def test_region_draws_the_update_itself_and_masks_what_is_untouched() -> None:
    full, columns, rows = np.random.default_rng(1).normal(size=(16, 12)), sparse(columns=(2, 7)), sparse(rows=(5,))
    full[3, 4] = 0.0  # one entry alone is no untouched row
    figure = region({"LoRA": full, "FA": columns, "FB": rows})
    drawn = [ax.images[0].get_array() for ax in panels(figure)]
    np.testing.assert_array_equal(drawn[0].data, full)
    assert not np.ma.getmaskarray(drawn[0]).any()
    assert list(np.flatnonzero(~np.ma.getmaskarray(drawn[1]).all(axis=0))) == [2, 7]
    np.testing.assert_array_equal(drawn[1][:, [2, 7]], columns[:, [2, 7]])
    assert list(np.flatnonzero(~np.ma.getmaskarray(drawn[2]).all(axis=1))) == [5]
    assert [ax.get_title("left") for ax in panels(figure)] == [
        "(a) LoRA\nuntouched rows 0 %,\ncolumns 0 %",
        "(b) FA\nuntouched rows 0 %,\ncolumns 83.3 %",
        "(c) FB\nuntouched rows 93.8 %,\ncolumns 0 %",
    ]
    assert figure.legends[0].get_texts()[0].get_text() == "row or column of ΔW that is exactly zero"
    assert not region({"LoRA": full}).legends


def test_region_names_its_matrix_and_step() -> None:
    figure = region({"LoRA": sparse(columns=(2,))}, module="h.1.attn$", step=1200)
    assert figure.get_supxlabel() == "matrix h.1.attn\\$; at step 1,200"
    updates = Updates()
    updates["LoRA"], updates["FA"] = sparse(columns=(2,)), sparse(columns=(3,))
    updates.modules, updates.steps, updates.spacing = ["h.1.attn", "h.1.attn"], [90, 100], "every 10 steps"
    lines = region(updates).get_supxlabel().replace(",\n", ", ").split("\n")
    assert lines[0] == "matrix h.1.attn; at steps 90 to 100, checkpoints every 10 steps"
    figure.draw_without_rendering()


def test_region_is_centred_at_zero_with_a_scale_a_panel() -> None:
    figure = region({"a": np.linspace(-1, 3, 100).reshape(10, 10), "b": 1e-3 * np.ones((4, 4)), "c": np.zeros((4, 4))})
    limits = [ax.images[0].get_clim() for ax in panels(figure)]
    assert all(low == -high for low, high in limits)
    assert limits[0][1] == pytest.approx(2.96, abs=0.01)
    assert limits[1][1] == pytest.approx(1e-3)
    assert np.ma.getmaskarray(panels(figure)[2].images[0].get_array()).all()


def test_region_of_a_large_matrix_loses_no_column() -> None:
    update = sparse(columns=(1000,), size=(700, 3000))
    (ax,) = panels(region({"FA": update}))
    drawn = ax.images[0].get_array()
    assert drawn.shape == (POINTS, POINTS)
    (column,) = np.flatnonzero(~np.ma.getmaskarray(drawn).all(axis=0))
    assert column == pytest.approx(1000 * POINTS / 3000, abs=1)
    assert {float(value) for value in drawn[:, column]} <= {float(value) for value in update[:, 1000]}
    assert ax.images[0].get_extent()[1] == 2999.5
    assert untouched(update) == (0.0, 2999 / 3000)


@pytest.mark.parametrize("count", [1, 4, 7])
def test_region_fits_a_paper(count) -> None:
    updates = {f"DoRA (column), r = {index}": sparse(columns=(index,), size=(64, 64)) for index in range(count)}
    figure = region(updates)
    figure.draw_without_rendering()
    assert figure.get_figwidth() <= 7
    shown = panels(figure)
    assert len(shown) == count
    for ax in shown:
        box = ax.get_tightbbox()
        assert figure.bbox.padded(1).x0 <= box.x0
        assert box.x1 <= figure.bbox.padded(1).x1
    titles = [ax._left_title.get_window_extent() for ax in shown]
    assert all(not one.overlaps(other) for i, one in enumerate(titles) for other in titles[:i])


def test_region_names_what_is_wrong() -> None:
    with pytest.raises(OptionError, match="no update"):
        region({})
    with pytest.raises(OptionError, match=r"FA: the update has shape \(3,\)"):
        region({"FA": np.zeros(3)})
    with pytest.raises(OptionError, match="FA: the update holds NaN"):
        region({"FA": np.full((2, 2), np.nan)})


def table(rows) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["method", "rank", "seconds_per_epoch", "peak_megabytes"])


def test_costs_has_a_point_a_method_and_rank_memory_against_time() -> None:
    rows = [
        ("sbora-fa", 8, 1.0, 100.0),
        ("lora", 8, 2.0, 200.0),
        ("sbora-fa", 16, 3.0, 300.0),
        ("ft", None, 4.0, 400.0),
    ]
    (ax,) = costs(table(rows)).axes
    found = {points.get_label(): points.get_offsets().tolist() for points in ax.collections}
    assert found == {"Full FT": [[4.0, 400.0]], "LoRA": [[2.0, 200.0]], "SBoRA-FA": [[1.0, 100.0], [3.0, 300.0]]}
    assert ax.get_xlabel().startswith("training time per epoch (s)")
    assert ax.get_ylabel() == "peak memory (MB)"
    labels = {text.get_text(): text.xy for text in ax.texts}
    assert labels["SBoRA-FA, r = 16"] == (3.0, 300.0)
    assert list(labels) == ["Full FT", "LoRA, r = 8", "SBoRA-FA, r = 8", "SBoRA-FA, r = 16"]
    assert to_hex(ax.collections[1].get_facecolors()[0]) == method_styles(["lora"])["lora"][0].lower()
    sizes = ax.collections[2].get_sizes()
    assert sizes[0] < sizes[1]  # the higher rank is larger


@pytest.mark.parametrize("width", [4.0, None])
def test_no_label_of_costs_lies_on_another_or_outside(width) -> None:
    """SBoRA's ten points: five methods, two ranks, most of them close together."""
    rows = [
        (method, rank, time + 0.05 * rank, memory + 40 * rank)
        for method, time, memory in (
            ("lora", 90, 20_800), ("dora", 180, 24_000), ("lora-fa", 84, 19_900),
            ("sbora-fa", 81, 19_600), ("sbora-fb", 82, 19_650),
        )
        for rank in (32, 64)
    ]  # fmt: skip
    figure = costs(table(rows), width=width)
    figure.draw_without_rendering()
    (ax,) = figure.axes
    assert len(ax.texts) == 10
    boxes = [Text.get_window_extent(text) for text in ax.texts]  # without the lines to the points
    assert not [1 for i, one in enumerate(boxes) for other in boxes[:i] if one.overlaps(other)]
    dots = ax.transData.transform([row[2:] for row in rows])
    assert not [1 for box in boxes for x, y in dots if box.contains(x, y)]
    frame = ax.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)
    assert all(frame.y0 <= box.y0 and box.y1 <= frame.y1 for box in boxes)


def test_costs_chooses_methods_and_says_what_is_missing() -> None:
    rows = [("lora", 8, np.nan, 200.0), ("lora", 16, 1.0, 2000.0), ("dora", 8, 3.0, 200.0), ("dora", 8, 5.0, 400.0)]
    figure = costs(table(rows), methods=["dora", "lora"], memory="peak GPU memory (MB)")
    (ax,) = figure.axes
    assert [points.get_offsets().tolist() for points in ax.collections] == [[[4.0, 300.0]], [[1.0, 2000.0]]]
    assert "without time or memory: LoRA, r = 8" in figure.get_supxlabel()
    assert ax.get_ylabel() == "peak GPU memory (MB)"
    with pytest.raises(OptionError, match="no row has a finite"):
        costs(table(rows[:1]))
    with pytest.raises(OptionError, match="no method 'bora'; there are lora, dora"):
        costs(table(rows), methods=["bora"])
    with pytest.raises(OptionError, match="no column rank"):
        costs(table(rows).drop(columns="rank"))


def runs(seeds=(0, 1)) -> pd.DataFrame:
    rows = [
        (method, rank, second, seed, score + 0.1 * seed)
        for method, rank, second, score in (
            ("lora", 16, None, 0.5),
            ("dora", 16, None, 0.4),
            ("dual-lora", 12, 4, 0.8),
            ("dual-lora", 4, 12, 0.6),
            ("dual-lora", 8, 8, 0.7),
        )
        for seed in seeds
    ]
    return pd.DataFrame(rows, columns=["method", "rank", "direction_rank", "seed", "best_mcc"])


def named(figure: Figure) -> dict:
    return {line.get_label(): line for line in figure.axes[0].lines if not line.get_label().startswith("_")}


def test_sweep_has_a_point_a_ratio_and_a_level_a_method() -> None:
    figure = sweep(runs())
    lines = named(figure)
    assert list(lines) == ["LoRA, rank 16", "DoRA (column), rank 16", "Dual LoRA"]
    assert list(lines["Dual LoRA"].get_xdata()) == [4, 8, 12]
    np.testing.assert_allclose(lines["Dual LoRA"].get_ydata(), [0.65, 0.75, 0.85])
    np.testing.assert_allclose(lines["LoRA, rank 16"].get_ydata(), 0.55)
    (ax,) = figure.axes
    figure.draw_without_rendering()
    assert [label.get_text() for label in ax.get_xticklabels()] == ["4 : 12", "8 : 8", "12 : 4"]
    assert "mean of 2 seeds" in ax.get_xlabel()
    deviation = 0.1 / np.sqrt(2)
    (bars,) = [found for found in ax.collections if hasattr(found, "get_segments")]
    np.testing.assert_allclose(bars.get_segments()[0], [[4, 0.65 - deviation], [4, 0.65 + deviation]])
    assert len(ax.patches) == 2  # a band a level


def test_sweep_of_one_seed_has_no_spread(tmp_path) -> None:
    figure = sweep(runs(seeds=(0,)))
    (ax,) = figure.axes
    assert "one seed" in ax.get_xlabel()
    assert not ax.patches
    assert not ax.collections
    assert save(figure, tmp_path / "sweep.svg").stat().st_size > 5000


def test_sweep_says_what_is_left_out_or_wrong() -> None:
    frame = runs()
    frame.loc[0, "best_mcc"] = np.nan
    assert "1 undefined scores left out" in sweep(frame).axes[0].get_xlabel()
    with pytest.raises(OptionError, match="no run of dual-lora"):
        sweep(frame[frame["method"] != "dual-lora"])
    with pytest.raises(OptionError, match="8 and 16"):
        sweep(frame.replace({"direction_rank": {4.0: -4.0}}))
    with pytest.raises(OptionError, match="no column final_mcc"):
        sweep(frame, score="final_mcc")
