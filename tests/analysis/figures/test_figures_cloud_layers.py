"""DoRA's figures, the animation, and where a matrix stands in its model: what the artists hold."""

import time
from dataclasses import replace

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.animation import FFMpegWriter
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from deltaw.adapters import METHODS, OptionError, WriteError
from deltaw.analysis import correlation
from deltaw.analysis.figures import animation, check_path, cloud, layers, save
from deltaw.analysis.figures.drawing import saving
from deltaw.analysis.figures.drawing.layer_positions import position_colors, positions_of, with_positions
from deltaw.analysis.names import stack_of

THREE = ["ft", "lora", "dora"]
STEPS = (0, 100, 200, 300, 400)


def roberta(layer, kind):
    return f"roberta.encoder.layer.{layer}.attention.self.{kind}"


def changes(methods=THREE, number=4, kinds=("query", "value"), steps=STEPS, seed=0) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    rows = [
        (
            method,
            method,
            roberta(layer, kind),
            layer,
            kind,
            axis,
            pd.NA,
            step,
            *(step * generator.uniform(1, 3, size=2)),
        )
        for method in methods
        for layer in range(number)
        for kind in kinds
        for axis in ("row", "column")
        for step in steps
    ]
    columns = ["run", "method", "module", "layer", "kind", "axis", "step_from", "step_to", "delta_m", "delta_d"]
    return pd.DataFrame(rows, columns=columns).astype({"layer": "Int64", "step_from": "Int64", "step_to": "Int64"})


def bart(number=2) -> pd.DataFrame:
    names = ("encoder.layers.{}.self_attn", "decoder.layers.{}.self_attn", "decoder.layers.{}.encoder_attn")
    frames = []
    for place, name in enumerate(names):
        frame = changes(number=number, seed=place)
        module = [
            f"bart.model.{name.format(layer)}.{kind[0]}_proj"
            for layer, kind in zip(frame["layer"], frame["kind"], strict=True)
        ]
        frames.append(frame.assign(module=module))
    return pd.concat(frames, ignore_index=True)


def points(ax) -> np.ndarray:
    return np.concatenate([np.asarray(found.get_offsets()) for found in ax.collections])


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts() if text.get_text()]


def titled(figure: Figure) -> list[str]:
    return [ax.get_title("left") for ax in figure.axes]


@pytest.mark.parametrize(("kind", "axis"), [("query", "column"), ("value", "row"), (None, "column")])
def test_cloud_has_a_point_a_matrix_and_step_and_the_correlation_of_those(kind, axis) -> None:
    frame = changes()
    figure = cloud(frame, kind=kind, axis=axis)
    assert titled(figure) == ["(a) Full FT", "(b) LoRA", "(c) DoRA (column)"]
    wanted = frame[(frame["axis"] == axis) & (frame["step_to"] > 0)]
    if kind:
        wanted = wanted[wanted["kind"] == kind]
    expected = correlation(wanted, by="method").set_index("method")
    for ax, method in zip(figure.axes, THREE, strict=True):
        rows = wanted[wanted["method"] == method]
        shown = points(ax)
        order = np.lexsort(shown.T)
        table = rows[["delta_d", "delta_m"]].to_numpy(dtype=float)
        np.testing.assert_array_equal(shown[order], table[np.lexsort(table.T)])
        assert ax.get_title("right") == f"r = {expected.pearson[method]:.2f}".replace("-", "−")
        x, y = ax.lines[0].get_data()
        np.testing.assert_allclose(y, expected.intercept[method] + expected.slope[method] * np.asarray(x))
        assert [x[0], x[1]] == [rows["delta_d"].min(), rows["delta_d"].max()]
        low, high = ax.get_xlim()
        assert low < rows["delta_d"].min()
        assert high > rows["delta_d"].max()
    assert f"{axis} by {axis}" in figure.get_supxlabel()
    assert f"of {32 if kind is None else 16} points" in figure.get_supxlabel()


@pytest.mark.parametrize("size", [1.0, 1e-17])
def test_cloud_has_a_band_around_the_line_that_is_the_same_every_time(size) -> None:
    frame = changes(["lora"], number=8)
    frame["delta_d"] *= size
    (ax,) = cloud(frame).axes
    (band,) = ax.patches
    x, y = ax.lines[0].get_data()
    xs, ys = band.get_path().vertices.T
    assert xs.min() == pytest.approx(x[0])
    assert xs.max() == pytest.approx(x[1])
    for end, height in zip(x, y, strict=True):
        low, high = (edge(ys[np.isclose(xs, end, rtol=1e-9, atol=0)]) for edge in (min, max))
        assert low < height < high
    np.testing.assert_array_equal(cloud(frame).axes[0].patches[0].get_path().vertices, band.get_path().vertices)
    assert "band: 95 %" in cloud(frame).get_supxlabel()


