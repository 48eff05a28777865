"""The walk that every table is made by: what it leaves out, what a table without rows says, a table from outside."""

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import save_file
from torch import nn

from deltaw.adapters import LoRA, inject
from deltaw.adapters.errors import DeltawError, DeltawWarning, OptionError, RecordError, TargetError
from deltaw.analysis import Trajectory, figures, open_runs, table
from deltaw.analysis.figures import FigureKind
from deltaw.analysis.runs import from_paths
from deltaw.analysis.tables.registry import TABLES, TableKind
from deltaw.analysis.tables.run import LABELS
from deltaw.analysis.tables.walk import Walk, at_steps
from deltaw.cli import main
from deltaw.trainers import Recorder


def model(names=("0", "1"), seed=0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {f"layers.{name}.query.weight": torch.randn(4, 3, generator=draw) for name in names}


@pytest.fixture
def run(tmp_path) -> Trajectory:
    """A run of one checkpoint whose base lacks one of three modules, as a new classifier."""
    save_file(model(("0", "1", "2"), seed=1), tmp_path / "model.safetensors")
    return Trajectory.open(tmp_path / "model.safetensors", base=model())


@pytest.fixture
def recorded(tmp_path) -> str:
    torch.manual_seed(0)
    net = inject(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)), LoRA(rank=2), targets=["*"])
    with Recorder(net, tmp_path / "run") as recorder:
        for step in range(3):
            recorder.step(step)
            with torch.no_grad():
                for parameter in net.parameters():
                    parameter += 0.1 * torch.randn(parameter.shape) * parameter.requires_grad
    return str(tmp_path / "run")


@pytest.mark.parametrize(
    "name", [name for name in TABLES if name not in ("consecutive", "initial", "intruders", "experts")]
)
def test_a_module_without_base_is_left_out_and_the_others_are_there(run, name) -> None:
    given = {"vectors": {"pairs": "base"}, "amplification": {"ranks": [1]}, "heads": {"heads": 2}}
    options = given.get(name, {})
    with pytest.warns(DeltawWarning, match=r"1 module is left out, layers\.2\.query: .*no matrix of layers\.2"):
        frame = table([run], name, **options)
    assert set(frame["module"]) == {"layers.0.query", "layers.1.query"}
    assert len(frame.attrs["left_out"]) == 1


def test_without_a_base_pairs_of_steps_are_there_and_those_with_it_are_named(tmp_path) -> None:
    for step in (1, 2):
        (tmp_path / f"checkpoint-{step}").mkdir()
        save_file(model(seed=step), tmp_path / f"checkpoint-{step}" / "model.safetensors")
    run = Trajectory.open(tmp_path)
    with pytest.warns(DeltawWarning, match=r"pairs with W₀ are left out of 2 modules, .*base=FOLDER"):
        frame = run.changes(("base", "consecutive"))
    assert set(frame["pairs"]) == {"consecutive"}
    assert set(frame["module"]) == set(run.modules)
    with pytest.raises(RecordError, match="base=FOLDER"):
        run.changes("base")


def test_where_no_module_has_a_base_the_error_says_how_to_give_it(tmp_path) -> None:
    save_file(model(), tmp_path / "model.safetensors")
    run = Trajectory.open(tmp_path / "model.safetensors")
    with pytest.raises(RecordError, match=r"no base weights.*base=FOLDER"):
        run.spectra()


