"""``deltaw claims`` and what it reads from recorded runs."""

import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from deltaw.adapters import RecordError, create, inject
from deltaw.analysis import Trajectory, open_runs
from deltaw.analysis.claims import PAPERS, claims, gather, regions
from deltaw.analysis.claims.dora import GRANULAR
from deltaw.cli import main
from deltaw.trainers import Recorder

KINDS = ("query", "value")


def record(folder, method, seed=0, result=None, settings=None, first=0, **options):
    """A run of three layers of attention with random updates, and the result beside it that is given."""
    torch.manual_seed(0)
    blocks = [nn.ModuleDict({kind: nn.Linear(16, 16) for kind in KINDS}) for _ in range(3)]
    model = nn.ModuleDict({"layer": nn.ModuleList(blocks)})
    made = [method] if isinstance(method, str) else method
    for name, kind in zip(made, ["*"] if len(made) == 1 else [f"*.{kind}" for kind in KINDS], strict=True):
        own = {} if name in ("ft", "magnitude") else {"rank": 2} | options
        inject(model, create(name, **own), targets=[kind] if kind != "*" else [f"*.{k}" for k in KINDS], seed=seed)
    torch.manual_seed(seed)
    whole = {"method": made[0], "model": None, "data": "builtin"} | (settings or {})
    modules = [f"*.{kind}" for kind in KINDS]
    with Recorder(model, folder, modules, method=made[0], info={"experiment": "cola", "settings": whole}) as recorder:
        for step in range(first, first + 6):
            recorder.step(step)
            with torch.no_grad():
                for p in model.parameters():
                    if p.requires_grad:
                        p += 0.01 * torch.randn_like(p)
    if result is not None:
        (folder / "result.json").write_text(json.dumps({"settings": whole, "result": result}))
    return str(folder)


def of_cola(score, trainable=100):
    return {"best_mcc": score, "n_dev": 1043, "trainable": trainable, "seconds_per_epoch": 2.0, "rank": 2}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {
        "ft": record(folder / "ft", "ft"),
        "lora": record(folder / "lora", "lora", result=of_cola(0.2)),
        "dora": record(folder / "dora", "dora", result=of_cola(0.5, 104)),
        "dora1": record(folder / "dora1", "dora", seed=1, result=of_cola(0.6, 104)),
        "sbora-fa": record(folder / "sbora-fa", "sbora-fa"),
        "dual-lora": record(folder / "dual-lora", "dual-lora"),
    }


