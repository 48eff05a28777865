"""Each task's measure against its definition."""

import math
import sys
from collections import Counter
from random import Random

import pytest

from deltaw.adapters import DataError, OptionError, ShapeError
from deltaw.trainers.vl.answers import CONTRACTIONS, normalised, vqa_score, vqa_soft_score
from deltaw.trainers.vl.data import Example, VLCorpus, load_vl_corpus
from deltaw.trainers.vl.scores import cider, gqa_accuracy, nlvr_accuracy, prior_scores, score, vqa_accuracy


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("Yes.", "yes"),
        ("  the\ndog\t", "dog"),
        ("An apple a day", "apple day"),
        ("none", "0"),
        ("Ten", "10"),
        ("eleven", "eleven"),
        ("twenty one", "twenty 1"),
        ("3.5", "3.5"),
        ("U.S.A.", "usa"),
        (".5", ".5"),
        ("5.", "5"),
        ("1,000", "1000"),
        ("1,000 - 2", "1000 2"),
        ("a-b", "b"),  # the dash becomes a space, and then "a" is an article
        ("black/white", "black white"),
        ("black, white", "black white"),
        ("black,white", "black white"),
        ("black - white", "black white"),
        ("(left)", "left"),
        ("what?!", "what"),
        ("10:30", "10:30"),
        ("man's", "man's"),
        ("dont", "don't"),
        ("Isnt it", "isn't it"),
        ("couldntve", "couldntve"),
        ("couldn'tve", "couldn't've"),
        ("couldnt've", "couldn't've"),
        ("oclock", "o'clock"),
        ("well", "well"),
        ("its", "its"),
        ("<b>", "b"),
        ("", ""),
        ("the", ""),
    ],
)
def test_the_normal_form_of_an_answer(answer, wanted):
    assert normalised(answer) == wanted


def test_the_normal_form_of_most_answers_is_its_own():
    # Not of all: "a.n" loses its period first, and is an article then.
    for form, word in CONTRACTIONS.items():
        assert normalised(form) == normalised(word) == word


def leave_one_out(prediction, answers):
    """VQA's accuracy as its page words it."""
    scores = []
    for index in range(len(answers)):
        others = answers[:index] + answers[index + 1 :]
        scores.append(min(sum(answer == prediction for answer in others) / 3, 1))
    return sum(scores) / len(scores)


def test_vqa_accuracy_is_the_mean_over_leaving_one_out():
    random = Random(0)
    for count in (4, 10):
        for _ in range(200):
            answers = [random.choice("xyz") for _ in range(count)]
            assert vqa_score("x", answers) == pytest.approx(leave_one_out("x", answers), abs=1e-12)
    assert [round(vqa_soft_score(count, 10), 12) for count in (0, 1, 2, 3, 4, 10)] == [0, 0.3, 0.6, 0.9, 1, 1]


@pytest.mark.parametrize(("answers", "wanted"), [(["x"], 1.0), (["x", "y"], 0.5), (["x", "x"], 1.0), (["y"], 0.0)])
def test_vqa_accuracy_with_few_answers(answers, wanted):
    assert vqa_score("x", answers) == wanted


def test_vqa_accuracy_normalises_both_sides():
    assert vqa_accuracy(["The 2 dogs!", "no"], [["two dogs"] * 10, ["yes"] * 10]) == 0.5


def test_exact_match():
    assert gqa_accuracy([" Left", "left box", ""], [["left"], ["left"], ["left"]]) == pytest.approx(1 / 3)
    assert nlvr_accuracy(["True", "false", "it is true"], [["true"], ["true"], ["true"]]) == pytest.approx(1 / 3)