def test_the_line_of_a_cloud_is_not_cut_by_the_frame() -> None:
    """One matrix far to the right and low, so that the line ends above every point."""
    frame = changes(["lora"], number=3, kinds=("query",))
    frame.loc[frame["layer"] == 2, "delta_d"] *= 6
    frame.loc[(frame["layer"] == 2) & (frame["step_to"] == 400), "delta_m"] /= 3
    (ax,) = cloud(frame).axes
    low, high = ax.get_ylim()
    assert all(low < height < high for height in ax.lines[0].get_ydata())


def test_a_correlation_close_to_one_keeps_its_digits() -> None:
    frame = changes(["lora"])
    frame["delta_m"] = frame["delta_d"] + 0.02 * frame["delta_m"]
    expected = correlation(
        frame[(frame["kind"] == "query") & (frame["axis"] == "column") & (frame["step_to"] > 0)], by=[]
    )
    assert 0.9995 < expected.pearson.item() < 1
    shown = cloud(frame).axes[0].get_title("right").removeprefix("r = ")
    assert float(shown) < 1
    assert float(shown) == pytest.approx(expected.pearson.item(), abs=10.0 ** (2 - len(shown)))


def test_the_last_row_of_a_cloud_is_in_the_middle() -> None:
    figure = cloud(changes(list(METHODS)[:5]))
    figure.draw_without_rendering()
    upper, lower = ([ax.get_position() for ax in axes] for axes in (figure.axes[:3], figure.axes[3:]))
    middles = [(row[0].x0 + row[-1].x1) / 2 for row in (upper, lower)]
    assert middles[0] == pytest.approx(middles[1], abs=0.02)
    assert lower[0].x0 > upper[0].x0 + 0.05


def test_cloud_of_few_matrices_has_no_band() -> None:
    figure = cloud(changes(["lora"], number=2))
    assert not figure.axes[0].patches
    assert "band" not in figure.get_supxlabel()


def test_cloud_colours_by_layer_and_marks_by_step() -> None:
    figure = cloud(changes(["lora"]))
    (ax,) = figure.axes
    assert len(ax.collections) == 4
    assert len({tuple(found.get_paths()[0].vertices.ravel()) for found in ax.collections}) == 4
    colors = [[to_hex(color) for color in found.get_facecolors()] for found in ax.collections]
    assert all(one == colors[0] for one in colors)
    assert len(set(colors[0])) == 4
    assert legend(figure) == ["layer", "step", "0", "100", "1", "200", "2", "300", "3", "400"]  # column by column


def test_cloud_tells_encoder_decoder_and_cross_attention_apart() -> None:
    figure = cloud(bart(), methods=["lora"])
    (ax,) = figure.axes
    assert len(points(ax)) == 4 * 2 * 3
    assert len({to_hex(color) for color in ax.collections[0].get_facecolors()}) == 6
    assert [name for name in legend(figure) if name.isalpha()] == ["encoder", "decoder", "cross", "step"]


def test_a_cloud_of_matrices_without_layer_numbers_has_one_colour() -> None:
    frame = changes(["lora"]).assign(layer=pd.NA)
    figure = cloud(frame)
    (ax,) = figure.axes
    assert len(points(ax)) == 16
    assert len({to_hex(color) for found in ax.collections for color in found.get_facecolors()}) == 1
    assert "layer" not in legend(figure)
    assert "no matrix has a layer number" in figure.get_supxlabel()
    movie = animation(frame)
    assert len(movie.figure.axes[0].collections[1].get_offsets()) == 4


def test_cloud_chooses_steps() -> None:
    frame = changes(["lora"], steps=range(0, 1001, 50))
    assert [name for name in legend(cloud(frame)) if len(name) > 2][2:] == ["250", "500", "750", "1000"]
    assert len(points(cloud(frame, steps=None).axes[0])) == 20 * 4
    assert len(points(cloud(frame, steps=[0, 50]).axes[0])) == 2 * 4
    assert len(cloud(frame, steps=2).axes[0].collections) == 2
    sizes = [found.get_sizes()[0] for found in cloud(frame, steps=None).axes[0].collections]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]
    with pytest.raises(OptionError, match="no run has a step of"):
        cloud(frame, steps=[7])
    with pytest.raises(OptionError, match="steps is 0"):
        cloud(frame, steps=0)


