"""Each check finds what it is for, and a sound run passes them all."""

import json

import pytest
import torch
from torch import nn

from deltaw.adapters import METHODS, create, inject
from deltaw.analysis import Trajectory
from deltaw.analysis.inspection.inspect import inspect_run
from deltaw.analysis.inspection.soundness import soundness
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


def models(folder, *, steps=(0, 50, 100), seed=0, frozen=(), start_anew=(), size=128):
    """Checkpoints of a model of three matrices, each step a little further from W₀; returns W₀."""
    from safetensors.torch import save_file

    random = torch.Generator().manual_seed(seed)

    def matrices():
        return {f"layers.{k}.query.weight": torch.randn(size, size, generator=random) / 10 for k in range(3)}

    base, way, anew = matrices(), matrices(), matrices()
    for step in steps:
        path = folder / f"checkpoint-{step}"
        path.mkdir(parents=True)
        save_file(
            {
                name: (anew[name] if name in start_anew else value) + (name not in frozen) * step * 1e-3 * way[name]
                for name, value in base.items()
            },
            path / "model.safetensors",
        )
    return base


def base_findings(folder, base):
    found = soundness(Trajectory.open(folder, base=base))
    return found.broken, [finding for finding in found.findings if finding.check == "base"]


NAMES = [f"layers.{k}.query.weight" for k in range(3)]


@pytest.mark.parametrize(
    ("steps", "frozen"), [((0, 50, 100), ()), ((50, 100), ()), ((900,), ()), ((50, 100), NAMES[:1]), ((50, 100), NAMES)]
)
def test_whole_matrices_know_their_base(steps, frozen, tmp_path):
    base = models(tmp_path / "run", steps=steps, frozen=frozen)
    assert base_findings(tmp_path / "run", base)[1] == []
    assert base_findings(tmp_path / "run", {k: v.bfloat16() for k, v in base.items()})[1] == []
    foreign = models(tmp_path / "other", seed=1)
    broken, found = base_findings(tmp_path / "run", foreign)
    if frozen == NAMES:  # nothing moved: perhaps it was trained before, so nothing is known
        assert found == []
        return
    assert broken
    assert [(finding.level, finding.module) for finding in found] == [("broken", "")]
    assert "another base" in found[0].message


def test_small_matrices_are_judged_only_where_no_training_touched_them(tmp_path):
    models(tmp_path / "trained", steps=(50, 100), size=8)
    models(tmp_path / "start", size=8)
    foreign = models(tmp_path / "other", seed=1, size=8)
    assert base_findings(tmp_path / "trained", foreign) == (False, [])
    assert base_findings(tmp_path / "start", foreign)[0]


def test_a_layer_started_anew_and_another_version_of_the_base_are_warnings(tmp_path):
    base = models(tmp_path / "run", start_anew=NAMES[2:])
    broken, found = base_findings(tmp_path / "run", base)
    assert not broken
    assert [(finding.level, finding.module, finding.step) for finding in found] == [("warning", "layers.2.query", 0)]
    models(tmp_path / "frozen", steps=(50, 100), frozen=NAMES[:1])
    near = {name: 1.05 * value for name, value in base.items()}
    broken, found = base_findings(tmp_path / "frozen", near)
    assert not broken
    assert [(finding.level, finding.module) for finding in found] == [("warning", "layers.0.query")]


def test_modules_that_the_base_lacks(tmp_path):
    base = models(tmp_path / "run")
    broken, found = base_findings(tmp_path / "run", {k: v for k, v in base.items() if k != NAMES[1]})
    assert not broken
    assert [(finding.level, finding.module) for finding in found] == [("warning", "layers.1.query")]
    wide = {name: torch.cat([value, value]) for name, value in base.items()}
    for wrong in ({"another.weight": base[NAMES[0]]}, wide):
        broken, found = base_findings(tmp_path / "run", wrong)
        assert broken
        assert [(finding.level, finding.module) for finding in found] == [("broken", "")]


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_factors_that_start_from_another_base(start, tmp_path):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 24), nn.Linear(24, 32))
    base = {f"{k}.weight": model[k].weight.detach().clone() for k in (0, 1)}
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["0", "1"], init_lora_weights=start)
    adapted = peft.get_peft_model(model, config)
    for step in (0, 10):
        adapted.save_pretrained(tmp_path / "run" / f"checkpoint-{step}")
        for name, value in adapted.named_parameters():
            value.data += 0.1 * torch.randn_like(value) * value.abs().mean() * ("lora" in name)
    assert base_findings(tmp_path / "run", base)[1] == []
    broken, found = base_findings(tmp_path / "run", {name: torch.randn_like(value) for name, value in base.items()})
    assert broken
    assert {(finding.module, finding.step) for finding in found} == {("0", 0), ("1", 0)}


def test_copies_that_an_adapter_saves_whole(tmp_path):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8), nn.Linear(8, 6))
    base = {f"{k}.weight": model[k].weight.detach().clone() for k in (0, 1)}
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["0"], modules_to_save=["1"]))
    adapted.save_pretrained(tmp_path / "run" / "checkpoint-0")
    assert base_findings(tmp_path / "run", base) == (False, [])
    broken, found = base_findings(tmp_path / "run", {name: torch.randn_like(value) for name, value in base.items()})
    assert not broken  # it may be a head that was started anew
    assert [(finding.level, finding.module) for finding in found] == [("warning", "1")]


def test_a_recorded_base_that_was_changed_or_is_of_another_model(tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    folder, other = tmp_path / "run", tmp_path / "other"
    record(folder, "ft")
    other.mkdir()
    base = load_file(folder / "base.safetensors")
    save_file({f"{name}.weight": value.bfloat16() for name, value in base.items()}, other / "model.safetensors")
    assert main(["inspect", str(folder), "--base", str(other)]) == 0
    foreign = {f"{name}.weight": torch.randn_like(value) for name, value in base.items()}
    save_file(foreign, other / "model.safetensors")
    capsys.readouterr()
    assert main(["inspect", str(folder), "--base", str(other), "--json"]) == 1
    shown = capsys.readouterr()
    assert json.loads(shown.out)["broken"] is True
    assert "another base" in shown.err
    assert shown.err.count("\n") == 1
    save_file({name: value + 1 for name, value in base.items()}, folder / "base.safetensors")
    assert main(["inspect", str(folder)]) == 1
    assert "another checksum" in capsys.readouterr().err


def test_inspect_names_a_foreign_base(tmp_path, capsys):
    from safetensors.torch import save_file

    base = models(tmp_path / "run", steps=(50, 100))
    for name, tensors in (("right", base), ("wrong", models(tmp_path / "other", seed=1))):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
    assert main(["inspect", str(tmp_path / "run"), "--base", str(tmp_path / "right")]) == 0
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "run"), "--base", str(tmp_path / "wrong")]) == 1
    shown = capsys.readouterr()
    assert "is another base" in shown.err
    assert "nothing in common" in " ".join(shown.out.split())


def test_an_alpha_of_zero_is_said(tmp_path):
    peft = pytest.importorskip("peft")
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 6))
    base = {key: value.clone() for key, value in model.state_dict().items()}
    config = peft.LoraConfig(r=2, lora_alpha=0, target_modules=["0", "1"], init_lora_weights=False)
    peft.get_peft_model(model, config).save_pretrained(tmp_path)
    found = soundness(Trajectory.open(tmp_path, base=base))
    assert [(finding.level, finding.check) for finding in found.findings] == [("warning", "scale")] * 2
    assert "lora_alpha is 0" in found.findings[0].message
