"""Readers of the data sets' folders, each in the layout in which it is published.

Every reader takes a folder and returns its part of the corpus, or None where the folder has not its files.
"""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from deltaw.adapters.errors import DataError
from deltaw.trainers.vl.examples import Example
from deltaw.trainers.vl.nlvr1 import read_nlvr1
from deltaw.trainers.vl.reading import (
    Part,
    find,
    first_layout,
    inside,
    read_json,
    read_json_lines,
    refuse_twice,
    take,
    take_text,
)

Id = (int, str)


def read_vqa2(folder: Path) -> Part | None:
    """Read VQA v2: two files of questions, two of annotations with ten human answers a question, COCO's pictures.

    Training is train2014, development val2014. Pictures are ``COCO_train2014_000000000009.jpg`` under ``train2014/``,
    ``images/train2014/`` or ``images/``; their keys are ``coco/`` and the name without ".jpg".

    Raises:
        DataError: A file is cut, a field is missing, two questions have one id, a question has no annotation or no
            answer that is not blank, or the questions are not VQA's open-ended ones.

    Source:
        visualqa.org/download.html and visualqa.org/vqa_v1_download.html's "Input Questions Format" and "Annotation
        Format"; Goyal et al., "Making the V in VQA Matter", 2017.
    """
    places = ("", "questions", "annotations")
    part = Part("vqa2")
    for split, examples in (("train2014", part.train), ("val2014", part.dev)):
        questions = find(folder, f"v2_OpenEnded_mscoco_{split}_questions.json", places)
        annotations = find(folder, f"v2_mscoco_{split}_annotations.json", places)
        if questions is None or annotations is None:
            return None
        found, ids = _vqa_split(questions, annotations, split)
        examples.extend(found)
        part.pictures |= _coco_pictures(folder, split, {f"COCO_{split}_{number:012}.jpg" for number in ids})
    return part


def _vqa_split(questions_path: Path, annotations_path: Path, split: str) -> tuple[list[Example], set[int]]:
    head = read_json(questions_path, dict)
    if head.get("task_type", "Open-Ended") != "Open-Ended":
        raise DataError(f"{questions_path}: 'task_type' is {head['task_type']!r}; only 'Open-Ended' is read")
    questions = take(head, "questions", list, str(questions_path))
    annotations = take(read_json(annotations_path, dict), "annotations", list, str(annotations_path))
    refuse_twice(
        (take(row, "question_id", Id, str(questions_path)) for row in questions), "questions", str(questions_path)
    )
    refuse_twice(
        (take(row, "question_id", Id, str(annotations_path)) for row in annotations),
        "annotations",
        str(annotations_path),
    )
    by_id = {row["question_id"]: row for row in annotations}
    examples, pictures = [], set()
    for row in questions:
        where = f"{questions_path}: question {row['question_id']}"
        if row["question_id"] not in by_id:
            raise DataError(f"{where} has no annotation in {annotations_path.name}")
        annotation = by_id[row["question_id"]]
        there = f"{annotations_path}: question {row['question_id']}"
        answers = tuple(take(answer, "answer", str, there) for answer in take(annotation, "answers", list, there))
        if not any(answer.strip() for answer in answers):
            raise DataError(f"{there} has no answer, or blank ones alone; correct it or take it out")
        picture = take(row, "image_id", int, where)
        pictures.add(picture)
        key = f"coco/COCO_{split}_{picture:012}"
        examples.append(Example("vqa", take_text(row, "question", where), answers, (key,)))
    return examples, pictures


def read_gqa(folder: Path) -> Part | None:
    """Read GQA's balanced questions, with one answer each.

    Training is ``train_balanced_questions.json``; development ``testdev_balanced_questions.json`` or, where that is
    missing, ``val_balanced_questions.json``. Pictures are ``images/ID.jpg``; their keys are ``gqa/ID``.

    Raises:
        DataError: A file is cut, a field is missing, an answer is blank.

    Source:
        cs.stanford.edu/people/dorarad/gqa/download.html; Hudson and Manning, "GQA", 2019.
    """
    places = ("", "questions1.2", "questions")
    train = find(folder, "train_balanced_questions.json", places)
    dev = find(folder, "testdev_balanced_questions.json", places) or find(folder, "val_balanced_questions.json", places)
    if train is None or dev is None:
        return None
    part = Part("gqa")
    for path, examples in ((train, part.train), (dev, part.dev)):
        for name, row in read_json(path, dict).items():
            where = f"{path}: question {name}"
            picture = inside(str(take(row, "imageId", Id, where)), where)
            question, answer = take_text(row, "question", where), take_text(row, "answer", where)
            examples.append(Example("gqa", question, (answer,), (f"gqa/{picture}",)))
            part.pictures[f"gqa/{picture}"] = folder / "images" / f"{picture}.jpg"
    return part


