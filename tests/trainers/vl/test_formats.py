"""Every published format, read from a folder laid out as its authors hand it out, and refused when it is damaged."""

import json
import os
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from PIL import Image

from deltaw.adapters import DataError
from deltaw.trainers.vl.data import load_vl_corpus
from deltaw.trainers.vl.nlvr1 import SHAPES, Thing, captions, draw_questions, questions

SHARED = Path(__file__).parents[4] / "shared" / "data"


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(value, list) and path.suffix in (".jsonl", ".lines"):
        path.with_suffix(".json" if path.suffix == ".lines" else ".jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in value)
        )
    else:
        path.write_text(json.dumps(value))


def picture(path, color="red", size=(8, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, format="PNG" if path.suffix == ".png" else "JPEG")


def vqa2(folder, place="train2014/"):
    for split, number in (("train2014", 9), ("val2014", 42)):
        questions = [{"image_id": number, "question": "What is it? ", "question_id": number * 1000}]
        answers = [
            {"answer": "two" if i < 7 else "dog", "answer_confidence": "yes", "answer_id": i + 1} for i in range(10)
        ]
        annotations = [{
            "question_type": "what is", "multiple_choice_answer": "two", "answers": answers, "image_id": number,
            "answer_type": "other", "question_id": number * 1000,
        }]  # fmt: skip
        head = {"info": {}, "license": {}, "data_subtype": split}
        write(
            folder / f"v2_OpenEnded_mscoco_{split}_questions.json",
            {**head, "task_type": "Open-Ended", "data_type": "mscoco", "questions": questions},
        )
        write(folder / f"v2_mscoco_{split}_annotations.json", {**head, "annotations": annotations})
        picture(folder / place.replace("train2014", split) / f"COCO_{split}_{number:012}.jpg")


def gqa(folder, dev="testdev"):
    for split, number in (("train", "2370799"), (dev, "n161313")):
        row = {"imageId": number, "question": "Is it blue?", "answer": "no", "isBalanced": True, "types": {}}
        write(folder / f"{split}_balanced_questions.json", {"07333408": row, "07333409": {**row, "answer": "yes"}})
        picture(folder / "images" / f"{number}.jpg")


def nlvr2(folder):
    for split, place in (("train", "images/train/37"), ("dev", "dev")):
        rows = [
            {
                "sentence": "Two dogs are left.",
                "label": label,
                "identifier": f"{split}-10-{pair}-0",
                "left_url": "",
                "writer": 1,
            }
            for pair, label in enumerate(("True", "False"))
        ]
        if split == "train":
            rows = [{**row, "directory": 37} for row in rows]
        write(folder / f"{split}.lines", rows)
        for row in rows:
            for side in (0, 1):
                picture(folder / place / f"{row['identifier'].rpartition('-')[0]}-img{side}.png")


def coco(folder, year="2014"):
    for split, number in (("train", 9), ("val", 42)):
        name = f"COCO_{split}2014_{number:012}.jpg" if year == "2014" else f"{number:012}.jpg"
        captions = [{"image_id": number, "id": index, "caption": f"A dog {index}. "} for index in range(5)]
        data = {"images": [{"id": number, "file_name": name, "height": 6, "width": 8}], "annotations": captions}
        write(folder / "annotations" / f"captions_{split}{year}.json", data)
        picture(folder / f"{split}{year}" / name)


def karpathy(folder):
    images = []
    for number, split in enumerate(("train", "restval", "val", "test")):
        place = "train2014" if split == "train" else "val2014"
        name = f"COCO_{place}_{number:012}.jpg"
        sentences = [{"raw": f"A cat {index}.", "tokens": ["a", "cat"], "sentid": index} for index in range(5)]
        images.append({"filepath": place, "filename": name, "split": split, "sentences": sentences, "cocoid": number})
        picture(folder / "images" / place / name)
    write(folder / "dataset_coco.json", {"images": images, "dataset": "coco"})


BOXES = [
    [{"y_loc": 80, "type": "triangle", "color": "#0099ff", "x_loc": 80, "size": 20}],
    [
        {"y_loc": 80, "type": "square", "color": "Yellow", "x_loc": 13, "size": 20},
        {"y_loc": 20, "type": "triangle", "color": "Black", "x_loc": 90, "size": 10},
    ],
    [{"y_loc": 67, "type": "circle", "color": "Yellow", "x_loc": 35, "size": 30}],
]


def nlvr1(folder, splits=("dev", "test", "hidden")):
    for split in splits:
        rows = [
            {
                "sentence": "There is a box.",
                "label": label,
                "identifier": f"7-{index}",
                "directory": "2",
                "structured_rep": BOXES,
            }
            for index, label in enumerate(("true", "false"))
        ]
        if split == "hidden":  # as published: without the directory
            rows = [{name: value for name, value in row.items() if name != "directory"} for row in rows]
        write(folder / split / f"{split}.lines", rows)
        for row in rows:
            for number in range(6):
                picture(folder / split / "images" / "2" / f"{split}-{row['identifier']}-{number}.png", size=(400, 100))


def easy_vqa(folder):
    for split in ("train", "test"):
        write(folder / split / "questions.json", [["what color is the shape?", "blue", 0], ["is it red?", "no", 0]])
        picture(folder / split / "images" / "0.png")


def plain(folder):
    rows = [
        {"task": "vqa", "text": "what?", "answers": ["a cup", "a mug"], "pictures": ["cups/1.png"]},
        {"task": "nlvr", "text": "It is so.", "answers": ["True"], "pictures": ["cups/1.png", "2.png"]},
        {"task": "nlvr", "text": "It is not so.", "answers": ["false"], "pictures": ["cups/1.png", "2.png"]},
        {"task": "caption", "answers": ["A cup."], "pictures": ["2.png"]},
    ]
    for split in ("train", "dev"):
        write(folder / f"{split}.jsonl", rows)
    for name in ("cups/1.png", "2.png"):
        picture(folder / name)


def every_picture_opens(corpus):
    used = {key for example in (*corpus.train, *corpus.dev) for key in example.pictures}
    assert set(corpus.pictures) == used
    return all(opener().mode == "RGB" for opener in corpus.pictures.values())


@pytest.mark.parametrize("place", ["train2014/", "images/train2014/", "images/"])
def test_vqa2(tmp_path, place):
    vqa2(tmp_path, place)
    corpus = load_vl_corpus(tmp_path)
    (example,) = corpus.train
    assert corpus.name == "vqa2"
    assert (example.task, example.text, example.pictures) == (
        "vqa",
        "What is it?",
        ("coco/COCO_train2014_000000000009",),
    )
    assert example.answers == ("two",) * 7 + ("dog",) * 3
    assert corpus.dev[0].pictures == ("coco/COCO_val2014_000000000042",)
    assert every_picture_opens(corpus)


@pytest.mark.parametrize("dev", ["testdev", "val"])
def test_gqa(tmp_path, dev):
    gqa(tmp_path, dev)
    corpus = load_vl_corpus(tmp_path)
    assert [(example.task, example.answers, example.pictures) for example in corpus.train] == [
        ("gqa", ("no",), ("gqa/2370799",)),
        ("gqa", ("yes",), ("gqa/2370799",)),
    ]
    assert corpus.dev[0].pictures == ("gqa/n161313",)
    assert every_picture_opens(corpus)


def test_nlvr2(tmp_path):
    nlvr2(tmp_path)
    corpus = load_vl_corpus(tmp_path)
    assert [example.answers for example in corpus.train] == [("true",), ("false",)]
    assert corpus.train[1].pictures == ("nlvr2/train-10-1-img0", "nlvr2/train-10-1-img1")
    assert every_picture_opens(corpus)


@pytest.mark.parametrize("year", ["2014", "2017"])
def test_coco_captions(tmp_path, year):
    coco(tmp_path, year)
    corpus = load_vl_corpus(tmp_path)
    (example,) = corpus.train
    assert (example.task, example.text) == ("caption", "")
    assert example.answers == tuple(f"A dog {index}." for index in range(5))
    assert every_picture_opens(corpus)


def test_karpathy_is_preferred_and_its_test_part_left_out(tmp_path):
    coco(tmp_path)
    karpathy(tmp_path)
    corpus = load_vl_corpus(tmp_path)
    assert [example.pictures[0] for example in corpus.train] == [
        "coco/COCO_train2014_000000000000",
        "coco/COCO_val2014_000000000001",
    ]
    assert [example.pictures[0] for example in corpus.dev] == ["coco/COCO_val2014_000000000002"]
    assert every_picture_opens(corpus)


def test_one_folder_may_hold_several_and_share_pictures(tmp_path):
    vqa2(tmp_path)
    coco(tmp_path)
    corpus = load_vl_corpus(tmp_path)
    assert corpus.name == "vqa2+coco"
    assert corpus.tasks == ("vqa", "caption")
    assert len(corpus.pictures) == 2
    assert every_picture_opens(corpus)


def test_shared_pictures_are_taken_from_where_they_are(tmp_path):
    vqa2(tmp_path / "vqa")
    coco(tmp_path / "coco")
    for file in (tmp_path / "vqa").glob("*/*.jpg"):
        file.unlink()
    assert every_picture_opens(load_vl_corpus([tmp_path / "vqa", tmp_path / "coco"]))
    assert every_picture_opens(load_vl_corpus([tmp_path / "coco", tmp_path / "vqa"]))


def test_nlvr1_trains_on_dev_and_hidden(tmp_path):
    nlvr1(tmp_path / "nlvr")
    corpus = load_vl_corpus(tmp_path)
    statements = [example for example in corpus.train if example.task == "nlvr"]
    assert [example.pictures for example in statements] == [
        ("nlvr1/dev-7-0-0",), ("nlvr1/dev-7-1-0",), ("nlvr1/hidden-7-0-0",), ("nlvr1/hidden-7-1-0",)
    ]  # fmt: skip
    assert {example.pictures[0].split("-")[0] for example in corpus.dev} == {"nlvr1/test"}
    assert corpus.tasks == ("gqa", "nlvr", "caption")
    assert every_picture_opens(corpus)


def test_nlvr1_with_its_training_part(tmp_path):
    nlvr1(tmp_path, ("train", "dev", "test", "hidden"))
    corpus = load_vl_corpus(tmp_path)
    assert {key.split("-")[0] for key in corpus.pictures} == {"nlvr1/train", "nlvr1/dev"}


@pytest.mark.parametrize("place", ["", "data", "easy_vqa/data"])
def test_easy_vqa(tmp_path, place):
    easy_vqa(tmp_path / place)
    corpus = load_vl_corpus(tmp_path)
    assert [(example.answers, example.pictures) for example in corpus.train] == [
        (("blue",), ("easy-vqa/train/0",)),
        (("no",), ("easy-vqa/train/0",)),
    ]
    assert every_picture_opens(corpus)


def test_a_plain_folder_of_your_own(tmp_path):
    plain(tmp_path)
    corpus = load_vl_corpus(tmp_path)
    assert corpus.tasks == ("vqa", "nlvr", "caption")
    assert corpus.train[1].answers == ("true",)
    assert corpus.train[1].pictures == ("plain/cups/1.png", "plain/2.png")
    assert every_picture_opens(corpus)


# --- What NLVR 1's scenes say -------------------------------------------------------------------------------


def some_scene(random):
    return tuple(
        tuple(
            Thing(
                random.choice(["yellow", "blue", "black"]),
                random.choice(SHAPES),
                random.randrange(90),
                random.randrange(90),
                10,
            )
            for _ in range(random.randrange(1, 6))
        )
        for _ in range(3)
    )


def test_captions_count_what_is_there():
    blue, black = Thing("blue", "circle", 0, 0, 10), Thing("black", "square", 20, 0, 10)
    first, second, third = captions(((blue,), (blue, black, black), ()))
    assert first.startswith("the left box has one blue object, the middle box has two black and one blue objects, the")
    assert first.endswith("the right box has no object")
    assert second.count("object") == third.count("object") == 3


def test_questions_say_what_a_slow_look_finds():
    """Each kind again, by counting in another way."""
    random = Random(0)
    names = ("left", "middle", "right")
    seen = set()
    for _ in range(60):
        scene = some_scene(random)
        for kind, asked in questions(scene).items():
            for question, answer in asked:
                seen.add((kind, answer))
                words = question.rstrip("?").split()
                if kind in ("color", "shape"):
                    box = scene[names.index(words[-2])]
                    places = {
                        "highest": sorted((thing.y, index) for index, thing in enumerate(box)),
                        "lowest": sorted((-thing.y - thing.size, index) for index, thing in enumerate(box)),
                        "largest": sorted((-thing.size, index) for index, thing in enumerate(box)),
                    }[words[4]]
                    assert places[0][0] < places[1][0]
                    assert getattr(box[places[0][1]], kind) == answer
                elif kind == "box":
                    counts = [sum(thing.color in words or len(words) == 6 for thing in box) for box in scene]
                    order = sorted(counts, reverse=words[4] == "most")
                    assert order[0] != order[1]
                    assert counts[names.index(answer)] == order[0]
                elif kind == "boxes":
                    assert int(answer) == sum(words[5] in {thing.color for thing in box} for box in scene)
                elif kind == "share":
                    one, other = (words[2], words[3]), (words[10], words[11])
                    together = any(
                        one == (a.color, a.shape) and other == (b.color, b.shape)
                        for box in scene
                        for a in box
                        for b in box
                    )
                    assert answer == ("yes" if together else "no")
                else:
                    box = [thing.color for thing in scene[names.index(words[-2])]]
                    assert answer == ("yes" if box.count(words[3]) > box.count(words[5]) else "no")
    assert {answer for kind, answer in seen if kind in ("share", "more")} == {"yes", "no"}
    assert {answer for kind, answer in seen if kind == "box"} == set(names)
    assert {answer for kind, answer in seen if kind == "boxes"} >= {"1", "2", "3"}


def test_drawn_questions_are_of_different_kinds_and_the_same_each_time():
    scene = some_scene(Random(1))
    drawn = draw_questions(scene, 3, Random(5))
    assert drawn == draw_questions(scene, 3, Random(5)) != draw_questions(scene, 3, Random(6))
    kinds = [kind for pair in drawn for kind, asked in questions(scene).items() if pair in asked]
    assert len(set(kinds)) == 3


# --- Bad input ----------------------------------------------------------------------------------------------


def change(path, edit):
    """Edit a JSON file, or the first line of a JSON-lines one."""
    head, tail = path.read_text(), ""
    try:
        value = json.loads(head)
    except json.JSONDecodeError:
        head, tail = head.split("\n", 1)
        value = json.loads(head)
    edit(value)
    path.write_text(json.dumps(value) + "\n" + tail)


TRAIN_QUESTIONS = "v2_OpenEnded_mscoco_train2014_questions.json"
TRAIN_ANNOTATIONS = "v2_mscoco_train2014_annotations.json"
CAPTIONS = "annotations/captions_train2014.json"


@pytest.mark.parametrize(
    ("make", "file", "edit", "words"),
    [
        (vqa2, TRAIN_QUESTIONS, lambda v: v["questions"][0].pop("question"), "question 9000: has no 'question'"),
        (vqa2, TRAIN_QUESTIONS, lambda v: v.pop("questions"), "has no 'questions'"),
        (vqa2, TRAIN_QUESTIONS, lambda v: v["questions"].append(v["questions"][0]), "two questions have the id 9000"),
        (vqa2, TRAIN_QUESTIONS, lambda v: v["questions"][0].update(image_id="x"), "'image_id' is 'x'; wanted"),
        (vqa2, TRAIN_QUESTIONS, lambda v: v["questions"][0].update(image_id=True), "'image_id' is True"),
        (vqa2, TRAIN_QUESTIONS, lambda v: v["questions"][0].update(question=" "), "'question' is blank"),
        (vqa2, TRAIN_QUESTIONS, lambda v: v.update(task_type="Multiple-Choice"), "'task_type' is 'Multiple-Choice'"),
        (vqa2, TRAIN_QUESTIONS, lambda v: v.update(questions=[3]), "holds a whole number; wanted is an object with"),
        (vqa2, TRAIN_QUESTIONS, lambda v: v.update(questions=[]), "the train part of vqa2 is empty"),
        (vqa2, TRAIN_ANNOTATIONS, lambda v: v.update(annotations=[]), "question 9000 has no annotation"),
        (vqa2, TRAIN_ANNOTATIONS, lambda v: v["annotations"][0].update(answers=[]), "question 9000 has no answer"),
        (
            vqa2,
            TRAIN_ANNOTATIONS,
            lambda v: v["annotations"][0].update(answers=[{"answer": " "}] * 10),
            "question 9000 has no answer, or blank ones",
        ),
        (vqa2, TRAIN_ANNOTATIONS, lambda v: v["annotations"][0].pop("answers"), "has no 'answers'"),
        (vqa2, TRAIN_ANNOTATIONS, lambda v: v["annotations"].append(v["annotations"][0]), "two annotations have"),
        (gqa, "train_balanced_questions.json", lambda v: v["07333408"].update(answer=""), "'answer' is blank"),
        (gqa, "train_balanced_questions.json", lambda v: v["07333408"].pop("imageId"), "07333408: has no 'imageId'"),
        (gqa, "train_balanced_questions.json", lambda v: v["07333408"].update(imageId="../x"), "inside the folder"),
        (nlvr2, "train.json", lambda v: v.pop("label"), "line 1: has no 'label'"),
        (nlvr2, "train.json", lambda v: v.update(label="maybe"), "line 1: the label is 'maybe'"),
        (nlvr2, "train.json", lambda v: v.update(label="False"), "every statement is false"),
        (nlvr2, "train.json", lambda v: v.update(identifier="train-10-1-0"), "the id 'train-10-1-0'"),
        (nlvr2, "train.json", lambda v: v.update(identifier="10"), "is not SPLIT-SET-PAIR-SENTENCE"),
        (nlvr2, "train.json", lambda v: v.update(directory="../.."), "inside the folder"),
        (nlvr2, "dev.json", lambda v: v.update(label="False"), r"dev\): every statement is false"),
        (coco, CAPTIONS, lambda v: v["annotations"][0].pop("caption"), "caption 0: has no 'caption'"),
        (coco, CAPTIONS, lambda v: v["annotations"][0].update(image_id=8), "caption 0 is of picture 8, which is not"),
        (coco, CAPTIONS, lambda v: v.update(annotations=[]), "picture 9 has no caption"),
        (coco, CAPTIONS, lambda v: v["images"].append(v["images"][0]), "two pictures have the id 9"),
        (coco, CAPTIONS, lambda v: v["images"][0].update(file_name="/etc/x.jpg"), "inside the folder"),
        (karpathy, "dataset_coco.json", lambda v: v["images"][0].update(split="all"), "the split is 'all'"),
        (karpathy, "dataset_coco.json", lambda v: v["images"][0].update(sentences=[]), "has no caption"),
        (karpathy, "dataset_coco.json", lambda v: v["images"][0].pop("sentences"), "has no 'sentences'"),
        (nlvr1, "dev/dev.json", lambda v: v.update(identifier="7-1"), "two statements have the id '7-1'"),
        (nlvr1, "dev/dev.json", lambda v: v.update(label=""), "the label is ''"),
        (nlvr1, "dev/dev.json", lambda v: v.update(structured_rep=[[]]), "not a list of three boxes"),
        (nlvr1, "dev/dev.json", lambda v: v.pop("structured_rep"), "line 1: has no 'structured_rep'"),
        (nlvr1, "dev/dev.json", lambda v: v["structured_rep"][0][0].update(color="red"), "is a 'red' 'triangle'"),
        (nlvr1, "dev/dev.json", lambda v: v["structured_rep"][0][0].pop("size"), "has no 'size'"),
        (nlvr1, "test/test.json", lambda v: v.update(label="false"), "every statement is false"),
        (easy_vqa, "train/questions.json", lambda v: v.append(["what?", "", 0]), "entry 2 is"),
        (easy_vqa, "train/questions.json", lambda v: v.append(["what?"]), "entry 2 is"),
        (plain, "train.jsonl", lambda v: v.update(task="refer"), "unknown task; the tasks are vqa, gqa, nlvr, caption"),
        (plain, "train.jsonl", lambda v: v.pop("task"), "line 1: has no 'task'"),
        (plain, "train.jsonl", lambda v: v.update(answers=[]), "line 1: 'answers' is"),
        (plain, "train.jsonl", lambda v: v.update(answers=["", "x"]), "line 1: 'answers' is"),
        (plain, "train.jsonl", lambda v: v.update(pictures=["../1.png"]), "inside the folder"),
    ],
)  # fmt: skip
def test_a_damaged_annotation_is_named(tmp_path, make, file, edit, words):
    make(tmp_path)
    change(tmp_path / file, edit)
    with pytest.raises(DataError, match=words) as caught:
        load_vl_corpus(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_json_of_another_kind(tmp_path):
    vqa2(tmp_path)
    (tmp_path / TRAIN_QUESTIONS).write_text("[1]")
    with pytest.raises(DataError, match="holds a list; wanted is an object"):
        load_vl_corpus(tmp_path)


@pytest.mark.parametrize("make", [vqa2, gqa, nlvr2, coco, karpathy, nlvr1, easy_vqa, plain])
def test_json_that_is_cut(tmp_path, make):
    make(tmp_path)
    for file in sorted(path for path in tmp_path.rglob("*.json*") if "val" not in path.name and "dev" not in path.name):
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) - 5])
        with pytest.raises(DataError, match="cut") as caught:
            load_vl_corpus(tmp_path)
        assert file.name in str(caught.value)
        file.write_bytes(b"\xff\xfe\x00")
        with pytest.raises(DataError, match="cannot be read"):
            load_vl_corpus(tmp_path)
        file.write_bytes(b"")
        with pytest.raises(DataError, match=r"is not whole JSON|is empty"):
            load_vl_corpus(tmp_path)
        file.write_bytes(whole)


