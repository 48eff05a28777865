"""Which rows and columns are whose head, by what the models themselves do with them."""

import pytest
import torch
import transformers as t
from torch import nn

from deltaw.adapters import OptionError
from deltaw.adapters.modules import is_conv1d
from deltaw.analysis.measures.blocks import equal_blocks
from deltaw.analysis.records.foreign.heads import checked_heads, expert_of, head_blocks, kept_of

SMALL = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 20}
TEXT = {"vocab_size": 30, "max_position_embeddings": 16}
GROUPED = {"num_key_value_heads": 2}
BOTH = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 3}
ENDS = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "decoder_start_token_id": 2}
GPT = {"n_embd": 24, "n_layer": 1, "n_head": 4, "vocab_size": 30, "n_positions": 16}
FALCON = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 30, "alibi": False}

MODELS = {
    "bert": lambda: t.BertModel(t.BertConfig(**SMALL, **TEXT)),
    "roberta": lambda: t.RobertaModel(t.RobertaConfig(**SMALL, **TEXT)),
    "mpnet": lambda: t.MPNetModel(t.MPNetConfig(**SMALL, **TEXT)),
    "distilbert": lambda: t.DistilBertModel(t.DistilBertConfig(dim=24, n_layers=1, n_heads=4, hidden_dim=20, **TEXT)),
    "llama": lambda: t.LlamaModel(t.LlamaConfig(**SMALL, **TEXT, **GROUPED)),
    "qwen3": lambda: t.Qwen3Model(t.Qwen3Config(**SMALL, **TEXT, **GROUPED, head_dim=8)),
    "gemma": lambda: t.GemmaModel(t.GemmaConfig(**SMALL, **TEXT, num_key_value_heads=1, head_dim=10)),
    "phi3": lambda: t.Phi3Model(t.Phi3Config(**SMALL, **TEXT, **GROUPED, pad_token_id=0)),
    "gpt2": lambda: t.GPT2Model(t.GPT2Config(**GPT)),
    "gptj": lambda: t.GPTJModel(t.GPTJConfig(**GPT, rotary_dim=4)),
    "codegen": lambda: t.CodeGenModel(t.CodeGenConfig(**GPT, rotary_dim=4)),
    "bigcode": lambda: t.GPTBigCodeModel(t.GPTBigCodeConfig(**GPT)),
    "neox": lambda: t.GPTNeoXModel(t.GPTNeoXConfig(**SMALL, **TEXT)),
    "bloom": lambda: t.BloomModel(t.BloomConfig(hidden_size=24, n_layer=1, n_head=4, vocab_size=30)),
    "falcon": lambda: t.FalconModel(t.FalconConfig(**FALCON)),
    "falcon, each its own": lambda: t.FalconModel(t.FalconConfig(**FALCON, multi_query=False)),
    "falcon, grouped": lambda: t.FalconModel(t.FalconConfig(**FALCON, new_decoder_architecture=True, num_kv_heads=2)),
    "bart": lambda: t.BartModel(t.BartConfig(d_model=24, **BOTH, **TEXT, **ENDS, encoder_ffn_dim=9, decoder_ffn_dim=9)),
    "t5": lambda: t.T5Model(t.T5Config(d_model=24, d_kv=5, num_heads=4, num_layers=1, d_ff=20, vocab_size=30)),
    "vit": lambda: t.ViTModel(t.ViTConfig(**SMALL, image_size=8, patch_size=4)),
}


def small(name):
    """A model of one layer, without biases, which would mix the heads' parts."""
    torch.manual_seed(0)
    model = MODELS[name]().eval().double()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        for own, parameter in model.named_parameters():
            if own.endswith("bias") and "relative" not in own:
                parameter.zero_()
            elif parameter.ndim == 2:
                parameter.normal_()
    return model


def run(model):
    """What comes out of a model, and its attention: (heads, to, from) by "encoder", "decoder", "cross" or ""."""
    ids = torch.arange(7)[None] % 30
    given = {"pixel_values": torch.linspace(-1, 1, 192, dtype=torch.float64).reshape(1, 3, 8, 8)}
    if not isinstance(model, t.ViTModel):
        given = {"input_ids": ids}
    if model.config.is_encoder_decoder:
        given["decoder_input_ids"] = ids.flip(1)
    with torch.no_grad():
        found = model(**given, output_attentions=True)
    names = {"attentions": "", "encoder_attentions": "encoder", "decoder_attentions": "decoder"}
    names["cross_attentions"] = "cross"
    there = {stack: found[key][0][0] for key, stack in names.items() if found.get(key)}
    return found.last_hidden_state, there


def weight(module):
    """The matrix, (out, in), as a view of the module's."""
    return module.weight.data.T if is_conv1d(module) else module.weight.data


def without(model, places):
    """What comes out where some rows or columns are zero."""
    kept = [(weight(module)[part], weight(module)[part].clone()) for module, part in places]
    for view, _ in kept:
        view.zero_()
    found = run(model)
    for view, value in kept:
        view.copy_(value)
    return found


def attention_of(model):
    """The heads of every attention by (attention, part): [(module, its rows or columns)]."""
    config, found = model.config.to_dict(), {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) and not is_conv1d(module):
            continue
        blocks = head_blocks(name, tuple(weight(module).shape), config)
        if blocks is None:
            continue
        stack = "cross" if "encoder_attn" in name or "EncDec" in name else name.partition(".")[0]
        stack = stack if model.config.is_encoder_decoder else ""
        for (part, head), (start, stop) in zip(blocks.names, blocks.bounds, strict=True):
            place = (slice(start, stop),) if blocks.side == "row" else (slice(None), slice(start, stop))
            of_part = found.setdefault((stack, part), [])
            assert len(of_part) == head
            of_part.append((module, place))
    return found