def read_nlvr2(folder: Path) -> Part | None:
    """Read NLVR²: statements about two photographs, ``train.json`` and ``dev.json``, an object a line.

    The pictures of ``SPLIT-SET-PAIR-SENTENCE`` are ``SPLIT-SET-PAIR-img0.png`` and ``…-img1.png``, under
    ``images/train/DIRECTORY/`` and ``dev/`` as handed out, or ``images/SPLIT/``, ``SPLIT/``, ``images/``, or beside
    the files; their keys are ``nlvr2/SPLIT-SET-PAIR-img0`` and ``…-img1``.

    Raises:
        DataError: A line is cut, a field is missing, two statements have one identifier, a label is not true or false.

    Source:
        github.com/lil-lab/nlvr, nlvr2/README.md; Suhr et al., "A Corpus for Reasoning about Natural Language Grounded
        in Photographs", 2019.
    """
    places = ("", "data", "nlvr2/data")
    found = {split: find(folder, f"{split}.json", places) for split in ("train", "dev")}
    if None in found.values():
        return None
    part = Part("nlvr2")
    for split, path in found.items():
        assert path is not None
        examples = part.train if split == "train" else part.dev
        names: list[str] = []
        stems: list[str] = []
        directories: list[str] = []
        for where, row in read_json_lines(path):
            name = take_text(row, "identifier", where)
            if name.count("-") != 3:
                raise DataError(f"{where}: the identifier {name!r} is not SPLIT-SET-PAIR-SENTENCE")
            stem = inside(name.rpartition("-")[0], where)
            sentence, label = take_text(row, "sentence", where), _label(row, where)
            examples.append(Example("nlvr", sentence, (label,), (f"nlvr2/{stem}-img0", f"nlvr2/{stem}-img1")))
            names.append(name)
            stems += [f"{stem}-img0", f"{stem}-img1"]
            directories += [inside(str(row.get("directory", "none")), where)] * 2
        refuse_twice(names, "statements", str(path))
        layouts = [
            [f"images/{split}/{directory}/{stem}.png" for directory, stem in zip(directories, stems, strict=True)],
            *[[f"{place}{stem}.png" for stem in stems] for place in (f"images/{split}/", f"{split}/", "images/", "")],
        ]
        if split != "train":  # only the training pictures are handed out in numbered folders
            layouts = layouts[1:]
        paths = first_layout(folder, layouts)
        part.pictures |= {f"nlvr2/{stem}": path for stem, path in zip(stems, paths, strict=True)}
    return part


def _label(row: dict[str, Any], where: str) -> str:
    label = str(take(row, "label", (str, bool), where)).strip().lower()
    if label not in ("true", "false"):
        raise DataError(f"{where}: the label is {row['label']!r}; it must be true or false")
    return label


def read_captions(folder: Path) -> Part | None:
    """Read COCO's captions, as COCO publishes them or as Karpathy split them; one example a picture.

    COCO: ``captions_train2014.json`` and ``captions_val2014.json`` (or 2017's), also under ``annotations/``; training
    is train, development val. Karpathy's ``dataset_coco.json``, preferred where both are there: training is its
    "train" and "restval", development its "val". Pictures are as in VQA v2; keys are ``coco/`` and the picture's name
    without ".jpg".

    Raises:
        DataError: A file is cut, a field is missing, two pictures or captions have one id, a caption is of no picture,
            a picture has no caption that is not blank.

    Source:
        cocodataset.org/#format-data; Chen et al., "Microsoft COCO Captions", 2015; Karpathy and Fei-Fei, "Deep
        Visual-Semantic Alignments", 2015, cs.stanford.edu/people/karpathy/deepimagesent/.
    """
    places = ("", "annotations")
    karpathy = find(folder, "dataset_coco.json", places)
    if karpathy is not None:
        return _karpathy(folder, karpathy)
    for year in ("2014", "2017"):
        found = {split: find(folder, f"captions_{split}{year}.json", places) for split in ("train", "val")}
        if None not in found.values():
            part = Part("coco")
            for split, path in found.items():
                assert path is not None
                examples = part.train if split == "train" else part.dev
                names: set[str] = set()
                for name, captions in _coco_captions(path):
                    names.add(name)
                    examples.append(Example("caption", "", captions, (f"coco/{Path(name).stem}",)))
                part.pictures |= _coco_pictures(folder, f"{split}{year}", names)
            return part
    return None


