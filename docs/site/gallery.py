"""The gallery: a page for every figure of the registry: its picture, and the code that drew it, which is run here."""

import contextlib
import io
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from docstrings import body
from torch import nn

from deltaw.adapters import create, inject
from deltaw.analysis.figures import FIGURES, FigureKind
from deltaw.trainers import Recorder, every

WIDTH, LAYERS, STEPS = 24, 4, 60
RUNS = ("ft", "lora", "bora")
# What each picture is asked for beside its defaults.
OPTIONS: dict[str, dict[str, Any]] = {
    "region": {"module": "layer.0.query"},
    "overlap": {"layers": [0, 3], "rank": 4},
    "angles": {"layers": [0, 3], "rank": 4},
    "intruders": {"k": 4},
    "heads": {"heads": {"num_attention_heads": 4}},
}
TABLES = {  # of finished trainings, for the figures that are made of these
    "results.csv": "method,rank,seconds_per_epoch,peak_megabytes\n"
    + "".join(
        f"{method},{rank},{seconds + rank * 0.01},{megabytes + rank * 2}\n"
        for method, seconds, megabytes in (("lora", 2.0, 600), ("dora", 2.9, 640), ("bora", 3.2, 655))
        for rank in (8, 32)
    ),
    "runs.csv": "method,rank,direction_rank,seed,best_mcc\n"
    + "".join(
        f"{line},{seed},{score + 0.01 * seed:.3f}\n"
        for line, score in (
            ("lora,8,", 0.58),
            ("dual-lora,1,7", 0.55),
            ("dual-lora,2,6", 0.60),
            ("dual-lora,4,4", 0.61),
            ("dual-lora,6,2", 0.59),
        )
        for seed in (0, 1, 2)
    ),
}


def write(folder: Path) -> None:
    """Record the runs in an empty folder, run every figure's code there, and write its page beside its picture."""
    folder.mkdir(parents=True)
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as work:
        os.chdir(work)
        try:
            record()
            for name, text in TABLES.items():
                Path(name).write_text(text, encoding="utf-8")
            for name, figure in FIGURES.items():
                draw(name, figure, folder)
        finally:
            os.chdir(here)
    (folder / "index.md").write_text(index(), encoding="utf-8")


def record() -> None:
    """Train a small attention model with three methods for a moment, and record it, into runs/."""
    for name in RUNS:
        torch.manual_seed(0)
        layers = [
            nn.ModuleDict({key: nn.Linear(WIDTH, WIDTH) for key in ("query", "key", "value")}) for _ in range(LAYERS)
        ]
        model = nn.ModuleDict({"layer": nn.ModuleList(layers)})
        method = create(name) if name == "ft" else create(name, rank=4, alpha=4)
        inject(model, method, targets=["*"])
        rate = 1e-3 if name == "ft" else 1e-2
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
        with Recorder(model, f"runs/{name}", when=every(10)) as recorder:
            recorder.step(0)
            for step in range(1, STEPS + 1):
                x = torch.randn(8, 6, WIDTH)
                wanted = x.roll(1, dims=1)
                for layer in layers:
                    scores = layer["query"](x) @ layer["key"](x).transpose(1, 2) / WIDTH**0.5
                    x = x + scores.softmax(dim=2) @ layer["value"](x)
                loss = nn.functional.mse_loss(x, wanted)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                recorder.step(step, loss=loss.item())


def code(name: str, figure: FigureKind) -> str:
    """Return the code that draws a figure into NAME.png, from runs/ or a table."""
    options = OPTIONS.get(name, {})
    make, draw = (repr(one) for one in (figure._make, figure._draw))
    table = [f"{key}={_written(value)}" for key, value in options.items() if key in figure.make_defaults]
    drawn = [f"{key}={_written(value)}" for key, value in options.items() if key not in figure.make_defaults]
    maker, drawer = make.partition(":")[2], draw.partition(":")[2]
    lines = [f"from {make.partition(':')[0]} import {maker}", f"from deltaw.analysis.figures import {drawer}, save"]
    paths = ", ".join(f'"{path}"' for path in places(figure))
    if maker == drawer:
        lines[0] += " as make"
        maker = "make"
    called = ", ".join([f"[{paths}]", *table])
    lines += ["", f"frame = {maker}({called})"]
    lines += [f'save({drawer}({", ".join(["frame", *drawn])}), "{name}.{ending(figure)}")']
    return "\n".join(lines)


def places(figure: FigureKind) -> list[str]:
    """Return the paths that a figure is made from here."""
    if figure.paths != "RUNS":
        return figure.example.split()
    return ["runs/lora", "runs/bora"] if len(figure.example.split()) == 2 else [f"runs/{name}" for name in RUNS]


def ending(figure: FigureKind) -> str:
    """The ending of a picture's file."""
    return "gif" if figure.movie else "png"


def draw(name: str, figure: FigureKind, folder: Path) -> None:
    """Run a figure's code, and write its page and its picture."""
    text = code(name, figure)
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        exec(compile(text, f"the gallery's {name}", "exec"), {})
    picture = Path(f"{name}.{ending(figure)}")
    (folder / picture.name).write_bytes(picture.read_bytes())
    about = figure.about.replace("`", "")
    parts = [
        f"# {name}",
        f"{about[0].upper()}{about[1:]}.",
        f"![{about}]({picture.name})",
        f"```python\n{text}\n```",
        called(name, figure),
        body(figure.help),
        f"[All arguments](../api/analysis-figures.md#{figure.draw.__name__})",
    ]
    (folder / f"{name}.md").write_text("\n\n".join([*parts, ""]), encoding="utf-8")


def called(name: str, figure: FigureKind) -> str:
    """Return the same as a command."""
    options = "".join(f" {_typed(key, value)}" for key, value in OPTIONS.get(name, {}).items())
    return f"```console\n$ deltaw plot {name} {' '.join(places(figure))}{options} -o {name}.{ending(figure)}\n```\n"


def _written(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _typed(key: str, value: Any) -> str:
    """An argument as it is typed in a terminal: that of a list is named in the singular, and repeated."""
    if isinstance(value, list):
        return " ".join(_typed(key.removesuffix("s"), one) for one in value)
    if isinstance(value, dict):  # of heads, of which one number is enough
        value = next(iter(value.values()))
    return f"--{key} {value}"


def index() -> str:
    """Return the page of all pictures."""
    lines = ["# Gallery\n"]
    lines += [
        "A picture leads to its code. All are drawn while this site is built, by the code that is shown, from"
        f" three runs of a model of {LAYERS} layers that are recorded in a second"
        f" ({', '.join(f'`{name}`' for name in RUNS)}); the tables of costs and of the sweep are made up."
        " What the pictures look like of real runs: [the notebooks](../notebooks/index.md).\n",
        '<div class="gallery">',
    ]
    for name, figure in FIGURES.items():
        lines.append(
            f'<a href="{name}.html"><img src="../_images/{name}.{ending(figure)}" alt="{figure.about}" loading="lazy">'
            f"<span><b>{name}</b>: {figure.about}</span></a>"
        )
    lines += ["</div>", "", "```{toctree}", ":hidden:", "", *FIGURES, "```", ""]
    return "\n".join(lines)
