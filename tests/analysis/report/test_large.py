"""A report of 8 methods × 12 layers × 6 kinds × 80 checkpoints: its size, and how fast it answers."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from deltaw.analysis.report.between import SINGLE
from deltaw.analysis.report.collect import Content
from deltaw.analysis.report.matrices import AXES, BINS, GEOMETRY, LEADING, MOST, PRINCIPAL, SPECTRA
from deltaw.analysis.report.pack import drawn, exact, whole
from deltaw.analysis.report.page import page

METHODS = ("ft", "lora", "dora", "dora-row", "bora", "pissa", "vera", "dual-lora")
KINDS = ("query", "key", "value", "output", "up", "down")
LAYERS, STEPS, DETAILS, RANKS = 12, 80, 27, 8


def content():
    """What `collect` would return; numbers that hardly compress."""
    draw = np.random.default_rng(0)
    modules = [
        {"name": f"model.layers.{layer}.self_attn.{kind}_proj", "layer": layer, "kind": kind, "shape": [768, 768]}
        for layer in range(LAYERS)
        for kind in KINDS
    ]
    count, steps = len(modules), [100 * step for step in range(STEPS)]
    details = [steps[round(place)] for place in np.linspace(0, STEPS - 1, DETAILS)]
    grown = np.sqrt(np.arange(STEPS))

    def numbers(*shape):
        return np.exp(draw.normal(size=shape))

    runs, columns = [], {}
    for number, method in enumerate(METHODS):
        runs.append(
            {"name": method, "method": method, "title": method, "steps": steps, "details": details, "line": "solid"}
            | {"geometry": details}
            | {
                "color": "#0072b2",
                "modules": list(range(count)),
                "steps_known": True,
                "since_first": [],
                "findings": [],
            }
        )
        found = {}
        for axis in AXES:
            for measure in "md":
                for pairs in ("base", "initial", "consecutive"):
                    found[f"changes.{pairs}.{axis}.{measure}"] = exact(1e-3 * numbers(count, STEPS) * grown)
        for axis in ("row", "column"):
            for measure in "md":
                which = f"{axis}.{measure}"
                found[f"bins.{which}"] = whole(draw.integers(0, 60, size=(count, DETAILS, BINS)))
                found[f"range.{which}"] = exact(np.sort(numbers(count, DETAILS, 2), axis=-1))
                found[f"index.{which}"] = whole(draw.integers(0, 768, size=(count, DETAILS, MOST)))
                found[f"value.{which}"] = exact(numbers(count, DETAILS, MOST))
        spectra = np.full((count, STEPS), np.nan)
        measured = [f"spectra.{name}" for name in SPECTRA]
        measured += [f"geometry.{name}" for name in (*GEOMETRY, "principal", "principal_expected")]
        for name in measured:
            spectra[:, [steps.index(step) for step in details]] = numbers(count, DETAILS)
            found[name] = exact(spectra)
        found["singular"] = drawn(-np.sort(-numbers(count, DETAILS, LEADING)))
        found["base_norm"] = exact(numbers(count))
        found["scalar.loss"] = exact(np.stack([np.arange(2000.0), draw.normal(size=2000)]))
        columns |= {f"{number}.{name}": column for name, column in found.items()}
    pairs_of_runs = len(METHODS) * (len(METHODS) - 1) // 2
    for name in ("cosine", *SINGLE):
        columns[f"between.{name}"] = exact(draw.uniform(-1, 1, size=(pairs_of_runs, count)))
    for side in ("left", "right"):
        for name in ("overlap", "angle"):
            columns[f"between.{name}.{side}"] = drawn(draw.uniform(0, 1, size=(pairs_of_runs, count, RANKS)))
    labelled = [module | {"label": f"{module['layer']} · {module['kind']}"} for module in modules]
    sizes = {"ranks": RANKS, "bins": BINS, "leading": LEADING, "most": MOST, "principal": PRINCIPAL}
    return Content({"runs": runs, "modules": labelled, "sizes": sizes, "claims": [], "notes": {}}, columns)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    file = tmp_path_factory.mktemp("large") / "report.html"
    file.write_text(page(content()), encoding="utf-8", newline="\n")
    return file


def test_it_stays_below_fifteen_megabytes(path):
    assert path.stat().st_size < 15e6


@pytest.mark.slow
@pytest.mark.parametrize("place", ["runs", "together", "where", "spectrum", "geometry", "between", "most"])
def test_a_selection_answers_in_half_a_second(place, path, look):
    """In time of the page's own thread: what else this machine does meanwhile does not count."""
    page = look(path)
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def spent():
        found = {entry["name"]: entry["value"] for entry in session.send("Performance.getMetrics")["metrics"]}
        return found["TaskDuration"]

    page.evaluate("place => document.getElementById(place).scrollIntoView()", place)
    page.wait_for_timeout(800)
    controls = page.locator("#controls")
    acts = {
        "kind": lambda: controls.get_by_label("Kind of matrix").select_option("key"),
        "layer": lambda: controls.get_by_label("Layer", exact=True).select_option("3"),
        "axis": lambda: controls.get_by_role("button", name="columns").click(),
        "pairs": lambda: controls.get_by_role("button", name="t−1 → t").click(),
        "step": lambda: controls.get_by_label("Step").press("ArrowLeft"),
        "all": lambda: controls.get_by_label("Kind of matrix").select_option("all"),
        "run": lambda: page.locator("button.chip", has_text="vera").click(),
    }
    for name, act in acts.items():
        before = spent()
        act()
        page.evaluate("() => new Promise(done => requestAnimationFrame(() => setTimeout(done, 0)))")
        assert spent() - before < 0.5, name
        page.wait_for_timeout(300)  # what is near is drawn a moment later


@pytest.mark.slow
def test_a_picture_of_many_cells_is_whole(path, look):
    page = look(path)
    page.locator("#map").scroll_into_view_if_needed()
    page.wait_for_function("() => document.getElementById('map').card.made")
    page.locator("#map .save summary").click()
    with page.expect_download() as arriving:
        page.locator("#map").get_by_role("button", name="PNG picture").click()
    picture = plt.imread(arriving.value.path(), format="png")[..., :3]
    card = "document.getElementById('map').card.made"
    option = page.evaluate(f"() => ({{ height: {card}.height, ...{card}.option.grid }})")
    top, bottom = option["top"] + 62, option["height"] + 92 - option["bottom"] - 30
    assert picture.shape[:2] == (3 * (option["height"] + 92), 2700)
    rows = 3 * (top + (np.arange(72) + 0.5) * (bottom - top) / 72)  # the middle of each matrix' row
    middle = picture[rows.round().astype(int), 1200]
    assert (middle < 1).any(axis=1).all()  # none is white as the page
