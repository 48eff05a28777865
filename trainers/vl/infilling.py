"""The texts of the VL experiment's pretraining: what is said of scenes, with spans to fill in, or to judge."""

from __future__ import annotations

from collections.abc import Container, Sequence
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from deltaw.trainers.pretraining import wrapped
from deltaw.trainers.vl.language import (
    described,
    inventory,
    questions,
    relational_questions,
    relations,
    remarks,
    statements,
    summary,
    true_remarks,
    untrue,
)
from deltaw.trainers.vl.scene import Scene

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")  # BART's order
START, PADDING, END, _, MASK = range(5)
VOCABULARY = 1200  # at most
LONGEST = 128  # tokens of one text
OTHER_WORDS = ("match: vqa: gqa: nlvr: caption: true false yes no left right above below 0 1 2 3 4 5 6 7 8 9",)
_PASSED_OVER = 0.8  # chance that no span begins at a light token
_SPAN = 0.3  # chance that a masked span goes on for another token


class Sample(NamedTuple):
    """A text to be filled in or judged, and the indices of its pictures: none, one or two."""

    text: str
    pictures: tuple[int, ...]
    whole: bool = False  # whether all of the text may be masked
    fits: bool | None = None  # the text is to be judged, not filled in: does it fit the picture?


def sample(scenes: Sequence[Scene], random: Random) -> Sample:
    """Draw a caption to fill in or to judge, a true sentence about two pictures, or a text without a picture."""
    index = random.randrange(len(scenes))
    scene, kind = scenes[index], random.random()
    if kind < 0.12:
        return Sample(inventory(scene), (index,), whole=True)
    if kind < 0.20:
        return Sample(summary(scene), (index,), whole=True)
    if kind < 0.36:
        return Sample(random.choice(relations(scene)), (index,))
    if kind < 0.60:
        return Sample(random.choice(remarks(scene)), (index,))
    other = random.randrange(len(scenes))
    if kind < 0.68:
        fits = random.random() < 0.5
        return Sample(random.choice(true_remarks(scene)) if fits else untrue(scene, random), (index,), fits=fits)
    if kind < 0.82:
        return _of_two(scenes, index, other, random)
    if kind < 0.95:
        while True:
            statement = random.choice(statements(described(random)))
            if statement.holds(scene, scenes[other]):
                return Sample(statement.text, (index, other))
    asked = random.choice((questions, relational_questions))(scene)
    return Sample(random.choice(asked).text, ())


def _of_two(scenes: Sequence[Scene], index: int, other: int, random: Random) -> Sample:
    """Draw a caption of one of two pictures, to judge; where it does not fit, it often fits the other."""
    scene, fits = scenes[index], random.random() < 0.5
    true = true_remarks(scene)
    elsewhere = [text for text in true_remarks(scenes[other]) if text not in true]
    if fits:
        text = random.choice(true)
    elif elsewhere and random.random() < 0.6:
        text = random.choice(elsewhere)
    else:
        text = untrue(scene, random)
    if random.random() < 0.5:
        return Sample(f"in the left picture {text}", (index, other), fits=fits)
    return Sample(f"in the right picture {text}", (other, index), fits=fits)


def infill(ids: list[int], share: float, random: Random, light: Container[int] = ()) -> list[int]:
    """Return the ids with about a share of them masked, each run of masked ones as one mask token.

    Arguments:
        ids: A text without its first and last special token.
        share: Of the tokens, in [0, 1].
        random: Draws where.
        light: Tokens that say little; most spans begin elsewhere.

    Example:
        >>> infill([7, 8, 9], 1.0, Random(0))
        [4]
    """
    wanted, masked = max(1, round(share * len(ids))), set[int]()
    while len(masked) < min(wanted, len(ids)):
        place = random.randrange(len(ids))
        if ids[place] in light and random.random() < _PASSED_OVER:
            continue
        masked.add(place)
        while len(masked) < wanted and place + 1 < len(ids) and random.random() < _SPAN:
            place += 1
            masked.add(place)
    return [
        MASK if place in masked else token
        for place, token in enumerate(ids)
        if not (place in masked and place - 1 in masked)
    ]


def build_tokenizer(scenes: Sequence[Scene], seed: int) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer, BART's kind, learnt from what is said of the scenes; it can encode any text.

    Unlike BART's it writes the first word of a text as any other, so that an answer has the words of a caption.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    random = Random(seed)
    texts = [sample(scenes, random).text for _ in range(5000)] + [*OTHER_WORDS] * 50
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=2,
        show_progress=False,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", START), ("</s>", END)],
    )
    return wrapped(tokenizer, LONGEST)
