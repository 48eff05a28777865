"""NLVR 1: statements about three boxes of shapes, with captions and relational questions derived from its scenes."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from random import Random
from typing import Any

from deltaw.adapters.errors import DataError
from deltaw.trainers.vl.examples import Example
from deltaw.trainers.vl.reading import Part, inside, read_json_lines, refuse_twice, take, take_text

COLORS = {"yellow": "yellow", "#0099ff": "blue", "black": "black"}
SHAPES = ("circle", "square", "triangle")
BOXES = ("left", "middle", "right")
WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
QUESTIONS_A_SCENE = 2

# Of the six pictures of a scene, which differ only in the order of the boxes, the one whose order is the scene's own.
PICTURE = 0


@dataclass(frozen=True)
class Thing:
    """One shape in a box: where its left upper corner is, and how wide it is, in pixels of a box of 100."""

    color: str
    shape: str
    x: float
    y: float
    size: float


Scene = tuple[tuple[Thing, ...], ...]  # left, middle, right

# Of the objects of a box the highest (y grows downwards) has the largest of its measure, and so on.
EXTREMES: dict[str, Callable[[Thing], float]] = {
    "highest": lambda thing: -thing.y,
    "lowest": lambda thing: thing.y + thing.size,
    "largest": lambda thing: thing.size,
}


def read_nlvr1(folder: Path) -> Part | None:
    """Read NLVR 1: a folder a split, with ``SPLIT.json`` (an object a line) and ``images/DIRECTORY/SPLIT-N-M-K.png``.

    The folder is the one with the splits, or the repository (``nlvr/``). Where ``train`` is there, training is train
    and development dev. Where it is not, training is dev and hidden, and development test: those are the splits whose
    pictures are in the repository.

    Every scene has six pictures, its boxes in every order; picture 0 is used, in the scene's own order. Its key is
    ``nlvr1/SPLIT-N-M-0``.

    The statements are NLVR 1's own (task "nlvr", one picture). A caption (three references) and two relational
    questions ("gqa") of each picture are DERIVED here from the scene that the file gives as objects; people wrote
    neither. See ``captions`` and ``questions``.

    Raises:
        DataError: A line is cut, a field is missing, two statements have one identifier, a scene is of another form.

    Source:
        github.com/lil-lab/nlvr, nlvr/README.md; Suhr et al., "A Corpus of Natural Language for Visual Reasoning", 2017.
    """
    for place in (folder, folder / "nlvr"):
        splits = [split for split in ("train", "dev", "test", "hidden") if (place / split / f"{split}.json").is_file()]
        if "train" in splits and "dev" in splits:
            train, dev = ["train"], ["dev"]
        elif "dev" in splits and "test" in splits:
            train, dev = [split for split in splits if split != "test"], ["test"]
        else:
            continue
        part = Part("nlvr1")
        for chosen, examples in ((train, part.train), (dev, part.dev)):
            for split in chosen:
                examples.extend(_read_split(place / split, split, part.pictures))
        return part
    return None


def _read_split(folder: Path, split: str, pictures: dict[str, Path]) -> list[Example]:
    path = folder / f"{split}.json"
    examples: list[Example] = []
    names: list[str] = []
    # The hidden split names no directories.
    places = {file.name: file for file in sorted((folder / "images").glob(f"*/{split}-*-{PICTURE}.png"))}
    for where, row in read_json_lines(path):
        name = inside(take_text(row, "identifier", where), where)
        names.append(name)
        file = f"{split}-{name}-{PICTURE}.png"
        directory = inside(str(row.get("directory", "0")), where)
        key = f"nlvr1/{Path(file).stem}"
        pictures[key] = places.get(file, folder / "images" / directory / file)
        label = str(take(row, "label", (str, bool), where)).lower()
        if label not in ("true", "false"):
            raise DataError(f"{where}: the label is {row['label']!r}; it must be true or false")
        found = _scene(take(row, "structured_rep", list, where), where)
        random = Random(key)
        examples.append(Example("nlvr", take_text(row, "sentence", where), (label,), (key,)))
        examples.append(Example("caption", "", captions(found), (key,)))
        examples += [
            Example("gqa", question, (answer,), (key,))
            for question, answer in draw_questions(found, QUESTIONS_A_SCENE, random)
        ]
    refuse_twice(names, "statements", str(path))
    return examples


def _scene(boxes: list[Any], where: str) -> Scene:
    if len(boxes) != 3 or not all(isinstance(box, list) for box in boxes):
        raise DataError(f"{where}: 'structured_rep' is not a list of three boxes")
    return tuple(tuple(_thing(item, where) for item in box) for box in boxes)


def _thing(item: Any, where: str) -> Thing:
    color = COLORS.get(take(item, "color", str, where).lower())
    shape = take(item, "type", str, where).lower()
    if color is None or shape not in SHAPES:
        known = ", ".join([*COLORS, *SHAPES])
        raise DataError(f"{where}: an object is a {item['color']!r} {item['type']!r}; known are {known}")
    x, y, size = (float(take(item, name, (int, float), where)) for name in ("x_loc", "y_loc", "size"))
    return Thing(color, shape, x, y, size)


def captions(scene: Scene) -> tuple[str, ...]:
    """Return three captions of a scene, which say in three ways what stands in each box by colour.

    Derived by us from the objects; NLVR 1 has no captions.

    Example:
        >>> blue, black = Thing("blue", "circle", 0, 0, 10), Thing("black", "square", 20, 0, 10)
        >>> for caption in captions(((blue,), (blue, black, black), ())):
        ...     print(caption)
        the left box has one blue object, the middle box has two black and one blue objects, the right box has no object
        one blue object on the left, two black and one blue objects in the middle, no object on the right
        from left to right one blue object, two black and one blue objects, no object
    """
    left, middle, right = (_inventory(box) for box in scene)
    return (
        f"the left box has {left}, the middle box has {middle}, the right box has {right}",
        f"{left} on the left, {middle} in the middle, {right} on the right",
        f"from left to right {left}, {middle}, {right}",
    )


def _inventory(box: Sequence[Thing]) -> str:
    counts = sorted(Counter(thing.color for thing in box).items(), key=lambda item: (-item[1], item[0]))
    parts = [f"{WORDS[count] if count < len(WORDS) else count} {color}" for color, count in counts]
    listed = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
    return f"{listed or 'no'} object{'s' if len(box) > 1 else ''}"


def questions(scene: Scene) -> dict[str, list[tuple[str, str]]]:
    """Return every relational question of a scene with its answer, by kind.

    Derived by us from the objects. Kinds: the colour and the shape of a box's highest, lowest or largest object; the
    box with the most or fewest objects (of a colour); in how many boxes a colour is; whether two kinds of object
    share a box; whether a box has more of one colour than of another. A question whose answer two objects or boxes
    would share is left out.

    Example:
        >>> blue, black = Thing("blue", "circle", 0, 0, 10), Thing("black", "square", 20, 40, 20)
        >>> found = questions(((blue,), (blue, black, black), (black,)))
        >>> ("which box has the most black objects?", "middle") in found["box"]
        True
        >>> [answer for question, answer in found["color"] if "highest object in the middle" in question]
        ['blue']
    """
    found: dict[str, list[tuple[str, str]]] = {
        "color": [],
        "shape": [],
        "box": [],
        "boxes": [],
        "share": [],
        "more": [],
    }
    colors = sorted(set(COLORS.values()))
    for name, box in zip(BOXES, scene, strict=True):
        for word, measure in EXTREMES.items():
            ordered = sorted(box, key=measure)
            if len(box) > 1 and measure(ordered[-1]) > measure(ordered[-2]):
                found["color"].append((f"what color is the {word} object in the {name} box?", ordered[-1].color))
                found["shape"].append((f"what shape is the {word} object in the {name} box?", ordered[-1].shape))
        counts = Counter(thing.color for thing in box)
        for one, other in permutations(colors, 2):
            answer = "yes" if counts[one] > counts[other] else "no"
            found["more"].append((f"are there more {one} than {other} objects in the {name} box?", answer))
    for kind in (None, *colors):
        counts_here = [sum(kind in (None, thing.color) for thing in box) for box in scene]
        objects = "objects" if kind is None else f"{kind} objects"
        for word, best in (("most", max(counts_here)), ("fewest", min(counts_here))):
            if counts_here.count(best) == 1:
                found["box"].append((f"which box has the {word} {objects}?", BOXES[counts_here.index(best)]))
        if kind is not None:
            boxes = sum(count > 0 for count in counts_here)
            found["boxes"].append((f"how many boxes have a {kind} object?", str(boxes)))
    kinds = [(color, shape) for color in colors for shape in SHAPES]
    present = [{(thing.color, thing.shape) for thing in box} for box in scene]
    for first, second in permutations(kinds, 2):
        if any(first in box for box in present) and any(second in box for box in present):
            answer = "yes" if any(first in box and second in box for box in present) else "no"
            question = f"is a {' '.join(first)} in the same box as a {' '.join(second)}?"
            found["share"].append((question, answer))
    return found


def draw_questions(scene: Scene, count: int, random: Random) -> list[tuple[str, str]]:
    """Draw questions of different kinds; of a kind first the answer is drawn, so that guessing does not pay much.

    A kind is left out where the scene allows one answer only.
    """
    found = questions(scene)
    kinds = [kind for kind, asked in found.items() if len({answer for _, answer in asked}) > 1]
    random.shuffle(kinds)
    drawn = []
    for kind in kinds[:count]:
        answer = random.choice(sorted({answer for _, answer in found[kind]}))
        drawn.append(random.choice([pair for pair in found[kind] if pair[1] == answer]))
    return drawn
