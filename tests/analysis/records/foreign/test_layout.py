"""Fused, stacked and turned matrices of the common architectures, read from what transformers saves."""

import pytest
import torch
import transformers as t
from safetensors.torch import load_file, save_file
from torch import nn

from deltaw.analysis import Trajectory
from deltaw.analysis.names import is_embedding, kind_of, layer_of

t.logging.set_verbosity_error()
t.utils.logging.disable_progress_bar()

SMALL = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20, "vocab_size": 30}
HEADS, SIZE = 3, 4


def saved(model, folder):
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p))
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def check(folder, whole, wanted):
    run = Trajectory.open(folder)
    assert whole not in run.modules
    for part, matrix in wanted.items():
        assert torch.equal(run.weight(f"{whole}.{part}", 0), matrix), part
        assert kind_of(f"{whole}.{part}") == part
        assert run.shape(f"{whole}.{part}") == tuple(matrix.shape)
    kept = Trajectory.open(folder, split=False)
    assert whole in kept.modules
    assert kind_of(whole) in ("qkv", "gate_up")


def by_head(W):
    q, k, v = W.view(HEADS, 3, SIZE, -1).unbind(1)
    return {"query": q.flatten(0, 1), "key": k.flatten(0, 1), "value": v.flatten(0, 1)}


@pytest.mark.parametrize("kind", ["gpt_neox", "bloom", "falcon_rw"])
def test_query_key_value_by_head(kind, tmp_path):
    model, whole = {
        "gpt_neox": (
            lambda: t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**SMALL)),
            "gpt_neox.layers.1.attention.query_key_value",
        ),
        "bloom": (
            lambda: t.BloomForCausalLM(t.BloomConfig(hidden_size=12, n_layer=2, n_head=3, vocab_size=30)),
            "transformer.h.1.self_attention.query_key_value",
        ),
        "falcon_rw": (
            lambda: t.FalconForCausalLM(t.FalconConfig(**SMALL, multi_query=False)),
            "transformer.h.1.self_attention.query_key_value",
        ),
    }[kind]
    model = model()
    state = saved(model, tmp_path)
    wanted = by_head(state[f"{whole}.weight"])
    if kind == "bloom":  # the model's own words, on the outputs for the identity
        own = model.transformer.h[1].self_attention._reshape(state[f"{whole}.weight"].T[None])
        assert torch.equal(wanted["key"].T, own[1][0].transpose(0, 1).flatten(1))
    check(tmp_path, whole, wanted)


def test_falcon_with_shared_keys(tmp_path):
    model = t.FalconForCausalLM(
        t.FalconConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=4, num_kv_heads=2,
                       new_decoder_architecture=True, vocab_size=30)
    )  # fmt: skip
    whole = "transformer.h.0.self_attention.query_key_value"
    W = saved(model, tmp_path)[f"{whole}.weight"]
    groups = W.view(2, 4, 6, 24)  # groups of two queries, a key, a value
    q, k, v = groups[:, :2].reshape(24, 24), groups[:, 2].reshape(12, 24), groups[:, 3].reshape(12, 24)
    check(tmp_path, whole, {"query": q, "key": k, "value": v})


def test_falcon_7b_and_bigcode_have_one_key(tmp_path):
    whole = "transformer.h.0.self_attention.query_key_value"
    W = saved(t.FalconForCausalLM(t.FalconConfig(**SMALL)), tmp_path / "a")[f"{whole}.weight"]
    check(tmp_path / "a", whole, {"query": W[:12], "key": W[12:16], "value": W[16:]})
    whole = "transformer.h.0.attn.c_attn"
    bigcode = t.GPTBigCodeForCausalLM(t.GPTBigCodeConfig(n_embd=12, n_layer=1, n_head=3, vocab_size=30))
    W = saved(bigcode, tmp_path / "b")[f"{whole}.weight"]
    check(tmp_path / "b", whole, {"query": W[:12], "key": W[12:16], "value": W[16:]})


def test_phi3_packs_with_fewer_keys(tmp_path):
    state = saved(t.Phi3ForCausalLM(t.Phi3Config(**SMALL, num_key_value_heads=1, pad_token_id=0)), tmp_path)
    whole = "model.layers.1.self_attn.qkv_proj"
    W = state[f"{whole}.weight"]
    check(tmp_path, whole, {"query": W[:12], "key": W[12:16], "value": W[16:]})
    whole = "model.layers.1.mlp.gate_up_proj"
    W = state[f"{whole}.weight"]
    check(tmp_path, whole, {"gate": W[:20], "up": W[20:]})


def test_codegen_puts_value_before_key(tmp_path):
    model = t.CodeGenForCausalLM(t.CodeGenConfig(n_embd=32, n_layer=1, n_head=4, vocab_size=30, rotary_dim=4))
    whole = "transformer.h.0.attn.qkv_proj"
    W = saved(model, tmp_path)[f"{whole}.weight"].view(4, 3, 8, 32)
    check(
        tmp_path, whole, {"query": W[:, 0].flatten(0, 1), "value": W[:, 1].flatten(0, 1), "key": W[:, 2].flatten(0, 1)}
    )


@pytest.mark.parametrize("kind", ["mpt", "modernbert"])
def test_three_below_each_other(kind, tmp_path):
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 3, "sep_token_id": 4}
    model, whole = {
        "mpt": (lambda: t.MptForCausalLM(t.MptConfig(d_model=12, n_layers=1, n_heads=3, vocab_size=30)),
                "transformer.blocks.0.attn.Wqkv"),
        "modernbert": (lambda: t.ModernBertModel(t.ModernBertConfig(**SMALL, **special)), "layers.0.attn.Wqkv"),
    }[kind]  # fmt: skip
    W = saved(model(), tmp_path)[f"{whole}.weight"]
    check(tmp_path, whole, {"query": W[:12], "key": W[12:24], "value": W[24:]})


