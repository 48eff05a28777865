"""The line between two runs: W' entry by entry, from factors as dense, in every table, and written to files."""

import json
import math

import mpmath
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from deltaw.adapters import OptionError, ShapeError, create, inject
from deltaw.analysis import (
    Trajectory,
    interpolated,
    interpolation_table,
    loss_barrier,
    open_runs,
    save_weights,
    spectrum,
    update_agreement,
)
from deltaw.cli import main
from deltaw.trainers import Recorder

NAME = "layers.0.query"


def record(folder, method, *, seed=0, start=7, shapes=((12, 9), (10, 12)), steps=(0, 1, 2)):
    torch.manual_seed(start)
    layers = [nn.ModuleDict({"query": nn.Linear(width, out)}) for out, width in shapes]
    model = nn.ModuleDict({"layers": nn.ModuleList(layers)})
    inject(model, create(method, **({} if method == "ft" else {"rank": 3})), ["*.query"], seed=seed)
    torch.manual_seed(seed)
    with Recorder(model, folder, method=method) as recorder:
        for step in steps:
            recorder.step(step)
            with torch.no_grad():
                for p in model.parameters():
                    p += 0.01 * torch.randn_like(p) * p.requires_grad
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("line")
    for seed, (name, method) in enumerate((("lora", "lora"), ("other", "lora"), ("bora", "bora"), ("ft", "ft"))):
        record(folder / name, method, seed=seed, steps=(0, 1, 2, 5) if name == "ft" else (0, 1, 2))
    return {run.name: run for run in open_runs(sorted(folder.iterdir()))}


@pytest.mark.parametrize(("first", "second"), [("lora", "other"), ("lora", "ft"), ("bora", "ft"), ("ft", "ft")])
@pytest.mark.parametrize("t", [0.3, -0.5])
def test_every_entry_is_on_the_line(runs, first, second, t):
    a, b = runs[first], runs[second]
    run = interpolated(a, b, t)
    assert run.steps[:3] == [0, 1, 2]
    with mpmath.workdps(40):
        ends = [end.weight(NAME, 2, torch.float64).tolist() for end in (a, b)]
        mixed, share = run.weight(NAME, 2), mpmath.mpf(t)
        for i, j in ((0, 0), (3, 8), (11, 4)):
            want = (1 - share) * ends[0][i][j] + share * ends[1][i][j]
            assert float(mixed[i, j]) == pytest.approx(float(want), rel=1e-15)
    torch.testing.assert_close(run.update(NAME, 2), mixed - run.base(NAME).double(), atol=1e-8, rtol=0)
    factors = run.factors(NAME, 2)
    assert (factors is None) == ("lora" not in (first, second) or "ft" in (first, second))
    if factors is not None:
        assert factors[0].shape[1] == 6
        torch.testing.assert_close(factors[0] @ factors[1], run.update(NAME, 2), atol=1e-15, rtol=1e-12)


def test_the_ends_are_the_runs_themselves(runs):
    for t, end in ((0, runs["lora"]), (1.0, runs["ft"])):
        run = interpolated(runs["lora"], runs["ft"], t)
        assert torch.equal(run.weight(NAME, 2), end.weight(NAME, 2, torch.float64))
        assert torch.equal(run.update(NAME, 2), end.update(NAME, 2))
    at_start = interpolated(runs["lora"], runs["ft"], 0)
    assert at_start.factors(NAME, 2)[0].shape[1] == 3
    assert at_start.spectra("last", [NAME])["rank"][0] == 3


def test_every_table_takes_it(runs):
    run = interpolated(runs["lora"], runs["other"], 0.5)
    assert (run.name, run.method) == ("lora~other@0.5", "lora")
    dense = run.update(NAME, 2)
    found = run.spectra("last", [NAME]).iloc[0]
    assert (found["route"], found["rank"]) == ("factors", 6)
    assert found["frobenius"] == pytest.approx(spectrum(dense).frobenius, rel=1e-10)
    changes = run.changes("base", modules=[NAME])
    assert changes["delta_d"].notna().all()
    geometry = run.geometry("last", [NAME], k=2)
    assert 0 <= geometry["off_principal"][0] <= 1
    pd.testing.assert_frame_equal(run.changes("base", jobs=2), run.changes("base"))
    frame = update_agreement([runs["lora"], run, runs["other"]])
    assert frame["cosine"].notna().all()
    mixed = interpolated(runs["bora"], runs["ft"], 0.5, steps="last")
    assert (mixed.steps, mixed.method) == ([5], "bora+ft")
    assert mixed.spectra()["route"].isin(["svd", "gram"]).all()


def test_the_table_along_the_line(runs):
    frame = interpolation_table(runs["lora"], runs["other"], [0, 0.5, 1])
    assert frame.columns[0] == "t"
    one = frame[frame["module"] == NAME].set_index("t")["frobenius"]
    a, b = (runs[name].update(NAME, 2) for name in ("lora", "other"))
    assert one.tolist() == pytest.approx([float(a.norm()), float((a + b).norm()) / 2, float(b.norm())])


