"""``deltaw plot``: the papers' figures and more, a command each."""

from pathlib import Path
from typing import Any

import click

from deltaw.analysis.figures.drawing.formats import check_path
from deltaw.analysis.figures.registry import FIGURES, FigureKind
from deltaw.analysis.tables.work import HERE
from deltaw.cli.commands import Command, Group, OneOf
from deltaw.cli.options import BASE_HELP, HEADS_SETTINGS, MODULES_HELP, work_of, work_parameters
from deltaw.cli.output import check_writable, remark


class _CountOrAll(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic from click 8.4 on
    name = "NUMBER|all"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "all" else click.IntRange(min=1).convert(value, param, ctx)


_COUNT = click.IntRange(min=1)

# What click is told of each option of ``FigureKind.options``: its flags and type. In the help, {…} is the default of
# the argument of that name. A figure's own choices are under its name and the option's.
_OPTIONS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "kind": (["--kind"], {"help": "The matrices: query, key, value, …, or all. Default: {kind}."}),
    "kinds": (["--kind", "kinds"], {"multiple": True, "help": "May be repeated. Default: query, key and value."}),
    "axis": (
        ["--axis"],
        {
            "type": OneOf(["column", "row", "matrix", "head", "expert", "entry"]),
            "help": "column: DoRA's equation; row: its code; or larger vectors. Default: {axis}.",
        },
    ),
    "heads": (["--heads"], HEADS_SETTINGS),
    "scale": (["--scale"], {"type": OneOf(["linear", "log"]), "help": "Default: {scale}."}),
    "share": (
        ["--share"],
        {
            "type": OneOf(["all", "adapters", "none"]),
            "help": "Which panels have one scale; adapters: full fine-tuning has its own. Default: {share}.",
        },
    ),
    "steps": (
        ["--steps"],
        {"type": _CountOrAll(), "help": "So many recorded steps, evenly spread, or all. Default: {steps}."},
    ),
    "at_most": (
        ["--steps", "at_most"],
        {"type": _COUNT, "help": "At most so many recorded steps, evenly spread. Default: {at_most}."},
    ),
    "pairs": (
        ["--pairs"],
        {"type": OneOf(["base", "initial"]), "help": "Changes since W₀, or the first step. Default: {pairs}."},
    ),
    "measure": (
        ["--measure"],
        {"type": OneOf(["cosine", "sign_agreement", "jaccard"]), "help": "One of the panels. Default: all."},
    ),
    "growth measure": (
        ["--measure"],
        {"type": OneOf(["entropy", "entropy_rate", "growth", "unevenness"]), "help": "One of the rows. Default: all."},
    ),
    "step": (["--step"], {"type": int, "help": "A recorded step. Default: each run's last."}),
    "pair": (
        ["--step", "pair"],
        {"type": int, "multiple": True, "help": "Of the first, and repeated of the second update. Default: the last."},
    ),
    "rank": (["--rank"], {"type": _COUNT, "help": "How many directions of ΔW. Default: {rank}."}),
    "side": (
        ["--side"],
        {"type": OneOf(["right", "left"]), "help": "right: input space; left: output space. Default: {side}."},
    ),
    "sides": (
        ["--sides"],
        {"type": OneOf(["both", "left", "right"]), "help": "The output space (left), input space (right), or both."},
    ),
    "rule": (
        ["--rule"],
        {
            "type": OneOf(["bfloat16", "float16", "float32", "path-not-taken"]),
            "help": "The dtype in which a change is visible, or that paper's tolerance. Default: {rule}.",
        },
    ),
    "layers": (["--layer", "layers"], {"type": int, "multiple": True, "help": "May be repeated."}),
    "k": (["--k"], {"type": _COUNT, "help": "How many leading singular vectors are looked at. Default: {k}."}),
    "epsilon": (["--epsilon"], {"type": float, "help": "The cosine below which one is new. Default: {epsilon}."}),
    "quantile": (["--quantile"], {"type": click.FloatRange(0, 1), "help": "Default: {quantile}, the median."}),
    "module": (["--module"], {"help": "A module's name, or a pattern that fits one. Default: the first query."}),
    "modules": (["--modules"], {"multiple": True, "help": MODULES_HELP}),
    "score": (["--score"], {"help": "The column of the score. Default: {score}."}),
}