def call(capsys, *arguments):
    code = main(["claims", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def failed(capsys, code, *arguments):
    got, _, err = call(capsys, *arguments)
    lines = [line for line in err.splitlines() if line.startswith("deltaw:")]
    assert (got, len(lines)) == (code, 1), err
    return lines[0]


def test_verdicts_of_all_papers_and_their_files(runs, tmp_path, capsys):
    out = tmp_path / "new" / "verdicts"
    code, text, _ = call(capsys, *runs.values(), "-o", out)
    assert code == 0
    rows = json.loads((out / "claims.json").read_text())
    assert {row["paper"] for row in rows} == {"DoRA", "BoRA", "SBoRA", "Dual LoRA"}
    for paper in ("DoRA says", "BoRA says", "SBoRA says", "Dual LoRA says", f"{len(rows)} claims: "):
        assert paper in text
    assert (out / "claims.md").read_text().startswith(f"{len(rows)} claims: ")
    seen = {row["sentence"]: row for row in rows}
    moved = seen["SBoRA-FA moves exactly r columns of a matrix"]
    assert (moved["verdict"], moved["statistic"]) == ("agrees", 1.0)
    score = seen["DoRA (column) scores higher on CoLA than LoRA"]
    assert (score["verdict"], score["statistic"]) == ("agrees", pytest.approx(0.35))
    assert seen["BoRA scores higher on CoLA than LoRA"]["note"] == "missing: a result of bora"
    assert seen["In LoRA's query matrices the columns' ΔM rises with ΔD"]["statistic"] is not None
    nearer = seen["DoRA (column) leaves the columns' magnitudes of value matrices nearer to the base than LoRA"]
    assert "2 runs of dora" in nearer["note"]

    code, text, _ = call(capsys, runs["sbora-fa"], "--paper", "sbora", "--json")
    assert code == 0
    assert {row["paper"] for row in json.loads(text)} == {"SBoRA"}


def test_what_is_gathered_is_what_the_trajectory_says(runs):
    opened = open_runs([runs["dora"], runs["lora"], runs["ft"]])
    evidence = gather(opened, ["bora", "dora"])
    run = opened[0]
    whole = run.changes("base")
    kept = evidence.base[evidence.base["run"] == "dora"]
    assert sorted(kept["step_to"].unique()) == [1, 3, 4, 5]  # the last, and nearest to its quarters; of two the later
    for row in kept.itertuples():
        same = whole[(whole["module"] == row.module) & (whole["axis"] == row.axis) & (whole["step_to"] == row.step_to)]
        assert row.delta_m == same["delta_m"].item()
    assert len(evidence.consecutive[evidence.consecutive["run"] == "ft"]) == 3 * 5 * 2  # of the queries alone
    assert set(evidence.initial["step_to"]) == {5}
    assert evidence.spectra.empty
    assert evidence.regions.empty
    assert evidence.runs.set_index("method").loc["dora", ["rank", "trainable"]].tolist() == [2, 104]
    assert evidence.scores.set_index("method")["value"].to_dict() == {"dora": 0.5, "lora": 0.2}


def test_a_run_that_does_not_start_at_0_is_compared_with_the_base(tmp_path):
    runs = [record(tmp_path / method, method, first=10) for method in ("lora", "dora")]
    evidence = gather(open_runs(runs), ["bora"])
    assert evidence.initial["step_from"].isna().all()
    assert set(evidence.initial["step_to"]) == {15}


def test_variants_are_methods_of_their_own(tmp_path):
    runs = [
        record(tmp_path / "a", "dora"),
        record(tmp_path / "b", "dora", detach_norm=False),
        record(tmp_path / "c", "dual-lora", activation="abs"),
        record(tmp_path / "d", "lora", settings={"base": "nf4"}),
        record(tmp_path / "e", ["dora", "magnitude"]),
    ]
    table = gather(open_runs(runs), []).runs
    labels = ["dora", "dora, detach_norm False", "dual-lora, activation abs", "qlora", GRANULAR]
    assert table["method"].tolist() == labels
    assert table["direction_rank"].tolist()[2] == 2


def test_scores_of_several_tasks(tmp_path):
    scores = {"vqa": 0.5, "gqa": 0.4, "nlvr": 0.6, "caption": 1.1}
    result = {"scores": scores, "mean": 0.65, "n_dev": dict.fromkeys(scores, 500), "trainable": 10, "share": 0.1}
    higher = result | {"scores": scores | {"vqa": 0.8}}
    runs = [record(tmp_path / "lora", "lora", result=result), record(tmp_path / "dora", "dora", result=higher)]
    outcomes = {outcome.claim.sentence: outcome for outcome in claims(gather(open_runs(runs), ["dora"]), ["dora"])}
    vqa = outcomes["DoRA (column) has a higher VQA accuracy than LoRA"]
    assert (vqa.verdict, vqa.statistic) == ("agrees", pytest.approx(0.3))
    mean = outcomes["DoRA (column) has a higher mean of the four scores than LoRA"]
    assert mean.statistic == pytest.approx(0.075)


def test_answers_and_guessing_reach_the_claims(tmp_path):
    labels = "01" * 200
    runs = []
    for method, wrong in (("bora", 40), ("lora", 60), ("dora", 200)):
        found = labels[:wrong].translate(str.maketrans("01", "10")) + labels[wrong:]
        runs.append(record(tmp_path / method, method, result=of_cola(1 - 2 * wrong / 400)))
        kept = json.loads((tmp_path / method / "result.json").read_text())
        kept["dev"] = {"labels": labels, "predictions": found}
        (tmp_path / method / "result.json").write_text(json.dumps(kept))
    evidence = gather(open_runs(runs), ["bora"])
    assert evidence.scores["labels"].tolist() == [labels] * 3
    assert evidence.consecutive.loc[evidence.consecutive["method"] == "dora", "guessing"].notna().all()
    outcomes = {outcome.claim.sentence: outcome for outcome in claims(evidence, ["bora"])}
    assert "paired over 400 sentences" in outcomes["BoRA scores higher on CoLA than LoRA"].note
    assert outcomes["BoRA's ΔM is symmetric in rows and columns"].statistic is not None
    assert outcomes["DoRA (column)'s ΔM is not symmetric in rows and columns"].note.startswith("dora learned nothing")


def test_regions_are_counted(runs):
    run = Trajectory.open(runs["sbora-fa"])
    for row in regions(run).itertuples():
        update = run.update(row.module, 5).numpy()
        assert row.moved_columns == np.count_nonzero(np.abs(update).sum(axis=0)) == 2
        assert (row.moved_rows, row.untouched_rows) == (16, 0)
        assert row.untouched_weights == pytest.approx(1 - 2 / 16)


def test_mistakes_are_one_line(runs, tmp_path, capsys):
    assert "lora" in failed(capsys, 1, tmp_path / "lora")
    assert "given twice" in failed(capsys, 2, runs["lora"], runs["lora"])
    assert "'lora' is not one of" in failed(capsys, 2, runs["lora"], "--paper", "lora")
    other = record(tmp_path / "other", "dora", settings={"model": "roberta-base"})
    line = failed(capsys, 2, runs["lora"], other)
    assert "its model is 'roberta-base', that of lora is None" in line
    damaged = tmp_path / "damaged"
    shutil.copytree(runs["lora"], damaged)
    for text in ("{", '{"result": 3, "settings": {}}', "{}"):
        (damaged / "result.json").write_text(text)
        assert "result.json: is damaged" in failed(capsys, 1, damaged)


def test_a_run_without_a_checkpoint_is_named(tmp_path):
    model = nn.ModuleDict({"query": nn.Linear(4, 4)})
    with Recorder(model, tmp_path / "empty", ["query"], method="ft"):
        pass
    with pytest.raises(RecordError, match="empty: no checkpoint was recorded"):
        gather(open_runs([tmp_path / "empty"]), [])


def test_a_run_with_nothing_but_its_start_decides_nothing(tmp_path):
    model = inject(torch.nn.ModuleDict({"query": torch.nn.Linear(6, 6)}), create("lora", rank=2), targets=["query"])
    with Recorder(model, tmp_path / "run") as recorder:
        recorder.step(0)
    outcomes = claims(gather([Trajectory.open(tmp_path / "run")], list(PAPERS)))
    assert not [outcome for outcome in outcomes if outcome.verdict != "unclear" and "ΔM" in outcome.claim.sentence]
    assert len(outcomes) > 100