def _coco_captions(path: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    data = read_json(path, dict)
    images = take(data, "images", list, str(path))
    annotations = take(data, "annotations", list, str(path))
    refuse_twice((take(row, "id", Id, f"{path}: images") for row in images), "pictures", str(path))
    refuse_twice((take(row, "id", Id, f"{path}: annotations") for row in annotations), "captions", str(path))
    captions: dict[int | str, list[str]] = {row["id"]: [] for row in images}
    for row in annotations:
        where = f"{path}: caption {row['id']}"
        picture = take(row, "image_id", Id, where)
        if picture not in captions:
            raise DataError(f"{where} is of picture {picture}, which is not among the images")
        captions[picture].append(take(row, "caption", str, where).strip())
    for row in images:
        where = f"{path}: picture {row['id']}"
        kept = tuple(caption for caption in captions[row["id"]] if caption)
        if not kept:
            raise DataError(f"{where} has no caption, or blank ones alone; correct it or take it out")
        yield inside(take_text(row, "file_name", where), where), kept


def _karpathy(folder: Path, path: Path) -> Part:
    part = Part("coco")
    parts = {"train": part.train, "restval": part.train, "val": part.dev, "test": None}
    images = take(read_json(path, dict), "images", list, str(path))
    refuse_twice((take(row, "filename", str, f"{path}: images") for row in images), "pictures", str(path))
    names: dict[str, set[str]] = {}
    for row in images:
        where = f"{path}: picture {row['filename']!r}"
        split = take(row, "split", str, where)
        if split not in parts:
            raise DataError(f"{where}: the split is {split!r}; wanted is one of {', '.join(parts)}")
        examples = parts[split]
        if examples is None:
            continue
        name = inside(row["filename"], where)
        captions = tuple(
            caption
            for sentence in take(row, "sentences", list, where)
            if (caption := take(sentence, "raw", str, where).strip())
        )
        if not captions:
            raise DataError(f"{where} has no caption, or blank ones alone; correct it or take it out")
        examples.append(Example("caption", "", captions, (f"coco/{Path(name).stem}",)))
        names.setdefault(inside(take_text(row, "filepath", where), where), set()).add(name)
    for place, found in names.items():
        part.pictures |= _coco_pictures(folder, place, found)
    return part


def _coco_pictures(folder: Path, split: str, names: set[str]) -> dict[str, Path]:
    ordered = sorted(names)
    layouts = [[f"{place}{name}" for name in ordered] for place in (f"{split}/", f"images/{split}/", "images/")]
    paths = first_layout(folder, layouts)
    return {f"coco/{Path(name).stem}": path for name, path in zip(ordered, paths, strict=True)}


def read_easy_vqa(folder: Path) -> Part | None:
    """Read easy-vqa: ``train/questions.json`` and ``test/questions.json``, each a list of [question, answer, picture].

    The folder is the data itself, the installed package, or the repository. Development is its test part. Pictures
    are ``train/images/0.png`` and so on; their keys are ``easy-vqa/train/0``. It has one answer a question, so VQA's
    accuracy is plain accuracy here.

    Raises:
        DataError: A file is cut, or an entry is not of that form.

    Source:
        github.com/vzhou842/easy-VQA, easy_vqa/data/README.md; pypi.org/project/easy-vqa.
    """
    for place in ("", "data", "easy_vqa/data"):
        if all((folder / place / split / "questions.json").is_file() for split in ("train", "test")):
            data = folder / place
            break
    else:
        return None
    part = Part("easy-vqa")
    for split, examples in (("train", part.train), ("test", part.dev)):
        path = data / split / "questions.json"
        for number, row in enumerate(read_json(path, list)):
            match row:
                case [str(question), str(answer), int(picture)] if question.strip() and answer.strip():
                    key = f"easy-vqa/{split}/{picture}"
                    examples.append(Example("vqa", question.strip(), (answer.strip(),), (key,)))
                    part.pictures[key] = data / split / "images" / f"{picture}.png"
                case _:
                    raise DataError(f"{path}: entry {number} is {row!r:.80}; wanted is [question, answer, picture]")
    return part


def read_plain(folder: Path) -> Part | None:
    """Read a data set of your own: ``train.jsonl`` and ``dev.jsonl``, an object a line.

        {"task": "vqa", "text": "what is this?", "answers": ["a cup"], "pictures": ["cups/1.png"]}

    ``task`` is "vqa", "gqa", "nlvr" or "caption" (which needs no text); pictures are paths in the folder, and with
    ``plain/`` in front they are the keys.

    Raises:
        DataError: A line is cut, a field is missing or of another type, a task is unknown.
    """
    found = {split: find(folder, f"{split}.jsonl") for split in ("train", "dev")}
    if None in found.values():
        return None
    part = Part("plain")
    for split, path in found.items():
        assert path is not None
        examples = part.train if split == "train" else part.dev
        for where, row in read_json_lines(path):
            task = take_text(row, "task", where)
            text = "" if task == "caption" else take_text(row, "text", where)
            answers = _texts(row, "answers", where)
            if task == "nlvr":
                answers = tuple(answer.lower() for answer in answers)
            names = [inside(name, where) for name in _texts(row, "pictures", where)]
            part.pictures |= {f"plain/{name}": folder / name for name in names}
            examples.append(Example(task, text, answers, tuple(f"plain/{name}" for name in names)))
    return part


def _texts(row: dict[str, Any], name: str, where: str) -> tuple[str, ...]:
    values = take(row, name, list, where)
    if not values or not all(isinstance(value, str) and value.strip() for value in values):
        raise DataError(f"{where}: {name!r} is {values!r:.60}; wanted is a list of texts, none of them blank")
    return tuple(value.strip() for value in values)


# What is looked for in a folder; the error on an unknown folder says the same.
READERS: dict[str, tuple[Callable[[Path], Part | None], str]] = {
    "VQA v2": (
        read_vqa2,
        "v2_OpenEnded_mscoco_{train,val}2014_questions.json and v2_mscoco_{train,val}2014_annotations.json",
    ),
    "GQA": (read_gqa, "train_balanced_questions.json and {testdev,val}_balanced_questions.json"),
    "NLVR²": (read_nlvr2, "train.json and dev.json"),
    "COCO captions": (read_captions, "captions_{train,val}{2014,2017}.json or dataset_coco.json"),
    "NLVR 1": (read_nlvr1, "{dev,test,hidden}/ or {train,dev}/, each with its JSON lines and images/"),
    "easy-vqa": (read_easy_vqa, "{train,test}/questions.json"),
    "your own": (read_plain, "train.jsonl and dev.jsonl"),
}


def read_folder(folder: Path) -> list[Part]:
    """Read every data set that a folder holds, by the files that are there.

    Raises:
        DataError: The folder is missing or holds none; says what is looked for. Or one that it holds is damaged.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder; give one with a data set, or 'builtin', or 'easy-vqa'")
    parts = [part for read, _ in READERS.values() if (part := read(folder)) is not None]
    if not parts:
        wanted = "; ".join(f"{name}: {files}" for name, (_, files) in READERS.items())
        raise DataError(f"{folder}: has not the files of a data set. Looked for are: {wanted}")
    return parts


def installed_easy_vqa() -> Path:
    """Return the data folder of the installed package easy-vqa.

    Raises:
        DataError: The package is not installed.
    """
    found = importlib.util.find_spec("easy_vqa")
    if found is None or found.origin is None:
        raise DataError("easy-vqa is not installed: pip install easy-vqa, or give the folder of its data")
    return Path(found.origin).parent / "data"
