"""``deltaw plot``: every figure from recorded runs or results, its options, and one clear line for every mistake."""

import json

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from deltaw.adapters import create, inject
from deltaw.analysis import Trajectory
from deltaw.analysis import figure_tables as sources
from deltaw.analysis.figures import FIGURES, region, save
from deltaw.analysis.figures.drawing.style import paper_style
from deltaw.analysis.tables.intruders import intruder_table
from deltaw.analysis.tables.results import results
from deltaw.analysis.tables.vectors import QUANTILES
from deltaw.cli import main
from deltaw.cli.plot import command
from deltaw.trainers import Recorder

METHODS = ("lora", "bora", "sbora-fa")
RUN_FIGURES = [name for name, entry in FIGURES.items() if entry.paths == "RUNS"]
TWO = ("overlap", "angles")


def record(folder, method):
    torch.manual_seed(0)
    kinds = ("query", "value")
    model = nn.ModuleDict(
        {"layer": nn.ModuleList([nn.ModuleDict({kind: nn.Linear(12, 12) for kind in kinds}) for _ in range(2)])}
    )
    inject(model, create(method, rank=2), targets=["*"], seed=0)
    with Recorder(model, folder) as recorder:
        for step in range(6):
            recorder.step(step)
            with torch.no_grad():
                for p in model.parameters():
                    if p.requires_grad:
                        p += 0.05 * torch.randn_like(p)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    paths = [record(folder / method, method) for method in METHODS]
    for place, (path, method) in enumerate(zip(paths, METHODS, strict=True)):
        result = {"method": method, "seconds_per_epoch": 1.0 + place, "peak_megabytes": 90.0 + place}
        (path / "result.json").write_text(json.dumps({"settings": {"options": {"rank": 2}}, "result": result}))
    return paths


def call(capsys, *arguments):
    code = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, err


def failed(capsys, code, *arguments):
    """The one line on stderr of a call that fails with this exit code."""
    got, _, err = call(capsys, *arguments)
    lines = [line for line in err.splitlines() if line.startswith("deltaw:")]
    assert got == code, err
    assert len(lines) == 1
    assert lines == err.splitlines()[-1:]
    return lines[0]


def options(name):
    """What one figure's command needs: small numbers for small matrices, and options that are not the default."""
    return {
        "overlap": ["--rank", 2, "--side", "left", "--layer", 1],
        "angles": ["--rank", 2, "--side", "left"],
        "amplification": ["--rank", 1, "--scale", "linear"],
        "intruders": ["--k", 3, "--epsilon", 0.9],
        "cloud": ["--kind", "value", "--axis", "row", "--steps", "all", "--pairs", "initial"],
        "layers": ["--kind", "value", "--axis", "row", "--scale", "log"],
        "symmetry": ["--kind", "all", "--scale", "log", "--share", "none"],
        "updates": ["--modules", "layer.1.*"],
        "region": ["--module", "layer.1.value", "--step", 3],
        "singular-values": ["--kind", "all"],
        "rank": ["--scale", "linear"],
        "heatmap": ["--quantile", 0.9, "--steps", 2],
        "blocks": ["--axis", "row", "--scale", "linear"],
        "heads": ["--heads", 4, "--kind", "value"],
    }.get(name, ["--kind", "value"])


@pytest.mark.parametrize("name", RUN_FIGURES)
def test_every_figure_is_drawn_from_runs(name, runs, capsys, tmp_path) -> None:
    given = [runs[0], runs[2]]
    path = tmp_path / f"a.{'gif' if FIGURES[name].movie else 'png'}"
    first = {"amplification": ["--rank", 1], "heads": ["--heads", 3]}.get(name, ["--rank", 2] if name in TWO else [])
    code, out, err = call(capsys, "plot", name, *given, "-o", path, *first)
    assert code == 0, err
    assert f"written to {path}" in out
    with Image.open(path) as picture:
        assert picture.width > 400
    other = path.with_stem("b")
    assert call(capsys, "plot", name, *given, "-o", other, *options(name))[0] == 0
    assert other.read_bytes() != path.read_bytes()
    assert sorted(found.name for found in tmp_path.iterdir()) == [path.name, other.name]