def test_the_command_line_names_what_is_left_out_once_on_stderr(tmp_path, capsys, recwarn) -> None:
    save_file(model(("0", "1", "2"), seed=1), tmp_path / "model.safetensors")
    (tmp_path / "base").mkdir()
    save_file(model(), tmp_path / "base" / "model.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.filters", [])
        code = main(["changes", str(tmp_path / "model.safetensors"), "--base", str(tmp_path / "base"), "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    assert err.count("layers.2.query: ") == 1
    assert "layers.0.query" in out
    assert "layers.2.query" not in out


def test_one_checkpoint_is_compared_with_the_base(run) -> None:
    with pytest.warns(DeltawWarning):
        frame = run.changes()
    assert set(frame["step_to"]) == set(run.steps)
    assert frame["step_from"].isna().all()
    assert len(frame) == 4


def test_a_table_without_rows_says_why_and_what_to_ask_for(run, tmp_path) -> None:
    frame = run.changes("consecutive")
    assert frame.empty
    assert "there is one checkpoint" in frame.attrs["no_rows"][0]
    for name in ("consecutive", "initial"):
        with pytest.raises(OptionError, match=r'one checkpoint.*ask for the pairs "base"'):
            table([run], name)


def test_a_run_without_rows_beside_others_is_named(run, recorded) -> None:
    with pytest.warns(DeltawWarning, match=r"model\.safetensors: no row"):
        frame = table([Trajectory.open(recorded), run], "consecutive")
    assert set(frame["run"]) == {"run"}


def norms(runs, *, steps=None, modules=None, progress=False) -> pd.DataFrame:
    """A table of somebody else's."""
    rows = []
    walk = Walk(runs, "norms", at_steps(steps), modules, progress=progress)
    for stop in walk:
        with stop:
            norm = float(stop.run.update(stop.module, stop.step).norm())
            rows.append(stop.labels | {"step": stop.step, "norm": norm})
    return walk.frame(rows, [*LABELS, "step", "norm"])


def test_a_table_from_outside_is_a_function_and_a_line(recorded, monkeypatch, tmp_path) -> None:
    """It is made by name, drawn by a figure and offered by the command line without another edit."""
    monkeypatch.setitem(TABLES, "norms", TableKind(norms, "the norm of ΔW"))
    frame = table([Trajectory.open(recorded)], "norms", steps="last")
    assert frame[["module", "step"]].values.tolist() == [["0", 2], ["1", 2]]
    assert (frame["norm"] > 0).all()

    def draw(table: pd.DataFrame) -> Figure:
        """Draw the norms."""
        figure = Figure()
        figure.subplots().plot(table["step"], table["norm"])
        return figure

    entry = FigureKind(draw, from_paths("norms"), "the norm of ΔW", options=("modules",))
    monkeypatch.setitem(figures.FIGURES, "norms", entry)
    assert main(["plot", "norms", recorded, "--modules", "0", "-o", str(tmp_path / "norms.svg")]) == 0
    assert (tmp_path / "norms.svg").stat().st_size > 500


def test_open_runs_takes_a_pattern_a_path_or_a_list(recorded, tmp_path, monkeypatch) -> None:
    for given in (recorded, tmp_path / "run", [recorded], (Trajectory.open(recorded),), str(tmp_path / "ru*")):
        assert [run.name for run in open_runs(given)] == ["run"]
    monkeypatch.chdir(tmp_path)
    assert [run.name for run in open_runs("*")] == ["run"]
    assert len(table("run", "base")) == 12
    with pytest.raises(OptionError, match=r"no path fits 'nothing/\*'"):
        open_runs("nothing/*")


def test_every_wrong_call_says_what_to_pass(recorded) -> None:
    run = Trajectory.open(recorded)
    wrong = {
        "open a run with Trajectory.open": lambda: Trajectory("x"),
        "path is None; pass a folder": lambda: Trajectory.open(None),
        "path is 3; pass a folder": lambda: Trajectory.open(3),
        "before is None; pass a folder": lambda: Trajectory.from_pair(None, recorded),
        "runs are 3; pass a folder": lambda: open_runs(3),
        "path is 3; pass": lambda: open_runs([3]),
        "which is 'nothing'; choose one of": lambda: table([run], "nothing"),
        "which is 3; choose one of": lambda: table([run], 3),
        "no option 'colour'; it has": lambda: table([run], "spectra", colour="red"),
        "pairs is 3; choose one of consecutive, initial, base": lambda: run.changes(pairs=3),
        r"pairs is \[3\]; choose": lambda: run.changes(pairs=[3]),
        "a step must be a whole number": lambda: run.changes(pairs=[(0, "x")]),
        "axes is 3; choose": lambda: run.changes(axes=3),
        "modules is 3; give glob patterns": lambda: run.changes(modules=3),
        r"modules is \[3\]; give glob patterns": lambda: run.spectra(modules=[3]),
        "steps is 3; give a list of steps": lambda: run.spectra(3),
        "a step must be a whole number of at least 0, not True": lambda: run.spectra([True]),
        "'nope' was not recorded": lambda: run.weight("nope", 0),
        "module is 3; pass a name of run.modules": lambda: run.weight(3, 0),
        "module is None; pass": lambda: run.shape(None),
        "step must be None or a whole number": lambda: run.update("0", "x"),
        "not True": lambda: run.weight("0", True),
        "runs is a Trajectory; pass a list": lambda: TABLES["spectra"].make(run),
        "a run is a str; pass opened runs": lambda: TABLES["spectra"].make(["x"]),
        "no run is given": lambda: table([], "base"),
        "make is 3": lambda: TableKind(3, "x"),
    }
    for match, call in wrong.items():
        with pytest.raises(OptionError, match=match):
            call()
    with pytest.raises(DeltawError):
        table("x", "base")
    with pytest.raises(TargetError):
        run.changes(modules=["nothing"])


def test_numbers_of_numpy_are_steps(recorded) -> None:
    run = Trajectory.open(recorded)
    assert set(run.spectra(np.array([1, 2]))["step"]) == {1, 2}
    assert len(run.changes([(np.int64(0), np.int64(2))])) == 4
    assert run.weight("0", np.int64(1)).shape == (4, 6)


def test_noise_is_a_column_and_no_rank(tmp_path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64, bias=False))
    with Recorder(net, tmp_path / "run", dtype=torch.bfloat16) as recorder:
        recorder.step(0)
        with torch.no_grad():
            net[0].weight += torch.randn(64, 4) @ torch.randn(4, 64) * 1e-2
        recorder.step(1)
    first, last = Trajectory.open(tmp_path / "run").spectra().to_dict("records")
    assert [first[name] for name in ("rank", "effective_rank", "stable_rank", "nuclear", "energy_rank_99")] == [0] * 5
    assert last["rank"] == 4
    assert last["effective_rank"] <= 4
    assert last["energy_rank_99"] <= 4
    assert 0 < last["noise"] < 0.1


def test_a_run_is_read_without_pandas() -> None:
    import subprocess
    import sys

    code = "import sys, deltaw.analysis.trajectory; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not set(loaded) & {"pandas", "matplotlib", "seaborn", "deltaw.analysis.tables.changes"}
