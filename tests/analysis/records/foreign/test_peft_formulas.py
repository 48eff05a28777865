"""What PEFT adapts beyond one plain layer each: parameters of experts, copied and numbered layers, saved choices."""

import copy
import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from deltaw.adapters import RecordError
from deltaw.analysis import Trajectory

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's own, of its own doing
SMALL = {
    "vocab_size": 30, "hidden_size": 12, "intermediate_size": 10, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 6, "max_position_embeddings": 32,
}  # fmt: skip
STACKS = ["experts.gate_up_proj", "experts.down_proj"]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.value, self.query, self.key = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(12, 12, bias=False)

    def forward(self, x):
        return self.key(self.value(self.query(x)))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(Block(), Block())
        self.output = nn.ModuleDict({"dense": nn.Linear(12, 12)})

    def forward(self, x):
        return self.output["dense"](self.layers(x))


class Experts(nn.Module):
    """Three stacks, two of one shape, registered in an order that is not the alphabet's."""

    def __init__(self):
        super().__init__()
        self.up_proj = nn.Parameter(torch.randn(4, 10, 12))
        self.gate_proj = nn.Parameter(torch.randn(4, 10, 12))
        self.down_proj = nn.Parameter(torch.randn(4, 12, 10))

    def forward(self, x):
        hidden = torch.einsum("eoi,bi->ebo", self.gate_proj, x) * torch.einsum("eoi,bi->ebo", self.up_proj, x)
        return x + torch.einsum("eoi,ebi->bo", self.down_proj, hidden)


