"""What a reader sees first, and that no picture says more than was measured: in the browser."""

import csv
import io
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import deltaw

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def path(runs, tmp_path_factory):
    return deltaw.report(runs, tmp_path_factory.mktemp("page") / "report.html", check=False)


@pytest.fixture(scope="module")
def checked(runs, tmp_path_factory):
    return deltaw.report(runs[1:], tmp_path_factory.mktemp("page") / "report.html")


def show(page, card):
    page.locator(f"#{card}").scroll_into_view_if_needed()
    page.wait_for_function("id => document.getElementById(id).card.made", arg=card)


def made(page, card, expression):
    return page.evaluate(f"id => (({expression}))(document.getElementById(id).card.made)", card)


def test_the_first_screen_names_the_matrix_that_moved_most(path, runs, look):
    page = look(path)
    cell = page.locator("#runs tbody tr", has_text="bora").locator("button.most")
    cell.wait_for()
    frame = deltaw.open(runs[2]).changes("base")
    frame = frame[(frame.axis == "row") & (frame.step_to == 50)].reset_index(drop=True)
    most = frame.loc[frame.delta_d.idxmax()]
    assert cell.inner_text().startswith(f"{most.layer} · {most.kind}")
    assert f"{most.delta_d / frame.delta_d.mean():.2g}× the mean" in cell.inner_text()
    box = cell.bounding_box()
    assert box["y"] + box["height"] < 1000  # of a window as high as that
    cell.click()
    page.locator("#matrix .card-title", has_text=most.module).wait_for()
    assert "run=2" in page.evaluate("location.hash")


def test_it_says_at_how_many_checkpoints_of_each_run_a_spectrum_was_measured(tmp_path, look, record, runs):
    few = record(tmp_path / "few", "lora", steps=3)
    page = look(deltaw.report([runs[0], runs[1], few], tmp_path / "r.html", details=3, geometry=False, check=False))
    show(page, "spectrum-training")
    said = page.locator("#spectrum-training .card-sub").inner_text()
    assert "measured checkpoints: ft, lora 3 of 6; few 3 of 3" in said
    page.locator("button.chip", has_text="few").click()
    page.locator("#spectrum-training .card-sub", has_text="measured at 3 of 6 checkpoints").wait_for()


def test_a_line_under_another_is_drawn_wider(tmp_path, look, record):
    folders = [record(tmp_path / name, "lora", steps=4) for name in ("one", "same")]
    page = look(deltaw.report(folders, tmp_path / "report.html", check=False))
    for card in ("change-m", "change-d", "asymmetry", "spectrum-training", "by-layer", "correlation"):
        show(page, card)
        lines = made(page, card, "made => made.option.series.filter(s => s.showSymbol !== undefined && !s.silent)")
        by_axis = {}
        for line in lines:
            by_axis.setdefault(line.get("xAxisIndex", 0), []).append(line["lineStyle"]["width"])
        assert all(first > second for first, second in by_axis.values()), card


def test_levels_of_chance_are_named_only_where_they_are_drawn(tmp_path, look, record):
    folder = record(tmp_path / "run", "ft", rate=5.0, steps=2)  # far from first order: chance is not known
    page = look(deltaw.report(folder, tmp_path / "report.html", check=False))
    show(page, "geometry-layers")
    drawn = made(page, "geometry-layers", "made => made.option.series.length")
    said = page.locator("#geometry-layers .card-sub").inner_text()
    assert ("dotted" in said) == (drawn > 1)
    assert drawn == 1


def test_runs_of_low_rank_are_compared_in_as_many_directions_as_they_have(path, runs, look):
    page = look(path)
    show(page, "runs-matrix")
    rows = made(page, "runs-matrix", "made => made.rows")
    found = {(row[0], row[1]): row[2] for row in rows[1:]}
    assert np.isfinite(list(found.values())).all()
    lora, ft = deltaw.open(runs[1]), deltaw.open(runs[0])

    def right(run, module):
        update = (run.weight(module, 50) - run.base(module)).double()
        return torch.linalg.svd(update).Vh[:2]

    shares = [(right(lora, name) @ right(ft, name).T).square().sum().item() / 2 for name in lora.modules]
    assert found["lora", "ft"] == pytest.approx(np.mean(shares), rel=1e-3)
    page.locator("#between").get_by_label("k", exact=True).select_option("8")
    page.locator("#runs-matrix .card-sub", has_text="fewer than 8 directions").wait_for()


def test_means_over_other_matrices_are_told(tmp_path, look, record, runs):
    other = record(tmp_path / "other", "lora", names=("query", "up"))
    page = look(deltaw.report([runs[1], other], tmp_path / "report.html", check=False))
    assert "do not hold the same matrices" in page.locator("#runs").inner_text()
    show(page, "change-d")
    assert "mean of 6 matrices" in page.locator("#change-d .card-sub").inner_text()
    show(page, "runs-matrix")
    assert "mean over 3 matrices" in page.locator("#runs-matrix .card-sub").inner_text()


