"""The scripts and the pages in results/: a page's tables are those of its files."""

import importlib
import sys
from pathlib import Path

import pytest

from deltaw.analysis import Trajectory
from deltaw.trainers.cola import ColaSettings, train_cola

FOLDER = Path(__file__).parents[1] / "results" / "cola-mpnet"


@pytest.fixture
def script(monkeypatch):
    """``script(name)`` imports a script of the folder."""
    monkeypatch.syspath_prepend(FOLDER)
    yield importlib.import_module
    for name in ("make", "page", "sign"):
        sys.modules.pop(name, None)


def test_the_tables_of_the_page_are_made_of_its_files(script, tmp_path, monkeypatch):
    page = script("page")
    for path in FOLDER.glob("*.csv"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    monkeypatch.setattr(page, "HERE", tmp_path)
    page.fill_readme()
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == text
    assert text.count("<!-- made by make.py: ") == len(page.TABLES)


def test_all_methods_of_a_seed_come_before_the_next(script):
    runs = list(script("make").wanted("mpnet", "cola", Path("runs"), 2))
    assert [place.name for place, _ in runs[:6]] == ["lora", "dora", "ft", "dual-lora", "dora-row", "bora"]
    assert {place.name for place, _ in runs[6:]} == {f"{place.name}-s1" for place, _ in runs[:6]}
    assert {run.rate() for _, run in runs if run.method == "ft"} == {3e-5}
    assert {run.rate() for _, run in runs if run.method != "ft"} == {1e-3}


def test_decay_is_varied_by_what_it_shrinks(script):
    trials = list(script("sign").trials(None, "builtin", 20, ["decay"]))
    assert {trial.varied for trial in trials} == {"centre", "decay"}
    for trial in trials:
        assert trial.steps == 400
        assert trial.shrinkage == pytest.approx(trial.value)
    assert len({trial.name for trial in trials}) == len(trials)


def test_the_points_of_a_correlation(script, tmp_path):
    sign = script("sign")
    settings = ColaSettings(method="lora", epochs=1, record_every=2, learning_rate=1e-3)
    train_cola(settings, tmp_path / "run", progress=False)
    run = Trajectory.open(tmp_path / "run")
    assert sign.four_steps(run) == [4, 10, 16, 20]
    points, table = sign.correlations_of(run)
    assert set(points["step_to"]) == {4, 10, 16, 20}
    assert set(table["points"]) == {"cloud", "late", "last", "consecutive", "sparse", "over time"}
    cloud = table[table["points"] == "cloud"]
    assert set(cloud["n"]) == {12}
    assert (cloud["pearson"] > 0.5).all()
