"""The grammar's promises, and that the shipped files are what the grammar and the pretraining make."""

from __future__ import annotations

import os
from collections import Counter
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
import torch
from click.testing import CliRunner

from deltaw.adapters.errors import DataError
from deltaw.trainers.cola import pretrain
from deltaw.trainers.cola.grammar import (
    ACCEPTABLE_SHARE,
    DEV_SIZE,
    NAMES,
    PHENOMENA,
    TRAIN_SIZE,
    Draw,
    corpus,
    grammatical,
    splits,
    to_tsv,
    tokens,
    vocabulary,
)

BUILTIN = Path(str(files("deltaw.trainers.cola"))) / "builtin"
MIB = 1024 * 1024


def pairs(phenomenon: str, count: int, seed: int = 0):
    random = Random(seed)
    return [PHENOMENA[phenomenon](Draw(random)) for _ in range(count)]


# --- The grammar


@pytest.mark.parametrize("phenomenon", PHENOMENA)
def test_a_phenomenon_makes_both_labels_and_never_the_same_sentence_for_both(phenomenon):
    drawn = pairs(phenomenon, 1000)
    assert all(pair.acceptable and pair.broken for pair in drawn)
    acceptable = {sentence for pair in drawn for sentence in pair.acceptable}
    broken = {sentence for pair in drawn for sentence in pair.broken}
    assert len(acceptable) > 300
    assert len(broken) > 300


def test_no_broken_sentence_is_acceptable_in_another_phenomenon():
    drawn = [pair for phenomenon in PHENOMENA for pair in pairs(phenomenon, 3000)]
    acceptable = {sentence for pair in drawn for sentence in pair.acceptable}
    broken = {sentence for pair in drawn for sentence in pair.broken}
    assert acceptable.isdisjoint(broken)


@pytest.mark.parametrize("phenomenon", PHENOMENA)
def test_sentences_look_like_sentences(phenomenon):
    names = {name for group in NAMES.values() for name in group}
    for pair in pairs(phenomenon, 300):
        for sentence in pair.acceptable + pair.broken:
            assert sentence[0].isupper()
            assert sentence[-1] in ".?"
            assert "  " not in sentence
            assert "\t" not in sentence
            inner = sentence[:-1].split()[1:]
            assert all(word.islower() or word == "I" or word in names for word in inner), sentence
            used = [word for word in sentence[:-1].split() if word in names]
            assert len(used) == len(set(used)), sentence


def test_a_stands_before_consonants_only():
    for phenomenon in PHENOMENA:
        for pair in pairs(phenomenon, 300):
            for sentence in pair.acceptable:
                words = tokens(sentence)
                assert all(b[0] not in "aeiou" for a, b in pairwise(words) if a == "a")


# --- The corpora


def test_a_seed_decides_the_corpus():
    assert corpus(100, seed=3) == corpus(100, seed=3)
    assert corpus(100, seed=3) != corpus(100, seed=4)
    assert grammatical(100, seed=3) == grammatical(100, seed=3)
    assert grammatical(100, seed=3) != grammatical(100, seed=4)


@pytest.mark.parametrize("size", [0, 1, 2, 7, 160, 1000])
def test_a_corpus_has_its_size_and_share_and_no_sentence_twice(size):
    examples = corpus(size, seed=5)
    assert len(examples) == size
    assert sum(example.label for example in examples) == round(ACCEPTABLE_SHARE * size)
    assert len({example.sentence for example in examples}) == size
    assert all(example.mark == ("" if example.label else "*") for example in examples)


def test_a_corpus_leaves_out_what_it_is_told_to():
    first = corpus(200, seed=6)
    second = corpus(200, seed=6, exclude={example.sentence for example in first})
    assert {e.sentence for e in first}.isdisjoint(e.sentence for e in second)


@pytest.mark.parametrize("make", [corpus, grammatical])
def test_a_negative_size_is_refused(make):
    with pytest.raises(ValueError, match="size is -1"):
        make(-1, seed=0)


def test_a_corpus_larger_than_the_grammar_is_refused(monkeypatch):
    one = PHENOMENA["case"](Draw(Random(0)))
    monkeypatch.setitem(PHENOMENA, "case", lambda draw: one)
    with pytest.raises(ValueError, match="smaller size"):
        corpus(200, seed=0)