class Mixture(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(*(nn.ModuleDict({"experts": Experts()})["experts"] for _ in range(2)))
        self.mlp = nn.ModuleList([nn.ModuleDict({"experts": Experts(), "query": nn.Linear(12, 12)}) for _ in range(2)])

    def forward(self, x):
        for block in self.mlp:
            x = block["experts"](block["query"](x))
        return x


def perturbed(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def adapted(net, config, folder):
    """PEFT's model with its adapter moved and saved, in double precision."""
    model = perturbed(peft.get_peft_model(net, config))
    model.save_pretrained(folder)
    return model.double().eval()


def own_weight(layer, inputs):
    x = torch.eye(inputs, dtype=torch.float64)
    with torch.no_grad():
        return (layer(x) - layer(torch.zeros_like(x[:1]))).T


def assert_as_its_layers(run, model, tolerance=1e-13):
    assert run.modules
    for name in run.modules:
        theirs = own_weight(model.base_model.model.get_submodule(name), run.shape(name)[1])
        before = run.base(name).double()
        assert float((theirs - before).abs().max()) > 1e-6
        torch.testing.assert_close(run.weight(name, 0, torch.float64), theirs, rtol=0, atol=tolerance)
        torch.testing.assert_close(run.update(name, 0), theirs - before, rtol=0, atol=tolerance)


def with_our_weights(run, net, stored_turned=()):
    """The base with W' of ours in the place of its parameters, expert by expert."""
    net = copy.deepcopy(net).double().eval()
    with torch.no_grad():
        for name in run.modules:
            head, expert, last = name.rsplit(".", 2)
            weight = run.weight(name, 0, torch.float64)
            if head.endswith("experts"):
                net.get_parameter(f"{head}.{last}")[int(expert)] = weight.T if last in stored_turned else weight
            else:
                net.get_submodule(name).weight.copy_(weight)
    return net


@pytest.mark.parametrize("family", ["Mixtral", "Qwen3Moe", "GptOss", "Llama4"])
def test_stacks_of_experts(family, tmp_path, caplog):
    """The model with our W' of every expert has the outputs of PEFT's.

    GPT-OSS and Llama 4 store [experts, in, out]; only of the first PEFT knows it.
    """
    torch.manual_seed(0)
    options = dict.fromkeys(("num_local_experts", "num_experts"), 4) | SMALL | {"num_experts_per_tok": 2}
    if family == "GptOss":
        options["intermediate_size"] = 12  # its down_proj is square, as the real one's
    if family == "Qwen3Moe":
        options["moe_intermediate_size"] = 10
    if family == "Llama4":
        options |= {"intermediate_size_mlp": 10, "interleave_moe_layer_step": 1, "pad_token_id": 0}
    kind = "Llama4Text" if family == "Llama4" else family
    config = getattr(transformers, f"{kind}Config")(**options, experts_implementation="eager")
    net = getattr(transformers, f"{family}ForCausalLM")(config)
    net.save_pretrained(tmp_path / "base")
    base = copy.deepcopy(net)
    lora = peft.LoraConfig(
        r=2, lora_alpha=3, target_modules=["q_proj"], target_parameters=STACKS,
        rank_pattern={"experts.down_proj": 3}, alpha_pattern={r"model\.layers\.1\.\w+\.experts\.gate_up_proj": 7},
    )  # fmt: skip
    model = adapted(net, lora, tmp_path / "adapter")
    tokens = torch.arange(12).view(2, 6)
    with torch.no_grad():
        theirs, before = model(tokens).logits, copy.deepcopy(base).double().eval()(tokens).logits
    assert float((theirs - before).abs().max()) > 1e-3
    turned = ("gate_up_proj", "down_proj") if family in ("GptOss", "Llama4") else ()
    where = "feed_forward" if family == "Llama4" else "mlp"
    for given in (base, tmp_path / "base"):
        run = Trajectory.open(tmp_path / "adapter", base=given, split=False)
        assert len(run.modules) == 3 * (4 + 4 + 1)
        assert run.shape(f"model.layers.0.{where}.experts.3.down_proj") == (12, options["intermediate_size"])
        with torch.no_grad():
            ours = with_our_weights(run, base, turned)(tokens).logits
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)
    frame = run.spectra()
    assert set(frame[frame.module.str.endswith("gate_up_proj")]["rank"]) == {2}
    assert set(frame[frame.module.str.endswith("down_proj")]["rank"]) == {3}
    split = Trajectory.open(tmp_path / "adapter", base=base)
    assert f"model.layers.2.{where}.experts.0.gate_up_proj.up" in split.modules
    with caplog.at_level("WARNING"):  # without the base, what the experts' parameters are is not known
        alone = Trajectory.open(tmp_path / "adapter")
    assert "base=FOLDER" in caplog.text
    assert len(alone.spectra()) == 3
    assert all(module.endswith("q_proj") for module in alone.modules)


def test_a_square_stack_alone_does_not_tell_its_sides(tmp_path):
    torch.manual_seed(0)
    config = transformers.GptOssConfig(**SMALL | {"intermediate_size": 12}, num_local_experts=2, num_experts_per_tok=1)
    net = transformers.GptOssForCausalLM(config)
    base = copy.deepcopy(net)
    adapted(net, peft.LoraConfig(r=2, target_modules=[], target_parameters=STACKS[1:]), tmp_path)
    with pytest.raises(RecordError, match=r"down_proj is stored as \[experts, in, out\] and is square"):
        Trajectory.open(tmp_path, base=base)


def test_stacks_of_one_shape_need_the_model(tmp_path):
    torch.manual_seed(0)
    net = Mixture()
    base = copy.deepcopy(net)
    names = ["experts.up_proj", "experts.down_proj", "experts.gate_proj"]
    lora = peft.LoraConfig(r=2, target_modules=["query"], target_parameters=names)
    model = adapted(net, lora, tmp_path)
    x = torch.randn(5, 12, dtype=torch.float64)
    run = Trajectory.open(tmp_path, base=base)
    with torch.no_grad():
        torch.testing.assert_close(with_our_weights(run, base)(x), model(x), rtol=1e-11, atol=1e-9)
    wrapped = peft.get_peft_model(copy.deepcopy(base), lora)  # PEFT's model before training is a base too
    again = Trajectory.open(tmp_path, base=wrapped)
    assert torch.equal(again.weight("mlp.1.experts.2.gate_proj", 0), run.weight("mlp.1.experts.2.gate_proj", 0))
    with pytest.raises(RecordError, match="give base as the model itself"):
        Trajectory.open(tmp_path, base=base.state_dict())
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target_parameters": names[:2]}))
    with pytest.raises(RecordError, match=r"3 parameters of mlp.\d.experts were adapted, the base has 2"):
        Trajectory.open(tmp_path, base=base)
    for wrong in ("down_proj", [3], {"a": 1}):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"target_parameters": wrong}))
        with pytest.raises(RecordError, match="target_parameters"):
            Trajectory.open(tmp_path, base=base)