def test_gpt2_conv1d(tmp_path):
    state = saved(t.GPT2LMHeadModel(t.GPT2Config(n_embd=12, n_layer=2, n_head=3, vocab_size=30)), tmp_path)
    whole = "transformer.h.1.attn.c_attn"
    q, k, v = state[f"{whole}.weight"].T.split(12)
    check(tmp_path, whole, {"query": q, "key": k, "value": v})
    assert torch.equal(
        Trajectory.open(tmp_path).weight("transformer.h.0.mlp.c_fc", 0), state["transformer.h.0.mlp.c_fc.weight"].T
    )
    (tmp_path / "config.json").unlink()  # and without its configuration
    check(tmp_path, whole, {"query": q, "key": k, "value": v})


@pytest.mark.parametrize("kind", ["llama4", "gpt_oss"])
def test_stacks_of_experts(kind, tmp_path):
    options = SMALL | {"num_key_value_heads": 1, "num_local_experts": 3, "head_dim": 4}
    if kind == "llama4":
        model = t.Llama4ForCausalLM(t.Llama4TextConfig(**options, intermediate_size_mlp=20, pad_token_id=0))
        head = "model.layers.0.feed_forward.experts"
    else:
        model = t.GptOssForCausalLM(t.GptOssConfig(**options))
        head = "model.layers.0.mlp.experts"
    state = saved(model, tmp_path)
    run = Trajectory.open(tmp_path)
    for expert in range(3):
        gate_up, down = state[f"{head}.gate_up_proj"][expert], state[f"{head}.down_proj"][expert]
        gate, up = (gate_up[:, ::2], gate_up[:, 1::2]) if kind == "gpt_oss" else gate_up.chunk(2, 1)
        assert torch.equal(run.weight(f"{head}.{expert}.gate_up_proj.gate", 0), gate.T)
        assert torch.equal(run.weight(f"{head}.{expert}.gate_up_proj.up", 0), up.T)
        assert torch.equal(run.weight(f"{head}.{expert}.down_proj", 0), down.T)
        assert layer_of(f"{head}.{expert}.down_proj") == 0
        assert kind_of(f"{head}.{expert}.down_proj") == "down"


def test_stacks_that_are_not_turned(tmp_path):
    stack = torch.randn(3, 8, 5)
    save_file({"layers.0.mlp.experts.down_proj": stack, "layers.0.mlp.experts.down_proj_bias": torch.zeros(3, 8)},
              tmp_path / "model.safetensors")  # fmt: skip
    run = Trajectory.open(tmp_path)
    assert run.modules == [f"layers.0.mlp.experts.{k}.down_proj" for k in range(3)]
    assert torch.equal(run.weight("layers.0.mlp.experts.2.down_proj", 0), stack[2])


def test_pytorchs_own_attention(tmp_path):
    attention = nn.MultiheadAttention(6, 2)
    save_file({f"blocks.0.attn.{k}": v for k, v in attention.state_dict().items()}, tmp_path / "model.safetensors")
    q, k, v = attention.in_proj_weight.detach().chunk(3)
    check(tmp_path, "blocks.0.attn.in_proj", {"query": q, "key": k, "value": v})


def test_unknown_fusions_are_left_whole(tmp_path):
    save_file({"h.0.query_key_value.weight": torch.randn(9, 3)}, tmp_path / "model.safetensors")
    run = Trajectory.open(tmp_path)
    assert run.modules == ["h.0.query_key_value"]
    assert kind_of(run.modules[0]) == "qkv"


@pytest.mark.parametrize(
    ("name", "layer", "kind"),
    [
        ("gpt_neox.layers.3.attention.dense", 3, "output"),
        ("gpt_neox.layers.3.mlp.dense_4h_to_h", 3, "down"),
        ("transformer.h.2.self_attention.dense", 2, "output"),
        ("encoder.block.1.layer.1.DenseReluDense.wo", 1, "down"),
        ("decoder.block.1.layer.1.EncDecAttention.o", 1, "output"),
        ("model.layers.7.block_sparse_moe.experts.3.w2", 7, "down"),
        ("model.layers.7.block_sparse_moe.gate", 7, "router"),
        ("model.layers.7.mlp.experts.3.gate_proj", 7, "gate"),
        ("blocks.11.attn.proj", 11, "output"),
        ("vit.layers.0.attention.q_proj", 0, "query"),
        ("layers.0.attn.Wo", 0, "output"),
        ("encoder.albert_layer_groups.0.albert_layers.0.ffn_output", 0, "down"),
        ("transformer.h.0.attn.c_attn.key", 0, "key"),
    ],
)
def test_more_names(name, layer, kind):
    assert (layer_of(name), kind_of(name)) == (layer, kind)


def test_what_is_an_embedding():
    names = ["bert.embeddings.word_embeddings", "transformer.wpe", "shared", "gpt_neox.embed_in", "gpt_neox.embed_out"]
    names += [
        "model.embed_tokens",
        "lm_head",
        "bert.cls.predictions.decoder",
        "a.SelfAttention.relative_attention_bias",
    ]
    assert [name for name in names if not is_embedding(name)] == []
    linear = ["encoder.embedding_hidden_mapping_in", "classifier", "pooler.dense", "layers.0.q_proj", "score"]
    assert [name for name in linear if is_embedding(name)] == []
