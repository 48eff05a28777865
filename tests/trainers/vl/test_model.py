"""VL-BART: without pictures it is BART, masked things count for nothing, and the features are what it learns from."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import BartConfig, BartForConditionalGeneration

from deltaw.adapters import LoRA, adapted, inject
from deltaw.adapters.errors import DataError
from deltaw.trainers.vl import model as module
from deltaw.trainers.vl.model import PictureEncoder, VLBart, load_bart, load_picture_encoder, load_vl_bart
from deltaw.trainers.vl.scene import PICTURE_SIZE
from deltaw.trainers.vl.scenes import builtin

TOKENS, WIDTH = 5, 7
ATTENTION = pytest.mark.parametrize("attention", ["sdpa", "eager"])


def tiny(attention: str = "sdpa", **options: object) -> VLBart:
    config = BartConfig(
        **{
            "vocab_size": 40,
            "d_model": 16,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 24,
            "decoder_ffn_dim": 24,
            "max_position_embeddings": 30,
            "scale_embedding": True,
            "init_std": 0.3,
        }
        | options,
        attn_implementation=attention,
    )
    torch.manual_seed(0)
    return VLBart(BartForConditionalGeneration(config), tokens=TOKENS, width=WIDTH).double().eval()


def inputs(batch: int = 3, length: int = 6, pictures: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "features": torch.randn(batch, pictures, TOKENS, WIDTH, dtype=torch.float64, generator=generator),
        "picture_mask": torch.ones(batch, pictures, dtype=torch.bool),
        "input_ids": torch.randint(4, 40, (batch, length), generator=generator),
        "attention_mask": torch.ones(batch, length, dtype=torch.long),
        "labels": torch.randint(4, 40, (batch, 4), generator=generator),
    }


def same(first: Tensor, second: Tensor) -> bool:
    return torch.allclose(first, second, rtol=0, atol=1e-12)


# --- What counts and what does not


@ATTENTION
@pytest.mark.parametrize("pictures", [0, 1, 2])
def test_without_a_picture_it_is_bart_itself(attention, pictures):
    model, given = tiny(attention), inputs(pictures=pictures)
    given["picture_mask"][:] = False
    given["attention_mask"][1, 4:] = 0
    plain = model.bart(input_ids=given["input_ids"], attention_mask=given["attention_mask"], labels=given["labels"])
    output = model(**given)
    assert torch.equal(output.logits, plain.logits)
    assert torch.equal(output.loss, plain.loss)
    written = model.generate(**{k: v for k, v in given.items() if k != "labels"}, max_new_tokens=5)
    expected = model.bart.generate(
        input_ids=given["input_ids"], attention_mask=given["attention_mask"], max_new_tokens=5, do_sample=False
    )
    assert torch.equal(written, expected)


@ATTENTION
def test_an_example_without_a_picture_is_bart_also_beside_one_with(attention):
    model, given = tiny(attention), inputs()
    given["picture_mask"][1] = False
    plain = model.bart(input_ids=given["input_ids"], attention_mask=given["attention_mask"], labels=given["labels"])
    logits = model(**given).logits
    assert same(logits[1], plain.logits[1])
    assert not torch.allclose(logits[0], plain.logits[0], atol=1e-3)


@ATTENTION
def test_padding_changes_nothing(attention):
    model, given = tiny(attention), inputs()
    longer = dict(given)
    longer["input_ids"] = torch.nn.functional.pad(given["input_ids"], (0, 3), value=1)
    longer["attention_mask"] = torch.nn.functional.pad(given["attention_mask"], (0, 3))
    longer["labels"] = torch.nn.functional.pad(given["labels"], (0, 2), value=-100)
    short, padded = model(**given), model(**longer)
    assert same(short.logits, padded.logits[:, : short.logits.shape[1]])
    assert same(short.loss, padded.loss)


@ATTENTION
@pytest.mark.parametrize("rest", [0.0, 5.0, float("nan")])
def test_a_masked_second_picture_changes_nothing(attention, rest):
    model, given = tiny(attention), inputs()
    one = given | {"features": given["features"][:, :1], "picture_mask": given["picture_mask"][:, :1]}
    given["features"][:2, 1] = rest
    given["picture_mask"][:2, 1] = False
    with_two, with_one = model(**given).logits, model(**one).logits
    assert same(with_two[:2], with_one[:2])
    assert not torch.allclose(with_two[2], with_one[2], atol=1e-3)


def test_a_picture_is_told_from_the_other_and_a_place_from_another():
    model, given = tiny(), inputs()
    logits = model(**given).logits
    swapped = model(**given | {"features": given["features"].flip(1)}).logits
    turned = model(**given | {"features": given["features"].flip(2)}).logits
    assert not torch.allclose(logits, swapped, atol=1e-3)
    assert not torch.allclose(logits, turned, atol=1e-3)


def test_the_encoder_is_barts_over_visual_and_text_tokens():
    """A slow definition: BART's own encoder on the sum of what it would be given, its two embedding steps undone."""
    model, given = tiny(), inputs()
    bart = model.bart.model.encoder
    hidden, mask = model.encode(*(given[k] for k in ("features", "picture_mask", "input_ids", "attention_mask")))
    visual = []
    for picture in range(2):
        for token in range(TOKENS):
            feature = model.visual.norm(model.visual.projection(given["features"][:, picture, token]))
            visual.append(feature + model.visual.places[token] + model.visual.order[picture])
    scale = model.bart.config.d_model**0.5
    words = torch.nn.functional.embedding(given["input_ids"], bart.embed_tokens.weight) * scale
    places = bart.embed_positions.weight[2 : 2 + words.shape[1]]  # BART's positions begin at 2
    states = torch.cat([torch.stack(visual, 1), bart.layernorm_embedding(words + places)], 1)
    for layer in bart.layers:
        states = layer(states, None)
    assert same(hidden, states)
    assert mask.all()
    assert mask.shape == hidden.shape[:2]