def test_other_bases_are_refused_and_adapters_without_one_are_mixed(runs, tmp_path):
    alien = Trajectory.open(record(tmp_path / "alien", "lora", start=8))
    run = interpolated(runs["lora"], alien, 0.5)
    for read in (run.weight, run.update, run.factors):
        with pytest.raises(OptionError, match=r"layers\.0\.query: the two runs started from other weights, up to"):
            read(NAME, 2)
    paths = []
    for seed in (0, 1):
        draw = torch.Generator().manual_seed(seed)
        paths.append(tmp_path / f"adapter{seed}")
        paths[-1].mkdir()
        tensors = {
            f"base_model.model.{NAME}.lora_{part}.weight": torch.randn(shape, generator=draw)
            for part, shape in (("A", (2, 9)), ("B", (12, 2)))
        }
        save_file(tensors, paths[-1] / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["query"]}
        (paths[-1] / "adapter_config.json").write_text(json.dumps(config))
    mixed = interpolated(*paths, 0.25)
    a, b = (Trajectory.open(path).factors(NAME, 0) for path in paths)
    u, v = mixed.factors(NAME, 0)
    torch.testing.assert_close(
        u @ v, 0.75 * (a[0] @ a[1]).double() + 0.25 * (b[0] @ b[1]).double(), rtol=1e-5, atol=1e-6
    )
    assert mixed.spectra()["rank"].tolist() == [4]


def test_what_is_written_is_read_back(runs, tmp_path):
    run = interpolated(runs["lora"], runs["other"], 0.3)
    folder = save_weights(run, tmp_path / "adapter", dtype=torch.float64)
    base = {f"{name}.weight": run.base(name) for name in run.modules}
    read = Trajectory.open(folder, base=base)
    assert read.modules == run.modules
    for name in run.modules:
        torch.testing.assert_close(read.update(name, read.steps[-1]), run.update(name, 2), rtol=1e-12, atol=1e-15)
    whole = save_weights(interpolated(runs["lora"], runs["ft"], 0.3), tmp_path / "new" / "mixed.safetensors", step=1)
    written = load_file(whole)[f"{NAME}.weight"]
    assert written.dtype == torch.float32
    want = interpolated(runs["lora"], runs["ft"], 0.3).weight(NAME, 1)
    assert torch.equal(written, want.float())
    with pytest.raises(OptionError, match="is no adapter; name a file"):
        save_weights(interpolated(runs["lora"], runs["ft"], 0.3), tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_the_barrier_of_a_loss():
    assert loss_barrier([0, 0.25, 0.5, 1], [1.0, 1.5, 1.2, 2.0]) == 0.25
    assert loss_barrier([1, 0], [1.0, 2.0]) == 0.0
    for ts, losses in (([0, 1], [1.0]), ([0, 0.5], [1.0, 2.0]), ([0, 1], [1.0, math.nan])):
        with pytest.raises(OptionError):
            loss_barrier(ts, losses)


def test_bad_calls(runs, tmp_path):
    for t in ("half", True, math.inf):
        with pytest.raises(OptionError, match="pass a number"):
            interpolated(runs["lora"], runs["ft"], t)
    late = Trajectory.open(record(tmp_path / "late", "lora", steps=(7, 9)))
    with pytest.raises(OptionError, match="no step in common"):
        interpolated(runs["lora"], late, 0.5)
    assert interpolated(runs["lora"], late, 0.5, steps="last").steps == [9]
    with pytest.raises(ShapeError):
        interpolated(runs["lora"], Trajectory.open(record(tmp_path / "small", "lora", shapes=((8, 9),))), 0.5)


def test_the_command_prints_norms_and_ranks_along_the_line(runs, tmp_path, capsys):
    paths, table = [str(runs[name].path) for name in ("lora", "other")], tmp_path / "line.csv"
    assert main(["compare", *paths, "--between", "5", "-o", str(table)]) == 0
    lines = capsys.readouterr().out.splitlines()
    want = interpolation_table(*paths)
    pd.testing.assert_frame_equal(pd.read_csv(table)[["t", "frobenius"]], want[["t", "frobenius"]], rtol=1e-12)
    assert [line.split()[0] for line in lines if line[:2] in ("0 ", "0.", "1 ")] == ["0", "0.25", "0.5", "0.75", "1"]
    assert any("of their size" in line for line in lines)
    assert main(["compare", *paths, "--between", "3", "--step", "1", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {(row["t"], row["step"]) for row in rows} == {(0, 1), (0.5, 1), (1, 1)}
    for wrong, message in {
        (paths[0], "--between", "3"): "takes two runs",
        (*paths, "--between", "3", "--step", "1", "--step", "2"): "one step of both",
        (*paths, "--between", "3", "--jobs", "2"): "in this process",
        (*paths, "--between", "1"): "--between",
    }.items():
        assert main(["compare", *wrong]) == 2
        assert message in capsys.readouterr().err
