"""The built-in corpus of scenes for the four tasks, and any number of other scenes to pretrain on.

    600 training and 200 development pictures; of each one question, one relational question and its captions
    as many statements, each over two of the pictures: every statement stands twice, once true and once false

Kinds of questions take turns, and within a kind the rarest answer so far comes next, so that guessing does not pay.
Train, dev and pretraining share no scene.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import cycle
from random import Random
from typing import NamedTuple

from PIL import Image

from deltaw.trainers.vl.language import (
    Question,
    Statement,
    captions,
    described,
    questions,
    relational_questions,
    statements,
)
from deltaw.trainers.vl.scene import Scene, draw, make_scene

TRAIN_SIZE = 600  # examples a task
DEV_SIZE = 200
ANNOTATORS = 10  # VQA v2 has ten answers to a question; here they agree

_TRAIN_SEED = 1
_DEV_SEED = 2
_DRAWS = 20_000  # tries to find a pair of pictures before giving up


class Row(NamedTuple):
    """One example, in the plain fields of ``deltaw.trainers.vl.data.Example``."""

    task: str
    text: str
    answers: tuple[str, ...]
    pictures: tuple[str, ...]


def builtin() -> tuple[list[Row], list[Row], dict[str, Callable[[], Image.Image]]]:
    """Return the training examples, the development examples, and what opens each picture.

    Example:
        >>> train, dev, pictures = builtin()
        >>> len(train), len(dev), len(pictures)
        (2400, 800, 800)
        >>> pictures[train[0].pictures[0]]().size
        (64, 64)
    """
    parts = splits()
    openers: dict[str, Callable[[], Image.Image]] = {
        key: partial(draw, scene) for part in parts for key, scene in part.items()
    }
    train, dev = (examples(part, seed) for part, seed in zip(parts, (_TRAIN_SEED, _DEV_SEED), strict=True))
    return train, dev, openers


@cache
def splits() -> tuple[dict[str, Scene], dict[str, Scene]]:
    """Return the scenes of the training and of the development pictures, by their keys."""
    seen: set[object] = set()
    train = _new_scenes(TRAIN_SIZE, Random(_TRAIN_SEED), seen)
    dev = _new_scenes(DEV_SIZE, Random(_DEV_SEED), seen)
    return (
        {f"train-{index:03}": scene for index, scene in enumerate(train)},
        {f"dev-{index:03}": scene for index, scene in enumerate(dev)},
    )


def other_scenes(size: int, seed: int) -> list[Scene]:
    """Return scenes to pretrain on, none of them of train or dev, none twice.

    Arguments:
        size: How many.
        seed: The same seed gives the same scenes in the same order.

    Raises:
        ValueError: ``size`` is negative.

    Example:
        >>> len(other_scenes(5, seed=0))
        5
    """
    if size < 0:
        raise ValueError(f"size is {size}; give the number of scenes, 0 or more")
    seen: set[object] = {scene.content() for part in splits() for scene in part.values()}
    return _new_scenes(size, Random(f"other scenes {seed}"), seen)


def examples(scenes: dict[str, Scene], seed: int) -> list[Row]:
    """Return a task's worth of examples per scene: vqa, gqa and caption of each, and as many nlvr statements."""
    random = Random(f"examples {seed}")
    rows = []
    for task, ask in (("vqa", questions), ("gqa", relational_questions)):
        for key, question in zip(scenes, _balanced([ask(scene) for scene in scenes.values()], random), strict=True):
            answers = (question.answer,) * (ANNOTATORS if task == "vqa" else 1)
            rows.append(Row(task, question.text, answers, (key,)))
    rows += _statements(scenes, random)
    rows += [Row("caption", "", captions(scene, random), (key,)) for key, scene in scenes.items()]
    return rows


def _new_scenes(size: int, random: Random, seen: set[object]) -> list[Scene]:
    scenes: list[Scene] = []
    while len(scenes) < size:
        scene = make_scene(random)
        if scene.content() not in seen:
            seen.add(scene.content())
            scenes.append(scene)
    return scenes


def _balanced(lists: Sequence[Sequence[Question]], random: Random) -> Iterator[Question]:
    """Choose one question from each list: kinds take turns, and of a kind the answer that was rarest so far."""
    kinds = sorted({question.kind for found in lists for question in found})
    turns: Counter[str] = Counter()
    answers: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for found in lists:
        # The rarest kind that this scene has; a scene of twins has few.
        kind = min(sorted({question.kind for question in found}), key=lambda kind: (turns[kind], kinds.index(kind)))
        asked = [question for question in found if question.kind == kind]
        rarest = min(sorted({question.answer for question in asked}), key=lambda answer: answers[kind][answer])
        chosen = random.choice([question for question in asked if question.answer == rarest])
        turns[kind] += 1
        answers[kind][rarest] += 1
        yield chosen


def _statements(scenes: dict[str, Scene], random: Random) -> list[Row]:
    """Return as many statements as scenes, half of them true: each once of a true pair and once of a false one."""
    texts: set[str] = set()
    rows: list[Row] = []
    for index in cycle(range(len(statements(described(Random(0)))))):
        if len(rows) >= len(scenes):
            return rows
        statement = statements(described(random))[index]
        if statement.text in texts:
            statement = statements(described(random))[index]  # twice the same is allowed, but seldom
        texts.add(statement.text)
        for wanted in (True, False):
            pair = _pair(statement, wanted, scenes, random)
            rows.append(Row("nlvr", statement.text, ("true" if wanted else "false",), pair))
    raise AssertionError  # a cycle has no end


def _pair(statement: Statement, wanted: bool, scenes: dict[str, Scene], random: Random) -> tuple[str, str]:
    keys = list(scenes)
    for _ in range(_DRAWS):
        left, right = random.sample(keys, 2)
        if statement.holds(scenes[left], scenes[right]) is wanted:
            return left, right
    raise ValueError(f"no two of {len(scenes)} scenes make {statement.text!r} {wanted}; give more scenes")
