"""How each task is scored, and what guessing scores: VQA accuracy, exact match, and CIDEr."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from random import Random

from deltaw.adapters.errors import DataError, OptionError, ShapeError
from deltaw.trainers.vl.answers import normalised, vqa_score
from deltaw.trainers.vl.data import VLCorpus
from deltaw.trainers.vl.examples import TASKS, Example

PRIOR_CAPTIONS = 50  # candidates, and pictures they are held against
_SEED = 0


def score(task: str, predictions: Sequence[str], examples: Sequence[Example]) -> float:
    """Score the answers of one task by its own measure.

    Arguments:
        task: One of ``TASKS``: VQA accuracy, GQA accuracy, NLVR accuracy or CIDEr.
        predictions: One text an example.
        examples: With their references.

    Returns:
        In [0, 1]; CIDEr in [0, 10], where 1.0 is what papers print as 100.

    Raises:
        OptionError: The task is unknown.
        ShapeError: There is not one prediction an example, or there is none.

    Example:
        >>> examples = [Example("gqa", "which?", ("left",), ("1",)), Example("gqa", "which?", ("right",), ("2",))]
        >>> score("gqa", ["Left", "left"], examples)
        0.5
    """
    if task not in TASKS:
        raise OptionError(f"task {task!r} is unknown; the tasks are {', '.join(TASKS)}")
    if len(predictions) != len(examples) or not examples:
        raise ShapeError(f"{len(predictions)} predictions for {len(examples)} examples; every example needs one")
    measures = {"vqa": vqa_accuracy, "gqa": gqa_accuracy, "nlvr": nlvr_accuracy, "caption": cider}
    return measures[task](predictions, [example.answers for example in examples])


def vqa_accuracy(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return VQA v2's accuracy: for each question min(people who gave the answer / 3, 1), each person left out once.

    Both sides are brought to VQA's normal form first; see ``deltaw.trainers.vl.answers``.

    Source:
        Antol et al., "VQA", 2015; Goyal et al., 2017; visualqa.org/evaluation.html.

    Example:
        >>> round(vqa_accuracy(["a dog"], [["dog"] * 2 + ["cat"] * 8]), 3)
        0.6
    """
    return _mean([vqa_score(*pair) for pair in zip(predictions, references, strict=True)])


def gqa_accuracy(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return the share of answers that are the reference, without regard to case and blanks.

    Source:
        Hudson and Manning, "GQA", 2019: accuracy is exact match; its answers are lower-case.
    """
    return _mean(
        [float(_plain(guess) in map(_plain, real)) for guess, real in zip(predictions, references, strict=True)]
    )


def nlvr_accuracy(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return the share of statements judged rightly; an answer other than true or false is wrong.

    Source:
        Suhr et al., 2017 and 2019: accuracy, case left aside, as NLVR²'s ``metrics.py`` has it.
    """
    return gqa_accuracy(predictions, references)


def cider(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return CIDEr-D of captions, by pycocoevalcap's own scorer.

    The document frequencies come from the references given here, as on COCO's server, so a score belongs to its set;
    with a single picture it is 0.

    COCO's server tokenizes with the Penn Treebank tokenizer, a Java program. Here captions are lower-cased, and runs
    of letters, digits and inner apostrophes are the words; the treebank's would split "man's" into "man" and "'s" and
    keep the hyphen of "t-shirt". Numbers differ a little from the server's for that reason.

    Raises:
        DataError: pycocoevalcap is not installed.

    Source:
        Vedantam et al., "CIDEr: Consensus-based Image Description Evaluation", 2015.

    Example:
        >>> references = [["a red circle"], ["two blue squares"]]
        >>> cider(["a red circle", "two blue squares"], references) > cider(["a red circle"] * 2, references)
        True
    """
    try:
        from pycocoevalcap.cider.cider_scorer import CiderScorer
    except ImportError:
        raise DataError("scoring captions needs pycocoevalcap: pip install 'deltaw[vl]'") from None
    scorer = CiderScorer(n=4, sigma=6.0)
    for guess, real in zip(predictions, references, strict=True):
        scorer += (_words(guess), [_words(caption) for caption in real])
    return float(scorer.compute_score()[0])


def prior_scores(corpus: VLCorpus) -> dict[str, float]:
    """Return what answers that never look at a picture score on the development part: the answer-prior baseline.

    Questions and statements: the most frequent training answer of the task among those whose text begins with the
    same two words, or of the whole task where there is none. Captions: one training caption for every picture, the
    best by CIDEr of 50 drawn ones against 50 drawn training pictures.

    Returns:
        A score by task, for the tasks that have development examples.

    Example:
        >>> train = (Example("gqa", "which box is full?", ("left",), ("1",)),) * 2
        >>> dev = (Example("gqa", "which box is full?", ("left",), ("2",)), Example("gqa", "is it?", ("no",), ("3",)))
        >>> prior_scores(VLCorpus("", train, dev, {}))
        {'gqa': 0.5}
    """
    found = {}
    for task in TASKS:
        train = [example for example in corpus.train if example.task == task]
        dev = [example for example in corpus.dev if example.task == task]
        if not dev:
            continue
        if not train:
            raise DataError(f"{corpus.name}: has development examples of {task} but none to train on")
        guesses = [_best_caption(train)] * len(dev) if task == "caption" else _likeliest(train, dev)
        found[task] = score(task, guesses, dev)
    return found


def _likeliest(train: Sequence[Example], dev: Sequence[Example]) -> list[str]:
    by_beginning: defaultdict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for example in train:
        # Each person's answer counts, so that an answer of ten outweighs ten answers of one.
        counts = Counter(normalised(answer) if example.task == "vqa" else answer for answer in example.answers)
        for beginning in ((), _beginning(example)):
            by_beginning[beginning] += counts
    guesses = []
    for example in dev:
        counts = by_beginning.get(_beginning(example), by_beginning[()])
        guesses.append(max(counts, key=lambda answer: (counts[answer], answer)))
    return guesses


def _beginning(example: Example) -> tuple[str, ...]:
    return tuple(example.text.lower().split()[:2])


def _best_caption(train: Sequence[Example]) -> str:
    random = Random(_SEED)
    pictures = random.sample(train, min(PRIOR_CAPTIONS, len(train)))
    captions = sorted({caption for example in train for caption in example.answers})
    candidates = random.sample(captions, min(PRIOR_CAPTIONS, len(captions)))
    references = [example.answers for example in pictures]
    return max(candidates, key=lambda caption: cider([caption] * len(references), references))


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _words(caption: str) -> str:
    return " ".join(re.findall(r"\w+(?:'\w+)*", caption.lower()))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