# --- Training and writing


def test_labels_of_minus_100_do_not_count():
    model, given = tiny(), inputs()
    given["labels"][:, 2:] = -100
    output = model(**given)
    wanted = torch.nn.functional.cross_entropy(output.logits[:, :2].flatten(0, 1), given["labels"][:, :2].flatten())
    assert same(output.loss, wanted)


@pytest.mark.parametrize("beams", [1, 3])
def test_generate_writes_what_forward_finds_most_probable(beams):
    model, given = tiny(forced_eos_token_id=None), inputs()
    del given["labels"]
    written = model.generate(**given, max_new_tokens=5, num_beams=beams)
    again = model(**given, labels=written[:, 1:].contiguous()).logits  # the first is the start token
    assert (written[:, 0] == model.bart.config.decoder_start_token_id).all()
    if beams == 1:
        for row, logits in zip(written[:, 1:], again, strict=True):
            stop = (row == model.bart.config.eos_token_id).nonzero()
            length = int(stop[0]) + 1 if len(stop) else len(row)
            assert torch.equal(logits.argmax(-1)[:length], row[:length])


def test_adapters_and_the_visual_part_train_and_the_rest_does_not():
    model, given = tiny(), inputs()
    inject(model, LoRA(rank=2, alpha=4), ["*.q_proj", "*.v_proj"], trainable=["visual*"], seed=0)
    names = set(adapted(model))
    assert "bart.model.encoder.layers.0.self_attn.q_proj" in names
    assert "bart.model.decoder.layers.1.encoder_attn.v_proj" in names
    torch.autograd.backward(model(**given).loss)
    learnt = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    visual = {name for name, _ in model.named_parameters() if name.startswith("visual.")}
    assert visual <= learnt
    assert learnt == {name for name in learnt if name.startswith("visual.") or name.rsplit(".", 1)[0] in names}


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for enabled in (False, True):
        model = tiny().train()
        model.bart.config.dropout = 0.0
        for part in model.modules():
            if isinstance(getattr(part, "dropout", None), float):
                part.dropout = 0.0
        if enabled:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            assert model.bart.model.encoder.layers[0].gradient_checkpointing
        torch.autograd.backward(model(**inputs()).loss)
        gradients.append([p.grad for p in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert torch.equal(plain, checkpointed)
    model.gradient_checkpointing_disable()
    assert not model.bart.model.encoder.layers[0].gradient_checkpointing


@pytest.mark.parametrize(
    ("shape", "mask"),
    [
        ((3, 1, 4, 7), (3, 1)),
        ((3, 1, 5, 8), (3, 1)),
        ((3, 3, 5, 7), (3, 3)),
        ((3, 5, 7), (3, 5)),
        ((3, 2, 5, 7), (3, 1)),
    ],
)
def test_features_that_do_not_fit_are_an_error_that_says_what_fits(shape, mask):
    given = inputs() | {"features": torch.zeros(shape), "picture_mask": torch.ones(mask, dtype=torch.bool)}
    with pytest.raises(DataError) as caught:
        tiny()(**given)
    if shape == (3, 2, 5, 7):
        assert "picture_mask has the shape (3, 1); wanted is (3, 2)" in str(caught.value)
    else:
        assert str(shape) in str(caught.value)
        assert "5 tokens, width 7" in str(caught.value)


# --- Loading


def test_the_builtin_parts_fit_each_other():
    encoder = load_picture_encoder()
    assert not encoder.training
    assert not any(p.requires_grad for p in encoder.parameters())
    model, tokenizer = load_vl_bart(tokens=encoder.tokens, width=encoder.width)
    assert model.bart.dtype == torch.float32
    assert tokenizer.pad_token_id == model.bart.config.pad_token_id
    assert len(tokenizer) == model.bart.config.vocab_size
    assert model.bart.model.encoder.layers[0].self_attn.q_proj.weight.shape == (128, 128)


def test_the_pretrained_visual_part_is_taken_where_it_fits():
    encoder = load_picture_encoder()
    torch.manual_seed(0)
    first, _ = load_vl_bart(tokens=encoder.tokens, width=encoder.width)
    second, _ = load_vl_bart(tokens=encoder.tokens, width=encoder.width)
    assert torch.equal(first.visual.places, second.visual.places)
    new, _ = load_vl_bart(tokens=encoder.tokens, width=encoder.width + 1)
    assert new.visual.projection.in_features == encoder.width + 1
    assert not torch.equal(first.visual.places, new.visual.places)


def test_pictures_of_any_mode_and_size_are_prepared():
    encoder = PictureEncoder()
    for mode in ("RGB", "RGBA", "L", "P"):
        image = encoder.prepare(Image.new(mode, (37, 91)))
        assert image.shape == (3, encoder.size, encoder.size)
        assert 0 <= image.min() <= image.max() <= 1
    assert encoder.size == PICTURE_SIZE
    picture = next(iter(builtin()[2].values()))()
    bytes_ = torch.tensor(list(picture.tobytes())).view(64, 64, 3).permute(2, 0, 1)
    assert torch.equal(encoder.prepare(picture), bytes_.float() / 255)


def test_a_folder_without_a_model_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no BART can be loaded"):
        load_bart(str(tmp_path))


def test_a_model_of_another_kind_is_an_error(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "roberta"}))
    with pytest.raises(DataError, match="type 'roberta'; VL-BART needs a BART"):
        load_bart(str(tmp_path))


def test_a_model_without_a_tokenizer_is_an_error(tmp_path):
    tiny().bart.float().save_pretrained(tmp_path)
    with pytest.raises(DataError, match="no tokenizer can be loaded"):
        load_bart(str(tmp_path))


def test_half_precision_weights_are_widened(tmp_path):
    bart, tokenizer = load_bart()
    bart.half().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, _ = load_bart(str(tmp_path))
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    vl_bart, _ = load_vl_bart(str(tmp_path), tokens=TOKENS, width=WIDTH)  # a folder without a visual part
    assert vl_bart.visual.places.shape == (TOKENS, 128)


def test_loading_is_silent(capfd):
    load_bart()
    assert capfd.readouterr() == ("", "")
    assert module.BUILTIN.is_dir()
