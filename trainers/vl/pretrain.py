"""Makes the VL experiment's offline models: ``python -m deltaw.trainers.vl.pretrain --out FOLDER``.

    FOLDER/encoder.safetensors    a small picture encoder, for `deltaw.trainers.vl.model.load_picture_encoder`
    FOLDER/bart/                  a small BART with its tokenizer, for transformers' Auto classes, and
    FOLDER/bart/visual.safetensors  the projection from the one to the other

All three learn from pictures of other scenes than those of the tasks, and from what is said of them. No question comes
with its answer, and no statement that speaks of both pictures with true or false.

1. The picture encoder: each grid cell says which of the captions' noun phrases ("small red circle") it shows, or none;
   a phrase has to come up in some cell if the picture's caption has it, and in none if not.
2. BART with the projection, the encoder now frozen: spans of a text are masked and it writes the whole text. Mostly
   the text is a caption of the picture, or a true sentence about two pictures, and the masked words have to be seen;
   sometimes all of a caption is masked. Some questions come without a picture, as BART's own pretraining has it. And
   of some captions, half of which are of another picture or have one word replaced, it says whether they fit their
   picture, which is the only one or one of two.

Source:
    Lewis et al., "BART", 2020, section 2: text infilling. Masked captions beside the picture, and whether a caption
    fits: Cho et al., "VL-T5", 2021, section 4.1. The scenes, the shape of the models and the first step are ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, product
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, cast

import click
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from deltaw.adapters.errors import DataError
from deltaw.analysis.progress import progress as shown_progress
from deltaw.trainers.pretraining import written_anew
from deltaw.trainers.vl.infilling import END, LONGEST, PADDING, START, Sample, build_tokenizer, infill, sample
from deltaw.trainers.vl.language import inventory
from deltaw.trainers.vl.model import BART, ENCODER, VISUAL, PictureEncoder, VLBart
from deltaw.trainers.vl.scene import COLORS, SHAPES, SIZES, Scene, draw
from deltaw.trainers.vl.scenes import other_scenes

if TYPE_CHECKING:
    from transformers import BartForConditionalGeneration

JUDGE = "match: "  # before a text that is to be judged
LIGHT_WORDS = "a and , the there is are of to than in has have picture pictures object objects"
WORDS = (*SIZES, *COLORS, *SHAPES)
PHRASES = tuple(" ".join(words) for words in product(SIZES, COLORS, SHAPES))  # what the encoder tells apart

PICTURE_STEPS = 300
PICTURE_BATCH = 64
PICTURE_RATE = 3e-3
BATCH_SIZE = 32
LEARNING_RATE = 1e-3
WARMUP_RATIO = 0.05
WEIGHT_DECAY = 0.01
FINETUNING_DROPOUT = 0.1  # written into config.json
_BATCHES_SORTED = 40  # sorted together
_LONG = 13  # tokens
_WRITTEN = {BART, ENCODER}


# --- The models ---------------------------------------------------------------------------------------------


def build_bart(vocabulary: int) -> BartForConditionalGeneration:
    """Return the BART to pretrain, its weights drawn with torch's global random numbers; it has no dropout yet."""
    from transformers import BartConfig, BartForConditionalGeneration

    config = BartConfig(
        vocab_size=vocabulary,
        d_model=128,
        encoder_layers=3,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=384,
        decoder_ffn_dim=384,
        max_position_embeddings=LONGEST,
        init_std=0.05,  # BART's 0.02 scaled to the smaller width
        dropout=0.0,
        pad_token_id=PADDING,
        bos_token_id=START,
        eos_token_id=END,
        decoder_start_token_id=END,
        forced_eos_token_id=END,
    )
    return BartForConditionalGeneration(config)


def draw_pictures(scenes: Sequence[Scene]) -> Tensor:
    """Return the pictures of scenes, (scenes, 3, height, width), as bytes."""
    import numpy as np

    return torch.stack([torch.from_numpy(np.array(draw(scene))).permute(2, 0, 1) for scene in scenes])


