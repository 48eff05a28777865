"""What is recorded of a layer, whoever made it: the true W' and W₀, and no trace left in the model."""

import sys

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from deltaw.adapters import LoRA, RecordError, TargetError, effective_weight, inject
from deltaw.analysis.trajectory import Trajectory
from deltaw.trainers import Recorder, every
from deltaw.trainers.recorded_layers import unwrapped

peft = pytest.importorskip("peft")


def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))


def with_peft(config, dtype=torch.float32):
    model = peft.get_peft_model(plain(), config).to(dtype)  # PiSSA starts in float32 only
    return model, model.base_model.model[0]


def moved(model, seed=1):
    """Every trainable parameter somewhere else."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))


def forward_weight(layer):
    """W' from the layer's own forward, in evaluation."""
    layer.eval()
    identity = torch.eye(6, dtype=torch.float64)
    with torch.no_grad():
        return (layer(identity) - layer(0 * identity)).T


LORA = {
    "lora": (peft.LoraConfig(r=2, lora_alpha=3, target_modules=["0"]), "lora"),
    "rslora": (peft.LoraConfig(r=2, lora_alpha=3, use_rslora=True, target_modules=["0"]), "rslora"),
    "dora": (peft.LoraConfig(r=2, lora_alpha=3, use_dora=True, target_modules=["0"]), "dora-row"),
    "pissa": (peft.LoraConfig(r=2, init_lora_weights="pissa", target_modules=["0"]), "pissa"),
    "olora": (peft.LoraConfig(r=2, init_lora_weights="olora", target_modules=["0"]), "pissa"),
    "random start": (peft.LoraConfig(r=2, init_lora_weights=False, target_modules=["0"]), "lora"),
    "patterns": (peft.LoraConfig(r=8, rank_pattern={"0": 2}, alpha_pattern={"0": 7}, target_modules=["0"]), "lora"),
}
OTHERS = {
    "pissa with dora": peft.LoraConfig(r=2, init_lora_weights="pissa", use_dora=True, target_modules=["0"]),
    "loha": peft.LoHaConfig(r=2, target_modules=["0"]),
    "lokr": peft.LoKrConfig(r=2, target_modules=["0"]),
    "vera": peft.VeraConfig(r=2, target_modules=["0"], projection_prng_key=0),
    "ia3": peft.IA3Config(target_modules=["0"], feedforward_modules=[]),
    "adalora": peft.AdaLoraConfig(init_r=3, target_r=2, total_step=10, target_modules=["0"]),
    "oft": peft.OFTConfig(r=0, oft_block_size=3, target_modules=["0"]),
}


@pytest.mark.parametrize("kind", LORA)
def test_peft_layers_of_a_known_method_are_recorded_as_their_tensors(kind, tmp_path):
    config, method = LORA[kind]
    model, layer = with_peft(config, torch.float64)
    origin = plain().double()[0].weight
    with Recorder(model, tmp_path / "run") as recorder:
        for step in range(3):
            recorder.record(step)
            moved(model, step)
    name = "0"  # without what PEFT puts before it
    run = Trajectory.open(tmp_path / "run")
    assert (run.method, run.modules) == (method, [name])
    exact = {"rtol": 0, "atol": 0} if method != "pissa" else {"rtol": 1e-6, "atol": 1e-6}  # PEFT's residual is rounded
    torch.testing.assert_close(run.base(name), origin, **exact)
    assert run.update(name, 2).norm() > 0.01
    assert "weight" not in run.state(name, 0)
    if kind != "dora":
        assert run.factors(name, 2)[0].shape[1] == (4 if method == "pissa" else 2)

    with Recorder(model, tmp_path / "last") as recorder:  # what PEFT's own forward makes of the last one
        recorder.record(0)
    last = Trajectory.open(tmp_path / "last")
    torch.testing.assert_close(last.weight(name, 0), forward_weight(layer), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", OTHERS)
def test_other_peft_layers_are_recorded_as_their_tensors_under_their_type(kind, tmp_path):
    torch.manual_seed(3)
    model, layer = with_peft(OTHERS[kind], torch.float64)
    origin = plain().double()[0].weight
    name = "0"  # without what PEFT puts before it
    with Recorder(model, tmp_path / "run") as recorder:
        recorder.record(0)
        moved(model)
        recorder.record(1)
    run = Trajectory.open(tmp_path / "run")
    whole = kind == "pissa with dora"  # PEFT changes W₀ below it
    assert run.method == ("peft" if whole else kind)
    assert ("weight" in run.state(name, 1)) == whole
    torch.testing.assert_close(run.base(name), origin, rtol=1e-6, atol=1e-6)  # OFT's own start is of float32
    torch.testing.assert_close(run.weight(name, 1), forward_weight(layer), rtol=1e-10, atol=1e-10)
    assert run.update(name, 1).norm() > 0.001


def test_two_adapters_at_once_are_recorded_as_their_effective_weight(tmp_path):
    model, layer = with_peft(LORA["random start"][0], torch.float64)
    model.add_adapter("second", LORA["random start"][0])
    model.base_model.set_adapter(["default", "second"])
    with Recorder(model, tmp_path / "run") as recorder:
        recorder.record(0)
    run = Trajectory.open(tmp_path / "run")
    assert set(run.state(run.modules[0], 0)) == {"weight"}
    torch.testing.assert_close(run.weight(run.modules[0], 0), forward_weight(layer), rtol=1e-6, atol=1e-7)


def test_a_peft_record_is_resumed(tmp_path):
    for kind in ("lora", "pissa"):
        model, _ = with_peft(LORA[kind][0])
        with Recorder(model, tmp_path / kind) as recorder:
            recorder.record(0)
            moved(model)
            recorder.record(1)
        with Recorder(model, tmp_path / kind, resume=True) as recorder:
            recorder.record(2)
        run = Trajectory.open(tmp_path / kind)
        assert run.steps == [0, 1, 2]
        assert torch.equal(run.weight(run.modules[0], 1), run.weight(run.modules[0], 2))
    model, layer = with_peft(LORA["lora"][0])
    with torch.no_grad():
        layer.base_layer.weight[0, 0] += 1
    with pytest.raises(RecordError, match="base of"), Recorder(model, tmp_path / "lora", resume=True):
        pass


def test_a_changed_scaling_is_told(tmp_path):
    model, layer = with_peft(LORA["lora"][0])
    with Recorder(model, tmp_path / "run") as recorder:
        recorder.record(0)
        layer.scale_layer(2.0)
        with pytest.raises(RecordError, match="scaling"):
            recorder.record(1)


def test_a_peft_layer_over_an_embedding_is_none_to_record(tmp_path):
    model = nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 5))
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["0", "1"]))
    with Recorder(model, tmp_path / "run") as recorder:
        assert list(recorder.modules) == ["base_model.model.1"]
    with pytest.raises(TargetError, match="matches nothing"):
        Recorder(model, tmp_path / "none", modules=["*.0"])


class Product(nn.Module):
    """A LoRA of one's own."""

    def __init__(self):
        super().__init__()
        self.A, self.B = nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.zeros(5, 2))

    def forward(self, weight):
        return weight + self.B @ self.A


