"""The page of all claims says what the code says."""

import runpy
from pathlib import Path

from deltaw.analysis.claims import MEASURES, RULES

PAGE = runpy.run_path(str(Path(__file__).parents[3] / "docs" / "claims_page.py"))


def test_the_page_is_up_to_date():
    assert PAGE["PAGE"].read_text(encoding="utf-8") == PAGE["page"](), "run: make docs"


def test_the_tables_of_rules_and_measures_are_up_to_date():
    tables = runpy.run_path(str(Path(__file__).parents[3] / "docs" / "registry_tables.py"))
    for page in tables["OTHERS"]:
        text = page.read_text(encoding="utf-8")
        assert tables["filled"](text) == text, f"{page.name}: run make docs"
    for name in [*MEASURES, *RULES]:
        assert f"| `{name}` |" in text


def test_the_kept_claims_are_those_of_todays_rules():
    folder = Path(__file__).parents[3] / "results" / "cola-minilm"
    made = runpy.run_path(str(folder / "claims.py"))
    lines = (folder / "claims.md").read_text(encoding="utf-8").splitlines()
    assert lines == made["page"]().splitlines(), "run: python results/cola-minilm/claims.py"