def phrases_in(caption: str) -> Tensor:
    """Return 1 for each of ``PHRASES`` that stands in a caption and 0 for the others, (phrases,).

    Example:
        >>> phrases_in("a small red cross, a large blue square and a small red cross").sum()
        tensor(2.)
    """
    words = caption.replace(",", "").split()
    said = {" ".join(words[place : place + 3]) for place in range(len(words) - 2)}
    return torch.tensor([float(phrase in said) for phrase in PHRASES])


def train_encoder(pictures: Tensor, captions: Sequence[str], *, steps: int, seed: int, bar: Any) -> PictureEncoder:
    """Return a picture encoder whose cells tell the captions' noun phrases apart.

    Cell c says phrase p with probability q_cp, or nothing. The caption has the phrase if any cell says it, with
    probability 1 − Π_c (1 − q_cp), which is held against the caption; the same for single words, whose q_cw is the sum
    over the phrases with that word. No caption says where a thing is: that the cell over it sees it best is enough.
    """
    encoder = PictureEncoder()
    head = nn.Linear(encoder.width, len(PHRASES) + 1)
    words = torch.tensor([[float(word in phrase.split()) for word in WORDS] for phrase in PHRASES])  # (phrases, words)
    there = torch.stack([phrases_in(caption) for caption in captions])  # (pictures, phrases)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=PICTURE_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PICTURE_RATE, total_steps=max(2, steps), pct_start=0.1)
    generator = torch.Generator().manual_seed(seed)
    encoder.train()
    for _ in range(steps):
        rows = torch.randperm(len(pictures), generator=generator)[:PICTURE_BATCH]
        said = head(encoder(pictures[rows].float() / 255)).softmax(-1)[..., 1:]  # (batch, cells, phrases)
        loss = _any_cell(said, there[rows]) + _any_cell(said @ words, (there[rows] @ words).clamp(max=1))
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        bar.update()
        bar.note(picture_loss=f"{loss.item():.3f}")
    return encoder.eval().requires_grad_(False)


def _any_cell(said: Tensor, there: Tensor) -> Tensor:
    """The cross entropy of 1 − Π_c (1 − q_cp) against what is there, summed over the phrases."""
    tiny = 1e-5
    nowhere = (1 - said).clamp_min(tiny).log().sum(dim=1).exp()
    some = (1 - nowhere).clamp(tiny, 1 - tiny)
    return functional.binary_cross_entropy(some, there, reduction="sum") / len(said)


@torch.no_grad()
def encode(encoder: PictureEncoder, pictures: Tensor) -> Tensor:
    """Return the features of pictures in bytes, (pictures, tokens, width)."""
    starts = range(0, len(pictures), 500)
    return torch.cat([encoder(pictures[start : start + 500].float() / 255) for start in starts])


def batch_of(samples: Sequence[Sample], tokenizer: Any, features: Tensor, random: Random) -> dict[str, Tensor]:
    """Return a batch for ``VLBart``: texts with masks and the whole texts as labels, or texts to judge."""
    light = set(tokenizer(LIGHT_WORDS)["input_ids"])
    read, labels = [], []
    for one in samples:
        if one.fits is not None:
            read.append(tokenizer(JUDGE + one.text)["input_ids"])
            labels.append(tokenizer(str(one.fits).lower())["input_ids"])
            continue
        ids = tokenizer(one.text)["input_ids"][1:-1]
        share = 1.0 if one.whole and random.random() < 0.5 else random.uniform(0.1, 0.6)
        read.append([START, *infill(ids, share, random, light), END])
        labels.append([START, *ids, END])
    pictures = torch.tensor([[*s.pictures, 0, 0][:2] for s in samples])
    input_ids = _padded(read, PADDING)
    return {
        "features": features[pictures],
        "picture_mask": torch.tensor([[len(s.pictures) > place for place in range(2)] for s in samples]),
        "input_ids": input_ids,
        "attention_mask": (input_ids != PADDING).long(),
        "labels": _padded(labels, -100),
    }


def _padded(rows: list[list[int]], value: int) -> Tensor:
    return nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


