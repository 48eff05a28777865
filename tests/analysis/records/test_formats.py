"""A foreign format is a ``Source`` and one line in the list of formats."""

import pytest
import torch
from click.testing import CliRunner

from deltaw.adapters.errors import RecordError
from deltaw.analysis import Trajectory
from deltaw.analysis.records.open import FORMATS, Format
from deltaw.analysis.records.source import Source
from deltaw.cli.inspect import command


class TextSource(Source):
    """A toy: weights.txt has a line a step, its number and four entries of one matrix."""

    format, method = "text", "ft"

    def __init__(self, storage):
        self.where, self.config, self.info = storage.where, {}, {"author": "somebody else"}
        lines = [line.split() for line in storage.whole("weights.txt").decode().splitlines()]
        self.weights = {int(step): torch.tensor([float(e) for e in rest]).reshape(2, 2) for step, *rest in lines}
        if not self.weights:
            raise RecordError(f"{storage.file('weights.txt')}: holds no step")
        self.steps, self.shapes = sorted(self.weights), {"layers.3.q_proj": (2, 2)}

    def weight(self, module, step, dtype=None):
        self.check(module, step)
        return self.weights[step].to(dtype or torch.float32)

    def state(self, module, step):
        return {"weight": self.weight(module, step)}

    def base(self, module):
        return torch.eye(2)

    @property
    def base_from(self):
        return self.where


@pytest.fixture
def folder(tmp_path, monkeypatch):
    entry = Format(
        lambda location: location.has("weights.txt"), lambda location, base, all: TextSource(location.storage)
    )
    monkeypatch.setattr("deltaw.analysis.records.open.FORMATS", [*FORMATS, entry])
    (tmp_path / "weights.txt").write_text("1 1 0 0 2\n7 3 0 0 4\n")
    return tmp_path


def test_a_format_from_outside_is_opened_and_measured(folder):
    run = Trajectory.open(folder)
    assert (run.source.format, run.steps, run.modules) == ("text", [1, 7], ["layers.3.q_proj"])
    rows = run.changes("base", axes=["row"])
    assert rows.delta_m.tolist() == [0.5, 2.5]  # row norms 1, 2 and 3, 4, against 1, 1
    assert (rows.layer[0], rows.kind[0]) == (3, "query")
    assert run.spectra()["rank"].tolist() == [1, 2]


def test_a_format_from_outside_is_inspected(folder):
    shown = CliRunner().invoke(command, [str(folder)])
    assert shown.exit_code == 0, shown.output
    assert "text" in shown.output
    assert "2, from 1 to 7" in shown.output
    assert CliRunner().invoke(command, [str(folder), "--quick", "--json"]).exit_code == 0


def test_its_errors_are_the_projects_own(folder):
    (folder / "weights.txt").write_text("")
    with pytest.raises(RecordError, match="holds no step"):
        Trajectory.open(folder)


def test_a_record_of_a_peft_model_has_the_names_of_its_adapter(tmp_path):
    """Old records too, which have PEFT's prefix, and torch.compile's, in their files."""
    import peft
    from torch import nn

    from deltaw.trainers import Recorder

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 2))
    model = peft.get_peft_model(net, peft.LoraConfig(r=2, target_modules=["0", "1"], init_lora_weights=False))
    with Recorder(model, tmp_path / "run") as recorder:
        recorder.record(0)
    assert (tmp_path / "run" / "manifest.json").read_text().count("base_model.model.") >= 2
    model.save_pretrained(tmp_path / "adapter")
    run, adapter = Trajectory.open(tmp_path / "run"), Trajectory.open(tmp_path / "adapter")
    assert run.modules == adapter.modules == ["0", "1"]
    for module in run.modules:
        torch.testing.assert_close(run.update(module, 0), adapter.update(module, 0))
        assert run.base(module).shape == run.shape(module)
    assert set(run.spectra().module) == {"0", "1"}
    with Recorder(model, tmp_path / "run", resume=True) as recorder:
        recorder.record(1)
    assert Trajectory.open(tmp_path / "run").steps == [0, 1]
