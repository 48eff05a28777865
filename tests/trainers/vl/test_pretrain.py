"""The built-in models: what is shipped is small, reads any text, has learnt to see; and the script that makes it."""

from __future__ import annotations

import itertools
import os
import re
from importlib.resources import files
from pathlib import Path
from random import Random

import pytest
import torch
from click.testing import CliRunner

from deltaw.adapters.errors import DataError
from deltaw.trainers.vl import infilling, pretrain
from deltaw.trainers.vl.language import inventory, true_remarks
from deltaw.trainers.vl.model import load_bart, load_picture_encoder, load_vl_bart
from deltaw.trainers.vl.scene import draw
from deltaw.trainers.vl.scenes import builtin, other_scenes, splits

BUILTIN = Path(str(files("deltaw.trainers.vl"))) / "builtin"
MIB = 1024 * 1024
SMALL = {"scenes": 64, "steps": 2, "picture_steps": 2, "seed": 0, "progress": False}


# --- The shipped files


def test_the_folder_is_small_and_holds_nothing_to_unpickle():
    paths = [path for path in BUILTIN.rglob("*") if path.is_file()]
    names = {str(path.relative_to(BUILTIN)) for path in paths}
    assert names >= {
        "encoder.safetensors",
        *(f"bart/{n}" for n in ("config.json", "model.safetensors", "tokenizer.json")),
    }
    assert {path.suffix for path in paths} == {".json", ".safetensors"}
    assert sum(path.stat().st_size for path in paths) <= 12 * MIB


def test_the_tokenizer_reads_any_text_and_has_a_token_for_a_word_of_ours():
    _, tokenizer = load_bart()
    for text in (
        "There is exactly one black triangle not touching any edge.",
        "Ein weißer Würfel: 木 🙂\n\tnaïve",
        "in the left image, two dogs' collars are #1",
    ):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text
    train, dev, _ = builtin()
    for row in train + dev:
        for text in (row.text, *row.answers):
            words = text.replace(",", " ,").replace("?", " ?").split()
            assert len(tokenizer(text)["input_ids"]) == len(words) + 2, text


def test_the_model_has_learnt_to_see():
    """Beside a picture that it never saw, it writes the masked colour of a shape."""
    encoder = load_picture_encoder()
    model, tokenizer = load_vl_bart(tokens=encoder.tokens, width=encoder.width)
    model.eval()
    texts, wanted, pictures = [], [], []
    for scene in splits()[1].values():
        shapes = [thing.shape for thing in scene.things]
        first = scene.things[0]
        if shapes.count(first.shape) == 1:
            texts.append(f"there is one <mask> {first.shape}")
            wanted.append(f"there is one {first.color} {first.shape}")
            pictures.append(encoder.prepare(draw(scene)))
    features = encoder(torch.stack(pictures))[:, None]
    given = tokenizer(texts, padding=True, return_tensors="pt")
    written = model.generate(
        features,
        torch.ones(len(texts), 1, dtype=torch.bool),
        given["input_ids"],
        given["attention_mask"],
        max_new_tokens=12,
    )
    said = [text.strip() for text in tokenizer.batch_decode(written, skip_special_tokens=True)]
    right = sum(a == b for a, b in zip(said, wanted, strict=True))
    assert len(wanted) > 50
    assert right / len(wanted) > 0.7  # guessing gives 1 / 6


# --- Making them


def test_infilling_masks_the_share_it_is_told_and_keeps_the_rest_in_order():
    random = Random(0)
    ids = list(range(10, 30))
    lengths = []
    for share in (0.0, 0.15, 0.5, 1.0):
        for _ in range(50):
            masked = pretrain.infill(ids, share, random)
            kept = [token for token in masked if token != infilling.MASK]
            assert kept == [token for token in ids if token in kept]
            assert len(ids) - len(kept) == max(1, round(share * len(ids)))
            assert all(a != b for a, b in itertools.pairwise(masked) if a == infilling.MASK)
            lengths.append(len(masked))
    assert len(set(lengths)) > 5
    assert pretrain.infill(ids, 1.0, random) == [infilling.MASK]
    first = [pretrain.infill([10, 11], 0.5, random, light={10}) for _ in range(400)]
    assert 0.75 < first.count([10, infilling.MASK]) / 400 < 0.92  # 1 / 1.2


