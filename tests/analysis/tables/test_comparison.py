"""Two runs beside each other: against the measures themselves, and what is there where W₀ is not."""

import json
import math

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import deltaw
from deltaw.adapters import BoRA, LoRA, OptionError, ShapeError, inject
from deltaw.analysis import Trajectory, changes, directions, overlap, principal_angles, spectrum
from deltaw.cli import main
from deltaw.trainers import Recorder


def record(folder, method, shapes=((12, 9), (9, 12)), seed=0):
    torch.manual_seed(seed)
    layers = [nn.ModuleDict({"query": nn.Linear(width, out)}) for out, width in shapes]
    model = inject(nn.ModuleDict({"layers": nn.ModuleList(layers)}), method, targets=["*.query"])
    with Recorder(model, folder) as recorder:
        for step in range(3):
            recorder.step(step)
            with torch.no_grad():
                for p in model.parameters():
                    p += 0.01 * torch.randn_like(p) * p.requires_grad
    return folder


@pytest.fixture
def runs(tmp_path):
    return record(tmp_path / "lora", LoRA(rank=2)), record(tmp_path / "bora", BoRA(rank=4))


def test_every_number_is_that_of_its_measure(runs):
    one, two = map(Trajectory.open, runs)
    frame = deltaw.compare(*runs)
    assert list(frame["module"]) == ["layers.0.query", "layers.1.query"]
    for row in frame.itertuples():
        weights = [run.weight(row.module, 2, torch.float64) for run in (one, two)]
        updates = [run.update(row.module, 2) for run in (one, two)]
        for axis, change in changes(*weights).items():
            assert getattr(row, f"delta_m_{axis}") == pytest.approx(change.delta_m, rel=1e-9)
            assert getattr(row, f"delta_d_{axis}") == pytest.approx(change.delta_d, rel=1e-9)
        a, b = updates
        assert row.cosine == pytest.approx(float((a * b).sum() / (a.norm() * b.norm())), rel=1e-9)
        assert row.difference == pytest.approx(float((a - b).norm()), rel=1e-9)
        assert (row.norm_first, row.norm_second) == pytest.approx((float(a.norm()), float(b.norm())), rel=1e-9)
        assert row.rank_first == spectrum(a).rank == 2
        assert row.directions == 2
        for side in ("left", "right"):
            spans = [directions(update).basis(side, 2) for update in updates]
            assert getattr(row, f"overlap_{side}") == pytest.approx(float(overlap(*spans)[-1, -1]), abs=1e-9)
            angle = math.degrees(principal_angles(*spans)[0])
            assert getattr(row, f"angle_{side}") == pytest.approx(angle, abs=1e-5)
            assert getattr(row, f"overlap_chance_{side}") == 2 / len(spans[0])


def test_what_differs_in_options_and_modules_is_named(runs, tmp_path):
    frame = deltaw.compare(*runs)
    differ = {name: (one, two) for name, one, two in frame.attrs["settings"]}
    assert differ["rank"] == ("2", "4")
    assert differ["method"] == ("lora", "bora")
    assert "alpha" not in differ
    longer = record(tmp_path / "longer", LoRA(rank=2), shapes=((12, 9), (9, 12), (5, 9)))
    frame = deltaw.compare(runs[0], longer)
    assert (frame.attrs["only_first"], frame.attrs["only_second"]) == ([], ["layers.2.query"])
    with pytest.raises(ShapeError, match=r"layers\.0\.query"):
        deltaw.compare(runs[0], record(tmp_path / "other", LoRA(rank=2), shapes=((8, 9),)))


def test_steps_and_ranks_are_chosen(runs):
    frame = deltaw.compare(runs[0], runs[0], step_first=1, step_second=2, rank=0)
    assert "rank_first" not in frame
    run = Trajectory.open(runs[0])
    want = changes(run.weight("layers.0.query", 1, torch.float64), run.weight("layers.0.query", 2, torch.float64))
    assert frame["delta_m_row"][0] == pytest.approx(want["row"].delta_m, rel=1e-9)
    with pytest.raises(OptionError, match="rank"):
        deltaw.compare(*runs, rank=-1)
    pd.testing.assert_frame_equal(
        deltaw.compare(*runs, work=deltaw.analysis.tables.work.Work(jobs=2)), deltaw.compare(*runs)
    )


def adapter(folder, seed):
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir()
    tensors = {
        f"base_model.model.layers.0.query.lora_{part}.weight": torch.randn(shape, generator=generator)
        for part, shape in (("A", (2, 9)), ("B", (12, 2)))
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2 + seed, "target_modules": ["query"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_adapters_without_their_base_are_compared_as_far_as_they_can_be(tmp_path):
    paths = adapter(tmp_path / "a", 0), adapter(tmp_path / "b", 1)
    frame = deltaw.compare(*paths)
    a, b = (Trajectory.open(path).factors("layers.0.query", 0) for path in paths)
    assert frame["difference"][0] == pytest.approx(float((a[0] @ a[1] - b[0] @ b[1]).norm()), rel=1e-5)
    assert frame["delta_m_row"].isna().all()
    with_base = deltaw.compare(*paths, base={"layers.0.query.weight": torch.ones(12, 9)})
    assert with_base["delta_m_row"].notna().all()


def test_models_without_their_base_have_weights_and_no_updates(tmp_path):
    for seed, name in enumerate(("a", "b")):
        (tmp_path / name).mkdir()
        weight = torch.randn(6, 5, generator=torch.Generator().manual_seed(seed))
        save_file({"layers.0.query.weight": weight}, tmp_path / name / "model.safetensors")
    frame = deltaw.compare(tmp_path / "a", tmp_path / "b")
    assert frame["delta_m_row"].notna().all()
    assert frame[["cosine", "difference"]].isna().all(axis=None)


def test_the_command_prints_one_screen_and_writes_everything(runs, tmp_path, capsys):
    path = tmp_path / "differences.csv"
    assert main(["compare", *map(str, runs), "-o", str(path), "--explain"]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) < 40
    assert "rank" in out
    assert "of 2 matrices in both, step 2 against step 2" in out
    assert len(pd.read_csv(path)) == 2
    assert main(["compare", *map(str, runs), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["module"] == "layers.0.query"
    assert main(["compare", str(runs[0]), str(runs[0]), "--step", "1", "--step", "2", "--step", "2"]) == 2
    assert "given 3 times" in capsys.readouterr().err
