"""A method is one class and one line: a toy, registered from outside, goes through everything without another edit."""

import importlib.metadata
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from deltaw.adapters import METHODS, DataError, OptionError, adapted, create, inject, load_adapters, save_adapters
from deltaw.adapters.counting.params import count_trainable
from deltaw.adapters.method import Layer, Method, Shape, State
from deltaw.adapters.methods import registry
from deltaw.analysis import Trajectory, inspect_run
from deltaw.analysis.figures import symmetry
from deltaw.cli import main
from deltaw.trainers import Recorder


@dataclass(frozen=True, kw_only=True)
class Shift(Method):
    """W' = W₀ + s·1 bᵀ: every row moves by s·b (in,)."""

    name = "shift"
    title = "Shift"
    formula = "W₀ + s·1 bᵀ"

    size: float = 1.0

    def shapes(self, out_features: int, in_features: int) -> dict[str, Shape]:
        return {"shift_b": (in_features,)}

    def initial(self, base: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return {"shift_b": torch.zeros(base.shape[1], dtype=base.dtype)}

    def weight(self, base: Tensor, state: State) -> Tensor:
        return base + self.size * state["shift_b"]

    def forward(self, layer: Layer, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight(layer.base, layer.state()), layer.bias)


@pytest.fixture
def shift() -> Iterator[None]:
    METHODS["shift"] = Shift
    try:
        yield
    finally:
        del METHODS["shift"]


@pytest.fixture
def run(shift: None, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = inject(nn.ModuleDict({"query": nn.Linear(6, 6)}), Shift(size=2.0), targets=["query"])
    with Recorder(model, tmp_path / "run") as recorder:
        for step in range(4):
            with torch.no_grad():
                model["query"].shift_b.fill_(0.1 * step)
            recorder.step(step)
    return tmp_path / "run"


def test_it_is_recorded_read_and_measured(run: Path) -> None:
    trajectory = Trajectory.open(run)
    assert (trajectory.method, trajectory.method_of("query")) == ("shift", Shift(size=2.0))
    torch.testing.assert_close(trajectory.update("query", 3), torch.full((6, 6), 0.6, dtype=torch.float64))
    assert trajectory.changes("base")["delta_m"].notna().all()
    assert list(trajectory.spectra([3])["rank"]) == [1]
    assert inspect_run(run)["method"] == "shift"


def test_it_is_drawn_with_its_title_and_a_look_of_its_own(run: Path) -> None:
    from deltaw.analysis.figures.drawing.style import method_styles

    figure = symmetry(Trajectory.open(run).changes("consecutive"), kind=None)
    titles = [axes.get_title(loc=where) for axes in figure.axes for where in ("left", "center", "right")]
    assert "Shift" in " ".join(titles)
    styles = method_styles(list(METHODS))
    assert len(set(styles.values())) == len(styles)


def test_it_is_saved_and_loaded(shift: None, tmp_path: Path) -> None:
    model = inject(nn.Sequential(nn.Linear(3, 2)), Shift(), targets=["0"])
    with torch.no_grad():
        adapted(model)["0"].tensor("shift_b").fill_(1.5)
    save_adapters(model, tmp_path / "shift.safetensors")
    other = load_adapters(nn.Sequential(nn.Linear(3, 2)), tmp_path / "shift.safetensors")
    assert float(adapted(other)["0"].update().mean()) == 1.5
    assert count_trainable(nn.Sequential(nn.Linear(3, 2)), Shift(), ["0"])["trainable"] == 3


def test_the_command_line_offers_it(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["params", "--help"]) == 0
    assert main(["train", "cola", "--help"]) == 0
    assert "shift" in capsys.readouterr().out
    assert main(["params", "--model", "roberta-base", "--method", "shift", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["trainable"] == 24 * 768
    for verb in (["changes", str(run)], ["rank", str(run)], ["inspect", str(run), "--verify"]):
        assert main(verb) == 0
        assert "query" in capsys.readouterr().out
    assert main(["plot", "updates", str(run), "--kind", "query", "-o", str(tmp_path / "u.png")]) == 0
    assert (tmp_path / "u.png").stat().st_size > 0


@pytest.mark.slow
def test_the_command_line_trains_it(shift: None, tmp_path: Path) -> None:
    given = ["--method", "shift", "--option", "size=0.5", "--epochs", "1", "--out", str(tmp_path / "run")]
    assert main(["train", "cola", *given]) == 0
    assert Trajectory.open(tmp_path / "run").method_of("roberta.encoder.layer.0.attention.self.query") == Shift(
        size=0.5
    )


def test_other_packages_bring_methods_by_an_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint("theirs", "their_package.theirs:Theirs", registry.ENTRY_POINTS),
        EntryPoint("shift-too", f"{__name__}:Shift", registry.ENTRY_POINTS),
        EntryPoint("lora", "their_package.theirs:Other", registry.ENTRY_POINTS),
    ]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points)
    methods = registry.Methods({"lora": registry._Own("lora:LoRA")})
    with pytest.warns(UserWarning, match="'lora' of a package has a name that is taken"):
        assert list(methods) == ["lora", "theirs", "shift-too"]
    monkeypatch.setitem(sys.modules, __name__, SimpleNamespace(Shift=Shift))
    assert methods["shift-too"] is Shift
    with pytest.raises(DataError, match="'theirs' of a package cannot be loaded"):
        methods["theirs"]


def test_what_is_no_method_is_refused() -> None:
    with pytest.raises(OptionError, match="must be a class of Method"):
        METHODS["nothing"] = 3
    with pytest.raises(OptionError, match="there is no method 'nothing'"):
        create("nothing")
