"""The scenes' promises: what is said of them is true by a slow reading, and nothing gives an answer away."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from itertools import combinations, pairwise
from random import Random

import numpy as np
import pytest

from deltaw.trainers.vl import language
from deltaw.trainers.vl.language import Description, captions, described, questions, relational_questions, statements
from deltaw.trainers.vl.scene import COLORS, GRID, PICTURE_SIZE, SHAPES, SIZES, Scene, Thing, draw, make_scene
from deltaw.trainers.vl.scenes import DEV_SIZE, TRAIN_SIZE, builtin, examples, other_scenes, splits

COUNTS = {word: number for number, word in enumerate(("no", "one", "two", "three", "four", "five"))} | {"a": 1}
PLACES = {"to the left of": (-1, 0), "to the right of": (1, 0), "above": (0, -1), "below": (0, 1)}
WHERE = "(" + "|".join(PLACES) + ")"


@pytest.fixture(scope="module")
def corpus():
    return builtin()


@pytest.fixture(scope="module")
def scenes():
    random = Random(11)
    return [make_scene(random) for _ in range(120)]


# --- A slow reading of sentences, by where things are in the picture and what their words are, not by language.py


def named(phrase: str, scene: Scene) -> list[Thing]:
    """The things that a phrase like "small red circles" or "object" fits."""
    words = re.sub(r"(cross)es\b|(\w+)s\b(?<!cross)", lambda m: m[1] or m[2], phrase).split()
    words = [word for word in words if word not in ("a", "the", "object")]
    assert all(word in (*SIZES, *COLORS, *SHAPES) for word in words), phrase
    return [t for t in scene.things if {t.size, t.color, t.shape}.issuperset(words)]


def only(things: list[Thing]) -> Thing:
    assert len(things) == 1
    return things[0]


def lies(thing: Thing, where: str, other: Thing) -> bool:
    """By the middles in the picture: half a cell apart counts, jitter does not."""
    across, down = PLACES[where]
    return (thing.x - other.x) * across + (thing.y - other.y) * down > 0.5


def yes(true: bool) -> str:
    return "yes" if true else "no"


def answer(text: str, scene: Scene) -> str:
    """Answer a question slowly."""
    if m := re.fullmatch(rf"what (color|shape|size) is the ([a-z ]+?)(?: {WHERE} the ([a-z ]+))?\?", text):
        found = named(m[2], scene)
        if m[3]:
            found = [t for t in found if lies(t, m[3], only(named(m[4], scene)))]
        return getattr(only(found), m[1])
    if m := re.fullmatch(r"how many ([a-z ]+) are there\?", text):
        return str(len(named(m[1], scene)))
    if m := re.fullmatch(rf"is there a ([a-z ]+?)(?: {WHERE} the ([a-z ]+))?\?", text):
        found = named(m[1], scene)
        if m[2]:
            found = [t for t in found if lies(t, m[2], only(named(m[3], scene)))]
        return yes(bool(found))
    if m := re.fullmatch(r"is the ([a-z ]+) to the left or to the right of the ([a-z ]+)\?", text):
        a, b = only(named(m[1], scene)), only(named(m[2], scene))
        assert lies(a, "to the left of", b) or lies(a, "to the right of", b)
        return "left" if a.x < b.x else "right"
    if m := re.fullmatch(r"is the ([a-z ]+) above or below the ([a-z ]+)\?", text):
        a, b = only(named(m[1], scene)), only(named(m[2], scene))
        assert lies(a, "above", b) or lies(a, "below", b)
        return "above" if a.y < b.y else "below"
    if m := re.fullmatch(rf"is the ([a-z ]+) {WHERE} the ([a-z ]+)\?", text):
        return yes(lies(only(named(m[1], scene)), m[2], only(named(m[3], scene))))
    if m := re.fullmatch(r"do the ([a-z ]+) and the ([a-z ]+) have the same color\?", text):
        return yes(only(named(m[1], scene)).color == only(named(m[2], scene)).color)
    raise AssertionError(f"cannot read {text!r}")


def judge(text: str, left: Scene, right: Scene) -> bool:
    """Judge a statement over two scenes slowly."""

    def numbers(phrase: str) -> tuple[int, int]:
        return len(named(phrase, left)), len(named(phrase, right))

    if m := re.fullmatch(r"there is a ([a-z ]+) in the (left|right) picture", text):
        return numbers(m[1])[m[2] == "right"] > 0
    if m := re.fullmatch(r"(both pictures have|neither picture has|exactly one picture has) a ([a-z ]+)", text):
        with_one = sum(number > 0 for number in numbers(m[2]))
        return with_one == {"both": 2, "neither": 0, "exactly": 1}[m[1].split()[0]]
    if m := re.fullmatch(r"the left picture has (more|fewer) ([a-z ]+) than the right picture", text):
        a, b = numbers(m[2])
        return a > b if m[1] == "more" else a < b
    if m := re.fullmatch(r"the two pictures have the same number of ([a-z ]+)", text):
        a, b = numbers(m[1])
        return a == b
    raise AssertionError(f"cannot read {text!r}")


def holds(caption: str, scene: Scene) -> bool:
    """Judge a caption slowly."""
    if m := re.fullmatch(rf"a ([a-z ]+) {WHERE} a ([a-z ]+)", caption):
        return any(lies(a, m[2], b) for a in named(m[1], scene) for b in named(m[3], scene) if a is not b)
    if m := re.fullmatch(r"there (?:is|are) (\w+) ([a-z ]+)", caption):
        return len(named(m[2], scene)) == COUNTS[m[1]]
    if m := re.fullmatch(r"the (\w+) and the (\w+) have (the same color|different colors)", caption):
        first, second = named(m[1], scene), named(m[2], scene)
        if len(first) != 1 or len(second) != 1:
            return False
        return (first[0].color == second[0].color) == (m[3] == "the same color")
    if m := re.fullmatch(r"the ([a-z ]+) is (?:a )?(\w+)", caption):
        found = named(m[1], scene)
        return len(found) == 1 and m[2] in (found[0].size, found[0].color, found[0].shape)
    parts = [part.split(" ", 1) for part in re.split(r", | and ", caption)]
    listed = Counter()
    for number, phrase in parts:
        listed[phrase.removesuffix("es") if "cross" in phrase else phrase.removesuffix("s")] += COUNTS[number]
    right = all(len(named(phrase, scene)) == number for phrase, number in listed.items())
    return right and sum(listed.values()) == len(scene.things)


# --- Scenes and pictures


def test_a_seed_decides_a_scene():
    assert make_scene(Random(3)) == make_scene(Random(3))
    assert make_scene(Random(3)) != make_scene(Random(4))


def test_things_stand_apart_inside_their_cells_in_reading_order(scenes):
    for scene in scenes:
        assert 2 <= len(scene.things) <= 5
        cells = [(t.row, t.column) for t in scene.things]
        assert cells == sorted(set(cells))
        for t in scene.things:
            half = SIZES[t.size]
            assert t.column <= t.x - half < t.x + half <= t.column + 1
            assert t.row <= t.y - half < t.y + half <= t.row + 1


def test_scenes_have_everything(scenes):
    things = [t for scene in scenes for t in scene.things]
    assert {t.color for t in things} == set(COLORS)
    assert {t.shape for t in things} == set(SHAPES)
    assert {t.size for t in things} == set(SIZES)
    assert {(t.row, t.column) for t in things} == {(r, c) for r in range(GRID) for c in range(GRID)}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", SIZES)
def test_a_picture_shows_the_thing_and_nothing_else(shape, size):
    thing = Thing("red", shape, size, 1, 2, 2.5, 1.5, (210, 40, 40))
    picture = np.asarray(draw(Scene((thing,), 230)), dtype=int)
    assert picture.shape == (PICTURE_SIZE, PICTURE_SIZE, 3)
    cell = PICTURE_SIZE // GRID
    inside = picture[cell : 2 * cell, 2 * cell : 3 * cell]
    drawn = np.abs(picture - 230).sum(-1) > 0
    assert drawn.sum() == (np.abs(inside - 230).sum(-1) > 0).sum() > 0
    assert tuple(inside[cell // 2, cell // 2]) == (210, 40, 40)
    half = SIZES[size] * cell
    share = {"circle": np.pi / 4, "square": 0.88**2, "triangle": 0.5, "cross": 5 / 9}[shape]
    covered = np.abs(picture - 230).sum() / (20 + 190 + 190)
    assert covered == pytest.approx(share * (2 * half) ** 2, rel=0.12)


# --- What is said of them


@pytest.mark.parametrize("ask", [questions, relational_questions])
def test_every_answer_is_right(ask, scenes):
    asked = [(question, scene) for scene in scenes for question in ask(scene)]
    assert len(asked) > 1000
    for question, scene in asked:
        assert answer(question.text, scene) == question.answer, (question, scene)


def test_every_statement_is_judged_right(scenes):
    random = Random(5)
    outcomes = Counter()
    for left, right in zip(scenes[::2], scenes[1::2], strict=True):
        for statement in statements(described(random)):
            truth = judge(statement.text, left, right)
            assert statement.holds(left, right) is truth, statement.text
            outcomes[statement.kind, truth] += 1
    assert len(outcomes) == 2 * len(statements(described(random)))


def test_every_caption_and_remark_holds(scenes):
    random = Random(6)
    for scene in scenes:
        references = captions(scene, random)
        assert 2 <= len(references) <= 3
        assert {*language.relations(scene), *language.remarks(scene)} <= {*language.true_remarks(scene)}
        for caption in (*references, *language.true_remarks(scene)):
            assert holds(caption, scene), (caption, scene)


def test_the_slow_reading_can_say_no(scenes):
    others = list(pairwise(scenes))
    assert sum(holds(language.inventory(a), b) for a, b in others) < len(others) / 10
    assert sum(holds(language.summary(a), b) for a, b in others) < len(others) / 10


def test_an_untrue_remark_is_one_word_from_a_true_one_and_does_not_hold(scenes):
    random = Random(8)
    for scene in scenes:
        true = language.true_remarks(scene)
        said = language.untrue(scene, random)
        assert not holds(said, scene), (said, scene)
        assert any(
            sum(a != b for a, b in zip(said.split(), text.split(), strict=True)) == 1
            for text in true
            if len(text.split()) == len(said.split())
        )


def test_a_statement_needs_something_to_speak_of():
    with pytest.raises(ValueError, match="needs a description"):
        statements(Description())


# --- The corpus


def test_the_corpus_is_the_same_every_time(corpus):
    assert builtin()[:2] == corpus[:2]
    train, _ = splits()
    assert examples(train, seed=1) != examples(train, seed=2)


def test_sizes_and_pictures(corpus):
    train, dev, pictures = corpus
    for rows, size, part in ((train, TRAIN_SIZE, "train-"), (dev, DEV_SIZE, "dev-")):
        assert Counter(row.task for row in rows) == dict.fromkeys(("vqa", "gqa", "nlvr", "caption"), size)
        assert {key for row in rows for key in row.pictures} == {key for key in pictures if key.startswith(part)}
        assert all(len(row.pictures) == (2 if row.task == "nlvr" else 1) for row in rows)
        assert all(row.answers and all(row.answers) and bool(row.text) == (row.task != "caption") for row in rows)
    assert pictures["train-000"]().tobytes() == draw(splits()[0]["train-000"]).tobytes()


def test_train_dev_and_pretraining_share_no_scene():
    train, dev = ({scene.content() for scene in part.values()} for part in splits())
    others = [scene.content() for scene in other_scenes(3000, seed=0)]
    assert len(train) == TRAIN_SIZE
    assert len(dev) == DEV_SIZE
    assert train.isdisjoint(dev)
    assert len(set(others)) == len(others)
    assert (train | dev).isdisjoint(others)
    assert other_scenes(5, seed=0) == other_scenes(3000, seed=0)[:5]
    with pytest.raises(ValueError, match="size is -1"):
        other_scenes(-1, seed=0)


def test_every_example_of_the_corpus_is_right(corpus):
    train, dev, _ = corpus
    scenes = splits()[0] | splits()[1]
    for row in train + dev:
        shown = [scenes[key] for key in row.pictures]
        if row.task == "nlvr":
            assert row.answers == (str(judge(row.text, *shown)).lower(),)
        elif row.task == "caption":
            assert all(holds(caption, *shown) for caption in row.answers)
        else:
            assert set(row.answers) == {answer(row.text, *shown)}


def prior(train, dev) -> float:
    """What one gets by the most frequent answer after the same first two words."""
    answers = defaultdict(Counter)
    for row in train:
        answers[tuple(row.text.split()[:2])][row.answers[0]] += 1
    best = {words: counts.most_common(1)[0][0] for words, counts in answers.items()}
    return sum(best.get(tuple(row.text.split()[:2])) == row.answers[0] for row in dev) / len(dev)


@pytest.mark.parametrize("task", ["vqa", "gqa"])
def test_guessing_does_not_pay(task, corpus):
    train, dev = ([row for row in rows if row.task == task] for rows in corpus[:2])
    assert prior(train, dev) <= 0.4
    for rows in (train, dev):
        assert max(Counter(row.answers[0] for row in rows).values()) <= 0.3 * len(rows)


def test_no_word_of_a_question_tells_yes_from_no(corpus):
    for task in ("vqa", "gqa"):
        rows = [row for row in corpus[0] if row.task == task and row.answers[0] in ("yes", "no")]
        words = defaultdict(list)
        for row in rows:
            for word in set(row.text.split()):
                words[word].append(row.answers[0] == "yes")
        for word, labels in words.items():
            spread = 4 * np.sqrt(0.25 / len(labels))
            assert abs(np.mean(labels) - 0.5) <= max(spread, 0.5 / len(labels)), (task, word)


def test_a_statement_stands_as_often_true_as_false(corpus):
    for rows in corpus[:2]:
        balance = Counter()
        for row in rows:
            if row.task == "nlvr":
                balance[row.text] += 1 if row.answers == ("true",) else -1
        assert len(balance) > 50
        assert set(balance.values()) == {0}


def test_no_pair_of_pictures_stands_under_both_labels_by_place_alone(corpus):
    """Left and right are drawn alike, so a picture's place says nothing of the label."""
    rows = [row for row in corpus[0] if row.task == "nlvr"]
    assert all(a != b for row in rows for a, b in combinations(row.pictures, 2))
    scenes = splits()[0]
    for place in (0, 1):
        sizes = {
            label: np.mean([len(scenes[r.pictures[place]].things) for r in rows if r.answers == (label,)])
            for label in ("true", "false")
        }
        assert abs(sizes["true"] - sizes["false"]) < 0.6


def test_too_few_scenes_for_a_statement_are_an_error():
    one = dict(list(splits()[1].items())[:2])
    with pytest.raises(ValueError, match="give more scenes"):
        examples(one, seed=0)
