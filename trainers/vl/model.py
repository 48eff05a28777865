"""VL-BART: pictures and text in, text out.

A frozen picture encoder gives a grid of features. A linear projection, a layer norm and learned positions (where in
the grid, and which picture) turn them into tokens in front of the text; BART reads both and writes the answer.

Source:
    Sung et al., "VL-Adapter", 2022, section 3.1, after Cho et al., "VL-T5 / VL-BART", 2021, section 3. There the
    positions are those of boxes; here, as in VL-Adapter, they are those of a grid.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, BartForConditionalGeneration, GenerationConfig
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from deltaw.adapters.errors import DataError
from deltaw.trainers.loading import first_line, quiet

BUILTIN = Path(__file__).parent / "builtin"
BART, ENCODER, VISUAL = "bart", "encoder.safetensors", "visual.safetensors"
_INITIAL = 0.02  # standard deviation of the new positions, BART's own


class VisualTokens(nn.Module):
    """Turns features of pictures into tokens: norm(projection(feature)) + its place in the grid + which picture.

    Arguments:
        tokens: Features of a picture.
        width: Numbers in a feature.
        pictures: Pictures of an example, at most.
        hidden: BART's d_model.
    """

    def __init__(self, tokens: int, width: int, pictures: int, hidden: int) -> None:
        super().__init__()
        self.projection = nn.Linear(width, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.places = nn.Parameter(torch.randn(tokens, hidden) * _INITIAL)
        self.order = nn.Parameter(torch.randn(pictures, hidden) * _INITIAL)

    def forward(self, features: Tensor) -> Tensor:
        """Return the tokens, (batch, pictures · tokens, hidden), of features (batch, pictures, tokens, width)."""
        tokens: Tensor = self.norm(self.projection(features)) + self.places + self.order[: features.shape[1], None]
        return tokens.flatten(1, 2)


class VLBart(nn.Module):
    """BART that reads visual tokens in front of its text.

    The text keeps BART's own positions and is embedded as ever; visual tokens get none of them. So without a picture
    this is BART itself.

    Arguments:
        bart: The language model; its modules' names begin with "bart.".
        tokens: Features of a picture.
        width: Numbers in a feature.
        pictures: Pictures of an example, at most: 2 for NLVR².

    Example:
        >>> from transformers import BartConfig
        >>> config = BartConfig(vocab_size=50, d_model=8, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=8,
        ...                     decoder_ffn_dim=8, encoder_attention_heads=2, decoder_attention_heads=2)
        >>> model = VLBart(BartForConditionalGeneration(config), tokens=4, width=6)
        >>> text = torch.tensor([[0, 7, 2]])
        >>> features, there = torch.zeros(1, 1, 4, 6), torch.ones(1, 1, dtype=torch.bool)
        >>> model(features, there, text, text >= 0, labels=text).logits.shape
        torch.Size([1, 3, 50])
    """

    supports_gradient_checkpointing = True

    def __init__(self, bart: BartForConditionalGeneration, *, tokens: int, width: int, pictures: int = 2) -> None:
        super().__init__()
        self.bart = bart
        hidden: Any = bart.config.d_model
        self.visual = VisualTokens(tokens, width, pictures, hidden)
        self.tokens, self.width, self.pictures = tokens, width, pictures

    def forward(
        self,
        features: Tensor,
        picture_mask: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor | None = None,
    ) -> Seq2SeqLMOutput:
        """Return BART's output, with the loss where there are labels.

        Arguments:
            features: (batch, pictures, tokens, width); what stands in a masked picture does not matter.
            picture_mask: (batch, pictures), True where there is a picture.
            input_ids: The text, (batch, length).
            attention_mask: (batch, length), 1 for text and 0 for padding.
            labels: The answer, (batch, answer length), −100 where nothing is to be learnt. BART's decoder reads them
                shifted, after its start token.

        Raises:
            DataError: The features have another shape than the model was made for.
        """
        hidden, mask = self.encode(features, picture_mask, input_ids, attention_mask)
        output: Seq2SeqLMOutput = self.bart(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
            attention_mask=mask,
            labels=labels,
            decoder_input_ids=self._start(input_ids) if labels is None else None,
            use_cache=False,
        )
        return output

    @torch.no_grad()
    def generate(
        self,
        features: Tensor,
        picture_mask: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        *,
        max_new_tokens: int,
        num_beams: int = 1,
    ) -> Tensor:
        """Return the written answers, (batch, length) token ids, the start token first; the most probable words.

        Only these options count, not those of the model's own generation config: BART's forbids repeated trigrams.

        Arguments:
            features, picture_mask, input_ids, attention_mask: As ``forward``.
            max_new_tokens: Of an answer, its <s> and </s> among them.
            num_beams: 1 for greedy search.
        """
        hidden, mask = self.encode(features, picture_mask, input_ids, attention_mask)
        config = self.bart.config
        make: Any = GenerationConfig  # neither it nor generate is typed well
        bart: Any = self.bart
        options = make(
            max_new_tokens=max_new_tokens,
            num_beams=num_beams,
            do_sample=False,
            pad_token_id=config.pad_token_id,
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            decoder_start_token_id=config.decoder_start_token_id,
        )
        written: Tensor = bart.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden), attention_mask=mask, generation_config=options
        )
        return written

    def encode(
        self, features: Tensor, picture_mask: Tensor, input_ids: Tensor, attention_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the encoder's output, (batch, visual and text tokens, hidden), and which of it counts."""
        self._check(features, picture_mask)
        encoder = self.bart.model.encoder
        mask = attention_mask.bool()
        columns = picture_mask.any(dim=0).nonzero()
        if not len(columns):  # no picture at all: BART as it is
            return encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state, mask
        used = int(columns[-1]) + 1  # a second picture that no example of the batch has costs nothing
        there = picture_mask[:, :used].bool()
        features = features[:, :used].to(self.visual.projection.weight.dtype)
        visual = self.visual(features.masked_fill(~there[:, :, None, None], 0.0))  # also of NaN in a masked picture
        mask = torch.cat([there.repeat_interleave(self.tokens, dim=1), mask], dim=1)

        # From here on as BartEncoder.forward, which has no place for tokens without its positions.
        text = encoder.layernorm_embedding(encoder.embed_tokens(input_ids) + encoder.embed_positions(input_ids))
        hidden = torch.cat([visual.to(text.dtype), text], dim=1)
        hidden = nn.functional.dropout(hidden, p=encoder.dropout, training=self.training)
        hidden_from = torch.zeros(mask.shape, dtype=hidden.dtype, device=hidden.device)
        bias = hidden_from.masked_fill(~mask, torch.finfo(hidden.dtype).min)[:, None, None]
        for layer in encoder.layers:
            if self.training and encoder.layerdrop > 0.0 and torch.rand([]) < encoder.layerdrop:
                continue
            older = (
                {"layer_head_mask": None} if "layer_head_mask" in inspect.signature(layer.forward).parameters else {}
            )
            output = layer(hidden, bias, **older)
            hidden = output[0] if isinstance(output, tuple) else output
        return hidden, mask

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Keep no activations of BART's layers; they are computed again for the gradients."""
        # transformers 5 has renamed it, and warns of the old name
        enable = getattr(self.bart, "activation_checkpointing_enable", self.bart.gradient_checkpointing_enable)
        enable(gradient_checkpointing_kwargs)

    def gradient_checkpointing_disable(self) -> None:
        """Keep the activations again."""
        getattr(self.bart, "activation_checkpointing_disable", self.bart.gradient_checkpointing_disable)()

    def _start(self, input_ids: Tensor) -> Tensor:
        start: Any = self.bart.config.decoder_start_token_id
        return input_ids.new_full((len(input_ids), 1), start)

    def _check(self, features: Tensor, picture_mask: Tensor) -> None:
        wanted = f"(batch, up to {self.pictures} pictures, {self.tokens} tokens, width {self.width})"
        if features.ndim != 4 or features.shape[1] > self.pictures or features.shape[2:] != (self.tokens, self.width):
            raise DataError(
                f"picture features have the shape {tuple(features.shape)}; the model was made for {wanted}: encode the "
                "pictures with the same encoder, or make the model for these features"
            )
        if picture_mask.shape != features.shape[:2]:
            raise DataError(
                f"picture_mask has the shape {tuple(picture_mask.shape)}; wanted is {tuple(features.shape[:2])}, one "
                "value a picture"
            )


