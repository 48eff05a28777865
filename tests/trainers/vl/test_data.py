"""Joining data sets, taking fewer examples, and what an example is to the model."""

import json
from collections import Counter
from random import Random

import pytest
from PIL import Image

from deltaw.adapters import DataError, OptionError
from deltaw.trainers.vl.data import TASKS, Example, load_vl_corpus, prompt, target
from deltaw.trainers.vl.examples import check_examples
from deltaw.trainers.vl.reading import open_picture
from deltaw.trainers.vl.scenes import builtin


@pytest.fixture
def easy(tmp_path):
    """A folder in easy-vqa's layout, with 40 training and 20 development questions."""
    folder = tmp_path / "easy"
    for split, count in (("train", 40), ("test", 20)):
        (folder / split / "images").mkdir(parents=True)
        rows = [[f"is it {index}?", "yes" if index % 2 else "no", index // 4] for index in range(count)]
        (folder / split / "questions.json").write_text(json.dumps(rows))
        for index in range(count // 4):
            Image.new("RGB", (8, 8)).save(folder / split / "images" / f"{index}.png")
    return folder


def test_builtin_is_what_the_scenes_say():
    train, dev, pictures = builtin()
    corpus = load_vl_corpus("builtin")
    assert corpus.name == "builtin"
    assert corpus.tasks == TASKS
    for rows, examples in ((train, corpus.train), (dev, corpus.dev)):
        assert [(row.task, row.text, row.answers) for row in rows] == [
            (example.task, example.text, example.answers) for example in examples
        ]
    assert set(corpus.pictures) == {f"builtin/{key}" for key in pictures}


def test_joined(easy):
    corpus = load_vl_corpus(["builtin", easy])
    assert corpus.name == "builtin+easy-vqa"
    assert len(corpus.train) == len(load_vl_corpus("builtin").train) + 40
    assert {key.partition("/")[0] for key in corpus.pictures} == {"builtin", "easy-vqa"}


def test_limit_counts_each_task_by_itself_and_keeps_the_order(easy):
    whole = load_vl_corpus(["builtin", easy])
    corpus = load_vl_corpus(["builtin", easy], limit=20)
    assert Counter(example.task for example in corpus.train) == dict.fromkeys(TASKS, 20)
    assert Counter(example.task for example in corpus.dev) == dict.fromkeys(TASKS, 5)
    places = [whole.train.index(example) for example in corpus.train]
    assert places == sorted(places)
    assert places != list(range(80))
    assert set(corpus.pictures) == {key for part in (corpus.train, corpus.dev) for x in part for key in x.pictures}
    assert load_vl_corpus(easy, limit=20).train == load_vl_corpus(easy, limit=20).train
    assert load_vl_corpus(easy, limit=20).train != load_vl_corpus(easy, limit=20, seed=1).train
    assert len(load_vl_corpus(easy, limit=1, dev_limit=7).dev) == 7
    assert len(load_vl_corpus(easy, limit=3).dev) == 1
    assert len(load_vl_corpus(easy, limit=1000).train) == 40


def test_what_cannot_be_joined_or_taken(easy, tmp_path):
    with pytest.raises(DataError, match="given already"):
        load_vl_corpus([easy, easy])
    with pytest.raises(DataError, match="no data is given"):
        load_vl_corpus([])
    for name in ("limit", "dev_limit"):
        with pytest.raises(OptionError, match=f"^{name} is 0"):
            load_vl_corpus(easy, **{name: 0})
    (easy / "test" / "questions.json").write_text("[]")
    with pytest.raises(DataError, match="the dev part of easy-vqa is empty"):
        load_vl_corpus(easy)


def test_easy_vqa_that_is_not_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install easy-vqa"):
        load_vl_corpus("easy-vqa")


@pytest.mark.parametrize(
    ("example", "words"),
    [
        (Example("refer", "what?", ("x",), ("1",)), "unknown task"),
        (Example("vqa", "what?", ("x",), ()), "needs a picture"),
        (Example("vqa", "what?", (), ("1",)), "no answer"),
        (Example("vqa", "what?", ("", " "), ("1",)), "no answer"),
        (Example("gqa", " ", ("x",), ("1",)), "no text"),
        (Example("nlvr", "so.", ("yes",), ("1", "2")), "'true' or 'false'"),
        (Example("nlvr", "so.", ("true",), ("1", "2")), "every statement is true"),
    ],
)
def test_examples_that_cannot_be_trained_on(example, words):
    fine = Example("caption", "", ("a cup",), ("1",))
    check_examples([fine], "here")
    with pytest.raises(DataError, match=f"^here: .*{words}"):
        check_examples([fine, example], "here")


@pytest.mark.parametrize(
    ("task", "text", "wanted"),
    [("vqa", "a b?", "vqa: a b?"), ("gqa", "a?", "gqa: a?"), ("nlvr", "A.", "nlvr: A."), ("caption", "", "caption:")],
)
def test_prompt(task, text, wanted):
    assert prompt(Example(task, text, ("x",), ("1",))) == wanted


def test_target_of_vqa_is_drawn_by_soft_score():
    answers = ("Two",) * 5 + ("2",) + ("3",) * 2 + ("a cat", "")
    random = Random(0)
    draws = Counter(target(Example("vqa", "what?", answers, ("1",)), random) for _ in range(5_000))
    total = 1 + 0.6 + 0.3  # six people, two, one; nobody is taught a blank
    assert set(draws) == {"2", "3", "cat"}
    for answer, weight in (("2", 1), ("3", 0.6), ("cat", 0.3)):
        assert draws[answer] / 5_000 == pytest.approx(weight / total, abs=0.03)


def test_target_of_the_others_is_a_reference():
    random = Random(0)
    captions = Example("caption", "", ("The cup.", "A mug."), ("1",))
    assert {target(captions, random) for _ in range(50)} == {"The cup.", "A mug."}
    assert target(Example("nlvr", "So.", ("true",), ("1",)), random) == "true"
    assert target(Example("vqa", "what?", ("The cup",), ("1",)), random) == "The cup"


@pytest.mark.parametrize(("mode", "color"), [("RGBA", (9, 9, 9, 0)), ("LA", (9, 0)), ("P", 0)])
def test_what_is_transparent_becomes_white(tmp_path, mode, color):
    path = tmp_path / "x.png"
    Image.new(mode, (3, 2), color).save(path, transparency=0 if mode == "P" else None)
    picture = open_picture(path)
    assert picture.mode == "RGB"
    assert picture.getpixel((1, 1)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["L", "1", "CMYK", "RGB"])
def test_other_pictures_become_rgb(tmp_path, mode):
    path = tmp_path / "x.tiff"
    Image.new(mode, (3, 2)).save(path)
    assert open_picture(path).mode == "RGB"
