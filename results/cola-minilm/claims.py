"""Make claims.md and claims.json of this folder anew from its tables, by today's rules; nothing is trained.

python results/cola-minilm/claims.py
"""

import json
from pathlib import Path

import pandas as pd

from deltaw.analysis.claims import Outcome, bora_claims, claims_json, claims_markdown

HERE = Path(__file__).parent


def outcomes() -> list[Outcome]:
    """Hold BoRA's claims against the tables."""
    names = ("changes_consecutive", "changes_from_start", "results")
    consecutive, initial, results = (pd.read_csv(HERE / f"{name}.csv") for name in names)
    return bora_claims(consecutive, initial, results)


def page() -> str:
    """Return the text of claims.md."""
    return claims_markdown(outcomes())


if __name__ == "__main__":
    (HERE / "claims.md").write_text(page(), encoding="utf-8")
    (HERE / "claims.json").write_text(json.dumps(claims_json(outcomes()), indent=1, allow_nan=False), encoding="utf-8")
