"""``deltaw packs``, and ``deltaw claims`` with packs: what is printed, written and refused."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from deltaw.adapters import create, inject
from deltaw.analysis import check_claims, open_runs
from deltaw.analysis.claims import find_pack, found, gather
from deltaw.cli import main
from deltaw.trainers import Recorder

PACK = """format = 1
name = "mine"

[paper]
short = "Mine"
title = "A paper \\u001b[31m of <b>mine</b>"
authors = ["A. Author"]
year = 2026
key = "author2026"

[[claims]]
id = "departs"
says = "LoRA's weights <script>move</script>"
where = "§1 \\u001b[2J"
measure = "distance growth"
with = { method = "lora" }
rule = "more"

[[claims]]
id = "rows"
says = "LoRA has larger ΔM in the value matrices' whole than Full FT"
where = "§2"
measure = "change ratio"
with = { pairs = "base", kind = "value", quantity = "delta_m", over = { method = "lora" }, under = { method = "ft" } }
rule = "more"

[[figures]]
name = "cloud"
where = "Figure 1"
options = { kind = "value", axis = "row" }
"""


def record(folder, method, rank=2):
    torch.manual_seed(0)
    blocks = [nn.ModuleDict({kind: nn.Linear(12, 12) for kind in ("query", "value")}) for _ in range(3)]
    model = nn.ModuleDict({"layer": nn.ModuleList(blocks)})
    options = {} if method == "ft" else {"rank": rank}
    inject(model, create(method, **options), targets=["*.query", "*.value"])
    with Recorder(model, folder, ["*.query", "*.value"], method=method) as recorder:
        for step in range(6):
            recorder.step(step)
            with torch.no_grad():
                for p in model.parameters():
                    if p.requires_grad:
                        p += 0.05 * torch.randn_like(p)
    return str(folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packs")
    return {
        "ft": record(folder / "ft", "ft"),
        "lora": record(folder / "lora", "lora"),
        "lora8": record(folder / "lora8", "lora", 8),
    }


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(PACK, encoding="utf-8")
    return path


def call(capsys, *arguments):
    code = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_packs_are_listed_and_shown(capsys, mine):
    code, out, _ = call(capsys, "packs")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[2:]] == list(found.SHIPPED)
    code, out, _ = call(capsys, "packs", "lora-vs-full")
    assert code == 0
    for shown in ("Reece Shuttleworth", "fewer-at-a-high-rank", "deltaw plot intruders RUNS... --k 10 --epsilon 0.5"):
        assert shown in out
    code, out, _ = call(capsys, "packs", mine)
    assert code == 0
    assert "\x1b" not in out
    assert "--kind value --axis row" in out
    told = json.loads(call(capsys, "packs", "delora", "--json")[1])
    assert told["claims"][0]["with"] == {"method": "delora", "under": None}
    assert call(capsys, "packs", "bidora", "--bibtex")[1].startswith("@article{qin2025bidora,")
    whole = call(capsys, "packs", "--check")[1]
    assert whole.count(": whole, ") == len(found.SHIPPED)


def test_a_pack_that_one_writes_is_checked(capsys, mine):
    assert call(capsys, "packs", mine, "--check")[:2] == (0, "mine: whole, 2 claims, 1 figures\n")
    for old, new, said in (
        ('rule = "more"', 'rule = "mor"', "line 17: claims.1.rule is 'mor'; choose one of"),
        ('"cloud"', '"clowd"', "line 27: figures.1.name: 'clowd' is not one of"),
        ("axis =", "axes =", "line 27: figures.1.options: 'axes' is not one of kind, axis"),
        ("[paper]", "[paper", "line 4: "),
    ):
        mine.write_text(PACK.replace(old, new), encoding="utf-8")
        code, out, err = call(capsys, "packs", mine, "--check")
        assert (code, out, len(err.splitlines())) == (1, "", 1), err
        assert said in err
    code, _, err = call(capsys, "packs", "boraa")
    assert code == 2
    assert "did you mean 'bora'" in err


def test_claims_of_several_packs_and_what_is_written(capsys, runs, mine, tmp_path):
    tex, bib = tmp_path / "out" / "claims.tex", tmp_path / "out" / "claims.bib"
    chosen = ["--pack", mine, "--pack", "lora-vs-full", "--tex", tex, "--bibtex", bib, "-o", tmp_path / "out"]
    code, out, _ = call(capsys, "claims", *runs.values(), *chosen)
    assert code == 0
    assert "10 claims: " in out
    assert "\x1b" not in out
    rows = {row["sentence"]: row for row in json.loads((tmp_path / "out" / "claims.json").read_text())}
    assert len(rows) == 10
    grown = rows["LoRA's weights <script>move</script>"]
    assert grown["verdict"] == "agrees"
    assert rows["LoRA has larger ΔM in the value matrices' whole than Full FT"]["statistic"] is not None
    assert rows["LoRA has fewer intruder dimensions at its highest rank than at its lowest"]["statistic"] is not None
    assert rows["VeRA has intruder dimensions"]["note"] == "missing: a run of vera"
    assert "<script>" not in (tmp_path / "out" / "claims.md").read_text()
    tables = tex.read_text()
    assert tables.count(r"\begin{longtable}") == 2
    assert r"$<$script$>$move" in tables
    assert "\x1b" not in tables + bib.read_text()
    assert bib.read_text().count("@") == 2


def test_what_a_pack_needs_is_measured_and_no_more(runs, mine):
    opened = open_runs(list(runs.values()))
    evidence = gather(opened, [mine])
    assert set(evidence.base["kind"]) == {"value"}
    assert set(evidence.distances["step"]) == {2, 5}
    assert evidence.consecutive.empty
    assert evidence.intruders.empty
    value = opened[1].weight("layer.0.value", 5) - opened[1].base("layer.0.value")
    row = evidence.distances[(evidence.distances["run"] == "lora") & (evidence.distances["module"] == "layer.0.value")]
    assert row[row["step"] == 5]["frobenius"].item() == pytest.approx(value.double().norm().item(), rel=1e-5)
    both = check_claims(list(runs.values()), [mine, "lora-vs-full"])
    assert [outcome.claim.paper for outcome in both] == ["Mine"] * 2 + ["LoRA vs Full Fine-tuning"] * 8


def test_the_whole_matrix_is_an_axis(runs, tmp_path):
    whole = 'axes = ["matrix"] }'
    text = PACK.replace('over = { method = "lora" }', f'over = {{ method = "lora", {whole}')
    text = text.replace('under = { method = "ft" }', f'under = {{ method = "ft", {whole}')
    (tmp_path / "matrix.toml").write_text(text, encoding="utf-8")
    opened = open_runs([runs["ft"], runs["lora"]])
    evidence = gather(opened, [tmp_path / "matrix.toml"])
    assert set(evidence.base["axis"]) == {"row", "column", "matrix"}
    kept = evidence.base[(evidence.base["run"] == "lora") & (evidence.base["axis"] == "matrix")]
    same = opened[1].changes("base", axes=("matrix",), modules=["*.value"])
    assert kept["delta_m"].tolist() == same[same["step_to"].isin(kept["step_to"])]["delta_m"].tolist()
    ratio = check_claims([runs["ft"], runs["lora"]], tmp_path / "matrix.toml")[1]
    assert ratio.statistic is not None


def test_the_geometry_is_measured_by_column(runs):
    """The lowest level of the whole way: runs of two methods stand for the two kinds of training."""
    pack, roles = find_pack("path-not-taken"), {"ft": "sft", "lora": "rl"}
    opened = open_runs([runs["ft"], runs["lora"]])
    evidence = gather(opened, [pack], roles=roles)
    whole = opened[0].geometry([5], k=16)
    same = evidence.geometry[evidence.geometry["method"] == "sft"].reset_index(drop=True)
    for column in ("rotation_left", "drift", "off_principal", "off_principal_expected"):
        assert same[column].tolist() == whole[column].tolist()
    assert "visible_path_not_taken" in same
    found = {outcome.claim.sentence: outcome for outcome in check_claims([runs["ft"], runs["lora"]], pack, roles=roles)}
    assert found["SFT makes the spectrum drift markedly more than RL"].statistic is not None
    alone = replace(pack, claims=[one for one in pack.claims if one.id == "drift"])
    assert "rotation_left" not in gather(opened, [alone], roles=roles).geometry.dropna(axis=1, how="all")


def test_runs_have_roles(capsys, runs, tmp_path):
    text = PACK.replace('"lora" }\nrule', '"rl" }\nrule').replace(
        "[paper]", '[roles]\nrl = "of reinforcement"\n\n[paper]'
    )
    (tmp_path / "roles.toml").write_text(text, encoding="utf-8")
    pack = find_pack(tmp_path / "roles.toml")
    assert gather(open_runs([runs["ft"]]), [pack], roles={"ft": "rl"}).distances["method"].unique().tolist() == ["rl"]
    call_of = ["claims", runs["ft"], "--pack", tmp_path / "roles.toml"]
    code, out, _ = call(capsys, *call_of, "--role", f"rl={runs['ft']}", "--json")
    assert code == 0
    assert json.loads(out)[0]["verdict"] == "agrees"
    for wrong, said in (
        ("sft=ft", "these packs have rl"),
        ("rl", "give a role and a run"),
        ("rl=lora", "there is no run 'lora'; there are ft"),
    ):
        code, _, err = call(capsys, *call_of, "--role", wrong)
        assert code == 2
        assert said in err


def test_the_worked_example_of_the_documentation(capsys, runs, tmp_path, monkeypatch):
    """The page's pack is whole, is decided on runs, and its Python makes a pack with a measure of its own."""
    page = (Path(__file__).parents[2] / "docs" / "packs.md").read_text(encoding="utf-8")
    blocks = {
        kind: re.findall(rf"^```{kind}\n(.*?)^```", page, re.DOTALL | re.MULTILINE) for kind in ("toml", "python")
    }
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(blocks["toml"][0], encoding="utf-8")
    assert call(capsys, "packs", "mine.toml", "--check")[:2] == (0, "mine: whole, 2 claims, 1 figures\n")
    code, _, _ = call(capsys, "claims", runs["ft"], runs["lora"], "--pack", "mine.toml", "--tex", "claims.tex")
    assert code == 0
    assert r"Claim & Paper & Ours & Verdict \\" in Path("claims.tex").read_text()
    magnitudes, score = check_claims([runs["ft"], runs["lora"]], "mine.toml")
    assert magnitudes.statistic is not None
    assert score.note == "missing: a result of lora and of ft"
    namespace: dict = {}
    for block in blocks["python"]:
        exec(compile(block, "packs.md", "exec"), namespace)
    text = blocks["toml"][0].replace(
        '"score"\nwith = { better = "lora", worse = "ft" }', '"runs of"\nwith = { method = "lora" }'
    )
    Path("mine.toml").write_text(text, encoding="utf-8")
    counted = check_claims([runs["ft"], runs["lora"]], namespace["mine"]())[1]
    assert (counted.statistic, counted.verdict) == (1.0, "disagrees")
