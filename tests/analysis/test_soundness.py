"""Each check finds what it is for, and a sound run passes them all."""

import json

import pytest
import torch
from torch import nn

from deltaw.adapters import METHODS, create, inject
from deltaw.analysis import Trajectory
from deltaw.analysis.inspection import inspect_run
from deltaw.analysis.soundness import soundness
from deltaw.cli import main
from deltaw.trainers import Recorder


def record(folder, method="lora", *, change=None, train=True, steps=3):
    """Two layers, recorded at 0, 1, …; ``change(model, step)`` is called before a step is recorded."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"query": nn.Linear(12, 8), "value": nn.Linear(8, 12)})
    options = {"rank": 2} if "rank" in create(method).options() else {}
    context = {"query": torch.eye(12), "value": torch.eye(8)}
    inject(model, create(method, **options), targets=["query", "value"], context=context)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    with Recorder(model, folder, modules=["query", "value"], method=method) as recorder:
        for step in range(steps + 1):
            if step and train:
                model["value"](model["query"](torch.randn(16, 12))).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
            if change is not None:
                with torch.no_grad():
                    change(model, step)
            recorder.step(step)
    return Trajectory.open(folder)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "galore"])
def test_a_sound_run_has_no_findings(method, tmp_path):
    found = soundness(record(tmp_path / "run", method), every_step=True)
    assert found.findings == []
    assert not found.broken
    assert found.steps == [0, 1, 2, 3]
    assert len(found.precision) == 2 * 3  # modules × (float32, bfloat16, float16)
    assert (found.precision["entries"].between(0, 1)).all()


def checks(found):
    return [(finding.level, finding.check, finding.module, finding.step) for finding in found.findings]


def test_a_run_that_never_moved(tmp_path):
    found = soundness(record(tmp_path / "run", train=False), every_step=True)
    assert found.broken
    assert checks(found) == [
        ("broken", "zero update", "", 3),
        ("broken", "moved", "", 3),
        ("warning", "repeated step", "", 1),
        ("warning", "repeated step", "", 2),
        ("warning", "repeated step", "", 3),
    ]


def test_one_module_that_no_gradient_reached(tmp_path):
    def freeze(model, step):
        model["value"].requires_grad_(False)

    found = soundness(record(tmp_path / "run", change=freeze))
    assert not found.broken
    assert checks(found) == [("warning", "moved", "value", 3), ("warning", "zero update", "value", 3)]


def test_only_b_is_still_zero(tmp_path):
    def hold(model, step):
        model["query"].get_parameter("lora_B").zero_()

    found = soundness(record(tmp_path / "run", change=hold))
    assert ("warning", "zero update", "query", 3) in checks(found)
    assert "moved" not in {finding.check for finding in found.findings}


def test_magnitudes_that_stay(tmp_path):
    start = {}

    def hold(model, step):
        for name, value in model["query"].named_parameters():
            if "magnitude" in name:
                value.copy_(start.setdefault(name, value.clone()))

    found = soundness(record(tmp_path / "run", "dora", change=hold))
    assert checks(found) == [("warning", "magnitude", "query", 3)]


def test_weights_that_are_not_finite(tmp_path):
    def spoil(model, step):
        if step == 2:
            next(p for p in model["query"].parameters() if p.requires_grad).view(-1)[0] = float("nan")

    found = soundness(record(tmp_path / "run", change=spoil), every_step=True)
    assert found.broken
    assert checks(found)[0] == ("broken", "finite", "query", 2)
    assert set(found.precision["module"]) <= {"value"}


def test_weights_that_explode(tmp_path):
    def grow(model, step):
        if step == 2:
            for value in model["value"].parameters():
                value.mul_(1e4) if value.requires_grad else None

    found = soundness(record(tmp_path / "run", change=grow))
    assert ("warning", "exploding", "value", 2) in checks(found)


def test_a_base_that_is_not_the_adapters_own(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "run"
    record(folder, "dora")
    base = load_file(folder / "base.safetensors")
    base["query"] = 3 * base["query"]
    save_file(base, folder / "base.safetensors")
    found = soundness(Trajectory.open(folder))
    assert ("broken", "base", "query", 0) in checks(found)
    assert all(module != "value" for _, check, module, _ in checks(found) if check == "base")


def test_a_foreign_dora_is_known_by_its_magnitudes(tmp_path):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8))
    base = {"0.weight": model[0].weight.detach().clone()}
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["0"], use_dora=True))
    adapted.save_pretrained(tmp_path / "adapter")
    right = soundness(Trajectory.open(tmp_path / "adapter", base=base))
    assert "base" not in {finding.check for finding in right.findings}
    wrong = soundness(Trajectory.open(tmp_path / "adapter", base={"0.weight": 4 * base["0.weight"]}))
    assert ("broken", "base") in {(finding.level, finding.check) for finding in wrong.findings}


def test_inspect_ends_with_one_where_something_is_broken(tmp_path, capsys):
    record(tmp_path / "still", train=False)
    assert main(["inspect", str(tmp_path / "still")]) == 1
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1 or "is broken" in shown.err.splitlines()[-1]
    assert "every update is zero" in shown.out
    record(tmp_path / "moving")
    assert main(["inspect", str(tmp_path / "moving"), "--verify", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["broken"] is False
    assert found["verified"] == 5
    assert main(["inspect", str(tmp_path / "still"), "--quick"]) == 0


def test_a_foreign_folder_without_a_base(tmp_path):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    adapted = peft.get_peft_model(nn.Sequential(nn.Linear(12, 8)), peft.LoraConfig(r=2, target_modules=["0"]))
    torch.nn.init.normal_(adapted.base_model.model[0].lora_B["default"].weight)
    adapted.save_pretrained(tmp_path / "adapter")
    found = inspect_run(tmp_path / "adapter")
    assert found["format"] == "peft"
    assert found["base"] is None
    assert found["findings"] == []
    assert found["precision"] == []
