"""One example of the four tasks, and how it is put to the model: text in, text out."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from deltaw.adapters.errors import DataError
from deltaw.trainers.vl.answers import normalised, vqa_soft_score

TASKS = ("vqa", "gqa", "nlvr", "caption")
PREFIXES = {"vqa": "vqa: ", "gqa": "gqa: ", "nlvr": "nlvr: ", "caption": "caption:"}


@dataclass(frozen=True)
class Example:
    """A question, a statement or a picture to describe.

    Attributes:
        task: One of ``TASKS``.
        text: The question or the statement; "" for a caption.
        answers: Every reference answer: VQA v2's ten human ones, ("true",) or ("false",) of a statement, all captions.
        pictures: The keys of its pictures, two for NLVR².
    """

    task: str
    text: str
    answers: tuple[str, ...]
    pictures: tuple[str, ...]


def prompt(example: Example) -> str:
    """Return the text that the model reads: the task's prefix, then the question or statement.

    Source:
        VL-T5 and VL-BART's prefixes: Cho et al., "Unifying Vision-and-Language Tasks via Text Generation", 2021.

    Example:
        >>> prompt(Example("vqa", "what color is the shape?", ("blue",), ("1",)))
        'vqa: what color is the shape?'
        >>> prompt(Example("caption", "", ("a blue shape",), ("1",)))
        'caption:'
    """
    return PREFIXES[example.task] + example.text


def target(example: Example, random: Random) -> str:
    """Draw the text that the model learns to write for an example.

    VQA: one of the human answers, normalised, drawn in proportion to its soft score (what VQA's accuracy would give
    it); an answer of one person in ten counts 0.3, of four or more 1. Other tasks: one of the references, each as
    likely.

    Source:
        VL-T5's and VL-Adapter's training data draw this way.

    Example:
        >>> example = Example("vqa", "how many?", ("2",) * 9 + ("3",), ("1",))
        >>> draws = [target(example, Random(seed)) for seed in range(1000)]
        >>> 0.18 < draws.count("3") / 1000 < 0.28  # 0.3 / 1.3
        True
    """
    references = [answer for answer in example.answers if answer.strip()]
    if example.task != "vqa" or len(references) == 1:
        return random.choice(references)
    counts = Counter(normalised(answer) or answer for answer in example.answers)
    counts.pop("", None)
    weights = [vqa_soft_score(count, len(example.answers)) for count in counts.values()]
    return random.choices(list(counts), weights)[0]


def check_examples(examples: Sequence[Example], where: str) -> None:
    """Refuse examples that cannot be trained on.

    Raises:
        DataError: A task is not one of the four, an example has no picture or no answer that is not blank, a question
            or statement has no text, or the statements are all true or all false.
    """
    for example in examples:
        if (problem := _problem(example)) is not None:
            pictures = ", ".join(example.pictures) or "no picture"
            raise DataError(f"{where}: the {example.task} example {example.text!r} of {pictures} {problem}")
    labels = {example.answers[0] for example in examples if example.task == "nlvr"}
    if len(labels) == 1:
        raise DataError(
            f"{where}: every statement is {labels.pop()}; a set of one class teaches and measures nothing, "
            "add statements of the other"
        )


def _problem(example: Example) -> str | None:
    if example.task not in TASKS:
        return f"is of an unknown task; the tasks are {', '.join(TASKS)}"
    if not example.pictures:
        return "needs a picture"
    if not any(answer.strip() for answer in example.answers):
        return "has no answer, or a blank one; correct it or take it out"
    if example.task != "caption" and not example.text.strip():
        return "has no text"
    if example.task == "nlvr" and example.answers not in (("true",), ("false",)):
        return f"has the answers {example.answers}; a statement is 'true' or 'false'"
    return None