def test_cloud_of_runs_with_other_steps_names_their_turn() -> None:
    frame = pd.concat([changes(["lora"]), changes(["dora"], steps=(0, 7, 14, 21, 28))])
    assert legend(cloud(frame))[1::2] == ["step", "1.", "2.", "3.", "last"]


def test_cloud_says_what_is_left_out_and_what_is_undefined() -> None:
    frame = changes(["lora"])
    frame.loc[(frame["layer"] == 3) & (frame["step_to"] == 100), "delta_d"] = np.nan
    figure = cloud(frame)
    assert "1 of 20 points are undefined" in figure.get_supxlabel()
    assert "of 15 points" in figure.get_supxlabel()
    still = cloud(changes(["lora"]).assign(delta_m=0.0, delta_d=0.0))
    assert still.axes[0].get_title("right") == "r = undefined"
    assert not still.axes[0].lines
    still.draw_without_rendering()


def test_pooled_runs_of_a_method_are_said() -> None:
    frame = pd.concat([changes(["lora"]), changes(["lora"], seed=1).assign(run="again")])
    figure = cloud(frame)
    assert len(points(figure.axes[0])) == 32
    assert "from up to 2 runs" in figure.get_supxlabel()


def test_layers_has_a_row_a_kind_and_a_line_a_method_at_the_last_step() -> None:
    frame = changes(kinds=("value", "key", "query"))
    figure = layers(frame)
    kinds = [
        (f"({one})", kind, q)
        for one, (kind, q) in zip(
            "abcdef", [(k, q) for k in ("query", "key", "value") for q in ("ΔM", "ΔD")], strict=True
        )
    ]
    assert titled(figure) == [f"{one} {kind}, {q}" for one, kind, q in kinds]
    last = frame[(frame["step_to"] == 400) & (frame["axis"] == "column")].set_index(["kind", "method"])
    for ax, (_, kind, q) in zip(figure.axes, kinds, strict=True):
        assert [line.get_label() for line in ax.lines] == ["Full FT", "LoRA", "DoRA (column)"]
        for line, method in zip(ax.lines, THREE, strict=True):
            rows = last.loc[(kind, method)]
            assert list(line.get_xdata()) == list(rows["layer"])
            np.testing.assert_array_equal(line.get_ydata(), rows["delta_m" if q == "ΔM" else "delta_d"])
    assert legend(figure) == ["Full FT", "LoRA", "DoRA (column)"]
    assert titled(layers(frame, kinds=["value"])) == ["(a) value, ΔM", "(b) value, ΔD"]
    assert titled(layers(changes(kinds=("qkv",)))) == ["(a) qkv, ΔM", "(b) qkv, ΔD"]


def test_layers_breaks_the_line_between_stacks() -> None:
    figure = layers(bart(), kinds=["query"], scale="log")
    ax = figure.axes[0]
    assert np.isnan(ax.lines[0].get_ydata()).tolist() == [False, False, True, False, False, True, False, False]
    assert [text.get_text() for text in ax.texts] == ["encoder", "decoder", "cross"]
    figure.draw_without_rendering()
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "1"] * 3


def test_no_method_of_layers_hides_another() -> None:
    frame = changes(["ft", "lora", "dora", "bora"], number=12)
    frame["delta_m"] = frame["delta_d"] = 1.0  # the same in all
    figure = layers(frame, kinds=["query"])
    figure.draw_without_rendering()
    for ax in figure.axes:
        places = np.array([line.get_transform().transform(line.get_xydata())[:, 0] for line in ax.lines])
        gaps = np.diff(np.sort(places.ravel()))
        assert gaps.min() > 1.5  # pixels at 100 per inch: no two markers in one place
        assert all(list(line.get_xdata()) == list(range(12)) for line in ax.lines)


def test_an_axis_of_layers_never_begins_below_zero_and_a_line_along_it_is_seen() -> None:
    frame = changes(["lora", "dora"])
    frame.loc[frame["method"] == "dora", "delta_d"] *= 1e-6
    ax = layers(frame, kinds=["query"], scale="linear").axes[1]
    assert ax.get_ylim()[0] == 0
    lora, dora = ax.lines
    assert (lora.get_clip_on(), dora.get_clip_on()) == (True, False)


