"""The table of figures: read without importing what draws them; a figure from outside is a figure like the others."""

import inspect
import subprocess
import sys

import pytest
from matplotlib.figure import Figure

from deltaw.adapters.errors import OptionError
from deltaw.analysis import figures
from deltaw.analysis.figures import FIGURES, FigureKind
from deltaw.analysis.figures.functions import Function
from deltaw.cli import main


@pytest.mark.parametrize("name", FIGURES)
def test_what_is_read_from_the_source_is_what_the_functions_say(name) -> None:
    entry = FIGURES[name]
    for function, found in ((entry.draw, entry.draw_defaults), (entry.make, entry.make_defaults)):
        assert found == {key: value.default for key, value in inspect.signature(function).parameters.items()}
    doc = inspect.getdoc(entry.draw)
    assert entry.help == doc[: doc.index("\n\nArguments")].replace("`", "")
    assert set(entry.options) <= set(entry.draw_defaults) | set(entry.make_defaults)
    assert getattr(figures, entry.draw.__name__) is entry.draw
    assert entry.paths in ("RUNS", "RESULTS")


def test_the_package_hands_on_its_names_when_they_are_asked_for() -> None:
    assert {"FIGURES", "FigureKind", "Movie", "check_path", "save", "cloud", "angles"} <= set(dir(figures))
    assert all(getattr(figures, name) is not None for name in dir(figures))
    assert all(inspect.isfunction(getattr(figures, name)) for name in dir(figures) if name.islower())


def test_a_figure_from_outside_is_offered_and_drawn(monkeypatch, tmp_path, capsys) -> None:
    """One function that makes its table, one that draws it, one line: no other edit."""
    seen = {}

    def shout(table, *, kind: str | None = "query", scale: str = "log", times: int = 1, loud: bool = False) -> Figure:
        """Draw the names of the runs.

        Larger ones are `larger`.

        Arguments:
            table: It.
        """
        seen["drawn"] = (table, kind, scale, times, loud)
        figure = Figure()
        figure.text(0.5, 0.5, table)
        return figure

    def names(paths, *, kind: str | None = None) -> str:
        seen["made"] = (tuple(paths), kind)
        return " ".join(paths)

    monkeypatch.setitem(FIGURES, "mine", FigureKind(draw=shout, make=names, options=("kind", "scale", "times", "loud")))
    assert main(["plot", "--help"]) == 0
    assert "mine" in capsys.readouterr().out
    assert main(["plot", "mine", "--help"]) == 0
    text = capsys.readouterr().out
    assert "Draw the names of the runs." in text
    assert "Default: log" in text
    assert "deltaw plot mine runs/ft" in text
    assert "--times INTEGER" in text
    options = ["--scale", "linear", "--times", "3", "--loud"]
    assert main(["plot", "mine", "a", "b", *options, "-o", str(tmp_path / "mine.svg")]) == 0
    assert seen == {"made": (("a", "b"), "query"), "drawn": ("a b", "query", "linear", 3, True)}
    assert (tmp_path / "mine.svg").stat().st_size > 500


def test_nothing_heavy_is_imported_to_read_the_table_of_figures() -> None:
    program = (
        "import sys\n"
        "from deltaw.analysis.figures import FIGURES, FigureKind, check_path\n"
        "for entry in FIGURES.values():\n"
        "    assert entry.help and entry.about and entry.draw_defaults and entry.make_defaults\n"
        "    entry.options\n"
        "check_path('a.pdf')\n"
        "print([name for name in ('torch', 'pandas', 'numpy', 'matplotlib', 'seaborn') if name in sys.modules])\n"
        "FIGURES['rank'].draw\n"
        "print('matplotlib' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "True"]


@pytest.mark.parametrize("arguments", [["plot", "--help"], ["plot", "symmetry", "--help"]])
def test_help_imports_nothing_heavy(arguments) -> None:
    program = (
        "import sys, deltaw.cli\n"
        f"try: deltaw.cli.main({arguments!r})\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'pandas', 'matplotlib', 'seaborn') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_what_a_figure_is_made_of_is_checked() -> None:
    for wrong in (3, "rank", "not a:path", None):
        with pytest.raises(OptionError, match=r'draw is .*; pass a function, or its path as "package.module:function"'):
            FigureKind(wrong, print)
    with pytest.raises(OptionError, match="paths is 'FILES'; choose one of RUNS, RESULTS"):
        FigureKind(print, print, paths="FILES")
    with pytest.raises(OptionError, match="has an argument 'colour'"):
        FigureKind(lambda table: table, "deltaw.analysis.figure_tables:spectra", options=("colour",)).options  # noqa: B018
    for path in ("deltaw.nowhere:draw", "deltaw.analysis.figures.kinds.rank:nothing"):
        with pytest.raises(OptionError, match="cannot be imported"):
            Function("draw", path).load()


def test_a_default_that_is_no_plain_value_is_still_read(tmp_path, monkeypatch) -> None:
    (tmp_path / "outside_figure.py").write_text("MOST = 7\n\n\ndef draw(table, /, a, *, most=MOST):\n    'Draw.'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    function = Function("draw", "outside_figure:draw")
    assert function.doc == "Draw."
    assert "outside_figure" not in sys.modules
    assert list(function.defaults) == ["table", "a", "most"]
    assert function.defaults["most"] == 7
    del sys.modules["outside_figure"]
