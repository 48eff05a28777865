"""``RecorderCallback(report=True)`` leaves a report in the run's folder, and never fails a training that has ended."""

import logging

import pytest
import torch
from torch import nn

from deltaw.adapters import LoRA, inject
from deltaw.analysis.report import write
from deltaw.analysis.trajectory import Trajectory
from deltaw.trainers import RecorderCallback

transformers = pytest.importorskip("transformers")


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.query = nn.Linear(6, 2)

    def forward(self, x, labels=None):
        out = self.query(x)
        return {"loss": nn.functional.cross_entropy(out, labels), "logits": out}


def train(tmp_path, **options):
    generator = torch.Generator().manual_seed(0)
    data = [{"x": torch.randn(6, generator=generator), "labels": torch.tensor(k % 2)} for k in range(32)]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=4, report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True
    )
    model = inject(Model(), LoRA(rank=2), targets=["query"])
    transformers.Trainer(
        model, arguments, train_dataset=data, callbacks=[RecorderCallback(tmp_path / "run", **options)]
    ).train()
    return tmp_path / "run"


def test_the_report_lies_beside_the_record(tmp_path):
    run = train(tmp_path, report=True)
    assert "Content-Security-Policy" in (run / "report.html").read_text(encoding="utf-8")
    opened = Trajectory.open(run)
    assert opened.steps[-1] == 4
    assert opened.verify() > 0


def test_without_it_there_is_none(tmp_path):
    assert not (train(tmp_path) / "report.html").exists()


def test_a_report_that_fails_is_said_and_no_more(tmp_path, monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("no room")

    monkeypatch.setattr(write, "report", fail)
    with caplog.at_level(logging.WARNING, logger="deltaw"):
        run = train(tmp_path, report=True)
    assert "the report could not be written: no room" in caplog.text
    assert Trajectory.open(run).steps[-1] == 4