@pytest.mark.parametrize("name", MODELS)
def test_heads_are_those_of_the_model(name):
    model = small(name)
    plain, there = run(model)
    found = attention_of(model)
    assert {stack for stack, _ in found} == set(there)
    for stack, attention in there.items():
        heads = [found[stack, part] for part in ("query", "key", "value", "output")]
        query, key, value, output = heads
        assert len(query) == len(output) == len(attention)
        assert len(key) == len(value)
        group = len(query) // len(key)
        for part, shared in ((query, 1), (key, group)):  # of which rows an attention is made
            for head, place in enumerate(part):
                _, changed = without(model, [place])
                moved = (changed[stack] - attention).abs().amax((1, 2)) > 1e-9
                assert moved.nonzero()[:, 0].tolist() == list(range(head * shared, (head + 1) * shared))
        for head, place in enumerate(value):  # nothing is lost where a value is zero, but what the output reads of it
            of_output = output[head * group : (head + 1) * group]
            first, second = without(model, [place])[0], without(model, of_output)[0]
            torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)
            assert not torch.allclose(first, plain, rtol=1e-6)


def test_a_model_of_two_towers():
    config = {
        "text_config": {"num_attention_heads": 2, "hidden_size": 8},
        "vision_config": {"num_attention_heads": 4, "hidden_size": 8},
    }
    for module, heads in (("text_model.encoder.layers.0.self_attn.q_proj", 2), ("vision_model.layers.0.q_proj", 4)):
        assert head_blocks(module, (8, 8), config) == equal_blocks("row", 8, heads, "query")


def test_latent_attention():
    config = {"num_attention_heads": 4, "kv_lora_rank": 6, "head_dim": 3, "num_key_value_heads": 4}
    assert len(head_blocks("layers.0.self_attn.q_b_proj", (28, 9), config).bounds) == 4
    assert len(head_blocks("layers.0.self_attn.kv_b_proj", (40, 6), config).bounds) == 4
    assert head_blocks("layers.0.self_attn.kv_a_proj_with_mqa", (9, 20), config) is None


@pytest.mark.parametrize(
    ("module", "shape", "config", "message"),
    [
        ("layers.0.q_proj", (8, 8), {}, r'does not tell the heads; give them: heads=\{"num_attention_heads": 12\}'),
        ("layers.0.q_proj", (8, 8), {"num_attention_heads": True}, "does not tell the heads"),
        ("layers.0.q_proj", (8, 8), {"num_attention_heads": "4"}, "does not tell the heads"),
        ("layers.0.q_proj", (8, 8), {"num_attention_heads": 3}, r"shape \(8, 8\) is not 3 heads by its rows"),
        ("layers.0.q_proj", (8, 8), {"num_attention_heads": 4, "head_dim": 4}, "is not 4 heads of 4 by its rows"),
        ("attn.o_proj", (8, 9), {"num_attention_heads": 2}, "is not 2 heads by its columns"),
        ("attn.qkv_proj", (10, 8), {"num_attention_heads": 2}, "in an order that is not known of a model of type None"),
        ("attn.c_attn", (24, 8), {"num_attention_heads": 10**9}, "or is not 1000000000 heads of each"),
    ],
    ids=["nothing", "a truth", "a text", "uneven", "size", "columns", "fused", "many"],
)
def test_what_is_not_known_is_said(module, shape, config, message):
    with pytest.raises(OptionError, match=message):
        head_blocks(module, shape, config)


def test_what_has_no_heads():
    config = {"num_attention_heads": 2}
    for module in ("classifier.out_proj", "mlp.up_proj", "mixer.in_proj", "lm_head", "pooler.dense"):
        assert head_blocks(module, (8, 8), config) is None


def test_numbers_that_are_given_go_first():
    config = {"num_attention_heads": 4, "num_key_value_heads": 4}
    assert len(head_blocks("attn.k_proj", (8, 8), config, heads={"num_key_value_heads": 2}).bounds) == 2
    assert len(head_blocks("mix", (8, 8), {}, "query", {"num_attention_heads": 2}).bounds) == 2
    for wrong, message in (({"heads": 2}, "heads has 'heads'; choose from"), (0, "num_attention_heads"), ("2", "num")):
        with pytest.raises(OptionError, match=message):
            checked_heads(wrong)


def test_what_is_kept_of_a_configuration_says_the_same():
    for config in (t.LlamaConfig(**SMALL, **GROUPED), t.CLIPConfig(), t.FalconConfig(**FALCON)):
        whole = config.to_dict()
        kept = kept_of(whole)
        assert len(str(kept)) < 1000
        modules = [("layers.0.k_proj", (24, 24)), ("vision_model.layers.0.q_proj", (768, 768))]
        for module, shape in modules:
            try:
                want = head_blocks(module, shape, whole)
            except OptionError:
                continue
            assert head_blocks(module, shape, kept) == want


def test_experts_by_their_names():
    assert expert_of("encoder.block.1.layer.1.mlp.experts.expert_7.wi") == 7
    assert expert_of("model.layers.3.block_sparse_moe.experts.0.w1") == 0
    assert expert_of("model.layers.3.mlp.experts.down_proj") is None
