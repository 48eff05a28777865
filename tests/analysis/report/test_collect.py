"""One part of a report never blocks the rest: no base, NaN, no checkpoint, other shapes, a damaged result."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import deltaw
from deltaw.adapters import LoRA, inject
from deltaw.analysis import update_agreement
from deltaw.analysis.report import collect as module
from deltaw.analysis.report.collect import collect
from deltaw.analysis.report.matrices import GEOMETRY, GEOMETRY_WORK, detailed_steps, geometry_steps
from deltaw.trainers import Recorder


def collected(runs, **options):
    return collect(deltaw.open_runs(runs), **({"check": False} | options))


def test_the_numbers_are_the_tables(runs):
    found = collected(runs[1:2])
    frame = deltaw.open(runs[1]).changes(("base", "initial", "consecutive"), ("row", "column", "matrix"))
    names = [module["name"] for module in found.about["modules"]]
    steps = found.about["runs"][0]["steps"]
    for (pairs, axis), rows in frame.groupby(["pairs", "axis"]):
        for measure in "md":
            values = found.columns[f"0.changes.{pairs}.{axis}.{measure}"].values
            at = [names.index(name) for name in rows.module], [steps.index(step) for step in rows.step_to]
            np.testing.assert_array_equal(values[at], rows[f"delta_{measure}"].to_numpy().astype(np.float32))
    spectra = deltaw.open(runs[1]).spectra()
    at = [names.index(name) for name in spectra.module], [steps.index(step) for step in spectra.step]
    np.testing.assert_array_equal(
        found.columns["0.spectra.stable_rank"].values[at], spectra.stable_rank.to_numpy().astype(np.float32)
    )


def test_the_geometry_is_the_table(runs):
    found = collected(runs[1:2])
    assert found.about["sizes"]["principal"] == 6
    frame = deltaw.open(runs[1]).geometry(k=6)
    assert (frame.off_principal_expected < 1).all()
    names = [module["name"] for module in found.about["modules"]]
    steps = found.about["runs"][0]["steps"]
    assert found.about["runs"][0]["geometry"] == steps
    at = [names.index(name) for name in frame.module], [steps.index(step) for step in frame.step]
    for name in GEOMETRY:
        values = found.columns[f"0.geometry.{name}"].values
        np.testing.assert_array_equal(values[at], frame[name].to_numpy().astype(np.float32))
    within = (1 - frame.off_principal).to_numpy().astype(np.float32)
    np.testing.assert_array_equal(found.columns["0.geometry.principal"].values[at], within)


def test_directions_that_span_a_whole_side_are_left_out(tmp_path):
    torch.manual_seed(0)
    model = nn.ModuleDict({"query": nn.Linear(24, 24), "small": nn.Linear(24, 4), "tiny": nn.Linear(3, 3)})
    inject(model, LoRA(rank=2), targets=["*"])
    with Recorder(model, tmp_path / "run") as recorder:
        recorder.step(0)
        for parameter in filter(lambda parameter: parameter.requires_grad, model.parameters()):
            parameter.data += 0.01 * torch.randn_like(parameter)
        recorder.step(1)
    found = collected([tmp_path / "run"])
    assert found.about["sizes"]["principal"] == 12
    names = [module["name"] for module in found.about["modules"]]
    values = {
        name: dict(zip(names, found.columns[f"0.geometry.{name}"].values[:, -1], strict=True)) for name in GEOMETRY
    }
    for name, rows in values.items():
        assert np.isfinite(rows["query"]), name
    assert np.isnan(values["rotation_left"]["small"])
    assert values["rotation_right"]["small"] > 0
    assert np.isfinite(values["off_principal"]["small"])
    for name in ("rotation_left", "rotation_right", "rotation_random", "off_principal"):
        assert np.isnan(values[name]["tiny"])
    assert values["visible_bfloat16"]["tiny"] > 0
    assert "small and 1 more" in found.about["notes"]["geometry"][0]


def test_how_many_checkpoints_are_held_against_the_base(runs):
    run = deltaw.open(runs[0])
    assert geometry_steps(run, run.modules, run.steps, None) == run.steps
    assert geometry_steps(run, run.modules, run.steps, False) == []

    class Large:
        size = 4096

        def shape(self, _):
            return self.size, self.size

    few = geometry_steps(Large(), ["one"], list(range(100)), None)
    assert few == [99]
    assert not geometry_steps(Large(), ["one"] * 100, list(range(100)), None)
    assert len(geometry_steps(Large(), ["one"] * 100, list(range(100)), True)) == 100
    Large.size = 768
    assert 1 < len(geometry_steps(Large(), ["one"] * 10, list(range(100)), None)) < GEOMETRY_WORK / (10 * 12 * 768**3)


def test_a_report_without_geometry_says_how_to_get_it(runs):
    found = collected(runs[:1], geometry=False)
    assert not [name for name in found.columns if "geometry" in name]
    assert "--geometry" in found.about["notes"]["geometry"][0]


def test_the_agreement_of_signs_and_masks_is_the_table(runs):
    found = collected(runs)
    frame = update_agreement(deltaw.open_runs(runs), k=0)
    names = [module["name"] for module in found.about["modules"]]
    pairs = [("ft", "lora"), ("ft", "bora"), ("lora", "bora")]
    at = [pairs.index(pair) for pair in zip(frame.run_first, frame.run_second, strict=True)]
    at = at, [names.index(name) for name in frame.module]
    for name in ("cosine", "sign_agreement", "sign_expected", "jaccard", "jaccard_expected"):
        values = found.columns[f"between.{name}"].values[at]
        np.testing.assert_array_equal(values, frame[name].to_numpy().astype(np.float32))


def test_an_adapter_without_its_base_has_a_spectrum_and_says_the_rest(tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    state = {}
    for layer in range(2):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        state[f"{name}.lora_A.weight"] = torch.randn(4, 16, generator=generator)
        state[f"{name}.lora_B.weight"] = torch.randn(16, 4, generator=generator)
    save_file(state, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": "org/model"}))
    found = collected([folder], check=True)
    assert found.about["runs"][0]["model"] == "org/model"
    assert found.about["runs"][0]["options"] == {"rank": 4, "alpha": 8}
    assert np.isfinite(found.columns["0.spectra.stable_rank"].values).all()
    assert not [name for name in found.columns if "changes" in name or "geometry" in name]
    assert "W₀ is not known" in found.about["notes"]["base"][0]
    assert str(tmp_path) not in json.dumps(found.about)


def test_nan_in_one_matrix_leaves_the_others(runs, tmp_path, record):
    folder = record(tmp_path / "run", "ft")
    file = sorted((folder / "checkpoints").rglob("*.safetensors"))[-1]
    state = load_file(file)
    name = next(name for name in state if "layer.1.query" in name)
    state[name][0, 0] = torch.nan
    save_file(state, file)
    found = collected([folder])
    broken = [module["name"] for module in found.about["modules"]].index("layer.1.query")
    rest = np.delete(found.columns["0.changes.base.row.d"].values, broken, axis=0)
    assert np.isfinite(rest).all()
    assert np.isfinite(np.delete(found.columns["0.spectra.rank"].values, broken, axis=0)[:, -1]).all()
    assert any("layer.1.query" in note for note in found.about["notes"]["changes"])
    assert any("layer.1.query" in note for note in found.about["notes"]["spectra"])


def test_a_run_without_a_checkpoint_stands_beside_the_others(runs, tmp_path):
    model = inject(nn.ModuleDict({"query": nn.Linear(6, 6)}), LoRA(rank=2), targets=["query"])
    with Recorder(model, tmp_path / "begun"):
        found = collected([tmp_path / "begun", runs[0]], check=True)
    assert any("begun: no checkpoint" in note for note in found.about["notes"]["changes"])
    assert "1.changes.base.row.m" in found.columns


def test_an_error_that_nobody_thought_of_is_a_note(runs, monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError("of all things")

    for name in ("between", "gather"):
        monkeypatch.setattr(module, name, fail)
    found = collected(runs[:2], check=True)
    assert found.about["notes"]["between"] == ["ZeroDivisionError: of all things"]
    assert found.about["notes"]["claims"] == ["ZeroDivisionError: of all things"]
    assert found.about["claims"] == []
    assert "0.changes.base.row.m" in found.columns


def test_runs_of_other_shapes_are_shown_and_not_compared(runs, tmp_path, record):
    found = collected([runs[0], record(tmp_path / "small", "ft", size=8)])
    assert np.isnan(found.columns["between.cosine"].values).all()
    assert any("another shape" in note for note in found.about["notes"]["between"])


@pytest.mark.parametrize(("details", "steps"), [("all", 6), (3, 3), (1, 1), (None, 6)])
def test_checkpoints_with_details(details, steps, runs):
    run = deltaw.open(runs[0])
    chosen = detailed_steps(run, run.modules, details, 1)
    assert len(chosen) == steps
    assert chosen[-1] == run.steps[-1]


def test_updates_of_usual_size_have_a_spectrum_over_training_and_large_ones_of_the_end():
    class Dense:
        size, steps = 768, list(range(100))

        def shape(self, _):
            return self.size, self.size

        def factors(self, *_):
            return None

    assert 5 <= len(detailed_steps(Dense(), ["one"] * 24, None, 1)) <= 12
    Dense.size = 4096
    assert detailed_steps(Dense(), ["one"] * 24, None, 1) == [99]


def test_the_base_is_named_as_the_run_names_it_and_never_by_a_folder(tmp_path):
    torch.manual_seed(0)
    for number, (given, said) in enumerate(
        {"org/model": "org/model", "/home/me/model": "MODEL", None: "MODEL"}.items()
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        name = "base_model.model.model.layers.0.self_attn.q_proj"
        state = {f"{name}.lora_A.weight": torch.randn(2, 8), f"{name}.lora_B.weight": torch.randn(8, 2)}
        save_file(state, folder / "adapter_model.safetensors")
        settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "base_model_name_or_path": given}
        (folder / "adapter_config.json").write_text(json.dumps(settings | {"target_modules": ["q_proj"]}))
        assert f"--base {said} " in collected([folder]).about["notes"]["base"][0]


def test_only_the_chosen_modules(runs):
    found = collected(runs[:1], modules=["*.value"])
    assert {module["kind"] for module in found.about["modules"]} == {"value"}
