"""``deltaw geometry``: its summary, its options and its errors."""

import json

import pandas as pd
import pytest
import torch

from deltaw.adapters import create, inject
from deltaw.cli import main
from deltaw.trainers import Recorder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.manual_seed(0)
    layers = torch.nn.ModuleList(
        [torch.nn.ModuleDict({"query": torch.nn.Linear(12, 8), "value": torch.nn.Linear(12, 8)}) for _ in range(2)]
    )
    model = inject(torch.nn.ModuleDict({"layer": layers}), create("lora", rank=2), targets=["*"])
    folder = tmp_path_factory.mktemp("runs") / "lora"
    with Recorder(model, folder) as recorder:
        for step in (0, 5):
            recorder.step(step)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += 0.1 * torch.randn_like(parameter) * parameter.requires_grad
    return str(folder)


def call(capsys, *words) -> tuple[int, str, str]:
    code = main(["geometry", *map(str, words), "--no-cache"])
    return code, *capsys.readouterr()


def test_means_by_kind_and_layer_and_every_row_in_a_file(run, capsys, tmp_path):
    code, out, _ = call(capsys, run, "--k", 3, "--explain", "-o", tmp_path / "geometry.csv")
    assert code == 0
    for word in ("at step 5", "query", "value", "left", "outside", "by_chance", "bfloat16", "%", "has all 4 rows"):
        assert word in out
    frame = pd.read_csv(tmp_path / "geometry.csv")
    assert set(frame["k"]) == {3}
    mean = 100 * frame[frame["kind"] == "query"]["visible_bfloat16"].mean()
    assert f"{mean:.3g} %" in next(line for line in out.splitlines() if "query" in line)
    assert max(map(len, out.splitlines()[:8])) <= 110


def test_json_has_every_column_of_the_chosen_measures(run, capsys):
    code, out, _ = call(
        capsys, run, "--json", "--all-steps", "--k", 0.5, "--measures", "visible", "--visible", "float16,path-not-taken"
    )
    rows = json.loads(out)
    assert (code, len(rows)) == (0, 8)
    assert set(rows[0]) == {
        *("run", "method", "module", "layer", "kind", "step", "k", "visible_float16", "visible_path_not_taken")
    }
    code, out, _ = call(capsys, run, "--all", "--by", "module", "--measures", "drift", "--step", 0)
    assert code == 0
    assert "drift" in out
    assert "rotation" not in out


def test_wrong_calls_are_one_line(run, capsys):
    for words, text in (
        (("--k", "0"), "'0' is neither a whole number from 1 on nor a share"),
        (("--k", "1.5"), "'1.5' is neither"),
        (("--k", "many"), "'many' is neither"),
        (("--measures", "turn"), "'turn' is not one of rotation"),
        (("--visible", "int8"), "'int8' is not one of bfloat16"),
        (("--step", "3"), "step 3 was not recorded"),
    ):
        code, out, error = call(capsys, run, *words)
        assert (code, out) == (2, "")
        assert text in error
        assert len([line for line in error.splitlines() if line.startswith("deltaw")]) == 1
