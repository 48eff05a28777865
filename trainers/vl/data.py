"""The data of the VL experiment: four tasks over pictures, built in or from folders in their published formats."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random

from PIL import Image

from deltaw.adapters.errors import DataError, OptionError
from deltaw.trainers.vl.examples import TASKS, Example, check_examples, prompt, target
from deltaw.trainers.vl.formats import installed_easy_vqa, read_folder
from deltaw.trainers.vl.reading import open_picture

__all__ = ["TASKS", "Example", "VLCorpus", "load_vl_corpus", "prompt", "target"]

Opener = Callable[[], Image.Image]


@dataclass(frozen=True)
class VLCorpus:
    """Examples of the tasks in a training and a development part, and what opens their pictures.

    Attributes:
        name: Where it comes from.
        train, dev: The examples.
        pictures: For the key of every picture in them a function that opens it, in RGB.
    """

    name: str
    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    pictures: Mapping[str, Opener]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that have training examples, in the order of ``TASKS``."""
        found = {example.task for example in self.train}
        return tuple(task for task in TASKS if task in found)


def load_vl_corpus(
    sources: str | Path | Sequence[str | Path], *, limit: int | None = None, dev_limit: int | None = None, seed: int = 0
) -> VLCorpus:
    """Read one or several data sets and join them.

    Pictures are not opened here: with precomputed features nobody needs them. ``load_features`` says which are missing
    or cannot be read, before training.

    Arguments:
        sources: "builtin" for the one that the package makes; "easy-vqa" for the installed package of that name; or
            folders in the formats of VQA v2, GQA, NLVR², COCO captions, NLVR 1, easy-vqa, or a plain one of your own,
            recognised by their files (see docs/vl.md).
        limit: At most so many training examples a task: the first after a shuffle. None for all.
        dev_limit: The same of the development part; a quarter of ``limit`` where None.
        seed: Of the shuffle; without a limit the order is that of the files.

    Raises:
        DataError: A folder holds no data set or a damaged one, or two hold different pictures of one name.
        OptionError: A limit is less than 1.

    Example:
        >>> corpus = load_vl_corpus("builtin", limit=4)
        >>> len(corpus.train), len(corpus.dev), corpus.tasks
        (16, 4, ('vqa', 'gqa', 'nlvr', 'caption'))
        >>> corpus.pictures[corpus.train[0].pictures[0]]().mode
        'RGB'
    """
    for name, value in (("limit", limit), ("dev_limit", dev_limit)):
        if value is not None and value < 1:
            raise OptionError(f"{name} is {value}; it must be at least 1, or None for every example")
    sources = [sources] if isinstance(sources, str | Path) else list(sources)
    if not sources:
        raise DataError("no data is given; give 'builtin', 'easy-vqa' or folders with data sets")
    names: list[str] = []
    train: list[Example] = []
    dev: list[Example] = []
    pictures: dict[str, Opener] = {}
    for source in sources:
        for name, part_train, part_dev, part_pictures in _read(source):
            if name in names:
                raise DataError(f"{source}: a {name} data set is given already; give every kind once")
            for split, examples in (("train", part_train), ("dev", part_dev)):
                if not examples:
                    raise DataError(f"{source}: the {split} part of {name} is empty")
                check_examples(examples, f"{source} ({name}, {split})")
            names.append(name)
            train += part_train
            dev += part_dev
            pictures |= {
                key: opener for key, opener in part_pictures.items() if key not in pictures or not _there(pictures[key])
            }
    if dev_limit is None and limit is not None:
        dev_limit = max(1, limit // 4)
    chosen_train, chosen_dev = (_first(part, count, seed) for part, count in ((train, limit), (dev, dev_limit)))
    used = {key for example in (*chosen_train, *chosen_dev) for key in example.pictures}
    return VLCorpus(
        "+".join(names),
        tuple(chosen_train),
        tuple(chosen_dev),
        {key: opener for key, opener in pictures.items() if key in used},
    )


def _read(source: str | Path) -> list[tuple[str, list[Example], list[Example], dict[str, Opener]]]:
    if source == "builtin":
        from deltaw.trainers.vl.scenes import builtin

        train, dev, openers = builtin()
        named = {f"builtin/{key}": opener for key, opener in openers.items()}
        first, second = ([_with_prefix(Example(*row)) for row in part] for part in (train, dev))
        return [("builtin", first, second, named)]
    folder = installed_easy_vqa() if source == "easy-vqa" and not Path(source).is_dir() else Path(source)
    return [
        (part.name, part.train, part.dev, {key: partial(open_picture, path) for key, path in part.pictures.items()})
        for part in read_folder(folder)
    ]


def _with_prefix(example: Example) -> Example:
    return replace(example, pictures=tuple(f"builtin/{key}" for key in example.pictures))


def _there(opener: Opener) -> bool:
    """Whether a picture's file is there. VQA v2 and COCO's captions share pictures, which one of the two may have."""
    return not isinstance(opener, partial) or Path(opener.args[0]).is_file()


def _first(examples: Sequence[Example], count: int | None, seed: int) -> list[Example]:
    """Return the first examples of each task after a shuffle, in the order of the files."""
    if count is None:
        return list(examples)
    kept: list[int] = []
    for task in TASKS:
        places = [place for place, example in enumerate(examples) if example.task == task]
        Random(seed).shuffle(places)
        kept += places[:count]
    return [examples[place] for place in sorted(kept)]