def pretrain(
    scenes: int, steps: int, *, picture_steps: int = PICTURE_STEPS, seed: int, progress: bool = True
) -> tuple[PictureEncoder, VLBart, Any, float]:
    """Train the encoder and the BART.

    Arguments:
        scenes: How many other scenes to draw.
        steps: Batches for BART.
        picture_steps: Batches for the encoder.
        seed: Of everything.
        progress: Whether to draw a progress bar on stderr.

    Returns:
        Encoder, VL-BART and tokenizer, and the mean loss over the last 5 % of the steps, in nats a token.
    """
    drawn = other_scenes(scenes, seed)
    random = Random(seed)
    tokenizer = build_tokenizer(drawn, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pictures = draw_pictures(drawn)
        with shown_progress(picture_steps + steps, "pretrain", "step", progress) as bar:
            said = [inventory(scene) for scene in drawn]
            encoder = train_encoder(pictures, said, steps=picture_steps, seed=seed, bar=bar)
            features = encode(encoder, pictures)
            model = VLBart(build_bart(len(tokenizer)), tokens=encoder.tokens, width=encoder.width).train()
            warmup = max(1, round(WARMUP_RATIO * steps))
            optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
            schedule = torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda step: min((step + 1) / warmup, (steps - step) / (steps - warmup + 1))
            )
            losses: list[float] = []
            for samples in islice(_batches(drawn, tokenizer, random), steps):
                loss = cast(Tensor, model(**batch_of(samples, tokenizer, features, random)).loss)
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                losses.append(loss.item())
                bar.update()
                if len(losses) % 50 == 0:
                    bar.note(loss=f"{sum(losses[-50:]) / 50:.3f}")
    last = losses[-max(1, steps // 20) :]
    return encoder, model.eval(), tokenizer, sum(last) / len(last)


def _batches(scenes: Sequence[Scene], tokenizer: Any, random: Random) -> Iterator[list[Sample]]:
    """Yield batches for ever, those of two pictures and long texts apart from the rest, to have little padding.

    Sorted closer than that, a batch would hold one kind of text alone, and the weights swing from kind to kind.
    """
    while True:
        drawn = [sample(scenes, random) for _ in range(BATCH_SIZE * _BATCHES_SORTED)]
        lengths = [len(ids) for ids in tokenizer([s.text for s in drawn])["input_ids"]]
        order = sorted(range(len(drawn)), key=lambda index: (len(drawn[index].pictures) == 2, lengths[index] > _LONG))
        batches = [[drawn[i] for i in order[start : start + BATCH_SIZE]] for start in range(0, len(order), BATCH_SIZE)]
        random.shuffle(batches)
        yield from batches


# --- The files ----------------------------------------------------------------------------------------------


def build(
    out: Path, *, scenes: int, steps: int, picture_steps: int = PICTURE_STEPS, seed: int, progress: bool = True
) -> float:
    """Make the models in a folder; an earlier one is replaced only once all is written.

    Arguments:
        out: The folder.
        scenes, steps, picture_steps, seed, progress: As ``pretrain``.

    Returns:
        The loss at the end of pretraining, in nats a token.

    Raises:
        DataError: ``out`` holds something that this function did not write.
    """
    with written_anew(out, _WRITTEN) as new:
        encoder, model, tokenizer, loss = pretrain(
            scenes, steps, picture_steps=picture_steps, seed=seed, progress=progress
        )
        model.bart.config.dropout = FINETUNING_DROPOUT
        model.bart.save_pretrained(new / BART)
        tokenizer.save_pretrained(new / BART)
        # The counter of a batch norm is of no use once it is frozen.
        kept = {name: value for name, value in encoder.state_dict().items() if not name.endswith("num_batches_tracked")}
        save_file(kept, new / ENCODER)
        save_file(model.visual.state_dict(), new / BART / VISUAL)
    return loss


@click.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="The folder to write.")
@click.option("--scenes", type=click.IntRange(PICTURE_BATCH), default=12_000, show_default=True, help="To pretrain on.")
@click.option("--steps", type=click.IntRange(1), default=8_000, show_default=True, help="Batches for BART.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="The last digits depend on it.")
def main(out: Path, scenes: int, steps: int, seed: int, threads: int) -> None:
    """Make the pretrained picture encoder and BART.

    \b
    python -m deltaw.trainers.vl.pretrain --out builtin
    """
    torch.set_num_threads(threads)
    try:
        loss = build(out, scenes=scenes, steps=steps, seed=seed)
    except (DataError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{out}: loss {loss:.3f} nats a token")


if __name__ == "__main__":
    main()
