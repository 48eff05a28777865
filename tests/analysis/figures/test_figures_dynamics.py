"""The figures beyond the papers': courses over training, spectra, subspaces, distributions. What the artists hold."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from deltaw.adapters import METHODS, OptionError
from deltaw.analysis.figures import (
    amplification,
    angles,
    caption,
    distribution,
    effective_rank,
    heads,
    heatmap,
    intruders,
    overlap,
    save,
    similarity,
    singular_values,
)
from deltaw.analysis.figures.kinds.heads import COLUMNS as HEADS
from deltaw.analysis.measures.chance import expected_angles

STEPS = (0, 50, 100)
TWO = ["ft", "lora"]


def labels(methods, steps=STEPS, number=3, kinds=("query",)) -> pd.DataFrame:
    """A row a matrix and step; "value" tells where it comes from."""
    rows = [
        (method, method, f"m.layer.{layer}.{kind}", layer, kind, step, (1 + place) * (1 + layer) * (1 + step))
        for place, method in enumerate(methods)
        for layer in range(number)
        for kind in kinds
        for step in steps
    ]
    frame = pd.DataFrame(rows, columns=["run", "method", "module", "layer", "kind", "step", "value"])
    return frame.astype({"layer": "Int64", "step": "Int64", "value": float})


def ranks(methods=TWO, **options) -> pd.DataFrame:
    frame = labels(methods, **options)
    return frame.assign(group="update", effective_rank=frame["value"], stable_rank=frame["value"] / 2)


def amplified(methods=TWO, **options) -> pd.DataFrame:
    frame = labels(methods, **options)
    return frame.assign(rank=4, amplification=frame["value"])


def alike(methods=TWO, **options) -> pd.DataFrame:
    frame = labels(methods, **options)
    return frame.assign(dissimilarity=frame["value"] * 1e-6, similarity=1 - frame["value"] * 1e-6)


def intruding(methods=TWO, k=4, **options) -> pd.DataFrame:
    """Vector i of layer l has the cosine 0.2 (i − l)."""
    frame = labels(methods, **options).merge(pd.DataFrame({"index": range(1, k + 1)}), how="cross")
    return frame.assign(similarity=0.2 * (frame["index"] - frame["layer"].astype(int)).clip(lower=0))


def values(methods=TWO, count=20, **options) -> pd.DataFrame:
    frame = labels(methods, **options).merge(pd.DataFrame({"index": range(1, count + 1)}), how="cross")
    return frame.assign(singular_value=frame["value"] * (frame["step"] > 0) / frame["index"])


def spread(methods=TWO, quantiles=(0.0, 0.25, 0.5, 0.75, 1.0), **options) -> pd.DataFrame:
    frame = labels(methods, **options).merge(pd.DataFrame({"quantile": quantiles}), how="cross")
    frame = frame.rename(columns={"step": "step_to"}).merge(pd.DataFrame({"axis": ["row", "column"]}), how="cross")
    moved = frame["value"] * (frame["step_to"] > 0) * np.where(frame["axis"] == "row", 7.0, 1.0)
    return frame.assign(step_from=pd.NA, delta_m=moved * (1 + frame["quantile"]), delta_d=moved * 1e-3)


def pair(columns, rows, **head) -> pd.DataFrame:
    """Tables of two updates, a layer a block."""
    frame = pd.DataFrame(rows, columns=columns)
    blocks = [
        frame.assign(
            run_first="a", run_second="b", step_first=9, step_second=9, module=f"m.layer.{layer}.query", layer=layer,
            kind="query", side="right", **head,
        )
        for layer in range(3)
    ]  # fmt: skip
    return pd.concat(blocks, ignore_index=True)


def shared() -> pd.DataFrame:
    return pair(["i", "j", "overlap"], [(i, j, 1 / (i + j)) for i in range(1, 5) for j in range(1, 7)])


def turned() -> pd.DataFrame:
    return pair(["index", "angle"], [(index, index * np.pi / 8) for index in range(1, 5)])


COURSES = {
    "effective_rank": (effective_rank, ranks),
    "amplification": (amplification, amplified),
    "similarity": (similarity, alike),
}
ALL = {
    **COURSES,
    "intruders": (intruders, intruding),
    "singular_values": (singular_values, values),
    "distribution": (distribution, spread),
    "heatmap": (heatmap, spread),
}
PAIRS = {"overlap": (overlap, shared), "angles": (angles, turned)}


def lines(ax) -> dict:
    return {line.get_label(): line for line in ax.lines}


@pytest.mark.parametrize("name", COURSES)
def test_a_course_is_the_mean_over_matrices_and_the_layers_are_those_of_the_last_step(name) -> None:
    draw, table = COURSES[name]
    figure = draw(table())
    course, by_layer = figure.axes[:2]
    unit = 1e-6 if name == "similarity" else 1
    steps = [0, 50, 100] if name == "similarity" else [50, 100]  # no update has no rank and no amplification
    for place, method in enumerate(["Full FT", "LoRA"], start=1):
        line = lines(course)[method]
        assert list(line.get_xdata()) == steps
        np.testing.assert_allclose(line.get_ydata(), [place * 2 * (1 + step) * unit for step in steps])
        line = lines(by_layer)[method]
        assert list(line.get_xdata()) == [0, 1, 2]
        np.testing.assert_allclose(line.get_ydata(), [place * (1 + layer) * 101 * unit for layer in range(3)])
    band = course.collections[0].get_paths()[0].vertices
    np.testing.assert_allclose(np.unique(band[band[:, 0] == 100, 1]), np.array([1, 3]) * 101 * unit)
    assert course.get_yscale() == "log"
    assert course.get_ylim() == by_layer.get_ylim()
    assert draw(table(), scale="linear").axes[0].get_yscale() == "linear"


def test_effective_rank_has_stable_rank_below_and_leaves_groups_out() -> None:
    frame = ranks()
    group = frame.assign(group="magnitude", effective_rank=1e9, stable_rank=1e9)
    figure = effective_rank(pd.concat([frame, group]))
    assert [ax.get_ylabel() for ax in figure.axes[::2]] == ["effective rank of ΔW", "stable rank of ΔW"]
    np.testing.assert_allclose(lines(figure.axes[3])["LoRA"].get_ydata(), [101, 202, 303])


def test_one_step_has_no_course_and_no_layers_no_places() -> None:
    (ax,) = amplification(amplified(steps=(100,))).axes
    assert ax.get_title("left") == "(a) at the last step"
    figure = amplification(amplified().assign(layer=pd.NA))
    assert [found.get_title("left") for found in figure.axes] == ["(a) over training"]
    assert "no matrix has a layer number" in figure.get_supxlabel()
    with pytest.raises(OptionError, match="no matrix has a layer number"):
        amplification(amplified(steps=(100,)).assign(layer=pd.NA))


def test_courses_average_runs_and_count_what_is_undefined() -> None:
    one, two = amplified(["lora"]), amplified(["lora"]).assign(run="again")
    two["amplification"] *= 3
    figure = amplification(pd.concat([one, two]))
    np.testing.assert_allclose(lines(figure.axes[0])["LoRA"].get_ydata(), [2 * 2 * 51, 2 * 2 * 101])
    assert "mean of 2 runs" in figure.get_supxlabel()
    one.loc[one.index[-1], "amplification"] = np.nan
    assert "1 of 6 points are undefined" in amplification(one).get_supxlabel()
    with pytest.raises(OptionError, match="no row has a finite amplification"):
        amplification(one.assign(amplification=np.nan))


def test_three_to_five_methods_have_bars_side_by_side_in_place_of_bands() -> None:
    """Five bands on each other are mud."""
    methods = list(METHODS)[:5]
    figure = amplification(amplified(methods, steps=range(0, 401, 10)))
    ax = figure.axes[0]
    assert len(ax.collections) == 5
    assert all(isinstance(bars, LineCollection) for bars in ax.collections)
    places = [[segment[0][0] for segment in bars.get_segments()] for bars in ax.collections]
    assert not set.intersection(*map(set, places))  # each method's at steps of its own
    for number, (bars, line) in enumerate(zip(ax.collections, ax.lines, strict=True)):
        step, low = bars.get_segments()[0][0]
        at = list(line.get_xdata()).index(step)
        assert low == pytest.approx((1 + number) * (1 + step))  # layers 1, 2, 3: one deviation is as far as they reach
        assert (at - line.get_markevery()[0]) % line.get_markevery()[1] == 0  # at a marker
    assert "bars: one standard deviation" in figure.get_supxlabel()
    assert "bands: one standard deviation" in amplification(amplified(methods[:2])).get_supxlabel()
    few = amplification(amplified(methods, steps=(0, 50, 100))).axes[0]
    few.figure.draw_without_rendering()
    ends = [bars.get_transform().transform(bars.get_segments()[-1])[0, 0] for bars in few.collections]
    assert np.diff(ends).min() > 1


def test_many_methods_have_no_bands() -> None:
    figure = amplification(amplified(list(METHODS)[:9]))
    assert not figure.axes[0].collections
    assert "bands" not in figure.get_supxlabel()


def test_amplification_wants_one_rank() -> None:
    frame = pd.concat([amplified(), amplified().assign(rank=8, amplification=1.0)])
    with pytest.raises(OptionError, match="several values of rank: 4, 8"):
        amplification(frame)
    assert list(lines(amplification(frame, rank=8).axes[1])["LoRA"].get_ydata()) == [1, 1, 1]
    with pytest.raises(OptionError, match="rank is 3; the table has 4, 8"):
        amplification(frame, rank=3)


def test_similarity_is_one_minus_on_the_log_scale() -> None:
    assert similarity(alike()).axes[0].get_ylabel() == "1 − CKA of W′ and W₀"
    linear = similarity(alike(), scale="linear")
    assert linear.axes[0].get_ylabel() == "CKA of W′ and W₀"
    np.testing.assert_allclose(lines(linear.axes[1])["Full FT"].get_ydata(), [1 - 101e-6, 1 - 202e-6, 1 - 303e-6])


def test_similarity_has_a_level_of_chance() -> None:
    frame = alike().assign(expected=0.75)
    for scale, level in (("log", 0.25), ("linear", 0.75)):
        figure = similarity(frame, scale=scale)
        for ax in figure.axes:
            assert set(lines(ax)["unrelated weights"].get_ydata()) == {level}
            low, high = ax.get_ylim()
            assert low < level < high
        assert "unrelated weights" in [text.get_text() for text in figure.legends[0].get_texts()]
    assert "unrelated weights" not in lines(similarity(alike()).axes[0])


@pytest.mark.parametrize(
    ("epsilon", "k", "expected"), [(0.5, None, [2, 3, 4]), (0.3, None, [1, 2, 3]), (0.5, 3, [2, 3, 3])]
)
def test_intruders_are_counted(epsilon, k, expected) -> None:
    figure = intruders(intruding(["lora"]), epsilon=epsilon, k=k)
    assert list(lines(figure.axes[1])["LoRA"].get_ydata()) == expected
    assert list(lines(figure.axes[0])["LoRA"].get_ydata()) == [sum(expected) / 3] * 3
    assert f"first {k or 4} singular vectors" in figure.get_supxlabel()
    assert f"below {epsilon:g}" in figure.get_supxlabel()


def test_intruders_refuses_what_the_table_has_not() -> None:
    with pytest.raises(OptionError, match="k is 5; the table has singular vectors 1 to 4"):
        intruders(intruding(), k=5)
    with pytest.raises(OptionError, match="epsilon is 0"):
        intruders(intruding(), epsilon=0)


def test_singular_values_has_a_line_an_index_and_a_panel_a_method() -> None:
    figure = singular_values(values())
    full, lora, bar = figure.axes
    assert [ax.get_title("left") for ax in (full, lora)] == ["(a) Full FT", "(b) LoRA"]
    assert list(lines(lora)) == [f"σ_{index}" for index in (*range(1, 9), 16)]
    line = lines(lora)["σ_16"]
    assert list(line.get_xdata()) == [50, 100]
    np.testing.assert_allclose(line.get_ydata(), [4 * 51 / 16, 4 * 101 / 16])
    assert full.get_ylim() == lora.get_ylim()
    assert bar.get_ylabel() == "index i"
    assert "left out" not in figure.get_supxlabel()


def test_singular_values_far_below_the_largest_are_left_out_and_zero_everywhere_is_an_error() -> None:
    frame = values()
    frame.loc[frame["index"] == 8, "singular_value"] = 1e-12
    figure = singular_values(frame)
    assert "σ_8" not in lines(figure.axes[0])
    assert "left out" in figure.get_supxlabel()
    with pytest.raises(OptionError, match="nothing has moved"):
        singular_values(frame.assign(singular_value=0.0))


def test_overlap_is_the_table_itself() -> None:
    figure = overlap(shared())
    *panels, bar = figure.axes
    assert [ax.get_title("left") for ax in panels] == ["(a) layer 0", "(b) layer 1", "(c) layer 2"]
    found = panels[0].images[0].get_array()
    np.testing.assert_allclose(found, [[1 / (i + j) for j in range(1, 7)] for i in range(1, 5)])
    assert panels[0].images[0].get_clim() == (0, 1)
    assert panels[0].images[0].origin == "lower"
    assert bar.get_ylabel() == "overlap φ(i, j)"
    assert "a, step 9 (i) and b, step 9 (j), input space" in figure.get_supxlabel()
    assert len(overlap(shared(), layers=[1]).axes) == 2
    with pytest.raises(OptionError, match="no layer 7; there are 0, 1, 2"):
        overlap(shared(), layers=[7])


def test_overlap_and_angles_have_a_level_of_chance() -> None:
    frame = shared().assign(expected=lambda table: np.maximum(table["i"], table["j"]) / 12)
    figure = overlap(frame)
    *panels, bar = figure.axes
    assert list(bar.lines[-1].get_ydata()) == [0, 0.5]  # up to 6/12
    assert "max(i, j)/n, 0.083 to 0.5" in figure.get_supxlabel().replace("\n", " ")
    found = {(int(x) + 1, int(y) + 1) for x, y in panels[0].collections[0].get_offsets()}
    assert found == {(j, i) for i in range(1, 5) for j in range(1, 7) if 1 / (i + j) <= max(i, j) / 12}
    expected = expected_angles(4, 4, 64)
    frame = turned().assign(expected=lambda table: expected[table["index"] - 1])
    (ax,) = angles(frame).axes
    np.testing.assert_allclose(lines(ax)["random directions"].get_ydata(), np.rad2deg(expected))
    assert "random directions" not in lines(angles(turned()).axes[0])


def test_overlap_shows_missing_directions_as_holes() -> None:
    frame = shared()
    frame.loc[(frame["layer"] == 0) & (frame["i"] > 2), "overlap"] = np.nan
    masked = np.ma.getmaskarray(overlap(frame).axes[0].images[0].get_array())
    assert masked.all(axis=1).tolist() == [False, False, True, True]
    with pytest.raises(OptionError, match="no row has a finite overlap"):
        overlap(frame.assign(overlap=np.nan))


def test_angles_are_in_degrees() -> None:
    figure = angles(turned())
    (ax,) = figure.axes
    assert list(lines(ax))[:3] == ["layer 0", "layer 1", "layer 2"]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [22.5, 45, 67.5, 90])
    assert ax.get_ylim()[1] > 90


@pytest.mark.parametrize(("axis", "factor"), [("column", 1), ("row", 7)])
def test_distribution_draws_the_median_and_bands_of_quantiles(axis, factor) -> None:
    figure = distribution(spread(), axis=axis)
    lora = {q: next(ax for ax in figure.axes[2:] if f"{q}, median" in lines(ax)) for q in ("ΔM", "ΔD")}
    line = lines(lora["ΔM"])["ΔM, median"]
    assert list(line.get_xdata()) == [50, 100]
    np.testing.assert_allclose(line.get_ydata(), [factor * 4 * 51 * 1.5, factor * 4 * 101 * 1.5])
    np.testing.assert_allclose(lines(lora["ΔD"])["ΔD, median"].get_ydata(), [0.004 * factor * 51, 0.004 * factor * 101])
    outer, inner = (found.get_paths()[0].vertices for found in lora["ΔM"].collections)
    for band, ends in ((outer, (1, 2)), (inner, (1.25, 1.75))):
        np.testing.assert_allclose(np.unique(band[band[:, 0] == 100, 1]), np.array(ends) * factor * 4 * 101)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["median", "25 to 75 %", "all"]
    assert axis in figure.get_supxlabel()
    with pytest.raises(OptionError, match=r"no quantile 0.5, only 0.25"):
        distribution(spread(quantiles=(0.25,)))


def test_distribution_of_vectors_that_mostly_stand_still_is_drawn() -> None:
    frame = spread()
    frame.loc[(frame["method"] == "lora") & (frame["quantile"] < 1), ["delta_m", "delta_d"]] = 0.0
    figure = distribution(frame)
    figure.draw_without_rendering()
    assert figure.axes[2].get_ylim()[0] > 0
    with pytest.raises(OptionError, match="nothing has moved"):
        distribution(frame.assign(delta_m=0.0))


def test_heatmap_has_layers_up_and_steps_to_the_right() -> None:
    figure = heatmap(spread())
    lora = figure.axes[2]
    assert lora.get_title("left") == "(b) LoRA"
    (mesh,) = lora.collections
    expected = [[2 * (1 + layer) * (1 + step) * 1.5 for step in (50, 100)] for layer in range(3)]
    np.testing.assert_allclose(mesh.get_array(), expected)
    assert mesh.get_clim() == figure.axes[0].collections[0].get_clim()  # the methods share their colours
    high = heatmap(spread(), quantile=0.75, axis="row").axes[2].collections[0].get_array()
    np.testing.assert_allclose(high, np.array(expected) * 7 * 1.75 / 1.5)
    with pytest.raises(OptionError, match=r"no quantile 0.9, only 0, 0.25"):
        heatmap(spread(), quantile=0.9)


def test_heatmap_leaves_white_what_did_not_move() -> None:
    frame = spread()
    frame.loc[(frame["method"] == "lora") & (frame["layer"] == 1), "delta_m"] = 0.0
    figure = heatmap(frame)
    masked = np.ma.getmaskarray(figure.axes[2].collections[0].get_array())
    assert masked.all(axis=1).tolist() == [False, True, False]
    assert "white" in figure.get_supxlabel()
    assert "white" not in heatmap(spread()).get_supxlabel()
    frame.loc[frame["method"] == "lora", ["delta_m", "delta_d"]] = 0.0
    assert np.ma.getmaskarray(heatmap(frame).axes[2].collections[0].get_array()).all()


def test_heatmap_tells_zero_below_the_scale_and_not_recorded_apart() -> None:
    frame = spread(["lora"], steps=(0, 50, 100, 150), number=4)
    frame.loc[(frame["layer"] == 1) & (frame["step_to"] == 50), "delta_m"] = 0.0
    frame.loc[(frame["layer"] == 2) & (frame["step_to"] == 50), "delta_m"] *= 1e-9
    frame = frame[~((frame["layer"] == 3) & (frame["step_to"] == 100))]
    figure = heatmap(frame)
    ax = figure.axes[0]
    (mesh,) = ax.collections
    drawn = mesh.get_array()
    assert np.argwhere(np.ma.getmaskarray(drawn)).tolist() == [[1, 0], [3, 1]]  # zero and missing: no colour of the map
    assert drawn[2, 0] < mesh.norm.vmin  # below the scale: the map's colour for it
    assert to_hex(mesh.cmap.get_under()) not in (to_hex(mesh.cmap(0.0)), "#ffffff")
    assert [(patch.get_xy(), patch.get_hatch()) for patch in ax.patches] == [((1, 3), "////")]
    assert to_hex(ax.get_facecolor()) == "#ffffff"
    note = figure.get_supxlabel().replace("\n", " ")
    assert "white: exactly 0; darkest: below the scale; hatched: not recorded" in note
    assert "hatched" not in heatmap(spread()).get_supxlabel()


def test_heatmap_names_layers_of_an_encoder_and_a_decoder_and_the_steps() -> None:
    parts = [
        frame.assign(module=frame["module"].str.replace("m.layer", f"m.{part}.layers"))
        for part in ("encoder", "decoder")
        for frame in [spread(["lora"], steps=(0, 500, 20_000), number=2)]
    ]
    ax = heatmap(pd.concat(parts)).axes[1]
    named = [label.get_text() for label in ax.get_yticklabels()]
    assert named == ["encoder 0", "encoder 1", "", "decoder 0", "decoder 1"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["500", "20k"]
    assert ax.get_ylim() == (0, 5)  # layers go up


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("count", [1, 9])
def test_any_number_of_methods_fits_a_paper(name, count) -> None:
    draw, table = ALL[name]
    figure = draw(table(list(METHODS)[:count]))
    inside(figure)
    panels = [ax for ax in figure.axes if ax.get_title("left")]
    assert all(ax.get_window_extent().width / figure.dpi > 0.7 for ax in panels)


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_fit_a_paper(name) -> None:
    draw, table = PAIRS[name]
    inside(draw(table()))
    inside(draw(table(), layers=[0]))


def inside(figure: Figure) -> None:
    figure.draw_without_rendering()
    assert figure.get_figwidth() <= 7
    whole = figure.bbox.padded(2)
    texts = [text for text in (figure._supxlabel, *figure.legends) if text is not None]
    for box in [ax.get_tightbbox() for ax in figure.axes] + [text.get_window_extent() for text in texts]:
        assert whole.x0 <= box.x0
        assert box.x1 <= whole.x1
        assert whole.y0 <= box.y0
        assert box.y1 <= whole.y1


@pytest.mark.parametrize("name", ALL)
def test_wrong_calls_name_the_choices(name) -> None:
    draw, table = ALL[name]
    frame = table(kinds=("query", "value"))
    with pytest.raises(OptionError, match="kind 'key'; there are query, value"):
        draw(frame, kind="key")
    with pytest.raises(OptionError, match="no method 'bora'; there are ft, lora"):
        draw(frame, methods=["bora"])
    with pytest.raises(OptionError, match="no column kind"):
        draw(frame.drop(columns="kind"))
    with pytest.raises(OptionError, match="no rows"):
        draw(frame[:0])
    assert isinstance(draw(frame, kind=None), Figure)


def test_tables_and_settings_are_left_alone() -> None:
    before = dict(matplotlib.rcParams)
    for draw, table in (ALL | PAIRS).values():
        frame = table()
        copy = frame.copy()
        draw(frame)
        pd.testing.assert_frame_equal(frame, copy)
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("name", ["overlap", "heatmap", "similarity"])
def test_a_table_read_back_from_csv_gives_the_same_file(tmp_path, name) -> None:
    draw, table = (ALL | PAIRS)[name]
    first = save(draw(table()), tmp_path / "a.svg").read_bytes()
    table().to_csv(tmp_path / "table.csv", index=False)
    assert save(draw(pd.read_csv(tmp_path / "table.csv")), tmp_path / "b.svg").read_bytes() == first


def test_heads_are_a_map_of_layers_and_heads() -> None:
    rows = [
        (
            "a",
            method,
            f"h.{layer}.c_attn",
            layer,
            "qkv",
            part,
            pd.NA,
            step,
            head,
            scale * step * (1 + head),
            0.1 * layer,
        )
        for method, scale in (("lora", 1.0), ("bora", 10.0))
        for layer in range(2)
        for step in (10, 20)
        for part, count in (("query", 4), ("key", 2))
        for head in range(count)
        if (method, layer, part, head) != ("bora", 1, "key", 1)
    ]
    frame = pd.DataFrame(rows, columns=list(HEADS))
    figure = heads(frame)
    np.testing.assert_allclose(figure.axes[0].collections[0].get_array(), [[20.0, 40.0, 60.0, 80.0]] * 2)
    assert "white: exactly 0" in figure.get_supxlabel()  # ΔD of layer 0
    assert "head by head" in caption(figure)
    keys = heads(frame, kind="key", measure="delta_m")
    assert keys.axes[0].get_title("left") == "(a) LoRA"
    bora = keys.axes[1].collections[0].get_array()
    assert np.ma.getmaskarray(bora).tolist() == [[False, False], [False, True]]  # not recorded
    assert keys.axes[0].collections[0].get_clim() == keys.axes[1].collections[0].get_clim()
    with pytest.raises(OptionError, match="no matrix of kind 'value'; there are key, query"):
        heads(frame, kind="value")
    with pytest.raises(OptionError, match="head_changes"):
        heads(frame.drop(columns="part"))
