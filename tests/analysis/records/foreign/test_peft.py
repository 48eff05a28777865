"""Every type of PEFT's adapters: our W' from the saved folder against the forward of PEFT's own layer."""

import copy
import json

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from deltaw.adapters import RecordError
from deltaw.adapters.peft.formulas.table import FORMULAS, REFUSED
from deltaw.analysis import Trajectory, changes
from deltaw.analysis.records.foreign import peft as peft_source
from deltaw.analysis.records.foreign.peft_settings import NOT_READ

peft = pytest.importorskip("peft")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.value, self.key = nn.Linear(12, 8), nn.Linear(8, 12), nn.Linear(12, 12)

    def forward(self, x):
        return self.key(self.value(self.query(x)))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Block(), Block()])
        self.classifier = nn.Linear(12, 3)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.classifier(x)


def config(name, **options):
    options.setdefault("target_modules", ["query", "value", "key"])
    return lambda: getattr(peft, name)(**options)


# By type of PEFT, then what tells two of one type apart. What PEFT computes in float32 itself has a wider tolerance.
CASES = {
    "LORA": config("LoraConfig", r=2, lora_alpha=3),
    "LORA rslora patterns": config(
        "LoraConfig", r=2, lora_alpha=3, use_rslora=True,
        rank_pattern={"layers.1.query": 3, r"layers\.0\.(key|value)": 4}, alpha_pattern={"query": 7},
    ),
    "LORA dora": config("LoraConfig", r=2, lora_alpha=3, use_dora=True),
    "LORA dora rslora": config("LoraConfig", r=2, use_dora=True, use_rslora=True),
    "LORA pissa": config("LoraConfig", r=2, lora_alpha=3, init_lora_weights="pissa"),
    "LORA pissa dora": config("LoraConfig", r=2, use_dora=True, init_lora_weights="pissa"),
    "LORA olora": config("LoraConfig", r=2, lora_alpha=3, init_lora_weights="olora"),
    "LORA orthogonal": config("LoraConfig", r=2, init_lora_weights="orthogonal"),
    "LORA gaussian": config("LoraConfig", r=2, init_lora_weights="gaussian"),
    "LORA mica": config("LoraConfig", r=2, init_lora_weights="mica"),
    "LORA velora": lambda: peft.LoraConfig(
        r=2, lora_alpha=3, target_modules=["query", "value", "key"],
        velora_config=peft.tuners.lora.config.VeloraConfig(num_groups=4),
    ),
    "LORA monteclora": lambda: peft.LoraConfig(
        r=2, lora_alpha=3, target_modules=["query", "value", "key"],
        monteclora_config=peft.tuners.lora.config.MontecloraConfig(),
    ),
    "LORA bias": config("LoraConfig", r=2, lora_bias=True, bias="lora_only"),
    "ADALORA": config("AdaLoraConfig", init_r=4, target_r=2, total_step=10),
    "LOHA": config("LoHaConfig", r=2, alpha=3, alpha_pattern={"layers.1.query": 5}),
    "LOKR": config("LoKrConfig", r=2, alpha=3),
    "LOKR small": config("LoKrConfig", r=1, alpha=3, decompose_both=True, decompose_factor=4),
    "VERA": config("VeraConfig", r=4),
    "PVERA": config("PveraConfig", r=4),
    "VERA drawn": config("VeraConfig", r=4, save_projection=False, projection_prng_key=5),
    "PVERA drawn": config("PveraConfig", r=4, save_projection=False),
    "RANDLORA": config("RandLoraConfig", r=3),
    "HIRA": config("HiraConfig", r=2),
    "DELORA": config("DeloraConfig", r=2),
    "GRALORA": config("GraloraConfig", r=4, gralora_k=2),
    "GRALORA hybrid": config("GraloraConfig", r=4, gralora_k=2, hybrid_r=2, alpha=5),
    "VBLORA": config("VBLoRAConfig", r=2, num_vectors=20, vector_length=2, topk=3),
    "VBLORA top only": config("VBLoRAConfig", r=2, num_vectors=20, vector_length=2, save_only_topk_weights=True),
    "UNILORA": config("UniLoraConfig", r=2, theta_d_length=30, save_indices=True),
    "UNILORA drawn": config("UniLoraConfig", r=2, theta_d_length=30),
    "UNILORA drawn few": config(
        "UniLoraConfig", r=3, theta_d_length=1000, proj_seed=7, target_modules=r".*\.(query|value|key)"
    ),
    "TINYLORA drawn": config("TinyLoraConfig", r=2, u=3, weight_tying=0.5, save_projection=False),
    "TINYLORA": config("TinyLoraConfig", r=2, u=3),
    "TINYLORA tied": config("TinyLoraConfig", r=2, u=3, weight_tying=0.5),
    "OFT": config("OFTConfig", r=0, oft_block_size=4),
    "OFT exact shared": config("OFTConfig", r=0, oft_block_size=4, use_cayley_neumann=False, block_share=True),
    "OFT constrained": config("OFTConfig", r=0, oft_block_size=4, coft=True, eps=0.05),
    "BOFT": config("BOFTConfig", boft_block_size=4),
    "HRA": config("HRAConfig", r=4),
    "HRA orthogonal": config("HRAConfig", r=3, apply_GS=True, init_weights=False),
    "ROAD": config("RoadConfig", variant="road_1", group_size=4),
    "ROAD 2": config("RoadConfig", variant="road_2", group_size=4),
    "ROAD 4": config("RoadConfig", variant="road_4", group_size=4),
    "PSOFT": config("PsoftConfig", r=3),
    "PSOFT neumann pissa": config("PsoftConfig", r=3, use_cayley_neumann=True, ab_svd_init="pissa_init"),
    "PSOFT free": config("PsoftConfig", r=3, psoft_orth=False, psoft_mag_a=False),
    "IA3": config("IA3Config", feedforward_modules=["value", "key"]),
    "MISS": config("MissConfig", r=5),
    "MISS bat": config("MissConfig", r=4, init_weights="bat"),
    "MISS mini": config("MissConfig", r=4, mini_r=2, init_weights="mini"),
    "SHIRA": config("ShiraConfig", r=2),
    "SUPERTUNING": config("SupertuningConfig", sparsity=0.8),
    "SUPERTUNING supra": config("SupertuningConfig", sparsity=0.8, r=2, save_precomputed_indices=False),
    "FOURIERFT": config("FourierFTConfig", n_frequency=20),
    "WAVEFT": config("WaveFTConfig", n_frequency=20),
    "WAVEFT direct": config("WaveFTConfig", n_frequency=20, use_idwt=False),
    **{
        f"WAVEFT {name}": config("WaveFTConfig", n_frequency=20, wavelet_family=name)
        for name in ("db2", "db7", "sym3", "sym10", "coif1", "coif4")
    },
    "C3A": config("C3AConfig", block_size=4),
    "DEFT": config("DeftConfig", r=2),
    "DEFT qr alpha": config("DeftConfig", r=2, decomposition_method="qr", alpha=3),
    "DEFT para": config("DeftConfig", r=2, para=True),
    "GLORA": config("GloraConfig", r=2),
    "GLORA vector": config("GloraConfig", r=2, config_A_B="vector"),
    "GLORA constant": config("GloraConfig", r=2, config_A_B="constant"),
    "PEANUT": config("PeanutConfig", r=2, depth=2),
    "PEANUT shallow": config("PeanutConfig", r=2, depth=0, act_fn="gelu"),
    "POLY": config("PolyConfig", r=2, n_skills=3),
    "POLY splits": config("PolyConfig", r=2, n_skills=3, n_splits=2),
    "FROD": config("FrodConfig", sparse_rate=0.1, progressbar=False),
    "ADAMSS": config("AdamssConfig", r=5, num_subspaces=3, subspace_rank=2),
    **{
        f"PEANUT {name}": config("PeanutConfig", r=2, depth=2, act_fn=name)
        for name in ("relu6", "leaky_relu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "swish", "mish", "linear")
    },
    "OSF": config("OSFConfig", effective_rank=4),
}  # fmt: skip
# In float32 inside PEFT: transforms, the start's decomposition of W₀, projections.
FLOAT32 = (
    "C3A",
    "DEFT",
    "FOURIERFT",
    "FROD",
    "LORA pissa",
    "LORA olora",
    "OFT constrained",
    "OSF",
    "PSOFT",
    "VBLORA top",
)
FORMED = ("LORA dora", "LORA pissa dora", "IA3")  # W' = diag(ρ) (W₀ + U V) diag(γ), while ΔW is no product
NEEDS_NO_BASE = ("LORA", "ADALORA", "LOHA", "LOKR", "DELORA", "GRALORA", "UNILORA", "C3A")


def perturbed(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def own_weight(layer, inputs):
    """What the layer multiplies with: its forward of the identity, less that of zero."""
    x = torch.eye(inputs, dtype=torch.float64)
    if hasattr(layer, "poly_router"):
        tasks = torch.zeros(1, dtype=torch.long)
        return own_weight(lambda x: layer(x[None], task_ids=tasks)[0], inputs)
    if hasattr(layer, "adamss_A"):
        layer.dtype = torch.float64
    with torch.no_grad():
        return (layer(x) - layer(torch.zeros_like(x[:1]))).T


@pytest.mark.filterwarnings("ignore")  # PEFT's own, of its own doing
@pytest.mark.parametrize("case", CASES)
def test_every_type_against_its_own_forward(case, tmp_path):
    torch.manual_seed(0)
    net = Net()
    base = copy.deepcopy(net)
    model = perturbed(peft.get_peft_model(net, CASES[case]()))
    model.save_pretrained(tmp_path)
    model = model.double().eval()
    run = Trajectory.open(tmp_path, base=base)
    assert len(run.modules) == 6
    tolerance = 1e-5 if case.startswith(FLOAT32) else 1e-13
    for name in run.modules:
        theirs = own_weight(model.base_model.model.get_submodule(name), run.shape(name)[1])
        before = base.get_submodule(name).weight.detach().double()
        size = float((theirs - before).abs().max())
        assert size > 1e-6  # there is something to read
        assert float((run.weight(name, 0, torch.float64) - theirs).abs().max()) <= tolerance * max(size, 1)
        update = run.update(name, 0)
        assert float((update - (theirs - before)).abs().max()) <= tolerance * max(size, 1)
        assert run.weight(name, 0).dtype == torch.float32
        torch.testing.assert_close(run.weight(name, 0).double(), theirs, rtol=1e-4, atol=1e-4)
        factors = run.factors(name, 0, torch.float64)
        if factors is not None:
            torch.testing.assert_close(factors[0] @ factors[1], update, rtol=1e-12, atol=1e-12)
            U, V, scaling = run.source.scaled_factors(name, 0)
            torch.testing.assert_close(scaling * U.double() @ V.double(), update, rtol=1e-12, atol=1e-12)
            assert U.dtype == torch.float32 or case not in ("LORA", "LORA rslora patterns")  # as it is stored
        form = run.source.scaled_low_rank(name, 0, run.base(name).float())
        assert (form is not None) == (factors is not None or case.startswith(FORMED))
        if form is not None:
            built = form.rho[:, None] * (before + form.U @ form.V) * form.gamma
            torch.testing.assert_close(built, run.weight(name, 0, torch.float64), rtol=1e-12, atol=1e-13)
    assert len(run.spectra()) == 6
    if case.split()[0] in NEEDS_NO_BASE and not any(word in case for word in ("dora", "pissa", "olora", "drawn")):
        alone = Trajectory.open(tmp_path)
        for name in alone.modules:
            assert torch.equal(alone.update(name, 0), run.update(name, 0))
        assert (alone.spectra()["rank"] == run.spectra()["rank"]).all()
        with pytest.raises(RecordError, match="base=FOLDER"):
            alone.weight(alone.modules[0], 0)
        with pytest.raises(RecordError, match="base=FOLDER"):
            alone.changes("base")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size", [3e-6, 1e-3, 1.0])
@pytest.mark.parametrize("case", ["LORA", "LORA dora", "LORA pissa", "IA3", "ADALORA", "DELORA", "VERA"])
def test_changes_are_those_of_the_matrices(case, size, tmp_path):
    """No W' is made; from ΔD = 1e-12 to 1."""
    torch.manual_seed(0)
    net = Net()
    base = copy.deepcopy(net)
    model = perturbed(peft.get_peft_model(net, CASES[case]()))
    for step in range(1, 4):
        model.save_pretrained(tmp_path / f"checkpoint-{step}")
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += size * torch.randn(parameter.shape) * (parameter.abs().mean() + 0.01)
    run = Trajectory.open(tmp_path, base=base)
    dense, source = {}, run.source
    for module in run.modules:
        assert source.scaled_low_rank(module, 2, run.base(module).float()) is not None
        for pair in ((None, 2), (1, 2), (2, 3)):
            dense[(module, *pair)] = changes(*(run.weight(module, step, torch.float64) for step in pair))
    run.source.weight = None  # not looked at
    seen = 0
    for row in run.changes([(None, 2), (1, 2), (2, 3)], cache=False).itertuples():
        start = None if pd.isna(row.step_from) else row.step_from
        want = dense[row.module, start, row.step_to][row.axis]
        assert row.delta_m == pytest.approx(want.delta_m, rel=1e-5, abs=1e-13)
        if want.delta_d >= 1e-12:
            assert row.delta_d == pytest.approx(want.delta_d, rel=1e-5)
            seen += 1
    assert seen >= 12


def test_every_type_of_peft_is_read_or_refused_by_name(tmp_path):
    kinds = {kind.value for kind in peft.PeftType}
    assert kinds <= set(FORMULAS) | set(REFUSED)
    assert {case.split()[0] for case in CASES} == set(FORMULAS)
    for kind in (*REFUSED, "SOMETHING", 3, None):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": kind}))
        with pytest.raises(RecordError, match=str(kind)) as caught:
            Trajectory.open(tmp_path)
        assert "\n" not in str(caught.value)
    for option in NOT_READ:
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", option: [1]}))
        with pytest.raises(RecordError, match=option) as caught:
            Trajectory.open(tmp_path)
        assert "no one W'" in str(caught.value) or "no W'" in str(caught.value)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "POLY", "n_tasks": 8}))
    with pytest.raises(RecordError, match=r"n_tasks is 8.*no one W'"):
        Trajectory.open(tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dora", [False, True])
def test_conv1d_turned_and_split(dora, tmp_path):
    """GPT-2: fan_in_fan_out, and c_attn holds query, key and value."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_embd=12, n_layer=2, n_head=3, vocab_size=30, n_positions=16))
    model.save_pretrained(tmp_path / "base")
    base = copy.deepcopy(model)
    adapted = peft.get_peft_model(
        model,
        peft.LoraConfig(r=2, use_dora=dora, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True),
    )
    perturbed(adapted).save_pretrained(tmp_path / "adapter")
    adapted = adapted.double().eval()
    whole = "transformer.h.1.attn.c_attn"
    theirs = own_weight(adapted.base_model.model.get_submodule(whole), 12)
    for given in (tmp_path / "base", base):
        run = Trajectory.open(tmp_path / "adapter", base=given)
        assert not any(module.endswith("c_attn") for module in run.modules)
        assert set(run.changes("base").kind) == {"query", "key", "value", "output", "down"}
        parts = [run.weight(f"{whole}.{part}", 0, torch.float64) for part in ("query", "key", "value")]
        torch.testing.assert_close(torch.cat(parts), theirs, rtol=1e-12, atol=1e-12)
        for row in run.changes("base", cache=False).itertuples():  # no W' is made, of a part neither
            assert run.source.scaled_low_rank(row.module, 0, run.base(row.module)) is not None
            want = changes(run.base(row.module), run.weight(row.module, 0, torch.float64), row.axis)[row.axis]
            assert (row.delta_m, row.delta_d) == pytest.approx((want.delta_m, want.delta_d), rel=1e-9)
        if not dora:
            U, V = run.factors(f"{whole}.key", 0, torch.float64)
            torch.testing.assert_close(U @ V, run.update(f"{whole}.key", 0), rtol=1e-12, atol=1e-12)
        left_whole = Trajectory.open(tmp_path / "adapter", base=given, split=False)
        torch.testing.assert_close(left_whole.weight(whole, 0, torch.float64), theirs, rtol=1e-12, atol=1e-12)
    if not dora:  # it can be told from the shapes alone that c_attn is three
        alone = Trajectory.open(tmp_path / "adapter")
        assert f"{whole}.query" in alone.modules


@pytest.mark.filterwarnings("ignore")
def test_checkpoints_with_modules_to_save(tmp_path):
    torch.manual_seed(0)
    net = Net()
    base = copy.deepcopy(net)
    model = peft.get_peft_model(net, config("LoraConfig", r=2, modules_to_save=["classifier"])())
    wanted = {}
    for step in (5, 10):
        perturbed(model, step).save_pretrained(tmp_path / f"checkpoint-{step}")
        wanted[step] = model.base_model.model.classifier.modules_to_save["default"].weight.detach().clone()
    (tmp_path / "checkpoint-10" / "trainer_state.json").write_text(
        json.dumps({"global_step": 10, "log_history": [{"step": 5, "loss": 2.0}, {"step": 10, "loss": 1.0}]})
    )
    run = Trajectory.open(tmp_path, base=base)
    assert run.steps == [5, 10]
    assert list(run.scalars().loss) == [2.0, 1.0]
    assert torch.equal(run.weight("classifier", 10), wanted[10])
    frame = run.changes("base")
    assert set(frame[frame.module == "classifier"].method) == {"ft"}
    assert set(frame[frame.module != "classifier"].method) == {"lora"}
    assert torch.equal(run.base("classifier"), base.classifier.weight)
    alone = Trajectory.open(tmp_path)
    assert (alone.spectra(modules=["layers.*"])["rank"] == 2).all()
    for module in ("classifier", "layers.0.query"):
        with pytest.raises(RecordError, match="base=FOLDER"):
            alone.changes("initial" if module != "classifier" else "base", modules=[module])


@pytest.mark.filterwarnings("ignore")
def test_a_start_from_data_is_read_with_checkpoint_zero(tmp_path):
    """CorDA, LoftQ and the like take a part out of the base that nobody can make again; a checkpoint-0 holds it."""
    torch.manual_seed(0)
    net = Net()
    base = copy.deepcopy(net)
    model = peft.get_peft_model(net, config("LoraConfig", r=2, lora_alpha=3, init_lora_weights="pissa_niter_4")())
    model.save_pretrained(tmp_path / "run" / "checkpoint-0")
    perturbed(model).save_pretrained(tmp_path / "run" / "checkpoint-7")
    model = model.double().eval()
    run = Trajectory.open(tmp_path / "run", base=base)
    for name in run.modules:
        theirs = own_weight(model.base_model.model.get_submodule(name), run.shape(name)[1])
        torch.testing.assert_close(run.weight(name, 7, torch.float64), theirs, rtol=0, atol=1e-6)
        assert float(run.update(name, 0).abs().max()) < 1e-15
    with pytest.raises(RecordError, match="path_initial_model_for_weight_conversion"):
        Trajectory.open(tmp_path / "run" / "checkpoint-7", base=base).update(run.modules[0], 7)


@pytest.mark.filterwarnings("ignore")
def test_kasa_truncates_the_base(tmp_path):
    from peft.tuners.lora.config import KasaConfig

    torch.manual_seed(0)
    net = Net()
    base = copy.deepcopy(net)
    model = peft.get_peft_model(net, config("LoraConfig", r=2, kasa_config=KasaConfig())())
    perturbed(model).save_pretrained(tmp_path)
    model = model.double().eval()
    run = Trajectory.open(tmp_path, base=base)
    for name in run.modules:
        theirs = own_weight(model.base_model.model.get_submodule(name), run.shape(name)[1])
        torch.testing.assert_close(run.weight(name, 0, torch.float64), theirs, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_what_does_not_go_together_is_named(tmp_path):
    torch.manual_seed(0)
    model = perturbed(peft.get_peft_model(Net(), CASES["LORA"]()))
    model.save_pretrained(tmp_path)
    wrong = {name: tensor[:, :-1].contiguous() if "lora_B" in name else tensor for name, tensor in
             load_file(tmp_path / "adapter_model.safetensors").items()}  # fmt: skip
    save_file(wrong, tmp_path / "adapter_model.safetensors")
    with pytest.raises(RecordError, match="do not go together"):
        Trajectory.open(tmp_path).update("layers.0.query", 0)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    for pattern in ("(", r"(a)\1", "(?<=a)b", "((a{1000}){1000}){1000}"):
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings | {"alpha_pattern": {pattern: 3}}))
        with pytest.raises(RecordError, match="pattern"):
            Trajectory.open(tmp_path).update("layers.0.query", 0)
    for pattern in ("(a+)+b", ".*.*.*.*.*x", "(?P<x>a)"):  # once too costly, now answered: they fit no layer
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings | {"alpha_pattern": {pattern: 3}}))
        with pytest.raises(RecordError, match="do not go together"):
            Trajectory.open(tmp_path).update("layers.0.query", 0)
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings | {"lora_alpha": "many"}))
    with pytest.raises(RecordError, match="lora_alpha"):
        Trajectory.open(tmp_path).update("layers.0.query", 0)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(RecordError, match=r"no adapter_model\.safetensors"):
        Trajectory.open(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_a_path_in_the_configuration_is_not_followed(tmp_path):
    """Only a name of the Hub is looked up, in the cache; a path is a stranger's word."""
    torch.manual_seed(0)
    model = perturbed(peft.get_peft_model(Net(), CASES["HIRA"]()))
    model.save_pretrained(tmp_path / "adapter")
    (tmp_path / "base").mkdir()
    save_file({k: v.contiguous() for k, v in Net().state_dict().items()}, tmp_path / "base" / "model.safetensors")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(tmp_path / "base")}))
    run = Trajectory.open(tmp_path / "adapter")
    with pytest.raises(RecordError, match=r"it names .*base.*base=FOLDER"):
        run.update("layers.0.query", 0)
    assert Trajectory.open(tmp_path / "adapter", base=tmp_path / "base").update("layers.0.query", 0).any()