def test_train_and_dev_have_every_phenomenon_in_the_stated_shares():
    for examples, size in zip(splits(), (TRAIN_SIZE, DEV_SIZE), strict=True):
        counts = Counter((example.phenomenon, example.label) for example in examples)
        assert len(examples) == size
        assert {counts[name, 1] for name in PHENOMENA} == {size * 3 // (5 * len(PHENOMENA))}
        assert {counts[name, 0] for name in PHENOMENA} == {size * 2 // (5 * len(PHENOMENA))}


def test_train_dev_and_pretraining_share_no_sentence():
    train, dev = ({example.sentence for example in examples} for examples in splits())
    text = grammatical(20_000, seed=0)
    assert len(set(text)) == len(text)
    assert train.isdisjoint(dev)
    assert (train | dev).isdisjoint(text)


def test_the_vocabulary_covers_the_grammar():
    words = set(vocabulary())
    assert all(words.issuperset(tokens(sentence)) for sentence in grammatical(20_000, seed=7))
    assert all(words.issuperset(tokens(example.sentence)) for example in corpus(5_000, seed=7))


# --- The shipped files


@pytest.mark.parametrize(("name", "index"), [("train.tsv", 0), ("dev.tsv", 1)])
def test_the_shipped_tables_are_what_the_grammar_makes(name, index):
    assert (BUILTIN / name).read_bytes() == to_tsv(splits()[index]).encode()


def test_the_model_folder_is_small_and_holds_nothing_to_unpickle():
    paths = list((BUILTIN / "model").iterdir())
    assert {path.name for path in paths} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert {path.suffix for path in paths} == {".json", ".safetensors"}
    assert sum(path.stat().st_size for path in paths) <= 6 * MIB


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")


@pytest.mark.usefixtures("offline")
def test_the_tokenizer_knows_every_word():
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(BUILTIN / "model")
    unknown = tokenizer.unk_token_id
    sentences = [example.sentence for examples in splits() for example in examples]
    for sentence, ids in zip(sentences, tokenizer(sentences)["input_ids"], strict=True):
        assert unknown not in ids
        assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", *tokens(sentence), "</s>"]
    assert tokenizer("Zyzzyva slept.")["input_ids"].count(unknown) == 2


@pytest.mark.usefixtures("offline")
def test_the_model_loads_as_a_classifier_with_the_pretrained_encoder():
    transformers = pytest.importorskip("transformers")
    folder = BUILTIN / "model"
    model, loading = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=2, output_loading_info=True
    )
    assert set(loading["missing_keys"]) == {
        f"classifier.{part}.{kind}" for part in ("dense", "out_proj") for kind in ("weight", "bias")
    }
    ids = transformers.AutoTokenizer.from_pretrained(folder)(["Him slept."], return_tensors="pt")
    assert model(**ids).logits.shape == (1, 2)


@pytest.mark.usefixtures("offline")
def test_the_model_has_learnt_what_agrees():
    """At the verb the model prefers the form that agrees, also across a noun of the other number."""
    transformers = pytest.importorskip("transformers")
    folder = BUILTIN / "model"
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for sentence, right, wrong in [
        ("The boys <mask> tired.", "are", "is"),
        ("The boy near the girls <mask> tired.", "is", "are"),
        ("The girl praised <mask>.", "herself", "himself"),
        ("Mary has <mask> the car.", "stolen", "steal"),
        ("Mary was admired by <mask>.", "him", "he"),
    ]:
        ids = tokenizer(sentence, return_tensors="pt")
        with torch.no_grad():
            logits = model(**ids).logits[ids["input_ids"] == tokenizer.mask_token_id][0]
        assert logits[tokenizer.vocab[right]] > logits[tokenizer.vocab[wrong]], sentence


# --- Making them


def test_corruption_leaves_special_tokens_alone_and_keeps_its_shares():
    generator = torch.Generator().manual_seed(0)
    special, size = len(pretrain.SPECIAL_TOKENS), 50
    ids = torch.randint(0, size, (400, 50), generator=generator)
    rivals = ((torch.arange(size) + 1) % size).expand(size, size).T  # each word's rival is the next one
    corrupted = pretrain.corrupt(ids, rivals, generator)
    assert torch.equal(corrupted[ids < special], ids[ids < special])
    was, now = ids[ids >= special], corrupted[ids >= special]
    masked = (now == pretrain.SPECIAL_TOKENS.index("<mask>")).double().mean()
    assert masked == pytest.approx(pretrain.MASKED, abs=0.01)
    changed = (now != was).double().mean()
    assert changed == pytest.approx(pretrain.MASKED + pretrain.REPLACED + pretrain.CONFUSED, abs=0.01)
    confused = (now == (was + 1) % size).double().mean()
    assert confused == pytest.approx(pretrain.CONFUSED, abs=0.01)


def test_rivals_are_the_other_words_of_a_paradigm():
    pytest.importorskip("transformers")
    tokenizer = pretrain.build_tokenizer()
    rivals = pretrain.build_rivals(tokenizer)
    for word, expected in [("him", {"he"}), ("taken", {"take", "takes", "took", "taking"}), ("boys", {"boy"})]:
        row = rivals[tokenizer.convert_tokens_to_ids(word)].tolist()
        assert set(tokenizer.convert_ids_to_tokens(row)) == expected
    anything = set(rivals[tokenizer.convert_tokens_to_ids("yesterday")].tolist())
    assert anything == set(range(len(pretrain.SPECIAL_TOKENS), len(tokenizer)))


def test_building_writes_a_folder_twice_the_same_and_leaves_nothing_beside_it(tmp_path):
    pytest.importorskip("transformers")
    state = torch.random.get_rng_state()
    for name in ("one", "two", "one"):
        pretrain.build(tmp_path / name, sentences=64, epochs=1, seed=0, progress=False)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert sorted(os.listdir(tmp_path)) == ["one", "two"]
    for path in (tmp_path / "one").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


def test_building_refuses_a_folder_with_other_things(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(DataError, match=r"thesis\.tex"):
        pretrain.build(tmp_path, sentences=64, epochs=1, seed=0, progress=False)
    result = CliRunner().invoke(pretrain.main, ["--out", str(tmp_path)])
    assert result.exit_code == 1
    assert "thesis.tex" in result.output
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_failed_build_leaves_the_earlier_folder_and_no_rest(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "dev.tsv").write_text("earlier")

    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(pretrain, "pretrain", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        pretrain.build(tmp_path / "out", sentences=64, epochs=1, seed=0, progress=False)
    assert os.listdir(tmp_path) == ["out"]
    assert (tmp_path / "out" / "dev.tsv").read_text() == "earlier"