def slow_cider(predictions, references):
    """CIDEr-D from its paper: tf-idf vectors of 1- to 4-grams, clipped cosines, a penalty for length, times 10."""

    def grams(text, n):
        words = text.split()
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    total = 0.0
    for prediction, own in zip(predictions, references, strict=True):
        mean = 0.0
        for n in range(1, 5):
            frequency = Counter(g for refs in references for g in set().union(*(grams(ref, n) for ref in refs)))

            def vector(text, n=n, frequency=frequency):
                return {
                    g: count * (math.log(len(references)) - math.log(max(1, frequency[g])))
                    for g, count in grams(text, n).items()
                }

            guess = vector(prediction)
            for ref in own:
                real = vector(ref)
                dot = sum(min(value, real.get(g, 0)) * real.get(g, 0) for g, value in guess.items())
                norms = math.dist([0] * len(guess), guess.values()) * math.dist([0] * len(real), real.values())
                # The kept library counts a text's pairs of words for its length.
                gap = max(len(prediction.split()) - 1, 0) - max(len(ref.split()) - 1, 0)
                mean += (dot / norms if norms else 0) * math.exp(-(gap**2) / (2 * 6**2)) / len(own) / 4
        total += 10 * mean
    return total / len(predictions)


def test_cider_against_its_definition():
    pytest.importorskip("pycocoevalcap")
    references = [
        ["a red circle above a blue square", "one red circle and one blue square"],
        ["two green squares", "there are two green squares here"],
        ["a blue square"],
    ]
    guesses = ["a red circle and a blue square", "two red squares here", "a green thing"]
    assert cider(guesses, references) == pytest.approx(slow_cider(guesses, references), rel=1e-9)
    assert 0 < cider(guesses, references) < cider([refs[0] for refs in references], references)
    assert cider(["a"], [["a"]]) == 0  # one picture: every word is in all of them
    assert cider(["", "two"], [["one"], ["two"]]) < 10


def test_cider_looks_past_case_and_marks():
    pytest.importorskip("pycocoevalcap")
    references = [["A red circle, above."], ["It's a T-shirt."]]
    assert cider(["a red circle above", "it's a t shirt"], references) == cider([r[0] for r in references], references)


def test_cider_without_its_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap.cider.cider_scorer", None)
    with pytest.raises(DataError, match=r"pip install 'deltaw\[vl\]'"):
        cider(["a"], [["a"]])


def test_score_refuses():
    example = Example("gqa", "what?", ("x",), ("1",))
    with pytest.raises(OptionError, match="'refer' is unknown"):
        score("refer", ["x"], [example])
    for guesses, examples in ((["x", "y"], [example]), ([], [])):
        with pytest.raises(ShapeError, match=f"{len(guesses)} predictions for {len(examples)} examples"):
            score("gqa", guesses, examples)


def test_the_prior_answers_by_the_first_two_words():
    train = (
        *(Example("vqa", "Is it red?", (answer,) * 10, ("1",)) for answer in ("no", "no", "yes")),
        *(Example("vqa", "what color is it?", ("blue",) * 10, ("1",)) for _ in range(5)),
        Example("nlvr", "There is one.", ("true",), ("1",)),
        Example("nlvr", "All are blue.", ("false",), ("1",)),
        Example("nlvr", "All are red.", ("false",), ("1",)),
    )
    dev = (
        Example("vqa", "is it blue?", ("No",) * 10, ("2",)),
        Example("vqa", "what color is that?", ("red",) * 10, ("2",)),
        Example("vqa", "how many?", ("blue",) * 10, ("2",)),  # a new beginning: the task's most frequent answer
        Example("nlvr", "There is nothing.", ("true",), ("2",)),
        Example("nlvr", "Nobody knows.", ("true",), ("2",)),
    )
    assert prior_scores(VLCorpus("", train, dev, {})) == {"vqa": pytest.approx(2 / 3), "nlvr": 0.5}
    with pytest.raises(DataError, match="none to train on"):
        prior_scores(VLCorpus("x", train[:3], dev, {}))


def test_the_prior_caption_is_one_of_the_training_captions():
    pytest.importorskip("pycocoevalcap")
    corpus = load_vl_corpus("builtin", limit=24, dev_limit=40)
    found = prior_scores(corpus)
    assert list(found) == ["vqa", "gqa", "nlvr", "caption"]
    dev = [example for example in corpus.dev if example.task == "caption"]
    every = {
        caption: score("caption", [caption] * len(dev), dev)
        for example in corpus.train
        if example.task == "caption"
        for caption in example.answers
    }
    assert any(value == found["caption"] for value in every.values())
    assert found["caption"] > sorted(every.values())[len(every) // 2]
