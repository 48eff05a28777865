"""Reading CoLA and what is like it, and refusing what is not."""

import os
from pathlib import Path

import pytest

from deltaw.adapters import DataError
from deltaw.trainers.cola.data import load_corpus, read_tsv

SHARED = Path(__file__).parents[4] / "shared" / "data" / "cola"
with_shared_data = pytest.mark.skipif(
    not SHARED.is_dir() and os.environ.get("CI") != "true", reason="the public CoLA files are not beside this checkout"
)


def test_builtin():
    corpus = load_corpus("builtin")
    assert corpus.name == "builtin"
    for sentences, labels in (corpus.train, corpus.dev):
        assert len(sentences) == len(labels) > 300
        assert set(labels) == {0, 1}


@with_shared_data
def test_the_public_release():
    corpus = load_corpus(SHARED)
    assert (len(corpus.train[0]), sum(corpus.train[1])) == (8551, 6023)
    assert len(corpus.dev[0]) == 1043  # GLUE's development set is the two together
    assert all(sentence == sentence.strip() != "" for sentence in corpus.train[0])


@with_shared_data
def test_the_raw_folder_of_the_public_release(tmp_path):
    (tmp_path / "raw").symlink_to(SHARED)
    assert len(load_corpus(tmp_path).dev[0]) == 1043


def test_last_line_without_newline_and_odd_characters(tmp_path):
    path = tmp_path / "x.tsv"
    path.write_bytes('a\t1\t\tA \u2028 "quoted sentence.\r\nb\t0\t*\tThe other'.encode())
    assert read_tsv([path]) == (['A \u2028 "quoted sentence.', "The other"], [1, 0])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "is empty"),
        (b"a\t1\tSentence.\n", "line 1 has 3 columns"),
        (b"a\t1\t\tGood.\nsentence\tlabel\n", "line 2 has 2 columns"),
        (b"a\t2\t\tSentence.\n", "label '2'"),
        (b"a\tyes\t\tSentence.\n", "label 'yes'"),
        (b"a\t1\t\t  \n", "no sentence"),
        (b"a\t1\t\tGood.\n\nb\t1\t\tGood.\n", "line 2 has 1 columns"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_bad_lines_are_named(text, words, small):
    (small / "dev.tsv").write_bytes(text)
    with pytest.raises(DataError, match=words) as caught:
        load_corpus(small)
    assert "dev.tsv" in str(caught.value)


def test_folders_that_are_none(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        load_corpus(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"in_domain_train\.tsv"):
        load_corpus(tmp_path)