def test_the_csv_has_the_digits_of_the_numbers(path, runs, look):
    page = look(path)
    show(page, "change-d")
    page.locator("#change-d .save summary").click()
    with page.expect_download() as arriving:
        page.locator("#change-d").get_by_role("button", name="Numbers as CSV").click()
    rows = list(csv.reader(io.StringIO(arriving.value.path().read_text(encoding="utf-8-sig"))))
    assert rows[0] == ["run", "axis", "step", "ΔD"]
    page.locator("#most-csv").scroll_into_view_if_needed()
    with page.expect_download() as arriving:
        page.locator("#most-csv").click()
    rows = list(csv.DictReader(io.StringIO(arriving.value.path().read_text(encoding="utf-8-sig"))))
    frame = deltaw.open(runs[1]).changes("base", ("row",))
    frame = frame[frame.step_to == 50].set_index("module").delta_d
    found = {row["module"]: row["ΔD by row"] for row in rows if row["run"] == "lora"}
    assert set(found) == set(frame.index)
    for name, text in found.items():
        assert np.float32(text) == np.float32(frame[name])
        assert len(text.replace(".", "").lstrip("0").partition("e")[0]) <= 9


def test_claims_are_counted_by_what_these_runs_can_check(checked, look):
    page = look(checked)
    page.locator("#claims").scroll_into_view_if_needed()
    page.locator("#claims tbody tr").first.wait_for()

    def shown(name):
        button = page.locator("#claims .segments button", has_text=re.compile(f"^{name} "))
        button.click()
        count = int(button.inner_text().rpartition("(")[2].rstrip(")"))
        if count:
            page.wait_for_function("n => document.querySelectorAll('#claims tbody tr').length === n", arg=count)
        else:
            page.locator("#claims .empty").wait_for()
        return count

    counts = {name: shown(name) for name in ("agrees", "disagrees", "unclear", "checked here", "not checked", "all")}
    assert counts["checked here"] == counts["agrees"] + counts["disagrees"] + counts["unclear"] > 0
    assert counts["all"] == counts["checked here"] + counts["not checked"]
    page.locator("#claims .segments button", has_text="not checked").click()
    page.locator("#claims tbody tr .badge", has_text="not checked").first.wait_for()
    page.locator("#claims tbody", has_text="missing: a run of ft").wait_for()


def test_nan_in_a_matrix_is_said_where_its_numbers_are_missing(tmp_path, look, record):
    folder = record(tmp_path / "run", "ft")
    file = sorted((folder / "checkpoints").rglob("*.safetensors"))[-1]
    state = load_file(file)
    state[next(name for name in state if "layer.1.query" in name)][0, 0] = torch.nan
    save_file(state, file)
    page = look(deltaw.report(folder, tmp_path / "report.html"))
    assert page.locator("#runs .badge.broken").count() == 1
    top = page.locator("#runs .notes").inner_text()
    assert "such rows and columns are left out" in top
    assert "allow_nonfinite" not in top
    for card in ("by-layer", "geometry-layers"):
        show(page, card)
        assert "layer.1.query" in page.locator(f"#{card} .notes").inner_text()


def test_an_adapter_that_needs_its_base_says_so_in_a_few_words(tmp_path, look):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    draw = torch.Generator().manual_seed(0)
    state = {}
    for layer in range(2):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        state[f"{name}.lora_A.weight"] = torch.randn(4, 16, generator=draw)
        state[f"{name}.lora_B.weight"] = torch.randn(16, 4, generator=draw)
        state[f"{name}.lora_magnitude_vector"] = torch.ones(16)
    save_file(state, adapter / "adapter_model.safetensors")
    text = '{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_dora": true, "target_modules": ["q_proj"]}'
    (adapter / "adapter_config.json").write_text(text[:-1] + ', "base_model_name_or_path": "org/model"}')
    page = look(deltaw.report(adapter, tmp_path / "report.html"))
    assert "add --base org/model" in page.locator("#runs .notes").inner_text()
    for card in ("map", "distribution", "singular", "by-layer", "spectra", "geometry-layers"):
        show(page, card)
        assert page.locator(f"#{card} .empty").inner_text().startswith("This needs W₀"), card
    page.locator("#most").scroll_into_view_if_needed()
    page.locator("#most .empty", has_text="This needs W₀").wait_for()
    assert "No loss and no score was logged" in page.locator("#log").inner_text()


