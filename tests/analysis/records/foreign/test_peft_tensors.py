"""What in a file of PEFT's is a layer: an adapter, W₀ beside it, a module trained whole, a convolution."""

import copy
import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from deltaw.adapters import RecordError
from deltaw.analysis import Trajectory

peft = pytest.importorskip("peft")
Q = "model.layers.0.self_attn.q_proj"


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(20, 8)
        self.conv1 = nn.Conv1d(8, 16, 3, padding=1)
        self.layers = nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, 16)])
        self.lm_head = nn.Linear(16, 20, bias=False)
        self.score = nn.Linear(16, 3)

    def get_input_embeddings(self):  # by which PEFT knows what to save with its base layer
        return self.embed_tokens

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, x):
        x = self.conv1(self.embed_tokens(x).transpose(1, 2)).transpose(1, 2)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(x), self.score(x)


def saved(folder, config, seed=0):
    """A net, PEFT's model of it with all that trains moved, and its folder."""
    torch.manual_seed(seed)
    net = Net()
    base = copy.deepcopy(net)
    model = peft.get_peft_model(net, config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    folder.mkdir(exist_ok=True)
    model.save_pretrained(folder)
    return base, model


def assert_as_merged(run, model, base, modules):
    merged = model.merge_and_unload()
    for module in modules:
        true = merged.get_submodule(module).weight.double() - base.get_submodule(module).weight.double()
        assert float(true.norm()) > 1e-3
        torch.testing.assert_close(run.update(module, run.steps[0]), true, rtol=1e-4, atol=1e-6)
        assert run.labels(module)["method"] == "lora"
        assert run.factors(module, run.steps[0]) is not None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("given", [True, False])
def test_lora_on_head_and_embedding_saved_with_their_base_layers(given, tmp_path):
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["0", "lm_head", "embed_tokens"], alpha_pattern={"embed_tokens": 3}
    )
    base, model = saved(tmp_path, config)
    assert "base_model.model.lm_head.base_layer.weight" in load_file(tmp_path / "adapter_model.safetensors")
    run = Trajectory.open(tmp_path, base=base if given else None)
    assert set(run.modules) == {"embed_tokens", "lm_head", "layers.0"}
    for module in ("embed_tokens", "lm_head"):  # W₀ stands in the file
        assert torch.equal(run.base(module), base.get_submodule(module).weight)
    assert_as_merged(run, model, base, run.modules)
    assert len(run.spectra()) == 3


@pytest.mark.filterwarnings("ignore")
def test_an_embedding_whose_formula_is_another_is_left_out(tmp_path, caplog):
    saved(tmp_path, peft.LoraConfig(r=4, target_modules=["0", "embed_tokens"], use_dora=True))
    with caplog.at_level(logging.WARNING):
        run = Trajectory.open(tmp_path)
    assert run.modules == ["layers.0"]
    assert run.info["left_out"] == ["embed_tokens"]
    assert caplog.text.count("embed_tokens: it is an embedding") == 1


