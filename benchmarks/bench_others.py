"""Whole processes beside other tools: the rank table of a large adapter, and two models compared.

The tools are installed from PyPI into a folder that is removed afterwards, without what they need, which is here. Where
that fails, their rows say so. Commands take turns, and the least of the rounds counts.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from bench_startup import seconds
from safetensors.torch import save_file
from tabulate import tabulate

TOOLS = {"adaptersentry": ["adaptersentry==2.0.2"], "modeldelta": ["--no-deps", "modeldelta==0.4.4"]}  # it needs torch
SHAPES = {  # (out, in) of Llama 70B
    "self_attn.q_proj": (8192, 8192),
    "self_attn.k_proj": (1024, 8192),
    "self_attn.v_proj": (1024, 8192),
    "self_attn.o_proj": (8192, 8192),
    "mlp.gate_proj": (28672, 8192),
    "mlp.up_proj": (28672, 8192),
    "mlp.down_proj": (8192, 28672),
}
RANK, LAYERS = 64, 80
MEMORY = 100  # MB above `import torch`, at most
MODEL = 24, 1024  # matrices, size

TABLE = "import sys, deltaw; print(len(deltaw.open(sys.argv[1]).spectra(cache=False)))"
# The kernel's own mark, in kB: getrusage's is that of the process which started this one, where that is higher.
PEAK = "{work}; print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"


def save_adapter(folder: Path, layers: int = LAYERS) -> Path:
    """A LoRA adapter of a 70B model in bfloat16, as PEFT saves it: 560 matrices, 1.66 GB."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in range(layers):
        for kind, (out, width) in SHAPES.items():
            name = f"base_model.model.model.layers.{layer}.{kind}"
            a, b = (torch.randn(shape, generator=generator) for shape in ((RANK, width), (out, RANK)))
            tensors[f"{name}.lora_A.weight"] = (a / width**0.5).bfloat16()
            tensors[f"{name}.lora_B.weight"] = (1e-3 * b).bfloat16()
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    targets = [kind.split(".")[1] for kind in SHAPES]
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": targets}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def save_models(folder: Path) -> tuple[Path, Path]:
    """Two models of 24 matrices, the second a small step from the first."""
    count, size = MODEL
    generator = torch.Generator().manual_seed(0)
    first = {f"layers.{i}.query.weight": 0.02 * torch.randn(size, size, generator=generator) for i in range(count)}
    second = {name: weight + 1e-5 * torch.randn(size, size, generator=generator) for name, weight in first.items()}
    folders = folder / "before", folder / "after"
    for place, tensors in zip(folders, (first, second), strict=True):
        place.mkdir(parents=True)
        save_file(tensors, place / "model.safetensors")
        (place / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaModel"]}))
    return folders


def installed(tool: str, folder: Path) -> dict[str, str] | None:
    """The environment in which Python finds another tool, or ``None`` where it cannot be had."""
    command = [sys.executable, "-m", "pip", "install", "-qq", "--target", str(folder), *TOOLS[tool]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"} if done.returncode == 0 else None


def peak(work: str, *arguments: str) -> float:
    """The most memory of a process that does some work, in MB."""
    command = [sys.executable, "-c", PEAK.format(work=work), *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1]) / 1024


def of_adapter(folder: Path, environment: dict[str, str] | None, rounds: int) -> dict[str, Any]:
    adapter = save_adapter(folder / "adapter")
    memory = peak(TABLE, str(adapter)) - peak("import torch")
    ours = [sys.executable, "-c", TABLE, str(adapter)]
    found = {"ours": ours}
    if environment:
        scan = ["scan", "--mode", "full", str(adapter / "adapter_model.safetensors"), "--format", "full-json"]
        found["theirs"] = [sys.executable, "-m", "adaptersentry", *scan]
    note = f"{memory:.0f} MB above import torch, at most {MEMORY} wanted"
    name = f"rank table of an adapter of a 70B model, {LAYERS * len(SHAPES)} matrices, rank {RANK}"
    return beside(name, "adaptersentry 2.0.2", found, environment, rounds, 2.0, note, memory <= MEMORY)


def of_pair(folder: Path, environment: dict[str, str] | None, rounds: int) -> dict[str, Any]:
    before, after = map(str, save_models(folder / "models"))
    work = (
        "import sys; from deltaw.analysis import Trajectory; run = Trajectory.from_pair(*sys.argv[1:]); "
        "run.changes('consecutive', cache=False); run.spectra('last', cache=False)"
    )
    found = {"ours": [sys.executable, "-c", work, before, after]}
    if environment:
        found["theirs"] = [sys.executable, "-m", "modeldelta", before, after, "-o", str(folder / "delta.json")]
    name = f"two models of {MODEL[0]} matrices {MODEL[1]}×{MODEL[1]}: ΔM, ΔD and full spectra"
    return beside(name, "modeldelta 0.4.4", found, environment, rounds, 1.0, "", True)


def beside(
    name: str,
    other: str,
    commands: dict[str, list[str]],
    environment: dict[str, str] | None,
    rounds: int,
    goal: float,
    note: str,
    met: bool,
) -> dict[str, Any]:
    """A row of the table: whole processes, ours and the other's in turn."""
    taken = {who: float("inf") for who in ("ours", "theirs")}
    for _ in range(rounds):
        for who, command in commands.items():
            taken[who] = min(taken[who], seconds(command, environment if who == "theirs" else None))
    row = {"name": name, "ours_seconds": taken["ours"], "other_name": other, "other_seconds": taken["theirs"]}
    if environment is None:
        note = f"{note}; {other} could not be installed".lstrip("; ")
        return row | {"other_seconds": None, "ratio": None, "goal": goal, "met": None, "note": note}
    ratio = taken["theirs"] / taken["ours"]
    return row | {"ratio": ratio, "goal": goal, "met": ratio >= goal and met, "note": note}


def rows(rounds: int = 3) -> list[dict[str, Any]]:
    """The comparisons, each with its goal."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        sentry, delta = (installed(tool, place / tool) for tool in TOOLS)
        return [of_adapter(place, sentry, min(rounds, 2)), of_pair(place, delta, rounds)]  # half a minute each


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    print(tabulate(rows(parser.parse_args().rounds), headers="keys", floatfmt=".4g"))
