"""The report of one adapter of roberta-base's size, against ten seconds; and the file's size, against 5 MB."""

import tempfile
import time
from pathlib import Path

import torch
from torch import nn

import deltaw
from deltaw.adapters import LoRA, inject
from deltaw.trainers import Recorder

LAYERS, SIZE, RANK = 12, 768, 8
WANTED = 10.0  # seconds
MEGABYTES = 5.0


def rows():
    found = []
    with tempfile.TemporaryDirectory() as folder:
        run = recorded(Path(folder) / "run")
        for name, options in (("with its checks", {}), ("without checks", {"check": False})):
            page = Path(folder) / "report.html"
            began = time.perf_counter()
            deltaw.report(run, page, cache=False, **options)
            seconds, size = time.perf_counter() - began, page.stat().st_size / 1e6
            found.append(
                {
                    "name": f"report of one adapter, {LAYERS}×{SIZE}, query and value, {name}",
                    "ours_seconds": seconds,
                    "other_name": "ten seconds",
                    "other_seconds": WANTED,
                    "ratio": WANTED / seconds,
                    "goal": 1.0,
                    "met": seconds < WANTED and size < MEGABYTES,
                    "note": f"{size:.1f} MB",
                }
            )
    return found


def recorded(folder):
    """One checkpoint of LoRA beside its start."""
    torch.manual_seed(0)
    blocks = [nn.ModuleDict({kind: nn.Linear(SIZE, SIZE) for kind in ("query", "value")}) for _ in range(LAYERS)]
    model = inject(nn.ModuleDict({"layer": nn.ModuleList(blocks)}), LoRA(rank=RANK), targets=["*"])
    with Recorder(model, folder) as recorder:
        recorder.step(0)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.01 * torch.randn_like(parameter))
        recorder.step(100, loss=1.0)
    return folder