def test_an_unknown_folder_gets_the_list_of_what_is_looked_for(tmp_path):
    (tmp_path / "readme.txt").write_text("nothing")
    with pytest.raises(DataError, match="Looked for are") as caught:
        load_vl_corpus(tmp_path)
    for name in ("VQA v2", "GQA", "NLVR²", "COCO captions", "NLVR 1", "easy-vqa", "train.jsonl"):
        assert name in str(caught.value)
    with pytest.raises(DataError, match="no such folder"):
        load_vl_corpus(tmp_path / "nowhere")


# --- The real ones ------------------------------------------------------------------------------------------


def test_the_installed_easy_vqa():
    pytest.importorskip("easy_vqa")
    corpus = load_vl_corpus("easy-vqa")
    assert (len(corpus.train), len(corpus.dev)) == (38575, 9673)
    assert len(corpus.pictures) == 5000
    assert corpus.pictures["easy-vqa/train/0"]().size == (64, 64)


@pytest.mark.skipif(
    not SHARED.is_dir() and os.environ.get("CI") != "true",
    reason="the public NLVR 1 archive is not beside this checkout",
)
def test_the_public_nlvr1(tmp_path):
    import tarfile

    with tarfile.open(SHARED / "nlvr1.tar.gz") as archive:
        wanted = [member for member in archive if member.name.endswith(".json") or "/dev-1572-0-" in member.name]
        archive.extractall(tmp_path, wanted, filter="data")
    corpus = load_vl_corpus(tmp_path)
    counts = {
        task: tuple(sum(example.task == task for example in part) for part in (corpus.train, corpus.dev))
        for task in ("gqa", "nlvr", "caption")
    }
    assert counts == {"gqa": (3948, 1980), "nlvr": (989 + 985, 990), "caption": (989 + 985, 990)}
    # Picture 0 has the boxes in the scene's order: three columns of pixels through things of the first scene.
    picture = corpus.pictures["nlvr1/dev-1572-0-0"]()
    assert [picture.getpixel(place) for place in ((90, 92), (150 + 20, 90), (300 + 85, 15))] == [
        (0, 153, 255),
        (255, 255, 0),
        (0, 0, 0),
    ]
    for one, other in pairwise(example.pictures for example in corpus.train if example.task == "nlvr"):
        assert one != other