def test_layers_scales() -> None:
    frame = changes()
    assert layers(frame).axes[0].get_ylim()[0] == 0
    ax = layers(frame, scale="log").axes[0]
    assert ax.get_yscale() == "log"
    assert 0 < ax.get_ylim()[0] < min(min(line.get_ydata()) for line in ax.lines)


def test_layers_averages_runs() -> None:
    one, two = changes(["lora"]), changes(["lora"]).assign(run="again")
    two["delta_m"] *= 3
    figure = layers(pd.concat([one, two]))
    np.testing.assert_allclose(
        figure.axes[0].lines[0].get_ydata(), 2 * np.asarray(layers(one).axes[0].lines[0].get_ydata())
    )
    assert "mean of 2 runs" in figure.get_supxlabel()


@pytest.mark.parametrize("draw", [cloud, layers])
@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_any_number_of_methods_fits_a_paper(draw, count) -> None:
    figure = draw(changes(list(METHODS)[:count]))
    figure.draw_without_rendering()
    assert figure.get_figwidth() <= 7
    whole = figure.bbox.padded(1)
    boxes = [ax.get_tightbbox() for ax in figure.axes]
    for ax, box in zip(figure.axes, boxes, strict=True):
        assert ax.get_window_extent().width / figure.dpi > 1.2
        assert ax.get_window_extent().height / figure.dpi > 0.8
        assert whole.x0 <= box.x0
        assert box.x1 <= whole.x1
    top = figure.legends[0].get_window_extent()
    assert whole.y1 >= top.y1
    assert whole.x0 <= top.x0
    assert top.x1 <= whole.x1
    assert all(box.y1 <= top.y0 for box in boxes)


def test_wrong_calls_name_the_choices() -> None:
    frame = changes()
    for draw in (cloud, layers, animation):
        with pytest.raises(OptionError, match="axis is 'diagonal'; choose one of 'row', 'column'"):
            draw(frame, axis="diagonal")
        with pytest.raises(OptionError, match=r'Trajectory.changes\("base"\)'):
            draw(frame.assign(step_from=frame["step_to"] - 1))
        with pytest.raises(OptionError, match="no method 'bora'; there are ft, lora, dora"):
            draw(frame, methods=["bora"])
        with pytest.raises(OptionError, match="no rows of axis 'column'"):
            draw(frame[frame["axis"] == "row"])
    with pytest.raises(OptionError, match="no matrix has a layer number"):
        layers(frame.assign(layer=pd.NA))
    with pytest.raises(OptionError, match="kind 'key'; there are query, value"):
        cloud(frame, kind="key")
    with pytest.raises(OptionError, match="kind 'key'; there are query, value"):
        layers(frame, kinds=["key"])
    with pytest.raises(OptionError, match="scale is 'cubic'"):
        layers(frame, scale="cubic")


def test_stacks_of_common_models() -> None:
    assert stack_of("model.encoder.layers.3.self_attn.k_proj") == "encoder"
    assert stack_of("encoder.block.0.layer.0.SelfAttention.q") == "encoder"
    assert stack_of("decoder.block.0.layer.1.EncDecAttention.v") == "cross"
    assert stack_of("roberta.encoder.layer.0.crossattention.self.query") == "cross"
    assert stack_of("transformer.h.0.attn.c_attn") == ""
    rows, notes = with_positions(bart())
    assert not notes
    assert positions_of(rows) == [(stack, layer) for stack in ("encoder", "decoder", "cross") for layer in (0, 1)]
    rows, _ = with_positions(changes())
    assert set(rows["stack"]) == {""}  # one stack is no stack
    assert len(set(position_colors(positions_of(rows)).values())) == 4


