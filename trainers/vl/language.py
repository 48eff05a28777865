"""The texts that follow from a scene: captions, questions, relational questions, statements over two pictures.

Nothing here looks at a picture. Each function lists everything of its kind that can be said or asked of a scene, with
the answer; whoever builds a corpus draws from the list and can keep the answers balanced.

Source:
    The styles: Goyal et al., "VQA v2", 2017; Hudson and Manning, "GQA", 2019; Suhr et al., "NLVR²", 2019;
    Chen et al., "COCO captions", 2015. No sentence is taken from any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import permutations
from random import Random
from typing import NamedTuple

from deltaw.trainers.vl.scene import COLORS, SHAPES, SIZES, Scene, Thing

NUMBERS = ("no", "one", "two", "three", "four", "five")
_PARADIGMS = (
    tuple(COLORS),
    SHAPES,
    tuple(shape + ("es" if shape == "cross" else "s") for shape in SHAPES),
    tuple(SIZES),
    ("left", "right"),
    ("above", "below"),
)
_RIVALS = {word: tuple(other for other in group if other != word) for group in _PARADIGMS for word in group}


@dataclass(frozen=True)
class Description:
    """A noun phrase for objects: size, colour and shape, each or none.

    Example:
        >>> Description(color="red", shape="cross").plural, Description(size="small").singular
        ('red crosses', 'small object')
    """

    size: str | None = None
    color: str | None = None
    shape: str | None = None

    @property
    def singular(self) -> str:
        """The words for one: "small red circle"."""
        return " ".join(word for word in (self.size, self.color, self.shape or "object") if word)

    @property
    def plural(self) -> str:
        """The words for several: "small red circles"."""
        return self.singular + ("es" if self.shape == "cross" else "s")

    def fits(self, thing: Thing) -> bool:
        """Return whether an object is of this kind."""
        return (
            self.size in (None, thing.size) and self.color in (None, thing.color) and self.shape in (None, thing.shape)
        )

    def count(self, scene: Scene) -> int:
        """Return how many objects of a scene are of this kind."""
        return sum(map(self.fits, scene.things))


class Question(NamedTuple):
    """A question with its only answer; ``kind`` groups questions of one form."""

    kind: str
    text: str
    answer: str


class Relation(NamedTuple):
    """Where one object lies as seen from another: by columns or rows of the grid, whatever the distance."""

    words: str
    answer: str
    holds: Callable[[Thing, Thing], bool]


LEFT = Relation("to the left of", "left", lambda a, b: a.column < b.column)
RIGHT = Relation("to the right of", "right", lambda a, b: a.column > b.column)
ABOVE = Relation("above", "above", lambda a, b: a.row < b.row)
BELOW = Relation("below", "below", lambda a, b: a.row > b.row)
RELATIONS = (LEFT, RIGHT, ABOVE, BELOW)


def full(thing: Thing) -> Description:
    """Return the description with size, colour and shape."""
    return Description(thing.size, thing.color, thing.shape)


def name(thing: Thing) -> Description:
    """Return the description with colour and shape."""
    return Description(color=thing.color, shape=thing.shape)


def _article(words: str) -> str:
    return f"a {words}"  # of our words "object" alone begins with a vowel, and it never comes first here


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


# --- Captions -----------------------------------------------------------------------------------------------


def inventory(scene: Scene) -> str:
    """Return a caption that names every object in reading order: "a small red circle and a large blue square"."""
    return _listed([_article(full(thing).singular) for thing in scene.things])


def summary(scene: Scene) -> str:
    """Return a caption that counts objects of a colour and shape: "two red circles and a blue square"."""
    counts: dict[Description, int] = {}
    for thing in scene.things:
        counts[name(thing)] = counts.get(name(thing), 0) + 1
    return _listed(
        [_article(d.singular) if count == 1 else f"{NUMBERS[count]} {d.plural}" for d, count in counts.items()]
    )


def relations(scene: Scene) -> list[str]:
    """Return the captions that say where one object lies as seen from another of another colour or shape."""
    return [text for a, b, text in _related(scene) if name(a) != name(b)]


def _related(scene: Scene) -> list[tuple[Thing, Thing, str]]:
    return [
        (a, b, f"{_article(name(a).singular)} {relation.words} {_article(name(b).singular)}")
        for a, b in permutations(scene.things, 2)
        for relation in RELATIONS
        if relation.holds(a, b)
    ]


def captions(scene: Scene, random: Random) -> tuple[str, ...]:
    """Return two or three captions of a scene: the objects listed, counted, and two of them related."""
    related = relations(scene)
    return (inventory(scene), summary(scene), *([random.choice(related)] if related else []))


def remarks(scene: Scene) -> list[str]:
    """Return captions that say one thing: how many there are of a kind, what two have in common, how one looks."""
    found = []
    for d in _counted(scene):
        count = d.count(scene)
        if d.color and not count:
            continue  # else most remarks would say what is not there
        verb = "is" if count == 1 else "are"
        found.append(f"there {verb} {NUMBERS[count]} {d.singular if count == 1 else d.plural}")
    for a, b in permutations(_unique_shapes(scene), 2):
        same = "the same color" if a.color == b.color else "different colors"
        found.append(f"the {a.shape} and the {b.shape} have {same}")
    found += [f"the {d.singular} is {thing.color}" for d, thing in _unique(scene, (_by_shape, _by_size_and_shape))]
    found += [f"the {d.singular} is a {thing.shape}" for d, thing in _unique(scene, (_by_color, _by_size_and_color))]
    found += [f"the {d.singular} is {thing.size}" for d, thing in _unique(scene, (name, _by_color, _by_shape))]
    return found


def true_remarks(scene: Scene) -> list[str]:
    """Return every remark and relation that holds, those between two of the same colour and shape too."""
    return sorted({*remarks(scene), *(text for _, _, text in _related(scene))})


def untrue(scene: Scene, random: Random) -> str:
    """Return a remark or a relation that does not hold, because one word of a true one was replaced by a rival."""
    true = true_remarks(scene)
    while True:
        words = random.choice(true).split()
        place = random.randrange(len(words))
        rivals = _RIVALS.get(words[place], ())
        if rivals:
            changed = " ".join([*words[:place], random.choice(rivals), *words[place + 1 :]])
            if changed not in true:
                return changed


# --- Questions ----------------------------------------------------------------------------------------------


def questions(scene: Scene) -> list[Question]:
    """Return the questions about colour, shape, size, number and presence that a scene answers.

    Example:
        >>> from deltaw.trainers.vl.scene import make_scene
        >>> found = questions(make_scene(Random(1)))
        >>> [question for question in found if question.kind == "size"][0]
        Question(kind='size', text='what size is the red object?', answer='small')
    """
    found = []
    for d, thing in _unique(scene, (_by_shape, _by_size_and_shape)):
        found.append(Question("color", f"what color is the {d.singular}?", thing.color))
    for d, thing in _unique(scene, (_by_color, _by_size_and_color)):
        found.append(Question("shape", f"what shape is the {d.singular}?", thing.shape))
    for d, thing in _unique(scene, (_by_color, _by_shape, name)):
        found.append(Question("size", f"what size is the {d.singular}?", thing.size))
    for d in _counted(scene):
        found.append(Question("count", f"how many {d.plural} are there?", str(d.count(scene))))
    for d in _combined(scene):
        found.append(Question("exist", f"is there {_article(d.singular)}?", _yes(d.count(scene) > 0)))
    return found


def relational_questions(scene: Scene) -> list[Question]:
    """Return the questions about two objects, or about one that is found by way of another.

    Example:
        >>> from deltaw.trainers.vl.scene import make_scene
        >>> found = relational_questions(make_scene(Random(1)))
        >>> [question for question in found if question.kind == "choose"][0].answer in ("left", "right")
        True
    """
    found = []
    named = list(_unique(scene, (name,)))
    for (d, a), (e, b) in permutations(named, 2):
        for relation in RELATIONS:
            text = f"is the {d.singular} {relation.words} the {e.singular}?"
            found.append(Question("verify", text, _yes(relation.holds(a, b))))
        for first, second, words in ((LEFT, RIGHT, "to the left or to the right of"), (ABOVE, BELOW, "above or below")):
            if first.holds(a, b) or second.holds(a, b):
                answer = first.answer if first.holds(a, b) else second.answer
                found.append(Question("choose", f"is the {d.singular} {words} the {e.singular}?", answer))
    for e, b in named:
        for relation in RELATIONS:
            there = [thing for thing in scene.things if relation.holds(thing, b)]
            where = f"{relation.words} the {e.singular}?"
            for shape in SHAPES:
                match = [thing for thing in there if thing.shape == shape]
                if len(match) == 1:
                    found.append(Question("relation color", f"what color is the {shape} {where}", match[0].color))
            for color in COLORS:
                match = [thing for thing in there if thing.color == color]
                if len(match) == 1:
                    found.append(
                        Question("relation shape", f"what shape is the {color} object {where}", match[0].shape)
                    )
            for d in dict.fromkeys(name(thing) for thing in scene.things if name(thing) != e):
                some = any(d.fits(thing) for thing in there)
                found.append(Question("relation exist", f"is there {_article(d.singular)} {where}", _yes(some)))
    for a, b in permutations(_unique_shapes(scene), 2):
        text = f"do the {a.shape} and the {b.shape} have the same color?"
        found.append(Question("same", text, _yes(a.color == b.color)))
    return found


# --- Statements over two pictures ---------------------------------------------------------------------------


class Statement(NamedTuple):
    """A sentence that is true or false of a left and a right scene."""

    kind: str
    text: str
    holds: Callable[[Scene, Scene], bool]


def statements(d: Description) -> list[Statement]:
    """Return the statements about objects of one kind in two pictures.

    Example:
        >>> statements(Description(shape="circle"))[0].text
        'there is a circle in the left picture'
    """
    one, many, count = _article(d.singular), d.plural, d.count
    if d.shape is None and d.size is None and d.color is None:
        raise ValueError("a statement needs a description with a size, a colour or a shape")
    return [
        Statement("left", f"there is {one} in the left picture", lambda a, b: count(a) > 0),
        Statement("right", f"there is {one} in the right picture", lambda a, b: count(b) > 0),
        Statement("both", f"both pictures have {one}", lambda a, b: count(a) > 0 and count(b) > 0),
        Statement("neither", f"neither picture has {one}", lambda a, b: count(a) == count(b) == 0),
        Statement("only one", f"exactly one picture has {one}", lambda a, b: (count(a) > 0) != (count(b) > 0)),
        Statement("more", f"the left picture has more {many} than the right picture", lambda a, b: count(a) > count(b)),
        Statement(
            "fewer", f"the left picture has fewer {many} than the right picture", lambda a, b: count(a) < count(b)
        ),
        Statement("same", f"the two pictures have the same number of {many}", lambda a, b: count(a) == count(b)),
    ]


def described(random: Random) -> Description:
    """Draw a description for a statement: a colour, a shape, or both."""
    color, shape = random.choice(list(COLORS)), random.choice(SHAPES)
    return random.choice((Description(color=color), Description(shape=shape), Description(color=color, shape=shape)))


# --- Which objects a phrase can name ------------------------------------------------------------------------


def _by_shape(thing: Thing) -> Description:
    return Description(shape=thing.shape)


def _by_color(thing: Thing) -> Description:
    return Description(color=thing.color)


def _by_size_and_shape(thing: Thing) -> Description:
    return Description(thing.size, shape=thing.shape)


def _by_size_and_color(thing: Thing) -> Description:
    return Description(thing.size, thing.color)


def _unique(scene: Scene, ways: Iterable[Callable[[Thing], Description]]) -> Iterator[tuple[Description, Thing]]:
    """Yield the objects that a way of describing them tells from all others, with the description."""
    for way in ways:
        for thing in scene.things:
            if way(thing).count(scene) == 1:
                yield way(thing), thing


def _unique_shapes(scene: Scene) -> list[Thing]:
    return [thing for _, thing in _unique(scene, (_by_shape,))]


def _counted(scene: Scene) -> list[Description]:
    """The kinds worth counting: every shape, colour and size, and the pairs that are there."""
    kinds = [Description(shape=shape) for shape in SHAPES]
    kinds += [Description(color=color) for color in COLORS]
    kinds += [Description(size) for size in SIZES]
    return [*kinds, *dict.fromkeys(name(thing) for thing in scene.things)]


def _combined(scene: Scene) -> list[Description]:
    """Every pair of a colour and a shape that both occur, together or not: no word alone gives the answer away."""
    colors = dict.fromkeys(thing.color for thing in scene.things)
    shapes = dict.fromkeys(thing.shape for thing in scene.things)
    return [Description(color=color, shape=shape) for color in colors for shape in shapes]


def _yes(true: bool) -> str:
    return "yes" if true else "no"