class _Figures(Group):
    """A command a figure, made from its entry in ``FIGURES``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The figures, the papers' first."""
        return list(FIGURES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the figure's command."""
        return _command(cmd_name, FIGURES[cmd_name]) if cmd_name in FIGURES else None


def _command(name: str, entry: FigureKind) -> click.Command:
    """Return the command that makes a figure's table and draws it."""
    defaults = entry.make_defaults | {key: value for key, value in entry.draw_defaults.items() if value is not None}

    def run(paths: tuple[str, ...], out: Path, base: str | None = None, **given: Any) -> None:
        from deltaw.analysis.figures.drawing.captions import caption, latex
        from deltaw.analysis.figures.drawing.saving import save
        from deltaw.analysis.figures.drawing.style import paper_style
        from deltaw.analysis.records.storage.atomic import write_text
        from deltaw.analysis.runs import open_runs

        texts = {suffix: given.pop(name) for name, suffix in (("caption", ".txt"), ("tex", ".tex"))}
        if texts[".tex"]:  # before the work
            latex(out, "")
        work = work_of(given) if entry.paths == "RUNS" else HERE
        runs = paths if base is None else open_runs(paths, base=base)
        options = {
            key: None if value == "all" and key != "share" else value
            for key, value in given.items()
            if value not in (None, ())
        }
        make, draw = (
            {key: value for key, value in options.items() if key in known}
            for known in (entry.make_defaults, entry.draw_defaults)
        )
        if "kind" in entry.make_defaults:  # no other matrices are read than those that are drawn
            make.setdefault("kind", defaults.get("kind"))
        if "work" in entry.make_defaults:
            make["work"] = work
        table = entry.make(runs, **make)
        with paper_style():
            figure = entry.draw(table, **draw)
            save(figure, out)
        remark(f"written to {out}")
        if any(texts.values()):
            said = caption(figure, entry.about)
            for suffix, wanted in texts.items():
                if wanted:
                    beside = out.with_suffix(suffix)
                    write_text(beside, f"{said if suffix == '.txt' else latex(out, said)}\n")
                    remark(f"its caption to {beside}")

    def check(context: click.Context, option: click.Parameter, path: Path | None) -> Path | None:
        if path is not None and not context.resilient_parsing:
            check_path(path, movie=entry.movie)
            check_writable(path.parent)
        return path

    files = ".gif or .mp4" if entry.movie else ".png, .svg or .pdf"
    params: list[click.Parameter] = [
        click.Argument(["paths"], nargs=-1, required=True, type=click.Path(), metavar=f"{entry.paths}..."),
        click.Option(
            ["-o", "--out"],
            required=True,
            type=click.Path(path_type=Path),
            callback=check,
            help=f"A {files} file.",
        ),
        click.Option(["--caption"], is_flag=True, help="Write a caption beside it, as .txt."),
        click.Option(
            ["--tex"], is_flag=True, help="Write it beside it as a figure for LaTeX, with the caption, as .tex."
        ),
    ]
    for option in entry.options:
        flags, settings = (
            _OPTIONS.get(f"{name} {option}") or _OPTIONS.get(option) or _by_default(option, defaults.get(option))
        )
        usual = {"kind": None, "side": "both"} | defaults
        if option == "scale" and defaults.get(option) == "auto":
            settings = settings | {"type": OneOf(["auto", "linear", "log"])}
        shown = {key: "all" if value is None else value for key, value in usual.items()}
        params.append(click.Option(flags, **(settings | {"help": settings["help"].format(**shown)})))
    if entry.paths == "RUNS":
        params.append(click.Option(["--base"], type=click.Path(), metavar="TEXT", help=BASE_HELP))
        params += work_parameters()
    example = f"\b\nExample:\n  deltaw plot {name} {entry.example} -o {name}.{'gif' if entry.movie else 'pdf'}"
    return Command(name, callback=run, params=params, help=f"{entry.help}\n\n{example}", short_help=entry.about)


def _by_default(option: str, default: Any) -> tuple[list[str], dict[str, Any]]:
    """Return flags and type of an option that only a figure from outside has: those that its default tells."""
    flag = f"--{option.replace('_', '-')}"
    if isinstance(default, bool):
        return [f"{flag}/--no-{flag[2:]}", option], {"default": None, "help": f"Default: {{{option}}}."}
    if isinstance(default, int | float | str):
        return [flag, option], {"type": type(default), "help": f"Default: {{{option}}}."}
    return [flag, option], {"help": ""}


@click.command("plot", cls=_Figures, what="figure")
def command() -> None:
    """Draw a figure from recorded runs, or from results of training.

    \b
    Example:
      deltaw plot symmetry runs/ft runs/lora runs/dora runs/bora -o symmetry.pdf
      deltaw plot cloud runs/ft runs/lora runs/dora --kind value -o cloud.png
    """
