"""Folders in PEFT's format: what PEFT makes of ours, and what we make of PEFT's."""

import copy
import json
import re
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from deltaw.adapters import (
    OFT,
    AdaLoRA,
    DataError,
    DeLoRA,
    DoRA,
    HiRA,
    LoRA,
    Magnitude,
    OptionError,
    PiSSA,
    RandLoRA,
    ShapeError,
    TargetError,
    VeRA,
    WriteError,
    adapted,
    create,
    effective_weight,
    inject,
    load_peft,
    merge,
    save_peft,
)
from deltaw.adapters.constants import identity

peft = pytest.importorskip("peft", minversion="0.21")
transformers = pytest.importorskip("transformers")

# PEFT's class for each method that it has; every other one goes there as plain LoRA.
WRITTEN = {
    "lora": "LORA",
    "rslora": "LORA",
    "lora+": "LORA",
    "lora-fa": "LORA",
    "asylora": "LORA",
    "oa": "LORA",
    "pissa": "LORA",
    "corda": "LORA",
    "delta-lora": "LORA",
    "sbora-fa": "LORA",
    "sbora-fb": "LORA",
    "dora-row": "LORA",
    "vera": "VERA",
    "hira": "HIRA",
    "randlora": "RANDLORA",
    "delora": "LORA",
    "oft": "OFT",
    "adalora": "ADALORA",
}
REFUSED = ["dora", "bora", "magnitude", "dvora", "dual-lora", "mora", "map", "bidora"]


class Net(nn.Module):
    """Layers that are wide, tall and square, and a head of two."""

    def __init__(self):
        super().__init__()
        self.wide, self.tall, self.square = nn.Linear(12, 8), nn.Linear(8, 13), nn.Linear(13, 13, bias=False)
        self.head = nn.Sequential(nn.Linear(13, 5), nn.Tanh(), nn.Linear(5, 3))

    def forward(self, x):
        return self.head(torch.tanh(self.square(torch.tanh(self.tall(torch.tanh(self.wide(x)))))))


def net(dtype=torch.float32):
    torch.manual_seed(0)
    return Net().to(dtype)


def gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=20, n_embd=16, n_head=2, n_layer=2, n_positions=8, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )
    return transformers.GPT2Model(config).eval()


def roberta():
    torch.manual_seed(0)
    config = transformers.RobertaConfig(
        vocab_size=20, hidden_size=16, num_attention_heads=2, num_hidden_layers=2, intermediate_size=24, num_labels=3,
        max_position_embeddings=12,
    )  # fmt: skip
    return transformers.RobertaForSequenceClassification(config).eval()


def given(model, targets):
    """Covariances, for CorDA."""
    generator = torch.Generator().manual_seed(3)
    context = {}
    for name, module in model.named_modules():
        if name in targets or name.endswith(tuple(targets)):
            columns = (
                module.weight.shape[0 if "Conv1D" in type(module).__name__ else -1] if hasattr(module, "weight") else 1
            )
            x = torch.randn(4 * columns, columns, generator=generator)
            context[name] = x.T @ x / len(x)
    return context


