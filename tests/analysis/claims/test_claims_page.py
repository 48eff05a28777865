"""The page of all claims says what the code says."""

import runpy
from pathlib import Path

PAGE = runpy.run_path(str(Path(__file__).parents[3] / "docs" / "claims_page.py"))


def test_the_page_is_up_to_date():
    assert PAGE["PAGE"].read_text(encoding="utf-8") == PAGE["page"](), "run: make docs"


def test_the_kept_claims_are_those_of_todays_rules():
    folder = Path(__file__).parents[3] / "results" / "cola-minilm"
    made = runpy.run_path(str(folder / "claims.py"))
    lines = (folder / "claims.md").read_text(encoding="utf-8").splitlines()
    assert lines == made["page"]().splitlines(), "run: python results/cola-minilm/claims.py"