def test_a_movie_moves_its_points_and_nothing_else() -> None:
    frame = changes()
    movie = animation(frame)
    assert movie.steps == list(STEPS)
    limits = [(ax.get_xlim(), ax.get_ylim()) for ax in movie.figure.axes]
    rows = frame[(frame["kind"] == "query") & (frame["axis"] == "column")]
    for step in (100, 300):
        movie.show(step)
        assert movie.figure.get_supxlabel().startswith(f"step {step}\n")
        for ax, method in zip(movie.figure.axes, THREE, strict=True):
            trails, now = ax.collections
            at = rows[(rows["step_to"] == step) & (rows["method"] == method)]
            np.testing.assert_array_equal(now.get_offsets(), at[["delta_d", "delta_m"]].to_numpy(dtype=float))
            assert [len(trail) for trail in trails.get_segments()] == [1 + step // 100] * 4
            expected = correlation(at, by=[]).pearson.item()
            assert ax.get_title("right") == f"r = {expected:.2f}".replace("-", "−")
    assert [(ax.get_xlim(), ax.get_ylim()) for ax in movie.figure.axes] == limits


def test_a_long_run_is_a_short_movie(tmp_path) -> None:
    """Eighty-one checkpoints were 81 frames and 80 s."""
    movie = animation(changes(list(METHODS)[:5], number=12, kinds=("query",), steps=range(0, 1601, 20)))
    assert len(movie.steps) == 40
    assert (movie.steps[0], movie.steps[-1]) == (0, 1600)
    begun = time.process_time()
    with Image.open(save(movie, tmp_path / "a.gif")) as film:
        assert film.n_frames <= 48
        lasts = sum(_duration(film, frame) for frame in range(film.n_frames))
    assert time.process_time() - begun < 10
    assert 4000 <= lasts <= 9000


def _duration(film, frame) -> int:
    film.seek(frame)
    return film.info["duration"]


def test_frames_are_those_that_are_drawn_whole() -> None:
    """What stands still is drawn once: the same pixels as with everything drawn anew."""
    movie = animation(changes(["lora", "dora"], number=3))
    quick = list(saving._frames(movie))
    slow = list(saving._frames(replace(movie, moving=())))
    for one, other in zip(quick, slow, strict=True):
        different = (np.abs(one.astype(int) - other.astype(int)).max(axis=2) > 8).mean()
        assert different < 0.002  # lines over a frame that was drawn before them
    assert (quick[1] != quick[-1]).any()


def test_a_run_without_a_step_stays_where_it_was() -> None:
    frame = pd.concat([changes(["lora"]), changes(["dora"], steps=(0, 150))])
    movie = animation(frame)
    movie.show(400)
    last = frame[(frame["method"] == "dora") & (frame["step_to"] == 150) & (frame["kind"] == "query")]
    last = last[last["axis"] == "column"]
    np.testing.assert_array_equal(
        movie.figure.axes[1].collections[1].get_offsets(), last[["delta_d", "delta_m"]].to_numpy(dtype=float)
    )


def test_a_movie_is_written_whole_and_the_same_every_time(tmp_path, monkeypatch) -> None:
    frame = changes(["lora"], number=2)
    path = save(animation(frame), tmp_path / "new" / "a.gif")
    with Image.open(path) as film:
        assert film.format == "GIF"
        assert film.n_frames == len(STEPS)  # the last one stays longer
        film.seek(film.n_frames - 1)
        assert film.info["duration"] > 500
    assert save(animation(frame), tmp_path / "b.gif").read_bytes() == path.read_bytes()

    def fail(self, *_, **__) -> None:
        raise OSError("disk full")

    old = path.read_bytes()
    movie = animation(frame)
    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(WriteError, match="disk full"):
        save(movie, path)
    assert path.read_bytes() == old
    assert [found.name for found in path.parent.iterdir()] == ["a.gif"]


def test_a_movie_has_formats_of_its_own(tmp_path, monkeypatch) -> None:
    with pytest.raises(OptionError, match=r"an animation has no format '.png'; choose one of \.gif, \.mp4"):
        save(animation(changes(["lora"])), tmp_path / "a.png")
    with pytest.raises(OptionError, match=r"a figure has no format '.gif'"):
        save(cloud(changes(["lora"])), tmp_path / "a.gif")
    monkeypatch.setattr(FFMpegWriter, "isAvailable", lambda: False)
    with pytest.raises(OptionError, match="needs the program ffmpeg"):
        check_path(tmp_path / "a.mp4", movie=True)
    assert not list(tmp_path.iterdir())


def test_tables_and_settings_are_left_alone() -> None:
    before = dict(matplotlib.rcParams)
    for draw in (cloud, layers, animation):
        frame = bart()
        copy = frame.copy()
        draw(frame)
        pd.testing.assert_frame_equal(frame, copy)
    assert dict(matplotlib.rcParams) == before