@pytest.mark.filterwarnings("ignore")
def test_a_base_for_the_shape_alone_and_from_the_cache(tmp_path, monkeypatch):
    torch.manual_seed(0)
    net = Net()
    state = {key: value.clone() for key, value in net.state_dict().items()}
    perturbed(peft.get_peft_model(net, CASES["VERA"]())).save_pretrained(tmp_path / "adapter")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(RecordError, match="does not tell the shape"):
        Trajectory.open(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "org/net"}))
    folder = tmp_path / "hub" / "models--org--net"
    (folder / "snapshots" / "0a1b").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0a1b")
    save_file(state, folder / "snapshots" / "0a1b" / "model.safetensors")
    run = Trajectory.open(tmp_path / "adapter")  # a name of the Hub that is in the cache
    given = Trajectory.open(tmp_path / "adapter", base=state)
    assert torch.equal(run.weight("layers.1.value", 0), given.weight("layers.1.value", 0))


@pytest.mark.filterwarnings("ignore")
def test_adalora_with_pruned_ranks(tmp_path):
    torch.manual_seed(0)
    net = Net()
    base = copy.deepcopy(net)
    model = peft.get_peft_model(net, CASES["ADALORA"]())
    perturbed(model)
    kept = {
        f"{name.removeprefix('base_model.model.')}.lora_E": [True, False, True, True]
        for name, module in model.named_modules() if hasattr(module, "lora_E")
    }  # fmt: skip
    model.peft_config["default"].rank_pattern = kept
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).double().eval()
    run = Trajectory.open(tmp_path, base=base)
    for name in run.modules:
        theirs = own_weight(loaded.base_model.model.get_submodule(name), run.shape(name)[1])
        torch.testing.assert_close(run.weight(name, 0, torch.float64), theirs, rtol=0, atol=1e-13)
    assert (run.spectra()["rank"] == 3).all()


@pytest.mark.parametrize(("names", "times"), [(peft_source.OPEN_NAMES, 1), (1, 6)])
def test_a_table_reads_each_header_once_where_all_can_be_kept(names, times, tmp_path, monkeypatch):
    model = peft.get_peft_model(Net(), CASES["LORA"]())
    for step in (10, 20, 30, 40):
        perturbed(model, step).save_pretrained(tmp_path / f"checkpoint-{step}")
    read, seen = peft_source.read_adapter, []
    monkeypatch.setattr(peft_source, "OPEN_NAMES", names)
    monkeypatch.setattr(
        peft_source, "read_adapter", lambda place, *given: (seen.append(place.where), read(place, *given))[1]
    )
    run = Trajectory.open(tmp_path)
    assert len(run.spectra(cache=False)) == 4 * len(run.modules) == 24
    assert max(map(seen.count, seen)) == times
