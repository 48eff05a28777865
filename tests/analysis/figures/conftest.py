"""Small tables for every figure; and they are tested in the papers' style, unless a test sets another."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from deltaw.analysis.figures.drawing.style import paper_style

# What makes a figure of `whole(name, single=True)` one panel.
SINGLE: dict[str, dict[str, Any]] = {
    "symmetry": {"axis": "row"},
    "updates": {"axis": "row"},
    "layers": {"kinds": ["query"], "measure": "delta_m"},
    "effective-rank": {"over": "training", "measure": "stable_rank"},
    "growth": {"over": "training", "measure": "entropy"},
    "amplification": {"over": "training"},
    "intruders": {"over": "layers"},
    "similarity": {"over": "layers"},
    "rotation": {"over": "training", "side": "left"},
    "off-principal": {"over": "training"},
    "visible": {"over": "layers"},
    "distribution": {"measure": "delta_m"},
    "heatmap": {"measure": "delta_d"},
    "heads": {"measure": "delta_d"},
    "blocks": {"measure": "relative"},
    "overlap": {"layers": [0]},
    "agreement": {"measure": "cosine"},
}


def table() -> pd.DataFrame:
    """Columns of every figure, for two methods, three layers and two steps."""
    rows = [
        {
            "run": method, "method": method, "module": f"m.layer.{layer}.query", "layer": layer, "kind": "query",
            "axis": axis, "step": step, "step_from": pd.NA, "step_to": step, "delta_m": step * 1e-3 + layer * 1e-4,
            "delta_d": 1e-5 * (layer + 1) * step,
            "part": "query", "head": 0,
            "index": 1, "singular_value": 1.0, "similarity": 0.4, "dissimilarity": 0.6, "rank": 4, "direction_rank": 4,
            "full_rank": 8, "group": "update", "effective_rank": 2.0, "stable_rank": 1.5, "amplification": 3.0,
            "quantile": 0.5, "seed": 0, "best_mcc": 0.5, "seconds_per_epoch": 1.0, "peak_megabytes": 9.0,
            "run_first": "a", "run_second": "b", "step_first": 1, "step_second": 1, "side": "right", "i": 1, "j": 1,
            "overlap": 0.5, "angle": 0.5, "expected": 0.25,
            "entries": 100, "norm_first": 1.0, "norm_second": 2.0, "cosine": 0.5, "cosine_chance": 0.1,
            "sign_agreement": 0.6, "sign_expected": 0.5, "sign_chance": 0.01,
            "entropy": 0.2, "entropy_rate": 1e-3, "growth": 1e-3 * step, "unevenness": 0.5,
            "k": 4, "rotation_left": 0.1 * step,
            "rotation_right": 0.2 * step, "rotation_expected": 89.0, "rotation_random": 0.05 * step,
            "off_principal": 0.9, "off_principal_expected": 0.98, "visible_bfloat16": 0.01 * step,
            "block": f"m.layer.{layer}", "norm": 0.1 * step, "base_norm": 10.0,
        }
        for method in ("lora", "dual-lora")
        for layer in range(3)
        for axis in ("row", "column")
        for step in (10, 20)
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture(autouse=True)
def papers():
    with paper_style():
        yield


@pytest.fixture
def whole():
    """A function that makes what a figure of this name draws; with ``single`` for one panel, by `SINGLE`."""

    def make(name: str, *, single: bool = False):
        if name == "region":
            return {"LoRA": np.eye(3)} if single else {"LoRA": np.eye(3), "BoRA": np.ones((3, 3))}
        frame = table()
        if single and name != "sweep":
            frame = frame[frame["method"] == "lora"]
        return frame.assign(step_from=frame["step_to"] - 10) if name == "symmetry" else frame

    return make


@pytest.fixture
def single():
    return SINGLE