def test_the_options_reach_the_table_and_the_figure(runs, capsys, tmp_path) -> None:
    """The command's file is that of the library's calls."""
    updates = sources.updates([runs[0]], module="*.1.value", step=3)
    np.testing.assert_array_equal(updates["LoRA"], Trajectory.open(runs[0]).update("layer.1.value", 3).numpy())
    with paper_style():
        expected = save(region(updates), tmp_path / "a.svg").read_bytes()
    assert (
        call(capsys, "plot", "region", runs[0], "--module", "*.1.value", "--step", 3, "-o", tmp_path / "b.svg")[0] == 0
    )
    assert (tmp_path / "b.svg").read_bytes() == expected

    found = [Trajectory.open(run) for run in runs]
    draw = FIGURES["intruders"].draw
    given = ["--kind", "value", "--k", 3, "--epsilon", 0.9, "--steps", 2]
    assert call(capsys, "plot", "intruders", *runs, *given, "-o", tmp_path / "d.svg")[0] == 0
    steps = sorted(sources.intruders(runs, kind="value", at_most=2)["step"].unique())
    assert steps == [1, 5]
    table = intruder_table(found, k=3, steps=steps, modules=["*.value"])
    table.attrs = sources.intruders(runs, kind="value", at_most=2).attrs
    assert table.attrs["spacing"] == "every step"
    with paper_style():
        expected = save(draw(table, kind="value", k=3, epsilon=0.9), tmp_path / "c.svg").read_bytes()
    assert (tmp_path / "d.svg").read_bytes() == expected


def test_only_the_matrices_that_are_drawn_are_read(runs) -> None:
    assert set(sources.since(runs, kind="value")["kind"]) == {"value"}
    assert set(sources.since(runs, kind=None)["kind"]) == {"query", "value"}
    assert set(sources.since(runs, kind="gate")["kind"]) == {"query", "value"}  # the figure names those there are
    assert set(sources.since(runs, kind="value", modules=["*.0.*"])["module"]) == {"layer.0.value"}
    assert set(sources.spectra(runs, at_most=3)["step"]) == {1, 3, 5}
    assert set(sources.spectra(runs, at_most=1)["step"]) == {5}
    assert set(sources.last_base(runs)["step_to"]) == {5}
    assert set(sources.vectors(runs, axis="row", quantile=0.6)["quantile"]) == {*QUANTILES, 0.6}


def test_costs_and_sweep_come_from_results(runs, capsys, tmp_path) -> None:
    assert call(capsys, "plot", "costs", *runs, "-o", tmp_path / "a.svg")[0] == 0
    assert call(capsys, "plot", "costs", runs[0].parent, "-o", tmp_path / "b.svg")[0] == 0
    rows = [(method, 2, 1.0 + place, 90.0 + place) for place, method in enumerate(METHODS)]
    table = pd.DataFrame(rows, columns=["method", "rank", "seconds_per_epoch", "peak_megabytes"])
    table.to_csv(tmp_path / "results.csv", index=False)
    assert call(capsys, "plot", "costs", tmp_path / "results.csv", "-o", tmp_path / "c.svg")[0] == 0
    a, b, c = ((tmp_path / f"{name}.svg").read_bytes() for name in "abc")
    assert a == b == c
    table.drop(columns="rank").to_csv(tmp_path / "without.csv", index=False)
    assert call(capsys, "plot", "costs", tmp_path / "without.csv", "-o", tmp_path / "d.svg")[0] == 0

    rows = [("lora", 8, None, 0, 0.5, 0.4), ("dual-lora", 4, None, 0, 0.6, 0.5), ("dual-lora", 2, 6, 0, 0.7, 0.6)]
    columns = ["method", "rank", "direction_rank", "seed", "best_mcc", "final_mcc"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "runs.csv", index=False)
    assert list(results([tmp_path / "runs.csv"])["direction_rank"].fillna(0)) == [0, 4, 6]
    for score in ("best_mcc", "final_mcc"):
        path = tmp_path / f"{score}.svg"
        assert call(capsys, "plot", "sweep", tmp_path / "runs.csv", "--score", score, "-o", path)[0] == 0
    assert (tmp_path / "best_mcc.svg").read_bytes() != (tmp_path / "final_mcc.svg").read_bytes()


def test_results_that_are_none(runs, capsys, tmp_path) -> None:
    plot = ("plot", "costs")
    out = ("-o", tmp_path / "a.svg")
    assert "nowhere" in failed(capsys, 1, *plot, tmp_path / "nowhere", *out)
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    assert "no column method" in failed(capsys, 1, *plot, tmp_path / "x.csv", *out)
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00\x81")
    assert "x.csv" in failed(capsys, 1, *plot, tmp_path / "x.csv", *out)
    for text in ("{", "[]", '{"result": {}}', '{"settings": {"options": []}, "result": {}}'):
        (tmp_path / "result.json").write_text(text)
        assert "result.json" in failed(capsys, 1, *plot, tmp_path, *out)
    assert not (tmp_path / "a.svg").exists()


