"""Methods that the optimizer has a part in: LoRA+'s two learning rates, GaLore's projected gradients."""

import sys

import pytest
import torch
from torch import nn
from transformers import TrainerCallback

from deltaw.adapters import (
    DataError,
    GaLore,
    LoRA,
    LoRAPlus,
    OptionError,
    TargetError,
    adapted,
    create,
    galore_optimizer,
    inject,
    parameter_groups,
)
from deltaw.analysis import Trajectory
from deltaw.trainers import fine_tuning as experiment
from deltaw.trainers.cola import ColaSettings, train_cola
from deltaw.trainers.cola.data import BUILTIN


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 11), nn.Tanh(), nn.Linear(11, 5)).double()


def settings(small, method, **options):
    chosen = {"epochs": 2, "batch_size": 16, "record_every": 1, "learning_rate": 1e-3} | options
    return ColaSettings(method=method, model=str(BUILTIN / "model"), data=str(small), **chosen)


def test_lora_plus_moves_b_at_lambda_times_the_rate():
    model = inject(small_model(), LoRAPlus(rank=3, lr_ratio=5.0), targets=["0"], trainable=["2"])
    layer = adapted(model)["0"]
    with torch.no_grad():
        layer.tensor("lora_B").normal_(generator=torch.Generator().manual_seed(1))
    groups = parameter_groups(model, 0.1)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)  # each in exactly one
    optimizer = torch.optim.SGD(groups, lr=99.0)
    model(torch.randn(4, 7, dtype=torch.float64)).square().sum().backward()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.step()
    for name, p in model.named_parameters():
        if p.requires_grad:
            rate = 0.5 if name == "0.lora_B" else 0.1
            torch.testing.assert_close(p.detach(), before[name] - rate * p.grad)
        else:
            assert torch.equal(p, before[name])


def test_groups_of_a_model_without_factors_are_one_rate():
    model = inject(small_model(), LoRA(rank=3), targets=["0"], trainable=["2"])
    groups = parameter_groups(model, 0.1, weight_decay=0.01)
    assert [(g["lr"], g["weight_decay"], len(g["params"])) for g in groups] == [(0.1, 0.01, 3), (0.1, 0.0, 1)]
    assert [len(g["params"]) for g in parameter_groups(small_model(), 0.1)] == [4]


@pytest.mark.parametrize("ratio", [0, -1.0, float("inf"), float("nan")])
def test_bad_ratio(ratio):
    with pytest.raises(OptionError, match="lr_ratio"):
        LoRAPlus(lr_ratio=ratio)


def test_lora_plus_in_the_trainer_follows_the_schedule(small, tmp_path, monkeypatch):
    rates = []

    class Spy(TrainerCallback):
        def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
            rates.append({group["lr"] for group in optimizer.param_groups})

    trainer = experiment.MethodTrainer
    monkeypatch.setattr(
        experiment, "MethodTrainer", lambda *, callbacks, **kwargs: trainer(callbacks=[*callbacks, Spy()], **kwargs)
    )
    chosen = settings(small, "lora+", options={"lr_ratio": 4.0}, warmup_ratio=0.0)
    train_cola(chosen, tmp_path / "run", progress=False)
    expected = [1e-3 * (6 - step) / 6 for step in range(6)]
    for seen, rate in zip(rates, expected, strict=True):
        assert sorted(seen) == pytest.approx([rate, 4 * rate])
    logged = Trajectory.open(tmp_path / "run").scalars()["learning_rate"].dropna().tolist()
    assert logged == pytest.approx(expected)  # of A and of the head


@pytest.mark.parametrize("shape", [(11, 7), (7, 11), (9, 9)])
@pytest.mark.parametrize("kind", ["std", "reverse_std", "right", "left", "full"])
def test_galore_moves_its_targets_by_low_rank(kind, shape):
    pytest.importorskip("galore_torch")
    torch.manual_seed(0)
    rows, columns = shape
    model = nn.Sequential(nn.Linear(columns, rows), nn.Tanh(), nn.Linear(rows, columns)).double()
    method = GaLore(rank=2, update_proj_gap=3, proj_type=kind)
    assert inject(model, method, targets=["0"]) is model
    optimizer = galore_optimizer(model, method, ["0"], 1e-2)
    start = model[0].weight.detach().clone()
    for step in range(6):
        before = [layer.weight.detach().clone() for layer in (model[0], model[2])]
        optimizer.zero_grad()
        model(torch.randn(32, columns, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
        ranks = [
            torch.linalg.matrix_rank(layer.weight.detach() - old, rtol=1e-6).item()
            for layer, old in zip((model[0], model[2]), before, strict=True)
        ]
        assert ranks[0] == 2
        assert ranks[1] > 2  # is no target
        whole = torch.linalg.matrix_rank(model[0].weight.detach() - start, rtol=1e-6).item()
        assert whole == 2 if step < 3 and kind != "full" else whole <= 4  # a new projection, new directions
    assert whole == 4


def test_galore_of_one_entry_is_adamw_at_the_scaled_rate():
    pytest.importorskip("galore_torch")
    left, right = (nn.Sequential(nn.Linear(1, 1, bias=False)).double() for _ in range(2))
    right.load_state_dict(left.state_dict())
    projected = galore_optimizer(left, GaLore(rank=1, scale=0.5), ["0"], 1e-2)
    plain = torch.optim.AdamW(right.parameters(), lr=0.5e-2, weight_decay=0.0)
    for step in range(4):
        x = torch.full((1, 1), 1.0 + step, dtype=torch.float64)
        for layer, optimizer in ((left, projected), (right, plain)):
            optimizer.zero_grad()
            layer(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(left[0].weight, right[0].weight, rtol=1e-6, atol=0)


def test_galore_trains_all_weights_at_the_rate_of_full_fine_tuning(small):
    assert settings(small, "galore", learning_rate=None).rate() == settings(small, "ft", learning_rate=None).rate()
    assert create("galore").options() == {"rank": 8, "update_proj_gap": 200, "scale": 0.25, "proj_type": "std"}


@pytest.mark.parametrize(
    "bad", [{"rank": 0}, {"rank": 2.0}, {"update_proj_gap": 0}, {"scale": 0.0}, {"proj_type": "middle"}]
)
def test_galore_names_a_bad_option(bad):
    with pytest.raises(OptionError, match=next(iter(bad))):
        GaLore(**bad)


def test_galore_names_what_does_not_fit():
    pytest.importorskip("galore_torch")
    with pytest.raises(OptionError, match="from 1 to 7"):
        inject(small_model(), GaLore(rank=8), targets=["0"])
    with pytest.raises(OptionError, match="from 1 to 6"):
        inject(small_model(), GaLore(rank=7, proj_type="reverse_std"), targets=["0"])
    with pytest.raises(TargetError, match="nothing"):
        galore_optimizer(small_model(), GaLore(rank=2), ["nothing"], 0.1)


def test_galore_without_its_library_is_one_line_before_anything_is_written(small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "galore_torch", None)
    with pytest.raises(DataError, match=r"pip install 'deltaw\[galore\]'"):
        train_cola(settings(small, "galore"), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