def test_in_a_narrow_window_nothing_is_cut_off_or_squeezed(checked, look):
    page = look(checked, viewport={"width": 390, "height": 800})
    page.locator("#runs button.most").first.wait_for()
    cut = "nodes => nodes.filter(n => n.getBoundingClientRect().right > innerWidth).map(n => n.innerText)"
    assert page.eval_on_selector_all("#runs td", cut) == []
    for card in page.eval_on_selector_all(".card[id]", "nodes => nodes.filter(n => n.card).map(n => n.id)"):
        show(page, card)
        assert page.evaluate("id => document.querySelector(`#${id} .card-text`).clientWidth", card) >= 140, card
    page.locator("#claims").scroll_into_view_if_needed()
    page.locator("#claims tbody tr").first.wait_for()
    assert page.eval_on_selector_all("#claims td", cut) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_paper_says_what_is_chosen_and_how_the_runs_were_made(checked, look):
    page = look(checked, hash="#kind=value&axis=column&step=30")
    page.evaluate("() => dispatchEvent(new Event('beforeprint'))")
    said = page.locator("#runs > .printed").text_content()
    assert said == "Value matrices, all layers, by column, since W₀, at step 30"
    settings = page.locator("#runs details.more")
    assert settings.get_attribute("open") is not None
    assert "rank 2" in settings.text_content()
    page.evaluate("() => dispatchEvent(new Event('afterprint'))")
    assert settings.get_attribute("open") is None


def test_the_focus_stays_where_a_key_was_pressed(path, look):
    page = look(path)
    focused = "() => document.activeElement.textContent"
    page.locator("button.chip", has_text="lora").focus()
    page.keyboard.press("Enter")
    page.locator(".chip[aria-pressed=false]", has_text="lora").wait_for()
    assert page.evaluate(focused) == "lora"
    page.keyboard.press("Enter")
    show(page, "change-d")
    page.locator("#change-d").get_by_role("button", name="log").focus()
    page.keyboard.press("Enter")
    page.locator("#change-d button[aria-pressed=true]", has_text="log").wait_for()
    assert page.evaluate(focused) == "log"
    page.locator("#most").scroll_into_view_if_needed()
    page.locator("#most tbody tr").nth(3).focus()
    page.keyboard.press(" ")
    page.locator("#most tbody tr[aria-selected=true]").wait_for()
    assert page.evaluate("() => document.activeElement.getAttribute('aria-selected')") == "true"
    page.locator("#most th button", has_text="rank").last.focus()
    page.keyboard.press("Enter")
    page.locator("#most th[aria-sort]", has_text="rank").wait_for()
    assert page.evaluate(focused) == "rank"


def test_a_saved_picture_says_what_it_is_of(path, look):
    page = look(path, hash="#kind=value&layer=1&off=0,1")
    show(page, "change-d")
    page.locator("#change-d .save summary").click()
    with page.expect_download() as arriving:
        page.locator("#change-d").get_by_role("button", name="SVG picture").click()
    text = arriving.value.path().read_text(encoding="utf-8")
    for word in ("ΔD over training", "bora", "since W₀", "value matrices", "layer 1", "step"):
        assert word in text, word


def test_hundreds_of_matrices_are_labelled_by_their_layers(tmp_path, look, record):
    names = ("query", "key", "value", "output", "gate", "up", "down")
    folder = record(tmp_path / "run", "lora", layers=12, steps=2, size=4, names=names)
    page = look(deltaw.report(folder, tmp_path / "report.html", geometry=False, check=False))
    show(page, "map")
    labels = made(
        page, "map", "made => made.option.yAxis.data.filter((_, i) => made.option.yAxis.axisLabel.interval(i))"
    )
    assert labels == [f"layer {layer}" for layer in range(12)]


def test_a_choice_is_said_to_readers_of_screens(path, look):
    page = look(path)
    show(page, "map")
    page.locator("#map .plot").focus()
    page.keyboard.press("ArrowLeft")
    said = page.locator("#said[aria-live=polite]", has_text="at step 40, matrix layer.")
    said.wait_for(state="attached")
    assert said.text_content().startswith("All kinds of matrices, all layers, by row, since W₀")


def test_a_view_that_fails_leaves_the_others(path, look):
    text = path.read_text(encoding="utf-8")
    page = look(path).context.new_page()  # its complaints are what is looked for
    said = []
    page.on("console", lambda message: said.append(message.text))
    broken = path.with_name("broken.html")
    column = '"name":"0.scalar.loss","type":"'
    assert column in text
    broken.write_text(text.replace(f"{column}f32", f"{column}f99"), encoding="utf-8")  # of a type that is none
    page.goto(broken.as_uri())
    page.wait_for_selector("html[data-ready=true]")
    show(page, "loss")
    assert "could not be drawn" in page.locator("#loss .empty").inner_text()
    for card in ("change-d", "map", "score", "singular"):
        show(page, card)
        assert page.locator(f"#{card} canvas").count() >= 1, card
    assert len(said) == 1
