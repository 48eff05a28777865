"""Tables that are no wider than the terminal, and the rows that --all and --json print."""

import json
import re

import pandas as pd
import pytest
import torch
from torch import nn

from deltaw.adapters import LoRA, inject
from deltaw.analysis import Trajectory
from deltaw.cli import main
from deltaw.cli.layout import fitted
from deltaw.cli.output import in_columns
from deltaw.trainers import Recorder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("runs"), []
    for name in ("zebra", "ant"):
        torch.manual_seed(0)
        layers = [nn.ModuleDict({"query": nn.Linear(6, 5), "value": nn.Linear(6, 5)}) for _ in range(12)]
        model = inject(nn.ModuleDict({"layer": nn.ModuleList(layers)}), LoRA(rank=2), targets=["*"])
        with Recorder(model, folder / name) as recorder:
            for step in range(3):
                recorder.step(step)
                with torch.no_grad():
                    for p in model.parameters():
                        p += 0.01 * torch.randn_like(p) * p.requires_grad
        found.append(str(folder / name))
    return found


def call(capsys, *arguments, code=0):
    assert main([*map(str, arguments), "-q"]) == code
    said = capsys.readouterr()
    return said.err if code else said.out


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("verb", ["rank", "changes", "geometry"])
def test_summaries_fit_and_lose_no_column(verb, width, runs, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    out = call(capsys, verb, *runs, "--explain")
    assert max(map(len, out.splitlines())) <= width
    columns = {"rank": 7, "changes": 4, "geometry": 7}[verb]
    table = out.split("\n\n")[1:-1]
    heads = [line for line in out.splitlines() if line.startswith("-")]
    assert sum(len(head.split()) - 3 for head in heads) >= 2 * columns, table


@pytest.mark.parametrize("width", [40, 60, 80])
def test_names_that_were_cut_still_tell_rows_apart(width):
    rows = [
        {
            "module": f"model.decoder.layers.{i}.self_attention_of_the_decoder.{kind}",
            "a_long_name": 0.5,
            "other": "x" * 30,
        }
        for i in range(20)
        for kind in ("query", "value")
    ]
    text = fitted(rows, width)
    assert max(map(len, text.splitlines())) <= width
    shown = [line.split()[0] for line in text.split("\n\n")[0].splitlines() if "…" in line.split()[0]]
    assert len(set(shown)) == len(rows)


def test_a_name_that_reads_like_a_number_stays_as_it_is():
    """Modules of a Sequential in a Sequential are called so: 0.10 was printed as 0.1."""
    assert in_columns([{"module": "0.10", "rank": 2}], floatfmt=".3g").splitlines()[2].split() == ["0.10", "2"]


def test_runs_and_layers_stand_in_the_order_they_were_given(runs, capsys):
    out = call(capsys, "changes", *runs)
    assert out.index("zebra") < out.index("ant")
    out = call(capsys, "changes", runs[0], "--by", "module")
    places = [out.index(f"layer.{layer}.query") for layer in range(12)]
    assert places == sorted(places)


def test_all_and_json_heed_step_sort_and_top(runs, capsys):
    frame = Trajectory.open(runs[0]).changes()
    wanted = frame[frame["step_to"] == 1].sort_values("delta_d", ascending=False, kind="stable").head(3)
    given = ("changes", runs[0], "--step", 1, "--sort", "delta_d", "--top", 3)
    rows = json.loads(call(capsys, *given, "--json"))
    assert [row["delta_d"] for row in rows] == list(wanted["delta_d"])
    shown = [line.split() for line in call(capsys, *given, "--all").splitlines()]
    assert [cells[2] for cells in shown[2:5]] == list(wanted["module"])
    assert len(json.loads(call(capsys, "changes", runs[0], "--json", "--last"))) == 48
    assert len(json.loads(call(capsys, "changes", runs[0], "--json"))) == len(frame)


def test_a_file_has_all_whatever_the_terminal_shows(runs, tmp_path, capsys):
    call(capsys, "changes", runs[0], "--top", 1, "--step", 1, "-o", tmp_path / "all.csv")
    read, frame = pd.read_csv(tmp_path / "all.csv"), Trajectory.open(runs[0]).changes()
    assert (read["delta_d"].to_numpy() == frame["delta_d"].to_numpy()).all()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--last", "--step", 1), "--last and --step contradict"),
        (("--all-steps", "--step", 1), "--all-steps and --step contradict"),
        (("--all-steps", "--last"), "--all-steps and --last contradict"),
        (("--by", "kinds"), "did you mean 'kind'"),
        (("--sort", "stable"), "did you mean 'stable_rank'"),
        (("--sort", "stable", "--all"), "did you mean 'stable_rank'"),
    ],
)
def test_what_cannot_be_meant_is_one_line(words, text, runs, capsys):
    assert text in call(capsys, "rank", runs[0], *words, code=2)


def test_a_wrong_step_is_said_before_anything_else(runs, capsys):
    assert main(["rank", runs[0], "--step", "7"]) == 2
    said = capsys.readouterr()
    assert (said.out, len(said.err.splitlines())) == ("", 1)


def test_several_runs_that_are_averaged_are_said_to_be(runs, capsys):
    assert call(capsys, "rank", *runs, "--by", "kind").startswith("2 runs together: means")
    assert call(capsys, "rank", runs[0]).startswith("zebra: means")
    assert "steps 0, 1, 2" in call(capsys, "rank", runs[0], "--all-steps")


def test_claims_count_what_can_be_checked_first_and_say_why_one_is_unclear(runs, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    out = call(capsys, "claims", *runs, "--paper", "bora").splitlines()
    counts = re.fullmatch(
        r"these runs can check (\d+) of (\d+) claims: (\d+) agree, (\d+) disagree, (\d+) unclear\.", out[0]
    )
    checked, _, *verdicts = map(int, counts.groups())
    assert checked == sum(verdicts) > 0
    assert max(map(len, out)) <= 80
    assert "why unclear:" in out
    assert not any("missing:" in line for line in out)
    assert any("missing:" in line for line in call(capsys, "claims", *runs, "--paper", "bora", "--all").splitlines())