def test_samples_say_what_is_so_and_ask_without_a_picture():
    scenes = other_scenes(50, seed=1)
    random = Random(2)
    drawn = [pretrain.sample(scenes, random) for _ in range(500)]
    assert {len(sample.pictures) for sample in drawn} == {0, 1, 2}
    assert all("?" in sample.text for sample in drawn if not sample.pictures)
    assert not any("?" in sample.text for sample in drawn if sample.pictures)
    assert all(sample.whole <= (len(sample.pictures) == 1) for sample in drawn)
    judged = [sample for sample in drawn if sample.fits is not None]
    assert len(judged) > 50
    assert {len(sample.pictures) for sample in judged} == {1, 2}
    for sample in judged:
        text, shown = sample.text, sample.pictures[0]
        if len(sample.pictures) == 2:  # a caption of one of them, never a statement that speaks of both
            side = re.match("in the (left|right) picture ", text)
            text, shown = text[side.end() :], sample.pictures[side[1] == "right"]
        assert (text in true_remarks(scenes[shown])) is sample.fits


def test_a_batch_masks_the_text_and_keeps_the_labels_whole():
    scenes = other_scenes(20, seed=1)
    random = Random(3)
    tokenizer = pretrain.build_tokenizer(scenes, seed=0)
    samples = [pretrain.sample(scenes, random) for _ in range(30)]
    features = torch.randn(20, 16, 96, generator=torch.Generator().manual_seed(0))
    batch = pretrain.batch_of(samples, tokenizer, features, random)
    for row, sample in enumerate(samples):
        labels = batch["labels"][row]
        wanted = sample.text if sample.fits is None else str(sample.fits).lower()
        assert tokenizer.decode(labels[labels >= 0], skip_special_tokens=True).strip() == wanted
        assert (batch["input_ids"][row] == infilling.MASK).any() == (sample.fits is None)
        assert batch["picture_mask"][row].sum() == len(sample.pictures)
        for place, picture in enumerate(sample.pictures):
            assert torch.equal(batch["features"][row, place], features[picture])
    assert torch.equal(batch["attention_mask"].bool(), batch["input_ids"] != pretrain.PADDING)


def test_phrases_are_those_of_the_caption():
    for scene in other_scenes(50, seed=1):
        found = pretrain.phrases_in(inventory(scene)).nonzero().flatten().tolist()
        assert {pretrain.PHRASES[index] for index in found} == {f"{t.size} {t.color} {t.shape}" for t in scene.things}


def test_a_phrase_is_there_if_any_cell_says_it():
    said = torch.tensor([[[0.9, 0.1], [0.5, 0.0]]], dtype=torch.float64)
    there = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    wanted = -torch.tensor(1 - 0.1 * 0.5, dtype=torch.float64).log() - torch.tensor(0.9, dtype=torch.float64).log()
    assert pretrain._any_cell(said, there) == pytest.approx(float(wanted), abs=1e-9)


def test_building_writes_a_folder_twice_the_same_and_leaves_nothing_beside_it(tmp_path):
    state = torch.random.get_rng_state()
    for name in ("one", "two", "one"):
        pretrain.build(tmp_path / name, **SMALL)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert sorted(os.listdir(tmp_path)) == ["one", "two"]
    made = {str(path.relative_to(tmp_path / "one")) for path in (tmp_path / "one").rglob("*.*")}
    assert made == {str(path.relative_to(BUILTIN)) for path in BUILTIN.rglob("*.*")}
    for name in made:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_building_refuses_a_folder_with_other_things(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(DataError, match=r"thesis\.tex"):
        pretrain.build(tmp_path, **SMALL)
    result = CliRunner().invoke(pretrain.main, ["--out", str(tmp_path)])
    assert result.exit_code == 1
    assert "thesis.tex" in result.output
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_failed_build_leaves_the_earlier_folder_and_no_rest(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "encoder.safetensors").write_text("earlier")

    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(pretrain, "pretrain", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        pretrain.build(tmp_path / "out", **SMALL)
    assert os.listdir(tmp_path) == ["out"]
    assert (tmp_path / "out" / "encoder.safetensors").read_text() == "earlier"