class PictureEncoder(nn.Module):
    """A small convolutional network: each 3×3 convolution halves the picture, the last gives one feature a grid cell.

    64×64 pixels become 4×4 tokens. In fine-tuning it is frozen.
    """

    channels = (24, 48, 96, 96)
    size, tokens, width = 64, 16, 96

    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for before, after in zip((3, *self.channels), self.channels, strict=False):
            blocks += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.blocks = nn.Sequential(*blocks)

    def forward(self, images: Tensor) -> Tensor:
        """Return features, (batch, tokens, width), of pictures (batch, 3, size, size) with values in [0, 1]."""
        grid: Tensor = self.blocks(images * 2 - 1)
        return grid.flatten(2).transpose(1, 2)

    def prepare(self, picture: Image.Image) -> Tensor:
        """Return a picture of any size and mode as the encoder wants it, (3, size, size) in [0, 1].

        Example:
            >>> PictureEncoder().prepare(Image.new("L", (100, 50))).shape
            torch.Size([3, 64, 64])
        """
        import numpy as np

        small = picture.convert("RGB").resize((self.size, self.size), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255


def load_picture_encoder() -> PictureEncoder:
    """Return the built-in picture encoder, frozen and in evaluation mode.

    Example:
        >>> encoder = load_picture_encoder()
        >>> encoder(encoder.prepare(Image.new("RGB", (64, 64)))[None]).shape
        torch.Size([1, 16, 96])
    """
    encoder = PictureEncoder()
    encoder.load_state_dict({name: value.float() for name, value in load_file(BUILTIN / ENCODER).items()}, strict=False)
    return encoder.eval().requires_grad_(False)


def load_bart(model: str | None = None) -> tuple[BartForConditionalGeneration, Any]:
    """Return a BART in float32 and its tokenizer.

    Arguments:
        model: A folder or a name on the hub, for example facebook/bart-base; ``None`` for the built-in one.

    Raises:
        DataError: There is no such model, or it is no BART.

    Example:
        >>> bart, tokenizer = load_bart()
        >>> bart.config.d_model, tokenizer.decode(tokenizer("a red circle").input_ids, skip_special_tokens=True).strip()
        (128, 'a red circle')
    """
    source = str(BUILTIN / BART) if model is None else model
    with quiet():
        try:
            kind = AutoConfig.from_pretrained(source).model_type
            if kind != "bart":
                raise DataError(
                    f"{source}: is a model of type {kind!r}; VL-BART needs a BART, for example facebook/bart-base"
                )
            bart = BartForConditionalGeneration.from_pretrained(source)
        except DataError:
            raise
        except (OSError, ValueError) as error:
            raise DataError(
                f"{source}: no BART can be loaded; wanted is a name on the hub, or a folder with config.json and "
                f"model.safetensors ({first_line(error)})"
            ) from None
        try:
            tokenizer = AutoTokenizer.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise DataError(f"{source}: no tokenizer can be loaded ({first_line(error)})") from None
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):  # what transformers makes of no file at all
        raise DataError(f"{source}: no tokenizer can be loaded (it has no words); put its tokenizer.json there")
    return cast(BartForConditionalGeneration, cast(nn.Module, bart).float()), tokenizer


def load_vl_bart(model: str | None = None, *, tokens: int, width: int, pictures: int = 2) -> tuple[VLBart, Any]:
    """Return a VL-BART on a pretrained BART, and its tokenizer.

    The visual part is new, drawn with torch's global random numbers, unless the model is a folder that has a pretrained
    one (``visual.safetensors``, as the built-in has) for features of this count and width.

    Arguments:
        model: As ``load_bart``.
        tokens, width, pictures: As ``VLBart``.

    Raises:
        DataError: As ``load_bart``.

    Example:
        >>> model, tokenizer = load_vl_bart(tokens=16, width=96)
        >>> sum(p.numel() for p in model.visual.parameters())
        14976
    """
    bart, tokenizer = load_bart(model)
    vl_bart = VLBart(bart, tokens=tokens, width=width, pictures=pictures)
    path = (BUILTIN / BART if model is None else Path(model)) / VISUAL
    if path.is_file():
        kept = load_file(path)
        if {name: value.shape for name, value in kept.items()} == {
            n: p.shape for n, p in vl_bart.visual.named_parameters()
        }:
            vl_bart.visual.load_state_dict({name: value.float() for name, value in kept.items()})
    return vl_bart, tokenizer
