"""What a picture says of itself, beneath it and as its caption: kind, pairs, spacing, layers, seeds, interval."""

import pandas as pd
import pytest
from matplotlib.figure import Figure

from deltaw.adapters.errors import OptionError
from deltaw.analysis.figures import FIGURES, caption, cloud, latex, layers, symmetry
from deltaw.analysis.figures.drawing.captions import escaped
from deltaw.analysis.figures.drawing.facts import kinds_named

OF_CHECKPOINTS = [name for name in FIGURES if name not in ("costs", "sweep", "region")]


def beneath(drawn) -> str:
    figure = getattr(drawn, "figure", None) or drawn
    figure = drawn if isinstance(drawn, Figure) else figure
    return " ".join([figure.get_supxlabel(), *(ax.get_xlabel() for ax in figure.axes)]).replace("\n", " ")


@pytest.mark.parametrize("name", OF_CHECKPOINTS)
def test_kind_and_spacing_stand_in_every_picture_and_caption(name, whole) -> None:
    frame = whole(name)
    frame.attrs = {"spacing": "every 10 steps", "seeds": "seeds 0 and 1"}
    drawn = FIGURES[name].draw(frame)
    for text in (beneath(drawn), caption(drawn)):
        assert "query matrices" in text.lower()
        assert "checkpoints every 10 steps" in text.lower()
    assert "layers 0 to 2" in caption(drawn)
    if name not in ("overlap", "angles", "agreement"):
        assert "seeds 0 and 1" in caption(drawn)
        assert "LoRA and Dual LoRA" in caption(drawn)


def test_a_caption_says_all_six_things() -> None:
    rows = [
        (f"{method}{seed}", method, f"l.{layer}.query", layer, "query", axis, step - 5, step, 0.1 * layer, 0.2)
        for method in ("lora", "bora")
        for seed in range(3)
        for layer in range(2, 6)
        for axis in ("row", "column")
        for step in (5, 10, 15)
    ]
    columns = ["run", "method", "module", "layer", "kind", "axis", "step_from", "step_to", "delta_m", "delta_d"]
    frame = pd.DataFrame(rows, columns=columns)
    assert caption(symmetry(frame)) == (
        "ΔM and ΔD from checkpoint to checkpoint, by column and by row for LoRA and BoRA. "
        "Query matrices of layers 2 to 5. Changes between consecutive checkpoints. Checkpoints every 5 steps. "
        "Mean of 3 runs per method. Bands: one standard deviation over the matrices."
    )
    base = frame.assign(step_from=pd.NA)
    assert (
        "Changes since the base weights, column by column. Checkpoints every 5 steps. 3 runs per method. "
        in caption(cloud(base))
    )
    assert "At step 15" in caption(layers(base))
    frame.attrs["seeds"] = "seeds 0, 1 and 2"
    assert "Mean of 3 runs per method, seeds 0, 1 and 2." in caption(symmetry(frame))


def test_spacing_of_a_table_that_says_nothing_is_that_of_its_steps(whole) -> None:
    assert "checkpoints every 10 steps" in beneath(FIGURES["cloud"].draw(whole("cloud")))
    uneven = whole("cloud")
    uneven.loc[uneven["step_to"] == 20, "step_to"] = 50
    more = pd.concat([uneven, uneven.assign(step_to=uneven["step_to"] + 50)])
    assert "checkpoints 10 to 40 steps apart" in beneath(FIGURES["cloud"].draw(more))


def test_strangers_names_are_text(whole) -> None:
    frame = whole("cloud").assign(kind="$\\frac{", method="a$b_{\x1b[2J", run="r")
    figure = FIGURES["cloud"].draw(frame, kind=None)
    figure.draw_without_rendering()
    assert "\x1b" not in caption(figure)
    assert "\x1b" not in beneath(figure)
    updates = {"$x^{$": whole("region")["LoRA"]}
    FIGURES["region"].draw(updates, module="h.$\\x").draw_without_rendering()


def test_a_caption_of_a_figure_from_outside() -> None:
    assert caption(Figure(), about="The names of the runs") == "The names of the runs."
    with pytest.raises(OptionError, match=r"pass what a function of deltaw\.analysis\.figures returned"):
        caption(Figure())


def test_latex_escapes_what_it_would_obey() -> None:
    assert escaped("50 % of a_b & c#, W₀ at 10⁻⁵ {x}") == r"50 \% of a\_b \& c\#, W$_0$ at 10$^-$$^5$ \{x\}"
    assert escaped(r"\input{/etc/passwd} ^~") == (
        r"\textbackslash{}input\{/etc/passwd\} \textasciicircum{}\textasciitilde{}"
    )
    assert escaped("a $ alone") == r"a \$ alone"
    assert escaped(r"$10^{-6}$ of the largest; \$x") == r"$10^{-6}$ of the largest; \$x"
    text = latex("out/my run_1.svg", "ΔM")
    assert r"\includegraphics[width=\linewidth]{my run_1}" in text
    assert r"\label{fig:my-run-1}" in text
    assert r"\caption{$\Delta$M}" in text


@pytest.mark.parametrize("name", ["50%.pdf", "a}b.png", r"a\input{b}.svg", "a#1.pdf"])
def test_a_file_that_latex_cannot_name_is_refused(name) -> None:
    with pytest.raises(OptionError, match=r"LaTeX has no picture with .* in its name; choose a name of letters"):
        latex(name, "ΔM")


def test_kinds_in_words() -> None:
    assert kinds_named(pd.Series(["value", "query", "key"])) == "key, query and value matrices"
    assert kinds_named(pd.Series([f"k{number}" for number in range(9)])) == "matrices of 9 kinds"