class Noise(nn.Module):
    """A parametrization that draws random numbers, in training and in evaluation."""

    def forward(self, weight):
        return weight + 0 * torch.randn_like(weight)


def parametrized(kind):
    model = plain()
    if kind == "product":
        model[0].weight.requires_grad_(False)
        parametrize.register_parametrization(model[0], "weight", Product())
    elif kind == "noise":
        parametrize.register_parametrization(model[0], "weight", Noise())
    elif kind == "spectral":
        parametrizations.spectral_norm(model[0])
    elif kind == "weight norm":
        parametrizations.weight_norm(model[0])
    else:
        parametrizations.orthogonal(model[0])
    return model


def train(model, recorder=None):
    """The losses, each in one pass with its weights kept by ``parametrize.cached``, and everything at the end."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    torch.manual_seed(5)
    losses = []
    for step in range(1, 5):
        with parametrize.cached():
            loss = model(torch.randn(3, 6)).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if recorder is not None:
                recorder.step(step, loss=loss.item())
            model(torch.randn(3, 6))
        losses.append(loss.item())
    return losses, [value.clone() for value in model.state_dict().values()], torch.get_rng_state()


@pytest.mark.parametrize("kind", ["product", "noise", "spectral", "weight norm", "orthogonal"])
def test_parametrized_layers(kind, tmp_path):
    without = train(parametrized(kind))
    model = parametrized(kind)
    with Recorder(model, tmp_path / "run", ["0"]) as recorder:
        recorder.record(0)
        start = model.eval()[0].weight.detach().clone()
        model.train()
        losses, state, random = train(model, recorder)
    assert losses == without[0]
    assert all(map(torch.equal, state, without[1]))
    assert torch.equal(random, without[2])
    run = Trajectory.open(tmp_path / "run")
    assert torch.equal(run.base("0"), plain()[0].weight if kind == "product" else start)
    torch.testing.assert_close(run.weight("0", 4), model.eval()[0].weight.detach(), rtol=1e-6, atol=1e-7)
    assert run.update("0", 4).norm() > 0.001


def test_no_hook_no_mode_and_no_random_number_of_a_peft_layer_is_touched(tmp_path):
    torch.manual_seed(3)
    model, layer = with_peft(OTHERS["vera"])
    calls = []
    layer.register_forward_hook(lambda *_: calls.append(1))
    layer.register_forward_pre_hook(lambda *_: calls.append(2))
    layer.vera_dropout["default"].eval()
    modes = [module.training for module in model.modules()]
    before = torch.get_rng_state()
    with Recorder(model, tmp_path / "run") as recorder:
        recorder.record(0)
    assert not calls
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), before)
    layer(torch.ones(1, 6))
    assert calls == [2, 1]


def test_what_wraps_a_model_does_not_show_in_the_names(tmp_path):
    model = inject(plain(), LoRA(rank=2), targets=["0"])
    compiled = torch.compile(model, backend="eager")
    assert unwrapped(nn.DataParallel(compiled)) is model
    with Recorder(compiled, tmp_path / "run", when=every(2)) as recorder:
        assert list(recorder.modules) == ["0"]
        recorder.step(0)
    run = Trajectory.open(tmp_path / "run")
    assert torch.equal(run.weight("0", 0), effective_weight(model[0]))


def test_weights_that_are_cut_up_are_refused_where_nothing_puts_them_together(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    model = plain()
    model[0].weight = nn.Parameter(torch.empty(0))
    model[0].weight.ds_id = 1
    with pytest.raises(RecordError, match="ZeRO"):
        Recorder(model, tmp_path)
