"""The tokens that moved most and the new ones, held to a definition a row at a time."""

import json
import math

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from deltaw.adapters.errors import NonFiniteError, OptionError, RecordError
from deltaw.analysis import Trajectory, new_tokens, token_changes
from deltaw.analysis.tables.tokens import holds_tokens
from deltaw.analysis.tables.work import Work
from deltaw.cli import main

MODULE = "model.embed_tokens"
WORDS = [f"Ġw{number}" for number in range(30)] + ["evil\x1b[2J", "l" * 100]


@pytest.fixture
def folders(tmp_path):
    """A base of 30 tokens and a model of 33, of which one row was zero, one stays zero and one is zeroed."""
    draw = torch.Generator().manual_seed(0)
    before, after = torch.randn(30, 8, generator=draw), torch.randn(33, 8, generator=draw)
    after[:30] = before + after[:30] * torch.logspace(-6, 0, 30)[:, None]
    before[3] = before[4] = after[4] = after[5] = 0
    for name, table in (("base", before), ("model", after)):
        (tmp_path / name).mkdir()
        query = torch.randn(4, 8, generator=draw)
        state = {f"{MODULE}.weight": table, "model.layers.0.self_attn.q_proj.weight": query}
        save_file(state, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return tmp_path, before.double(), after.double()


@pytest.fixture
def run(folders):
    folder, *_ = folders
    return Trajectory.open(folder / "model", base=folder / "base", modules=[MODULE])


def slow(before, after) -> dict[int, dict[str, float]]:
    """A row at a time, as the formulas have it."""
    found = {}
    for token, a in enumerate(before):
        b = after[token]
        size, moved = float(a.norm()), float((b - a).norm())
        both = size * float(b.norm())
        found[token] = {
            "delta_m": abs(float(b.norm()) - size),
            "delta_d": 1 - float(a @ b) / both if both else (math.nan if moved else 0.0),
            "update_norm": moved,
            "relative": moved / size if size else (math.inf if moved else math.nan),
        }
    return found


@pytest.mark.parametrize("by", ["relative", "update_norm", "delta_m", "delta_d"])
def test_every_token_is_measured_and_the_most_moved_are_first(by, run, folders):
    _, before, after = folders
    want = slow(before, after)
    frame = token_changes([run], top=None, by=by)
    assert sorted(frame["token"]) == list(range(30))
    for row in frame.to_dict(orient="records"):
        for name, value in want[row["token"]].items():
            assert row[name] == pytest.approx(value, rel=1e-6, abs=1e-12, nan_ok=True)
    order = [value for value in frame[by] if not math.isnan(value)]
    assert order == sorted(order, reverse=True)
    assert frame[by].isna().tolist() == sorted(frame[by].isna())
    assert frame.head(5).equals(token_changes([run], top=5, by=by))
    assert set(frame["module"]) == {MODULE}
    assert frame["step_from"].isna().all()


def test_twenty_are_shown_and_other_processes_measure_the_same(run):
    frame = token_changes([run])
    assert len(frame) == 20
    pd.testing.assert_frame_equal(token_changes([run], work=Work(jobs=2)), frame, check_exact=True)


def test_what_was_kept_is_the_same_and_its_texts_are_read_anew(folders, run, tmp_path, monkeypatch):
    folder, *_ = folders
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kept = Work(cache=True)
    first, new = token_changes([run], work=kept), new_tokens([run], work=kept)
    (folder / "base" / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    again = Trajectory.open(folder / "model", base=folder / "base", modules=[MODULE])
    for make, want in ((token_changes, first), (new_tokens, new)):
        found = make([again], work=kept)
        assert set(want["text"]) == {""}
        assert "" not in set(found["text"]) or make is new_tokens
        pd.testing.assert_frame_equal(found.drop(columns="text"), want.drop(columns="text"), check_exact=True)


def test_embeddings_of_tokens_are_chosen_and_a_run_without_any_is_told(folders):
    folder, *_ = folders
    whole = Trajectory.open(folder / "model", base=folder / "base", modules=["*"])
    assert set(token_changes([whole])["module"]) == {MODULE}
    assert set(token_changes([whole], modules=["*q_proj"])["text"]) == {""}
    plain = Trajectory.open(folder / "model", base=folder / "base")
    with pytest.raises(OptionError, match=r'shows no embedding .*modules=\["\*embed_tokens\*"\]'):
        token_changes([plain])
    for wrong in ({"by": "size"}, {"top": 0}, {"by": ["relative"]}):
        with pytest.raises(OptionError, match=r"size|top|by is"):
            token_changes([whole], **wrong)
    named = ["bert.embeddings.position_embeddings", "transformer.wpe", "bert.embeddings.token_type_embeddings"]
    assert [holds_tokens(name) for name in [*named, "bert.embeddings.word_embeddings"]] == [False] * 3 + [True]


def as_json(words):
    vocabulary = {word: number for number, word in enumerate(words[:-1])}
    added = [{"id": len(words) - 1, "content": words[-1]}]
    return {"model": {"vocab": vocabulary}, "added_tokens": added}


FILES = {
    "tokenizer.json": lambda words: json.dumps(as_json(words)),
    "tokenizer.json unigram": lambda words: json.dumps({"model": {"vocab": [[word, -1.5] for word in words]}}),
    "vocab.json": lambda words: json.dumps({word: number for number, word in enumerate(words)}),
    "vocab.txt": lambda words: "\r\n".join(words) + "\n",
}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("place", ["model", "base", "elsewhere"])
def test_texts_stand_beside_the_checkpoint_the_base_or_where_it_is_said(place, file, folders, run):
    folder, *_ = folders
    (folder / place).mkdir(exist_ok=True)
    words = WORDS[-2:] + WORDS[:-2]
    (folder / place / file.split()[0]).write_text(FILES[file](words), encoding="utf-8")
    given = {"tokenizer": folder / place} if place == "elsewhere" else {}
    found = token_changes([run], top=None, **given).set_index("token")["text"]
    assert found[0] == "evil\\x1b[2J"
    assert found[1] == "l" * 59 + "…"
    assert all(found[number] == words[number] for number in range(2, 30))


@pytest.mark.parametrize("text", ["{", "[" * 5000, "[1]", '{"model": {"vocab": 3}, "added_tokens": [7, {}]}', "{}"])
def test_a_damaged_vocabulary_costs_the_texts_alone(text, folders, run):
    folder, *_ = folders
    (folder / "model" / "tokenizer.json").write_text(text)
    assert set(token_changes([run])["text"]) == {""}


def test_a_tokenizer_that_was_given_must_be_one(folders, run):
    folder, *_ = folders
    with pytest.raises(RecordError, match=r"holds no tokenizer \(tokenizer\.json"):
        token_changes([run], tokenizer=folder / "base")
    (folder / "base" / "vocab.json").write_text("{")
    with pytest.raises(RecordError, match="is not JSON"):
        token_changes([run], tokenizer=folder / "base")


def test_new_rows_stand_beside_the_old_ones(folders, run):
    folder, _, after = folders
    (folder / "model" / "vocab.txt").write_text("\n".join([*WORDS, "<new>"]), encoding="utf-8")
    old, new = after[:30], after[30:]
    frame = new_tokens([run])
    assert frame["token"].tolist() == [30, 31, 32]
    assert frame["text"].tolist() == ["evil\\x1b[2J", "l" * 59 + "…", "<new>"]
    mean = old.mean(0)
    distances = [float((row - mean).norm()) for row in new]
    assert frame["norm"].tolist() == pytest.approx([float(row.norm()) for row in new], rel=1e-12)
    assert frame["to_mean"].tolist() == pytest.approx(distances, rel=1e-12)
    assert frame["old_norm"].tolist() == pytest.approx([float(old.norm(dim=1).mean())] * 3, rel=1e-12)
    assert frame["old_to_mean"].tolist() == pytest.approx([float((old - mean).norm(dim=1).mean())] * 3, rel=1e-12)
    same = Trajectory.open(folder / "model", base=folder / "model", modules=[MODULE])
    assert new_tokens([same]).empty
    smaller = Trajectory.open(folder / "base", base=folder / "model", modules=[MODULE])
    assert new_tokens([smaller]).empty


def test_new_rows_of_a_head_that_peft_saved_whole(tmp_path):
    draw = torch.Generator().manual_seed(0)
    head, base = torch.randn(22, 8, generator=draw), torch.randn(20, 8, generator=draw)
    query = "model.layers.0.self_attn.q_proj"
    sides = {"A": torch.randn(2, 8, generator=draw), "B": torch.randn(8, 2, generator=draw)}
    tensors = {f"base_model.model.{query}.lora_{side}.weight": value for side, value in sides.items()}
    save_file(tensors | {"base_model.model.lm_head.weight": head}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    run = Trajectory.open(tmp_path, base={f"{query}.weight": torch.randn(8, 8), "lm_head.weight": base})
    assert new_tokens([run])["norm"].tolist() == pytest.approx(head[20:].double().norm(dim=1).tolist(), rel=1e-12)
    want, found = slow(base.double(), head.double()), token_changes([run], top=None).set_index("token")
    assert found["relative"].to_dict() == pytest.approx({key: row["relative"] for key, row in want.items()}, rel=1e-9)
    assert new_tokens([run], modules=["*q_proj"]).empty


def test_a_new_row_that_is_no_number_is_named(folders):
    folder, *_ = folders
    table = torch.full((33, 8), 1.0)
    table[32, 1] = math.nan
    save_file({f"{MODULE}.weight": table}, folder / "model" / "model.safetensors")
    run = Trajectory.open(folder / "model", base=folder / "base", modules=[MODULE])
    with pytest.raises(NonFiniteError, match=r"embed_tokens, at step 0: a row holds NaN"):
        new_tokens([run])


def test_the_parts_in_which_rows_are_widened_change_little(run, monkeypatch):
    whole = token_changes([run]), new_tokens([run])
    monkeypatch.setattr("deltaw.analysis.tables.tokens._ENTRIES", 20)
    pd.testing.assert_frame_equal(token_changes([run]), whole[0], check_exact=True)
    pd.testing.assert_frame_equal(new_tokens([run]), whole[1], rtol=1e-12)


def test_the_command(folders, capsys):
    folder, *_ = folders
    before, after = str(folder / "base"), str(folder / "model")
    (folder / "model" / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    assert main(["changes", before, after, "--tokens", "--top", "3", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[0]["token"] == 3  # from zero
    assert len(rows) == 3
    assert main(["changes", after, "--base", before, "--tokens", "--sort", "delta_m", "--all", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 30
    assert main(["changes", after, "--base", before, "--tokens", "--step", "7"]) == 2
    assert "step 7 ends no pair" in capsys.readouterr().err
    assert main(["changes", after, "--base", before, "--new-tokens", "--json"]) == 0
    assert [row["token"] for row in json.loads(capsys.readouterr().out)] == [30, 31, 32]
    assert main(["changes", after, "--base", before, "--tokens"]) == 0
    assert "Ġw" in capsys.readouterr().out
    assert main(["changes", after, "--base", before, "--tokens", "--axes", "row"]) == 2
    assert main(["changes", after, "--base", before, "--tokenizer", after]) == 2