def test_experts_of_another_number_are_named(tmp_path):
    torch.manual_seed(0)
    net = Mixture()
    base = copy.deepcopy(net)
    adapted(net, peft.LoraConfig(r=1, target_modules=[], target_parameters=["experts.down_proj"]), tmp_path)
    for block in base.mlp:
        block["experts"].down_proj = nn.Parameter(torch.randn(3, 12, 10))
    with pytest.raises(RecordError, match=r"ranks \(4, 4\) of mlp.\d.experts.down_proj are not those of 3 experts"):
        Trajectory.open(tmp_path, base=base)


def test_a_plain_matrix_as_a_parameter(tmp_path):
    torch.manual_seed(0)
    net = Net()
    base = copy.deepcopy(net)
    lora = peft.LoraConfig(
        r=2, lora_alpha=3, target_modules=["value"], target_parameters=["query.weight"],
        alpha_pattern={"layers.1.query.weight": 5},
    )  # fmt: skip
    model = adapted(net, lora, tmp_path)
    run = Trajectory.open(tmp_path, base=base)
    assert len(run.modules) == 4
    assert_as_its_layers(run, model)


def test_layers_that_were_copied(tmp_path):
    """W₀ of a copy is that of the layer it copies, ΔW its own."""
    torch.manual_seed(0)
    net = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL))
    net.save_pretrained(tmp_path / "base")
    base = copy.deepcopy(net)
    lora = peft.LoraConfig(
        r=2, use_dora=True, target_modules=["q_proj", "down_proj"], layer_replication=[[0, 2], [1, 3], [2, 3]]
    )
    model = adapted(net, lora, tmp_path / "adapter")
    for given in (base, tmp_path / "base"):
        run = Trajectory.open(tmp_path / "adapter", base=given)
        assert len(run.modules) == 2 * 5
        assert torch.equal(run.base("model.layers.3.self_attn.q_proj"), base.model.layers[2].self_attn.q_proj.weight)
        assert_as_its_layers(run, model)
    path = tmp_path / "adapter" / "adapter_config.json"
    told = json.loads(path.read_text())
    for ranges in ([[0, 2]], [[0, 1], [5, 2]], [[-1, 9]], [[0, 2**70]], "0-3", [3], [[0, True]]):
        path.write_text(json.dumps(told | {"layer_replication": ranges}))
        with pytest.raises(RecordError, match=r"layer_replication|the base has no matrix"):
            Trajectory.open(tmp_path / "adapter", base=base).base("model.layers.4.mlp.down_proj")


def test_groups_of_inputs(tmp_path, monkeypatch):
    """QA-LoRA. PEFT has it for GPTQ's layers only; the same variant of PEFT's is run on a plain layer here."""
    from peft.tuners.lora.layer import Linear
    from peft.tuners.lora.variants import QALoraLinearVariant

    monkeypatch.setattr(Linear, "resolve_lora_variant", lambda self, *, config, **rest: QALoraLinearVariant())
    torch.manual_seed(0)
    net = Net()
    base = copy.deepcopy(net)
    lora = peft.LoraConfig(r=2, target_modules=["query", "value", "key"], use_qalora=True, qalora_group_size=4)
    model = adapted(net, lora, tmp_path)
    run = Trajectory.open(tmp_path, base=base)
    assert_as_its_layers(run, model)
    alone = Trajectory.open(tmp_path)  # the base is of 4 bits as a rule: ΔW needs none
    assert all(torch.equal(alone.update(name, 0), run.update(name, 0)) for name in run.modules)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"qalora_group_size": 3}))
    with pytest.raises(RecordError, match="qalora_group_size"):
        Trajectory.open(tmp_path, base=base).update("layers.0.query", 0)


def test_blocks_on_the_diagonal(tmp_path):
    torch.manual_seed(0)
    net = Net()
    base = copy.deepcopy(net)
    blocks = peft.tuners.lora.config.BdLoraConfig(
        target_modules_bd_a=["query"], target_modules_bd_b=["value"], nblocks=2, match_strict=False
    )
    model = adapted(net, peft.LoraConfig(r=2, target_modules=["query", "value", "key"], use_bdlora=blocks), tmp_path)
    assert_as_its_layers(Trajectory.open(tmp_path, base=base), model)