def test_mistakes(runs, capsys, tmp_path) -> None:
    out = ("-o", tmp_path / "a.png")
    run = runs[0]
    line = failed(capsys, 2, "plot", "pie", run, *out)
    assert "'pie'" in line
    assert all(name in line for name in FIGURES)
    assert "--share" in failed(capsys, 2, "plot", "rank", run, *out, "--share", "none")
    assert "--axis" in failed(capsys, 2, "plot", "rank", run, *out, "--axis", "row")
    assert "diagonal" in failed(capsys, 2, "plot", "cloud", run, *out, "--axis", "diagonal")
    assert "--steps" in failed(capsys, 2, "plot", "cloud", run, *out, "--steps", 0)
    assert "some" in failed(capsys, 2, "plot", "cloud", run, *out, "--steps", "some")
    assert "query, value" in failed(capsys, 2, "plot", "cloud", run, *out, "--kind", "gate")
    assert "*.gate" in failed(capsys, 2, "plot", "cloud", run, *out, "--modules", "*.gate")
    assert "second" in failed(capsys, 2, "plot", "overlap", run, *out)
    assert "3 runs" in failed(capsys, 2, "plot", "angles", *runs, *out)
    assert "step 99" in failed(capsys, 2, "plot", "overlap", run, *out, "--step", 1, "--step", 99)
    assert "rank" in failed(capsys, 2, "plot", "overlap", *runs[:2], *out, "--rank", 99)
    assert "fits 4 modules" in failed(capsys, 2, "plot", "region", run, *out, "--module", "*")
    assert "step 99" in failed(capsys, 2, "plot", "region", run, *out, "--step", 99)
    assert "Missing" in failed(capsys, 2, "plot", "cloud", *out)
    assert "no such folder" in failed(capsys, 1, "plot", "cloud", tmp_path / "nowhere", *out)
    assert ".gif" in failed(capsys, 2, "plot", "animation", run, *out)
    assert ".gif" in failed(capsys, 2, "plot", "cloud", run, "-o", tmp_path / "a.gif")
    assert not list(tmp_path.iterdir())


def test_two_runs_of_one_method_have_titles_of_their_own(runs, tmp_path) -> None:
    again = record(tmp_path / "again", "lora")
    assert list(sources.updates([runs[0], again])) == ["LoRA\nlora", "LoRA\nagain"]
    update = sources.updates([again])["LoRA"]
    np.testing.assert_array_equal(update, Trajectory.open(again).update("layer.0.query", 5).numpy())


def test_help_lists_every_figure_with_a_line_and_each_has_an_example(capsys) -> None:
    code, text, _ = call(capsys, "plot", "--help")
    assert code == 0
    listed = " ".join(text.split())
    for name, entry in FIGURES.items():
        assert f"{name} {entry.about}" in listed
        code, text, _ = call(capsys, "plot", name, "--help")
        assert code == 0
        assert f"deltaw plot {name} " in text
        assert "{" not in text  # every default is filled in


@pytest.mark.parametrize("name", ["symmetry", "region", "animation", "costs"])
def test_a_caption_and_a_figure_for_latex_are_written_beside(name, runs, capsys, tmp_path) -> None:
    path = tmp_path / f"my_{name}.{'gif' if FIGURES[name].movie else 'pdf'}"
    code, out, err = call(capsys, "plot", name, *runs, "-o", path, "--caption", "--tex")
    assert code == 0, err
    text, tex = (path.with_suffix(suffix).read_text() for suffix in (".txt", ".tex"))
    assert f"its caption to {path.with_suffix('.txt')}" in out
    assert r"\includegraphics" in tex
    assert rf"\label{{fig:my-{name}}}" in tex
    if name != "costs":
        assert "heckpoints every step" in text
        assert "query" in text.lower()
    if name == "symmetry":
        assert text.startswith("ΔM and ΔD from checkpoint to checkpoint, by column and by row for LoRA, BoRA and")
        assert "layers 0 to 1" in text
        assert "$\\Delta$M and $\\Delta$D from checkpoint" in tex


def test_the_papers_style_is_the_command_lines(runs, capsys, tmp_path) -> None:
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9}):
        assert call(capsys, "plot", "symmetry", runs[0], "-o", tmp_path / "a.svg")[0] == 0
    assert call(capsys, "plot", "symmetry", runs[0], "-o", tmp_path / "b.svg")[0] == 0
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert "seed" not in (tmp_path / "a.svg").read_text()


@pytest.mark.parametrize("name", ["growth", "agreement", "layers", "rotation"])
def test_every_choice_of_a_figure_can_be_drawn(name, runs, tmp_path, capsys) -> None:
    for option in command.get_command(None, name).params:
        if option.name in ("measure", "scale"):
            for choice in option.type.known:
                out = tmp_path / f"{choice}.svg"
                code, _, err = call(capsys, "plot", name, *runs, f"--{option.name}", choice, "-o", out)
                assert (code, out.exists()) == (0, True), err


@pytest.mark.parametrize("name", ["symmetry", "updates"])
def test_a_run_of_one_step_is_sent_to_the_figures_that_it_has(name, tmp_path, capsys) -> None:
    model = nn.ModuleDict({"query": nn.Linear(6, 6)})
    with Recorder(model, tmp_path / "one") as recorder:
        recorder.step(3)
    code, _, err = call(capsys, "plot", name, tmp_path / "one", "-o", tmp_path / "a.png")
    assert code == 2
    assert "has 1 recorded step, and this figure compares two; choose one of changes since the base" in err