class Convolutions(nn.Module):
    """Kernels of one to three dimensions."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.Conv1d(8, 16, 3), nn.Conv2d(8, 16, 3), nn.Conv3d(4, 8, (1, 2, 3))
        self.plain = nn.Linear(16, 16)

    def forward(self, x):
        return self.plain(self.one(x).transpose(1, 2))


KERNELS = {"one": (3,), "two": (3, 3), "three": (1, 2, 3), "plain": ()}
CONVOLUTIONS = {
    "lora": lambda at: peft.LoraConfig(r=4, lora_alpha=8, target_modules=at),
    "rslora": lambda at: peft.LoraConfig(r=4, lora_alpha=8, target_modules=at, use_rslora=True),
    "dora": lambda at: peft.LoraConfig(r=4, lora_alpha=8, target_modules=at, use_dora=True),
    "loha": lambda at: peft.LoHaConfig(r=4, alpha=8, target_modules=at),
    "loha with a core": lambda at: peft.LoHaConfig(r=4, alpha=8, target_modules=at, use_effective_conv2d=True),
    "lokr": lambda at: peft.LoKrConfig(r=2, alpha=8, target_modules=at),
    "lokr with a core": lambda at: peft.LoKrConfig(r=2, alpha=8, target_modules=at, use_effective_conv2d=True),
    "hira": lambda at: peft.HiraConfig(r=4, target_modules=at),
}
ON = {kind: ["one", "two", "three", "plain"] for kind in CONVOLUTIONS}
ON |= {kind: ["one", "two", "plain"] for kind in CONVOLUTIONS if kind.startswith(("loha", "lokr"))}  # PEFT's own limit


def of_convolutions(folder, config):
    torch.manual_seed(0)
    net = Convolutions()
    base = copy.deepcopy(net)
    model = peft.get_peft_model(net, config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return base, model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", list(CONVOLUTIONS))
def test_a_convolution_is_the_matrix_of_its_filters(kind, tmp_path):
    base, model = of_convolutions(tmp_path, CONVOLUTIONS[kind](ON[kind]))
    run = Trajectory.open(tmp_path, base=base)
    assert set(run.modules) == set(ON[kind])
    merged = model.merge_and_unload()
    for module in run.modules:
        own, before = (part.get_submodule(module).weight.detach().double().flatten(1) for part in (merged, base))
        assert run.source.kernel(module) == KERNELS[module]
        assert torch.equal(run.base(module), before.float())
        assert float((own - before).norm()) > 1e-3
        torch.testing.assert_close(run.weight(module, 0, torch.float64), own, rtol=1e-4, atol=1e-6)
        if kind in ("lora", "rslora"):
            U, V = run.factors(module, 0, torch.float64)
            assert U.shape[1] == len(V) == 4
            torch.testing.assert_close(U @ V, own - before, rtol=1e-4, atol=1e-6)
    if kind in ("lora", "lokr", "rslora"):  # W₀ is not needed
        assert len(Trajectory.open(tmp_path).spectra()) == len(ON[kind])


@pytest.mark.filterwarnings("ignore")
def test_what_peft_puts_on_a_convolution_in_groups_is_no_kernel(tmp_path, caplog):
    torch.manual_seed(0)
    net = nn.ModuleDict({"conv": nn.Conv1d(8, 16, 3, groups=2), "q": nn.Linear(8, 8)})
    peft.get_peft_model(net, peft.LoraConfig(r=4, target_modules=["conv", "q"])).save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert Trajectory.open(tmp_path).modules == ["q"]
    assert caplog.text.count("conv: it is a convolution in groups") == 1


@pytest.mark.filterwarnings("ignore")
def test_a_type_that_is_not_read_on_a_convolution_blocks_nothing(tmp_path, caplog):
    base, _ = of_convolutions(tmp_path, peft.IA3Config(target_modules=["two", "plain"], feedforward_modules=[]))
    with caplog.at_level(logging.WARNING):
        run = Trajectory.open(tmp_path, base=base)
    assert run.modules == ["plain"]
    assert caplog.text.count("two: it is a convolution, of which IA3 with these options is not read") == 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("file", ["adapter_model.safetensors", "model.safetensors", "adapter_model.bin"])
@pytest.mark.parametrize("lead", ["", "module.", "_orig_mod.", "llm."])
def test_the_state_dict_of_a_peft_model_beside_its_configuration(file, lead, tmp_path):
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["0", "lm_head"], modules_to_save=["score"])
    base, model = saved(tmp_path, config)
    (tmp_path / "adapter_model.safetensors").unlink()
    state = {lead + key: value.contiguous().clone() for key, value in model.state_dict().items()}
    save_file(state, tmp_path / file) if file.endswith("s") else torch.save(state, tmp_path / file)
    run = Trajectory.open(tmp_path)
    assert set(run.modules) == {"layers.0", "lm_head", "score"}
    assert run.base_from is not None
    score = model.base_model.model.score.modules_to_save["default"].weight.double() - base.score.weight.double()
    torch.testing.assert_close(run.update("score", 0), score)
    assert run.labels("score")["method"] == "ft"
    assert len(run.changes("base")) == 6
    assert_as_merged(run, model, base, ["layers.0", "lm_head"])


@pytest.mark.filterwarnings("ignore")
def test_the_state_dict_says_that_a_layer_is_a_convolution(tmp_path):
    _, model = saved(tmp_path, peft.LoHaConfig(r=4, target_modules=["conv1", "0"]))
    save_file(model.state_dict(), tmp_path / "adapter_model.safetensors")
    run = Trajectory.open(tmp_path)
    assert set(run.modules) == {"conv1", "layers.0"}
    assert run.source.kernel("conv1") == (3,)
    merged = model.merge_and_unload()
    for module in run.modules:
        own = merged.get_submodule(module).weight.detach().double().flatten(1)
        torch.testing.assert_close(run.weight(module, 0, torch.float64), own, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_the_state_dict_of_a_type_whose_layers_share_tensors(tmp_path):
    _, model = saved(tmp_path, peft.VeraConfig(r=4, target_modules=["0"]))
    torch.save(model.state_dict(), tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_model.safetensors").unlink()
    weight = Trajectory.open(tmp_path).weight("layers.0", 0, torch.float64)
    torch.testing.assert_close(weight, model.merge_and_unload().layers[0].weight.double(), rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_a_state_dict_of_before_there_was_a_base_layer(tmp_path):
    base, model = saved(tmp_path, peft.LoraConfig(r=4, target_modules=["0"]))
    state = {key.replace(".base_layer.", "."): value for key, value in model.state_dict().items()}
    torch.save(state, tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_model.safetensors").unlink()
    run = Trajectory.open(tmp_path)
    assert run.modules == ["layers.0"]
    assert_as_merged(run, model, base, run.modules)


@pytest.mark.filterwarnings("ignore")
def test_a_base_layer_that_moves_is_refused(tmp_path):
    _, model = saved(tmp_path / "checkpoint-0", peft.LoraConfig(r=4, target_modules=["0"]))
    for step in (1, 2):
        folder = tmp_path / f"checkpoint-{step}"
        model.save_pretrained(folder)
        save_file(model.state_dict(), folder / "adapter_model.safetensors")
        layer = model.base_model.model.layers[0]
        with torch.no_grad():
            layer.base_layer.weight.add_(layer.get_delta_weight("default"))
    for file in (tmp_path / "checkpoint-0").iterdir():
        file.unlink()
    (tmp_path / "checkpoint-0").rmdir()
    run = Trajectory.open(tmp_path)
    assert run.update("layers.0", 1).any()
    with pytest.raises(RecordError, match=r"base layer of layers\.0 is not as in the first checkpoint"):
        run.update("layers.0", 2)


@pytest.mark.filterwarnings("ignore")
def test_the_adapters_name_in_the_keys(tmp_path):
    base, model = saved(tmp_path, peft.LoraConfig(r=4, target_modules=["0"]))
    file = tmp_path / "adapter_model.safetensors"
    plain = load_file(file)
    save_file({key.replace(".weight", ".default.weight"): value for key, value in plain.items()}, file)
    assert_as_merged(Trajectory.open(tmp_path, base=base), model, base, ["layers.0"])
    both = {key.replace(".weight", f".{name}.weight"): v.clone() for key, v in plain.items() for name in ("dpo", "sft")}
    save_file(both, file)
    with pytest.raises(RecordError, match="holds the adapters dpo, sft; save each in a folder of its own"):
        Trajectory.open(tmp_path)
    save_file({key.removeprefix("base_model.model."): value for key, value in plain.items()}, file)
    assert_as_merged(Trajectory.open(tmp_path, base=base), model, base, [])
    assert Trajectory.open(tmp_path).modules == ["layers.0"]


def test_of_a_resized_vocabulary_the_common_rows_are_compared(tmp_path, caplog):
    tensors = {f"base_model.model.{Q}.lora_A.weight": torch.randn(2, 8)}
    tensors |= {f"base_model.model.{Q}.lora_B.weight": torch.randn(8, 2)}
    tensors |= {"base_model.model.lm_head.weight": torch.randn(22, 8)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    base = {f"{Q}.weight": torch.randn(8, 8), "lm_head.weight": torch.randn(20, 8)}
    for rows in (20, 25):  # fewer in the base, or more, as where it is padded
        head = torch.randn(rows, 8)
        with caplog.at_level(logging.WARNING):
            run = Trajectory.open(tmp_path, base=base | {"lm_head.weight": head})
        assert f"lm_head has {rows} rows in the base and 22 in the run" in caplog.text
        assert set(run.changes("base").module) == {Q, "lm_head"}
        both = min(rows, 22)
        own = tensors["base_model.model.lm_head.weight"][:both].double()
        assert torch.equal(run.update("lm_head", 0), own - head[:both].double())
    run = Trajectory.open(tmp_path, base=base)
    tensors = {key.replace(Q, "lm_head"): value for key, value in tensors.items() if "q_proj" in key}
    tensors["base_model.model.lm_head.lora_B.weight"] = torch.randn(22, 2)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    assert len(Trajectory.open(tmp_path, base=base).spectra()) == 1  # ΔW itself needs no W₀


LORA = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}


def folder_of(tmp_path, tensors, name="adapter_model.safetensors"):
    save_file(tensors, tmp_path / name)
    (tmp_path / "adapter_config.json").write_text(json.dumps(LORA))
    return tmp_path


def test_an_adapter_in_shards_is_one(tmp_path):
    A, B = torch.randn(2, 8), torch.randn(6, 2)
    names = [f"base_model.model.{Q}.lora_{side}.weight" for side in "AB"]
    shards = [f"adapter_model-0000{k}-of-00002.safetensors" for k in (1, 2)]
    for name, value, file in zip(names, (A, B), shards, strict=True):
        folder_of(tmp_path, {name: value}, file)
    with pytest.raises(RecordError, match=r"no adapter_model.safetensors; adapter_model-00001-of-00002.* index"):
        Trajectory.open(tmp_path)
    index = {"metadata": {}, "weight_map": dict(zip(names, shards, strict=True))}
    (tmp_path / "adapter_model.safetensors.index.json").write_text(json.dumps(index))
    torch.testing.assert_close(Trajectory.open(tmp_path).update(Q, 0), (2 * B @ A).double())


def test_half_a_pair_is_named(tmp_path):
    folder = folder_of(tmp_path, {f"base_model.model.{Q}.lora_A.weight": torch.randn(2, 8)})
    with pytest.raises(RecordError, match=rf"{Q} lacks lora_B \(it has lora_A\); the file is not whole"):
        Trajectory.open(folder)


def test_a_module_trained_whole_under_the_adapter_s_name(tmp_path):
    head, W = torch.randn(10, 8), torch.randn(10, 8)
    file = {
        f"base_model.model.{Q}.lora_A.weight": torch.randn(2, 8),
        f"base_model.model.{Q}.lora_B.weight": torch.randn(6, 2),
        "base_model.model.lm_head.modules_to_save.default.weight": head,
    }
    run = Trajectory.open(folder_of(tmp_path, file), base={"lm_head.weight": W, f"{Q}.weight": torch.randn(6, 8)})
    assert set(run.modules) == {Q, "lm_head"}
    torch.testing.assert_close(run.update("lm_head", 0), head.double() - W.double())
