"""VQA's normal form of an answer, and its accuracy."""

import re
from collections.abc import Sequence

NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4",
    "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
ARTICLES = frozenset({"a", "an", "the"})
# Every mark but the apostrophe, the colon and the period.
MARKS = ';/[]"{}()=+\\_->@`,?!<'

# The contractions that are restored. With one apostrophe: when it is missing; with two: when either is.
_ONE_APOSTROPHE = """\
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't it'd
it'll ma'am might've mightn't must've mustn't needn't not've o'clock oughtn't shan't should've shouldn't somebody'll
somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's they'd they'll
they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll
who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've"""
_TWO_APOSTROPHES = """\
couldn't've hadn't've he'd've it'd've mightn't've 'ow's'at she'd've shouldn't've somebody'd've someone'd've
something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'd've y'all'll you'd've"""


def _without_one(word: str) -> list[str]:
    return [word[:place] + word[place + 1 :] for place, letter in enumerate(word) if letter == "'"]


CONTRACTIONS = {form: word for word in f"{_ONE_APOSTROPHE} {_TWO_APOSTROPHES}".split() for form in _without_one(word)}


def normalised(answer: str) -> str:
    """Return an answer in VQA's normal form.

    Marks go: a mark beside a space, or any where the answer has a comma between two digits, is dropped, another
    becomes a space; apostrophes and colons stay. A period goes unless a digit follows. Then, in lower case: number
    words up to ten become digits ("none" is 0), the articles go, a contraction gets its apostrophe back.

    Source:
        The description under "Evaluation Code" at visualqa.org, and what its Python evaluation of VQA v2 does. That
        code normalises predictions in full but human answers by their marks alone, so that the answer "none" never
        counts; here both are treated alike, for data sets whose answers are not normalised beforehand. Its rule for
        "somebody'd" (take the apostrophe out) is left out.

    Example:
        >>> [normalised(answer) for answer in ("The Two dogs.", "1,000", "dont know", "black/white", "10:30 a.m.")]
        ['2 dogs', '1000', "don't know", 'black white', '10:30 am']
    """
    answer = re.sub(r"[\n\t]", " ", answer).strip()
    thousands = re.search(r"\d,\d", answer) is not None
    text = answer
    for mark in MARKS:
        drop = thousands or f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if drop else " ")
    text = re.sub(r"\.(?!\d)", "", text)
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def vqa_soft_score(count: int, answers: int) -> float:
    """Return VQA's accuracy of an answer that ``count`` of ``answers`` people gave.

    The mean, over leaving each person out, of min(agreeing others / 3, 1). VQA v2 has ten answers a question; where
    there are fewer than four, all the others must agree, and a single answer is simply right or wrong.

    Source:
        Antol et al., "VQA: Visual Question Answering", 2015; Goyal et al. 2017; visualqa.org/evaluation.html.

    Example:
        >>> [round(vqa_soft_score(count, 10), 3) for count in range(6)]
        [0.0, 0.3, 0.6, 0.9, 1.0, 1.0]
        >>> vqa_soft_score(1, 1)
        1.0
    """
    if answers == 1:
        return float(count)
    needed = min(3, answers - 1)
    left_out_agreeing = count * min((count - 1) / needed, 1) if count else 0.0
    left_out_other = (answers - count) * min(count / needed, 1)
    return (left_out_agreeing + left_out_other) / answers


def vqa_score(prediction: str, answers: Sequence[str]) -> float:
    """Return VQA's accuracy of one prediction against the human answers, in [0, 1]."""
    prediction = normalised(prediction)
    return vqa_soft_score(sum(normalised(answer) == prediction for answer in answers), len(answers))