NUMBERED = {
    "Uni-LoRA": lambda **o: peft.UniLoraConfig(r=2, theta_d_length=40, **o),
    "TinyLoRA": lambda **o: peft.TinyLoraConfig(r=2, u=3, save_projection=False, **o),
}


@pytest.mark.parametrize("name", NUMBERED)
def test_what_is_drawn_follows_the_order_of_the_model(name, tmp_path):
    torch.manual_seed(0)
    net = Net()
    base = copy.deepcopy(net)
    model = adapted(net, NUMBERED[name](target_modules=["query", "value", "dense"]), tmp_path / "a")
    run = Trajectory.open(tmp_path / "a", base=base)
    assert len(run.modules) == 5
    assert_as_its_layers(run, model)
    save_file({key: value.contiguous() for key, value in base.state_dict().items()}, tmp_path / "model.safetensors")
    for given in (tmp_path / "model.safetensors", base.state_dict(), None):
        with pytest.raises(RecordError, match=r"give base as the model itself|base=FOLDER"):
            Trajectory.open(tmp_path / "a", base=given).update("layers.1.value", 0)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["query", "key"], "layers_to_transform": [1]},
        {"target_modules": ["query", "value"], "layers_to_transform": 0, "layers_pattern": "layers"},
        {"target_modules": r"body\.layers\.\d\.(query|key)"},
        {"target_modules": "all-linear", "modules_to_save": ["dense"]},
    ],
)
def test_which_layers_are_meant(options, tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential()
    net.add_module("body", Net())
    base = copy.deepcopy(net)
    model = adapted(net, NUMBERED["Uni-LoRA"](**options), tmp_path)
    run = Trajectory.open(tmp_path, base=base, modules=["body.layers.*"])
    wanted = {n for n, m in model.base_model.model.named_modules() if hasattr(m, "unilora_indices_A")}
    assert set(run.modules) == wanted
    assert_as_its_layers(run, model)


def test_a_stranger_cannot_ask_for_much(tmp_path):
    """Sizes of what is drawn are bounded by the base's; patterns are searched for only where that is quick."""
    torch.manual_seed(0)
    net = Net()
    base = copy.deepcopy(net)
    adapted(net, NUMBERED["Uni-LoRA"](target_modules=["query", "value"]), tmp_path)
    path = tmp_path / "adapter_config.json"
    told = json.loads(path.read_text())
    for wrong in (
        {"r": 10**9}, {"r": 0}, {"r": -1}, {"r": "2"}, {"theta_d_length": 10**12}, {"proj_seed": "x"},
        {"target_modules": "(a+)+$"}, {"target_modules": 3}, {"target_modules": None}, {"modules_to_save": [r"(a)\1"]},
        {"layers_to_transform": [0], "layers_pattern": r"(.*)*\1"}, {"target_modules": ["nothing"]},
    ):  # fmt: skip
        path.write_text(json.dumps(told | wrong))
        with pytest.raises(RecordError) as caught:
            Trajectory.open(tmp_path, base=base).update("layers.0.query", 0)
        assert "\n" not in str(caught.value)
    adapted(Net(), NUMBERED["TinyLoRA"](target_modules=["query", "value"]), tmp_path)
    state = load_file(tmp_path / "adapter_model.safetensors")
    for key in [key for key in state if "tinylora_v" in key]:
        state[key] = torch.zeros(10**6)
    save_file(state, tmp_path / "adapter_model.safetensors")
    with pytest.raises(RecordError, match=r"\(1000000,\) projections of rank 2 do not fit"):
        Trajectory.open(tmp_path, base=base).update("layers.0.query", 0)


@pytest.mark.parametrize(
    "config",
    [
        lambda **o: peft.UniLoraConfig(r=2, theta_d_length=40, **o),
        lambda **o: peft.TinyLoraConfig(r=2, u=3, save_projection=False, **o),
        lambda **o: peft.FrodConfig(sparse_rate=0.1, progressbar=False, **o),
        lambda **o: peft.WaveFTConfig(n_frequency=30, wavelet_family="sym4", **o),
    ],
)
def test_conv1d(config, tmp_path):
    torch.manual_seed(0)
    small = transformers.GPT2Config(n_embd=12, n_layer=2, n_head=3, vocab_size=30, n_positions=16)
    net = transformers.GPT2LMHeadModel(small)
    base = copy.deepcopy(net)
    model = adapted(net, config(target_modules=["c_proj"], fan_in_fan_out=True), tmp_path)
    run = Trajectory.open(tmp_path, base=base)
    assert len(run.modules) == 4
    assert_as_its_layers(run, model, 1e-6)


def test_one_basis_for_the_layers_of_a_kind(tmp_path):
    """FRoD in BERT, whose two output.dense are of two kinds."""
    torch.manual_seed(0)
    small = {k: v for k, v in SMALL.items() if k not in ("num_key_value_heads", "head_dim")}
    net = transformers.BertForSequenceClassification(transformers.BertConfig(**small))
    net.save_pretrained(tmp_path / "base")
    frod = peft.FrodConfig(target_modules=["query", "dense"], sparse_rate=0.1, progressbar=False)
    model = adapted(copy.deepcopy(net), frod, tmp_path / "adapter")
    run = Trajectory.open(tmp_path / "adapter", base=tmp_path / "base")
    assert len(run.modules) == 3 * 4 + 1
    assert_as_its_layers(run, model, 1e-5)
    frod.save_projection = False
    adapted(net, frod, tmp_path / "adapter")
    with pytest.raises(RecordError, match=r"frod_V\.\w+.*save_projection"):
        Trajectory.open(tmp_path / "adapter", base=tmp_path / "base").update(run.modules[0], 0)


def test_clusters_are_held_to_the_file(tmp_path):
    """AdaMSS's rows are clustered again; where that gives others than the file's, they are refused, not read wrong."""
    torch.manual_seed(0)
    net = Net()
    base, other = copy.deepcopy(net), Net()
    adamss = peft.AdamssConfig(r=4, num_subspaces=3, subspace_rank=2, target_modules=["query", "value", "key"])
    model = adapted(net, adamss, tmp_path)
    for module in model.modules():
        if hasattr(module, "adamss_A"):
            module.dtype = torch.float64
    state = torch.get_rng_state()
    assert_as_its_layers(Trajectory.open(tmp_path, base=base), model)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(RecordError, match="clusters of rows are not saved"):
        Trajectory.open(tmp_path, base=other).update("layers.0.query", 0)
    bare = {key: value for key, value in base.state_dict().items() if "bias" not in key}
    with pytest.raises(RecordError, match="its bias is needed"):
        Trajectory.open(tmp_path, base=bare).update("layers.0.query", 0)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    save_file({k: v.flip(1) if "newB" in k else v for k, v in saved.items()}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(RecordError, match="clusters of rows are not saved"):
        Trajectory.open(tmp_path, base=base).update("layers.0.query", 0)


def test_what_follows_from_the_machine_is_refused(tmp_path):
    """PEFT draws RandLoRA's bases in bfloat16 or in float16, and PSOFT's from the device's own numbers."""
    torch.manual_seed(0)
    net = Net()
    base = copy.deepcopy(net)
    adapted(net, peft.RandLoraConfig(r=2, target_modules=["query"], save_projection=False), tmp_path / "a")
    with pytest.raises(RecordError, match=r"lacks randlora_A.*save_projection=True"):
        Trajectory.open(tmp_path / "a", base=base).update("layers.0.query", 0)
    adapted(Net(), peft.PsoftConfig(r=2, target_modules=["query"], psoft_svd="lowrank"), tmp_path / "b")
    with pytest.raises(RecordError, match="psoft_svd = 'lowrank'"):
        Trajectory.open(tmp_path / "b", base=base).update("layers.0.query", 0)


@pytest.mark.parametrize("family", ["coif5", "db38", "../x"])
def test_wavelets_without_a_filter_are_named(family, tmp_path):
    """PEFT lists more wavelets than it has filters of, and its filter of coif5 is too long for its own layer."""
    torch.manual_seed(0)
    net = Net()
    base = copy.deepcopy(net)
    adapted(net, peft.WaveFTConfig(n_frequency=5, target_modules=["query"]), tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"wavelet_family": family}))
    with pytest.raises(RecordError, match="wavelet_family"):
        Trajectory.open(tmp_path, base=base).update("layers.0.query", 0)