def moved(model, size=0.1):
    """Take the adapters and heads away from their start."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    for layer in adapted(model).values():
        layer.steps_taken()
    return model.eval()


def options_of(name):
    own = {"randlora": {"rank": 6, "alpha": 4.0}, "oft": {"block_size": 4}}
    return own.get(name, {"rank": 3, "alpha": 5.0})


def with_method(name, targets=("wide", "tall", "square"), **options):
    model = net()
    if name in ("randlora", "oft"):
        targets = ("wide", "tall")  # the same number of bases, ⌈8 / 6⌉; inputs that 4 divides
    method = create(name, **(options_of(name) | options))
    return moved(inject(model, method, list(targets), trainable=["head"], seed=1, context=given(model, targets)))


def by_peft(base, folder, **options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Found missing adapter keys.*randlora", UserWarning)  # it wants them repeated
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # its own affair
        return peft.PeftModel.from_pretrained(base, folder, **options).eval()


def close(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6 * max(1.0, other.abs().max().item()))


@pytest.mark.parametrize("name", WRITTEN)
def test_peft_computes_the_same_from_our_folder_and_so_do_we(name, tmp_path):
    model = with_method(name)
    x = torch.randn(7, 12)
    wanted = model(x)
    assert (wanted - net().eval()(x)).abs().max() > 1e-2
    save_peft(model, tmp_path / "folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder"]
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    config = json.loads((tmp_path / "folder" / "adapter_config.json").read_text())
    assert config["peft_type"] == WRITTEN[name]

    theirs = by_peft(net(), tmp_path / "folder")
    close(theirs(x), wanted)
    ours = load_peft(net(), tmp_path / "folder").eval()
    close(ours(x), wanted)
    assert list(adapted(ours)) == list(adapted(model))
    trainable = {key for key, p in ours.named_parameters() if p.requires_grad}
    assert {key for key in trainable if key.startswith("head")} == {
        f"head.{i}.{end}" for i in "02" for end in ("weight", "bias")
    }
    assert "wide.weight" not in trainable
    save_peft(ours, tmp_path / "again")  # and once more, over a folder that is there
    save_peft(ours, tmp_path / "again")
    close(load_peft(net(), tmp_path / "again").eval()(x), wanted)


@pytest.mark.parametrize("name", [name for name in WRITTEN if name != "oft"])  # PEFT has it on no Conv1D
def test_gpt2_with_its_transposed_layers(name, tmp_path):
    targets = ["*.c_attn"] if name == "randlora" else ["*.c_attn", "*.c_fc", "*mlp.c_proj"]
    model = gpt2()
    context = given(model, [target.lstrip("*") for target in targets])
    moved(inject(model, create(name, **options_of(name)), targets, seed=1, context=context))
    ids = torch.arange(6)[None]
    wanted = model(ids).last_hidden_state
    assert (wanted - gpt2()(ids).last_hidden_state).abs().max() > 1e-2
    save_peft(model, tmp_path)
    theirs = by_peft(gpt2(), tmp_path)
    close(theirs(ids).last_hidden_state, wanted)
    close(load_peft(gpt2(), tmp_path)(ids).last_hidden_state, wanted)


@pytest.mark.parametrize("name", WRITTEN)
def test_roberta_with_its_classifier(name, tmp_path):
    targets, model = ["*.query", "*.value"], roberta()
    inject(model, create(name, **options_of(name)), targets, trainable=["classifier*"], seed=1,
           context=given(model, [".query", ".value"]))  # fmt: skip
    moved(model)
    ids = torch.arange(3, 10)[None]
    wanted = model(ids).logits
    save_peft(model, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["modules_to_save"] == ["classifier"]
    close(by_peft(roberta(), tmp_path)(ids).logits, wanted)
    close(load_peft(roberta(), tmp_path)(ids).logits, wanted)


CONFIGS = {
    "lora": lambda: peft.LoraConfig(r=3, lora_alpha=5),
    "gaussian": lambda: peft.LoraConfig(r=3, lora_alpha=5, init_lora_weights="gaussian"),
    "rslora": lambda: peft.LoraConfig(r=3, lora_alpha=5, use_rslora=True),
    "patterns": lambda: peft.LoraConfig(
        r=3, rank_pattern={"tall": 2}, alpha_pattern={"^wide": 7, "wi.e": 1, "(tall|square)": 3}
    ),
    "dora": lambda: peft.LoraConfig(r=3, lora_alpha=5, use_dora=True, use_rslora=True),
    "pissa": lambda: peft.LoraConfig(r=3, lora_alpha=5, init_lora_weights="pissa", use_rslora=True),
    "olora": lambda: peft.LoraConfig(r=3, lora_alpha=5, init_lora_weights="olora"),
    "vera": lambda: peft.VeraConfig(r=20),
    "hira": lambda: peft.HiraConfig(r=3),
    "randlora": lambda: peft.RandLoraConfig(r=3, randlora_alpha=6),
    "randlora sparse": lambda: peft.RandLoraConfig(r=3, randlora_alpha=6, sparse=True),
    "delora": lambda: peft.DeloraConfig(r=3, delora_lambda=5),
    "delora patterns": lambda: peft.DeloraConfig(r=3, rank_pattern={"tall": 2}, lambda_pattern={"wide": 7}),
    "oft": lambda: peft.OFTConfig(r=0, oft_block_size=4, use_cayley_neumann=False),
    "oft series": lambda: peft.OFTConfig(r=0, oft_block_size=4),
    "oft three terms": lambda: peft.OFTConfig(r=0, oft_block_size=2, num_cayley_neumann_terms=3),
    "oft shared": lambda: peft.OFTConfig(r=0, oft_block_size=4, block_share=True, num_cayley_neumann_terms=2),
    "adalora": lambda: peft.AdaLoraConfig(init_r=4, target_r=2, lora_alpha=5, total_step=10),
}
READ = {"lora": LoRA, "gaussian": LoRA, "rslora": LoRA, "patterns": LoRA, "dora": DoRA, "pissa": PiSSA, "olora": PiSSA}
READ |= {"vera": VeRA, "hira": HiRA, "randlora": RandLoRA, "randlora sparse": RandLoRA, "adalora": AdaLoRA}
READ |= {"delora": DeLoRA, "delora patterns": DeLoRA}
READ |= dict.fromkeys(("oft", "oft series", "oft three terms", "oft shared"), OFT)


def trained(config, base, x, steps=4):
    """A model of PEFT's after some steps."""
    config.target_modules = {"wide", "tall"} if config.peft_type == "OFT" else {"wide", "tall", "square"}
    config.modules_to_save = ["head"]
    torch.manual_seed(1)
    theirs = peft.get_peft_model(base, config)
    optimizer = torch.optim.Adam([p for p in theirs.parameters() if p.requires_grad], lr=0.03)
    for _ in range(steps):
        (theirs(x) - x[:, :3]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return theirs.eval()


@pytest.mark.parametrize("case", CONFIGS)
def test_a_folder_of_peft(case, tmp_path):
    x = torch.randn(7, 12)
    theirs = trained(CONFIGS[case](), net(), x)
    wanted = theirs(x).detach()
    assert (wanted - net()(x)).abs().max() > 1e-2
    theirs.save_pretrained(tmp_path)
    ours = load_peft(net(), tmp_path)
    assert not ours.training or ours.train(False)
    close(ours(x), wanted)
    assert {type(layer.method) for layer in adapted(ours).values()} == {READ[case]}
    assert next(iter(adapted(ours).values())).in_features == 12

    ours(x).square().sum().backward()
    theirs(x).square().sum().backward()
    heads = dict(theirs.base_model.model.head.modules_to_save["default"].named_parameters())
    adapters = {f"{name}.{key}" for name, layer in adapted(ours).items() for key in layer._trainable}
    for name, parameter in ours.named_parameters():
        assert parameter.requires_grad == (name in adapters or name.startswith("head."))
        assert (parameter.grad is not None) == parameter.requires_grad
        if name.startswith("head."):
            torch.testing.assert_close(parameter.grad, heads[name.removeprefix("head.")].grad, rtol=1e-4, atol=1e-5)
    if case not in ("pissa", "olora"):  # which go back as plain LoRA
        save_peft(ours, tmp_path / "back")
        close(by_peft(net(), tmp_path / "back")(x), wanted)
    else:
        save_peft(ours, tmp_path / "back")
        torch.testing.assert_close(by_peft(net(), tmp_path / "back")(x), wanted, rtol=1e-5, atol=2e-6)


def test_pissa_that_peft_made_plain_lora(tmp_path):
    x, config = torch.randn(7, 12), CONFIGS["pissa"]()
    config.target_modules = {"wide", "tall"}
    torch.manual_seed(1)
    theirs = peft.get_peft_model(net(), config)
    theirs.peft_config["default"].init_lora_weights = True
    theirs.save_pretrained(tmp_path / "start")
    theirs.peft_config["default"].init_lora_weights = "pissa"
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora" in name:
                parameter += 0.1 * torch.randn_like(parameter)
    wanted = theirs.eval()(x).detach()
    with pytest.warns(UserWarning, match="PiSSA changes the base"):  # the very reason for saving it so
        theirs.save_pretrained(tmp_path / "end", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    ours = load_peft(net(), tmp_path / "end")
    assert {layer.method.name for layer in adapted(ours).values()} == {"rslora"}
    assert adapted(ours)["wide"].method.rank == 6
    close(ours.eval()(x), wanted)


def test_ranks_and_alphas_by_module(tmp_path):
    methods = {
        "wide": LoRA(rank=2, alpha=3.5),
        "tall": LoRA(rank=5),
        "square": LoRA(rank=5, rank_stabilized=True, alpha=2),
    }
    model = moved(inject(net(), methods))
    save_peft(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["rank_pattern"]) == (5, {"^wide": 2})
    assert not config["use_rslora"]
    x = torch.randn(4, 12)
    close(by_peft(net(), tmp_path)(x), model(x))
    ours = load_peft(net(), tmp_path)
    close(ours.eval()(x), model(x))
    assert adapted(ours)["wide"].method == methods["wide"]
    assert adapted(ours)["square"].method.scaling == pytest.approx(methods["square"].scaling)


def test_ranks_of_hira_by_module(tmp_path):
    methods = {"wide": HiRA(rank=2, alpha=5), "square": HiRA(rank=9)}  # more than would fit the other
    model = moved(inject(net(), methods))
    save_peft(model, tmp_path)
    x = torch.randn(4, 12)
    close(by_peft(net(), tmp_path)(x), model(x))
    ours = load_peft(net(), tmp_path)
    close(ours.eval()(x), model(x))
    assert [layer.method.rank for layer in adapted(ours).values()] == [2, 9]


def test_what_peft_has_on_no_conv1d(tmp_path):
    """DeLoRA goes there as plain LoRA then, and OFT not at all."""
    ids = torch.arange(6)[None]
    model = moved(inject(gpt2(), DeLoRA(rank=3, subtract_start=False), ["*.c_attn"]))
    save_peft(model, tmp_path)
    close(by_peft(gpt2(), tmp_path)(ids).last_hidden_state, model(ids).last_hidden_state)
    with pytest.raises(OptionError, match="no oft on a Conv1D"):
        save_peft(inject(gpt2(), OFT(block_size=4), ["*.c_attn"]), tmp_path)


def test_oft_of_an_older_peft_is_refused(tmp_path):
    save_peft(inject(net(), OFT(block_size=4, neumann_terms=5), ["wide", "tall"]), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    for old in ({"peft_version": "0.17.1"}, {"peft_version": None}, {"peft_version": "x"}):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | old))
        with pytest.raises(OptionError, match=r"before PEFT 0\.18"):
            load_peft(net(), tmp_path)


def test_blocks_of_several_sizes_are_no_oft_of_peft(tmp_path):
    with pytest.raises(OptionError, match=r"one block size .* \[4, 13\]"):
        save_peft(inject(net(), OFT(block_size=4), ["wide", "square"]), tmp_path)


def test_adalora_whose_ranks_peft_has_cut(tmp_path):
    """PEFT saves only what is left of each layer, and may have nothing left."""
    x = torch.randn(7, 12)
    theirs = trained(CONFIGS["adalora"](), net(), x)
    kept = {"wide": [True, False, True, True], "tall": [False] * 4, "square": [True] * 4}
    with torch.no_grad():
        for name, rows in kept.items():
            theirs.base_model.model.get_submodule(name).lora_E["default"].mul_(torch.tensor(rows)[:, None])
    theirs.peft_config["default"].rank_pattern = {f"{name}.lora_E.default": rows for name, rows in kept.items()}
    wanted = theirs(x).detach()
    with pytest.warns(UserWarning, match="zero-sized lora_A"):
        theirs.save_pretrained(tmp_path)
    ours = load_peft(net(), tmp_path)
    close(ours.eval()(x), wanted)
    assert [layer.method.rank for layer in adapted(ours).values()] == [3, 1, 4]
    save_peft(ours, tmp_path / "back")
    close(by_peft(net(), tmp_path / "back")(x), wanted)


def test_options_come_back(tmp_path):
    ranked = [LoRA(rank=3, alpha=5.0, dropout=0.1), LoRA(rank=3, alpha=0.3, rank_stabilized=True)]
    ranked += [
        DoRA(axis="row", rank=3, alpha=2.5),
        HiRA(rank=2),
        VeRA(rank=30, dropout=0.25),
        RandLoRA(rank=4, alpha=80),
        DeLoRA(rank=3, alpha=5, subtract_start=False, dropout=0.1),
        AdaLoRA(rank=3, alpha=5, dropout=0.1),
        OFT(block_size=4, neumann_terms=5),
        OFT(block_size=4, block_share=True),
    ]
    for method in ranked:
        save_peft(inject(net(), method, ["wide", "tall"]), tmp_path)
        read = adapted(load_peft(net(), tmp_path))["tall"].method
        if read != method:
            assert (type(read), read.scaling, read.rank) == (type(method), pytest.approx(method.scaling), method.rank)
            assert read.dropout == method.dropout


def test_mixed_methods(tmp_path):
    model = moved(inject(net(), {"wide": LoRA(rank=2), "tall": VeRA(rank=3), "square": PiSSA(rank=2)}))
    save_peft(model, tmp_path)  # all of them are products
    x = torch.randn(4, 12)
    close(by_peft(net(), tmp_path)(x), model(x))
    for other in (DoRA(axis="row", rank=2), HiRA(rank=2), RandLoRA(rank=4)):
        with pytest.raises(OptionError, match=r"at once.*merge"):
            save_peft(inject(net(), {"wide": LoRA(rank=2), "tall": other}), tmp_path)
    with pytest.raises(OptionError, match="one dropout"):
        save_peft(inject(net(), {"wide": LoRA(rank=2), "tall": LoRA(rank=2, dropout=0.5)}), tmp_path)
    with pytest.raises(OptionError, match="one rank"):
        save_peft(inject(net(), {"wide": VeRA(rank=2), "tall": VeRA(rank=3)}), tmp_path)
    with pytest.raises(OptionError, match="one A and one B"):  # two methods draw two pairs
        save_peft(inject(net(), {"wide": VeRA(rank=3), "tall": VeRA(rank=3, d_initial=0.2)}), tmp_path)


@pytest.mark.parametrize("name", REFUSED)
def test_what_peft_has_not_is_named(name, tmp_path):
    model = inject(net(), create(name, **({} if name == "magnitude" else {"rank": 2})), ["wide"])
    with pytest.raises(OptionError, match=rf"{name}.*'wide'.*dora-row.*merge\(model\).*save_pretrained") as caught:
        save_peft(model, tmp_path / "folder")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_bases_of_different_numbers_are_refused(tmp_path):
    model = inject(net(), RandLoRA(rank=3), ["wide", "square"])  # ⌈8 / 3⌉ and ⌈13 / 3⌉ bases
    with pytest.raises(OptionError, match=r"different numbers.*merge"):
        save_peft(model, tmp_path)
    save_peft(inject(net(), RandLoRA(rank=1), ["wide", "square"]), tmp_path)  # with one row there is nothing to pair


def test_a_rank_above_the_smaller_side_is_cut(tmp_path):
    model = moved(inject(net(), PiSSA(rank=7), ["wide", "tall"]))  # rank 14 of at most 8
    save_peft(model, tmp_path)
    x = torch.randn(4, 12)
    close(by_peft(net(), tmp_path)(x), model(x))
    close(load_peft(net(), tmp_path).eval()(x), model(x))


def test_delta_lora_with_an_anchor(tmp_path):
    model = inject(net(), create("delta-lora", rank=2, start_step=2), ["wide", "tall"])
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.03)
    x = torch.randn(7, 12)
    for _ in range(5):
        model(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    save_peft(model, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 4
    close(by_peft(net(), tmp_path)(x), model(x))


def test_a_zero_row_is_refused_for_dora(tmp_path):
    model = net()
    nn.init.zeros_(model.wide.weight[2].detach())
    inject(model, DoRA(axis="row", rank=2), ["wide"])
    with pytest.raises(OptionError, match="zero row"):
        save_peft(model, tmp_path)


def test_a_name_that_ends_like_another(tmp_path):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.query, self.block = nn.Linear(6, 6), nn.ModuleDict({"query": nn.Linear(6, 6)})

        def forward(self, x):
            return self.block["query"](self.query(x))

    for method in (LoRA(rank=2), VeRA(rank=2)):
        model = moved(inject(Pair(), method, ["query"]))
        save_peft(model, tmp_path)
        x = torch.randn(3, 6)
        theirs = by_peft(Pair(), tmp_path)
        assert type(theirs.base_model.model.block["query"]) is nn.Linear
        close(theirs(x), model(x))


class Heads(nn.Module):
    """Two heads, the name of one of which ends like the other's; and a tied pair."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.body = nn.Embedding(9, 6), nn.Linear(6, 6)
        self.pre_classifier, self.classifier, self.norm = nn.Linear(6, 6), nn.Linear(6, 2), nn.BatchNorm1d(6)
        self.decoder = nn.Linear(6, 9, bias=False)
        self.decoder.weight = self.embed.weight

    def forward(self, ids):
        x = self.norm(self.pre_classifier(self.body(self.embed(ids))))
        return torch.cat((self.classifier(x), self.decoder(x)), dim=1)


def test_modules_to_save(tmp_path):
    model = inject(Heads(), LoRA(rank=2), ["body"], trainable=["classifier", "norm", "embed"])
    model(torch.arange(9))  # moves the running mean
    moved(model)
    ids = torch.tensor([1, 4, 8])
    save_peft(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["embed", "pre_classifier", "classifier", "norm", "decoder"]
    close(by_peft(Heads(), tmp_path)(ids), model(ids))
    ours = load_peft(Heads(), tmp_path).eval()
    close(ours(ids), model(ids))
    assert ours.decoder.weight is ours.embed.weight


def test_a_tied_module_that_peft_trained_alone(tmp_path):
    config = peft.LoraConfig(r=2, target_modules=["body"], modules_to_save=["embed"])
    theirs = peft.get_peft_model(Heads(), config)
    with torch.no_grad():
        theirs.base_model.model.embed.modules_to_save["default"].weight += 1.0
    theirs.eval().save_pretrained(tmp_path)
    ids = torch.tensor([1, 4, 8])
    ours = load_peft(Heads(), tmp_path).eval()
    close(ours(ids), theirs(ids))
    assert ours.decoder.weight is not ours.embed.weight


@pytest.mark.parametrize(
    ("trainable", "words"),
    [
        (["head.0.bias"], "'head.0.bias'.*whole modules"),
        (["wide.bias"], "'wide.bias'.*whole"),
        (["0"], "'0.0'|'block.0'|end of a name"),
    ],
)
def test_what_is_trained_beside_and_cannot_be_written(trainable, words, tmp_path):
    model = net()
    if trainable == ["0"]:
        model = nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 6)))
        inject(model, LoRA(rank=2), ["1.0"], trainable=trainable)
    else:
        inject(model, LoRA(rank=2), ["wide"], trainable=trainable)
    with pytest.raises(OptionError, match=words):
        save_peft(model, tmp_path / "folder")
    assert not list(tmp_path.iterdir())


def test_nothing_to_save(tmp_path):
    with pytest.raises(TargetError, match="inject"):
        save_peft(net(), tmp_path)


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(WriteError, match="folder"):
        save_peft(with_method("lora"), tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert (tmp_path / "folder").read_text() == "a file"


def changed(folder, **settings):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"peft_type": "IA3"}, OptionError, "IA3.*LORA, VERA, HIRA, RANDLORA.*merge_and_unload"),
        ({"lora_bias": True}, OptionError, "lora_bias"),
        ({"bias": "lora_only"}, OptionError, "bias = 'lora_only'"),
        ({"use_qalora": True}, OptionError, "use_qalora"),
        ({"layer_replication": [[0, 2]]}, OptionError, "layer_replication"),
        ({"a_setting_of_tomorrow": 3}, OptionError, "a_setting_of_tomorrow = 3"),
        (
            {"init_lora_weights": "pissa_niter_4"},
            OptionError,
            "pissa_niter_4.*path_initial_model_for_weight_conversion",
        ),
        ({"init_lora_weights": "corda"}, OptionError, "corda.*path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "loftq"}, OptionError, "loftq"),
        ({"init_lora_weights": "pissa", "use_dora": True}, OptionError, "use_dora"),
        ({"use_dora": True}, ShapeError, "magnitude has shape nothing"),
        ({"r": 4}, ShapeError, r"lora_A has shape \(3, 13\).*\(4, 13\)"),
        ({"r": 40}, OptionError, "rank 40 is above"),
        ({"rank_pattern": {"(": 4}}, DataError, "rank_pattern is no expression"),
    ],
)
def test_folders_that_are_refused_leave_the_model_as_it_was(settings, error, words, tmp_path):
    save_peft(with_method("lora"), tmp_path)
    changed(tmp_path, **settings)
    model = net()
    before, state = {name: type(module) for name, module in model.named_modules()}, copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=words) as caught:
        load_peft(model, tmp_path)
    assert "\n" not in str(caught.value)
    assert {name: type(module) for name, module in model.named_modules()} == before
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_files_that_are_refused(tmp_path):
    with pytest.raises(DataError, match="no PEFT adapter folder"):
        load_peft(net(), tmp_path)
    save_peft(with_method("lora"), tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    tensors = load_file(weights)
    with pytest.raises(TargetError, match="merge"):
        load_peft(with_method("lora"), tmp_path)
    for name, other, error, words in [
        ("square", None, TargetError, r"'square', which the model has not"),
        ("wide", nn.Bilinear(12, 12, 8), TargetError, r"'wide' is a Bilinear"),
        ("head", nn.Identity(), TargetError, r"'head\.0\.bias'.*head and all"),
        ("head", nn.Sequential(nn.Linear(13, 6)), ShapeError, r"head\.0\.bias has shape \(5,\).*\(6,\)"),
    ]:
        model = net()
        delattr(model, name) if other is None else setattr(model, name, other)
        with pytest.raises(error, match=words):
            load_peft(model, tmp_path)
        assert not adapted(model)
    save_file(tensors | {"base_model.model.wide.lora_embedding_A": torch.zeros(1)}, weights)
    with pytest.raises(TargetError, match=r"lora_embedding_A.*embeddings"):
        load_peft(net(), tmp_path)
    save_file({"wide.lora_A": torch.zeros(1)}, weights)
    with pytest.raises(DataError, match=r"'wide\.lora_A'"):
        load_peft(net(), tmp_path)
    save_file({}, weights)
    with pytest.raises(DataError, match="no tensor"):
        load_peft(net(), tmp_path)
    weights.write_bytes(b"PK")
    with pytest.raises(DataError, match="safetensors"):
        load_peft(net(), tmp_path)
    weights.rename(tmp_path / "adapter_model.bin")
    with pytest.raises(DataError, match=r"adapter_model\.bin is a pickle.*save_pretrained"):
        load_peft(net(), tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(DataError, match="no JSON"):
        load_peft(net(), tmp_path)


@pytest.mark.parametrize("config", [peft.VeraConfig, peft.RandLoraConfig])
def test_projections_that_were_not_saved(config, tmp_path):
    with pytest.warns(UserWarning, match="save_projection"):
        config = config(r=4, target_modules=["wide"], save_projection=False)
    peft.get_peft_model(net(), config).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    save_file(
        {key: value for key, value in tensors.items() if not key.endswith("_A")}, tmp_path / "adapter_model.safetensors"
    )
    with pytest.raises(DataError, match="save_projection"):
        load_peft(net(), tmp_path)


@pytest.mark.parametrize("config", [peft.VeraConfig(r=4), peft.RandLoraConfig(r=4)])
def test_layers_share_what_they_shared(config, tmp_path):
    trained(config, net(), torch.randn(7, 12)).save_pretrained(tmp_path)
    layers = adapted(load_peft(net().to(torch.bfloat16), tmp_path))
    key = "vera_A" if config.peft_type == "VERA" else "randlora_A"
    places = {identity(layer.tensor(key))[0] for layer in layers.values()}
    assert len(places) == 1
    assert layers["wide"].tensor(key).dtype == torch.float32


def test_a_folder_goes_by_its_tensors_to_a_base_of_lower_precision(tmp_path):
    save_peft(with_method("dora-row"), tmp_path)
    low = load_peft(net().to(torch.bfloat16), tmp_path)
    wide = load_peft(net(), tmp_path)
    for name, layer in adapted(low).items():
        assert layer.lora_A.dtype == torch.float32
        expected = effective_weight(wide.get_submodule(name))
        torch.testing.assert_close(effective_weight(layer), expected, rtol=2e-2, atol=2e-2)
    assert low.head[0].weight.dtype == torch.bfloat16


def test_the_merged_model_is_the_way_out(tmp_path):
    model = moved(inject(roberta(), Magnitude(), ["*.query"]))
    ids = torch.arange(3, 10)[None]
    wanted = model(ids).logits
    merge(model).save_pretrained(tmp_path)
    close(transformers.RobertaForSequenceClassification.from_pretrained(tmp_path).eval()(ids).logits, wanted)


def test_names_of_targets_are_not_taken_for_expressions():
    pattern = re.compile(rf"(.*\.)?(^{re.escape('layers.1.query')})$")  # PEFT's rule, get_pattern_key
    assert pattern.match("layers.1.query")
    assert not pattern.match("layersx1.query")
    assert not pattern.match("old.layers.1.query")
