"""The report in a real browser: it draws, it answers, it saves, and nothing of a stranger's is more than text."""

import csv
import io

import numpy as np
import pytest

import deltaw
from deltaw.analysis import correlation, update_agreement

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def path(runs, tmp_path_factory):
    return deltaw.report(runs, tmp_path_factory.mktemp("page") / "report.html")


def numbers(page, card):
    """The rows behind a card's drawing."""
    return page.evaluate("id => [...document.querySelectorAll('.card')].find(c => c.id === id).card.made.rows", card)


def show(page, card):
    page.locator(f"#{card}").scroll_into_view_if_needed()
    page.wait_for_function("id => document.getElementById(id).card.made", arg=card)


def test_every_view_draws(path, look):
    page = look(path)
    cards = page.eval_on_selector_all(".card[id]", "nodes => nodes.filter(n => n.card).map(n => n.id)")
    assert {"change-m", "change-d", "asymmetry", "cloud", "correlation", "map", "singular", "loss", "score"} <= set(
        cards
    )
    assert {"geometry-layers", "geometry-training"} <= set(cards)
    assert {"by-layer", "spectra", "runs-matrix", "pair-layers", "distribution"} <= set(cards)
    for card in cards:
        show(page, card)
        assert page.locator(f"#{card} canvas").count() >= 1, card
    page.locator("#most tbody tr").nth(17).wait_for()  # what is near is drawn a moment later
    assert page.locator("#most tbody tr").count() == 18
    assert page.title().endswith("deltaw report")


def test_the_numbers_are_those_of_the_tables(path, runs, look):
    page = look(path)
    show(page, "change-d")
    frame = deltaw.open(runs[1]).changes("base").groupby(["axis", "step_to"]).delta_d.mean()
    for run, axis, step, value in numbers(page, "change-d")[1:]:
        if run == "lora":
            np.testing.assert_allclose(value, frame[axis, step], rtol=2e-7, atol=1e-30)
    show(page, "cloud")
    frame = deltaw.open(runs[1]).changes("base")
    found = correlation(frame[(frame.axis == "row") & (frame.step_to == 50)], by=[]).iloc[0]
    cells = page.locator("#together table tbody tr", has_text="lora").locator("td")
    cells.nth(4).wait_for()  # the table beside the cloud may be drawn a moment after it
    shown = cells.all_inner_texts()
    assert shown[1] == f"{found.pearson:.3f}".replace("-", "−")
    assert shown[4] == "6"


def test_a_selection_changes_the_drawings_and_a_link_restores_it(path, look):
    page = look(path)
    show(page, "change-d")
    before = numbers(page, "change-d")
    page.get_by_label("Kind of matrix").select_option("value")
    page.wait_for_function(
        "before => document.getElementById('change-d').card.made.rows[3][3] !== before", arg=before[3][3]
    )
    page.locator("button.chip", has_text="ft").click()
    page.get_by_role("button", name="columns", exact=True).click()
    hash = page.evaluate("location.hash")
    assert "kind=value" in hash
    page.wait_for_function("() => document.getElementById('change-d').card.made.rows.every(row => row[0] !== 'ft')")
    after = numbers(page, "change-d")
    assert {row[0] for row in after[1:]} == {"lora", "bora"}
    again = look(path, hash=hash)
    show(again, "change-d")
    assert numbers(again, "change-d") == after
    assert again.get_by_label("Kind of matrix").input_value() == "value"


def test_the_update_against_its_base(path, runs, look):
    page = look(path)
    frame = deltaw.open(runs[1]).geometry(k=6)  # half of what these matrices have
    measured = frame.groupby("step")["rotation_right"].mean()
    assert measured.iloc[-1] > 0.1
    show(page, "geometry-training")
    shown = {row[1]: row[2] for row in numbers(page, "geometry-training")[1:] if row[0] == "lora"}
    np.testing.assert_allclose([shown[step] for step in measured.index], measured, rtol=1e-6)
    assert "random update" in page.locator("#geometry-training .card-sub").inner_text()
    page.get_by_label("Measure against W₀").select_option("principal")
    page.get_by_label("Kind of matrix").select_option("value")
    ready = "() => document.getElementById('geometry-layers').card.made.rows[0][2] === 'principal'"
    page.wait_for_function(ready)
    rows = [row for row in numbers(page, "geometry-layers")[1:] if row[0] == "lora"]
    last = frame[(frame.step == 50) & (frame.kind == "value")].sort_values("layer")
    assert [row[1] for row in rows] == last.layer.to_list()
    np.testing.assert_allclose([row[2] for row in rows], 1 - last.off_principal, rtol=1e-5)
    np.testing.assert_allclose([row[3] for row in rows], 1 - last.off_principal_expected, rtol=1e-5)
    for measure in ("rotation_left", "drift", "off_principal", "visible_bfloat16"):
        page.get_by_label("Measure against W₀").select_option(measure)
        page.wait_for_function(ready.replace("principal", measure))
    assert "geometry=visible_bfloat16" in page.evaluate("location.hash")


def test_runs_agree_in_signs_and_in_visible_changes(path, runs, look):
    page = look(path)
    show(page, "runs-matrix")
    frame = update_agreement(deltaw.open_runs(runs), k=0)
    frame = frame[(frame.run_first == "ft") & (frame.run_second == "lora")]
    for measure, chance in (("sign_agreement", "sign_expected"), ("jaccard", "jaccard_expected")):
        page.locator("#between").get_by_label("Measure").select_option(measure)
        title = page.locator("#runs-matrix .card-title", has_text={"jaccard": "both"}.get(measure, "sign"))
        title.wait_for()
        row = next(row for row in numbers(page, "runs-matrix")[1:] if row[:2] == ["ft", "lora"])
        np.testing.assert_allclose(row[2:], [frame[measure].mean(), frame[chance].mean()], rtol=1e-6)


def test_the_whole_matrix_is_an_axis(path, runs, look):
    page = look(path)
    page.get_by_role("button", name="whole", exact=True).click()
    show(page, "map")
    assert "by matrix" in page.locator("#map .card-sub").inner_text()
    frame = deltaw.open(runs[0]).changes("base", ("matrix",))
    rows = {(row[0], row[3]): row[4] for row in numbers(page, "map")[1:]}
    for row in frame.itertuples():
        np.testing.assert_allclose(rows[row.module, row.step_to], row.delta_d, rtol=1e-6, atol=1e-30)
    page.locator("#most").scroll_into_view_if_needed()
    page.locator("#most thead", has_text="ΔD by matrix").wait_for()


def test_hover_shows_the_right_number(path, look):
    page = look(path)
    show(page, "change-d")
    rows = numbers(page, "change-d")
    box = page.locator("#change-d canvas").first.bounding_box()
    x, y = page.evaluate(
        "() => document.getElementById('change-d').card.chart.convertToPixel({xAxisIndex: 0, yAxisIndex: 0}, [30, 0])"
    )
    page.mouse.move(box["x"] + x, box["y"] + y - 20)
    tip = page.locator("#change-d .tip")
    tip.wait_for()
    assert tip.locator(".tip-head").inner_text() == "step 30"
    value = next(row[3] for row in rows[1:] if row[:3] == ["bora", "row", 30])
    shown = tip.locator(".tip-row", has_text="bora").locator("b").inner_text()
    assert float(shown) == pytest.approx(value, rel=1e-3)


def test_files_arrive(path, look):
    page = look(path)
    with page.expect_download() as arriving:
        page.locator("#most-csv").click()
    rows = list(csv.reader(io.StringIO(arriving.value.path().read_text(encoding="utf-8-sig"))))
    assert rows[0][:4] == ["run", "module", "layer", "kind"]
    assert len(rows) == 1 + 18
    show(page, "cloud")
    begins = {"PNG picture": b"\x89PNG", "SVG picture": b"<svg", "Numbers as CSV": b"\xef\xbb\xbfrun"}
    for name, begin in begins.items():
        page.locator("#cloud .save summary").click()
        with page.expect_download() as arriving:
            page.locator("#cloud").get_by_role("button", name=name).click()
        assert arriving.value.suggested_filename in ("cloud.png", "cloud.svg", "cloud.csv")
        assert arriving.value.path().read_bytes().startswith(begin)


HOSTILE = {
    "</script><img src=x onerror=alert(1)>": "markup",
    "\u202egnp-exe\u2066\u200f": "marks that turn the direction of writing",
    "=cmd|' /C calc'!A0": "a formula",
    "\u2028\u2029{{about}} ${1} <!--": "separators of lines, placeholders, a comment",
    "x" * 4_000: "a long one",
    "__proto__": "a name that objects have",
    "a\0b": "a character that ends texts elsewhere",
    "🦊" * 60: "characters of two code units",
    "שלום\tעולם\n": "written from right to left, with blanks that are none",
}


def test_names_of_strangers_stay_text(tmp_path, look, record):
    folder = record(tmp_path / "<b onclick=alert(2)>run & 'co'", "lora", names=tuple(HOSTILE), layers=2, steps=3)
    other = record(tmp_path / "constructor", "lora", names=tuple(HOSTILE), layers=2, steps=3)
    path = deltaw.report([folder, other], tmp_path / "report.html")
    page = look(path, hash="#layer=0")
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    for card in page.eval_on_selector_all(".card[id]", "nodes => nodes.filter(n => n.card).map(n => n.id)"):
        show(page, card)
    for kind in page.get_by_label("Kind of matrix").locator("option").all_inner_texts():
        assert len(kind) < 100
    assert page.locator("img, b[onclick], script[src]").count() == 0
    broken = (
        r"() => /[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/.test(document.body.innerText)"
    )
    assert not page.evaluate(broken)  # half a character
    names = page.locator("#most tbody tr td:nth-child(2)")
    names.first.wait_for()
    shown = names.all_inner_texts()
    assert any("</script><img src=x" in name for name in shown)
    assert any(r"\u202egnp-exe" in name for name in shown)
    assert max(map(len, shown)) < 100
    with page.expect_download() as arriving:
        page.locator("#most-csv").click()
    rows = list(csv.reader(io.StringIO(arriving.value.path().read_text(encoding="utf-8-sig"))))
    assert any(row[3] == "'=cmd|' /C calc'!A0" for row in rows)
    assert page.evaluate("document.title").startswith("2 runs")
    assert (page.evaluate("document.documentElement.scrollWidth")) <= 1400


def test_keys_move_the_step_and_the_matrix(path, look):
    page = look(path)
    show(page, "change-d")
    page.locator("#change-d .plot").focus()
    page.keyboard.press("ArrowLeft")
    assert "step=40" in page.evaluate("location.hash")
    show(page, "map")
    page.locator("#map .plot").focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowLeft")
    hash = page.evaluate("location.hash")
    assert "module=" in hash
    assert "step=30" in hash
    page.locator("#matrix .card-title", has_text="layer.").wait_for()


def test_a_click_on_the_map_shows_that_matrix(path, runs, look):
    page = look(path)
    show(page, "map")
    x, y = page.evaluate("() => document.getElementById('map').card.chart.convertToPixel({gridIndex: 0}, [2, 1])")
    box = page.locator("#map canvas").first.bounding_box()
    page.mouse.click(box["x"] + x, box["y"] + y)
    page.locator("#matrix", has_text="layer.0.value").wait_for()
    assert "step=20" in page.evaluate("location.hash")
    run = deltaw.open(runs[0])
    change = deltaw.change(run.base("layer.0.value"), run.weight("layer.0.value", 20), "row")
    shown = page.locator("#matrix dt", has_text="ΔD by row").locator("xpath=following-sibling::dd").inner_text()
    assert float(shown.replace("×10⁻⁴", "e-4")) == pytest.approx(change.delta_d, rel=1e-3)
    most = page.locator("#matrix .tops li").first.inner_text()
    assert f"row {int(change.direction.argmax())}" in most


def test_drawings_say_themselves_and_show_their_numbers(path, look):
    page = look(path)
    for card in ("change-m", "cloud", "map", "runs-matrix", "loss", "spectra", "correlation", "singular"):
        show(page, card)
        label = page.locator(f"#{card} .plot").get_attribute("aria-label")
        assert len(label) > 20, card
        assert page.locator(f"#{card} .plot").get_attribute("role") == "img"
    assert "bora by row" in page.locator("#change-m .plot").get_attribute("aria-label")
    page.locator("#change-m .save summary").click()
    page.locator("#change-m").get_by_role("button", name="Show the numbers here").click()
    page.locator("#change-m table tbody tr").nth(3 * 2 * 6 - 1).wait_for(state="attached")
    assert page.locator("#change-m table tbody tr").count() == 3 * 2 * 6
    named = "n => n.textContent.trim() || n.getAttribute('aria-label') || n.labels?.length"
    unnamed = page.evaluate(
        f"() => [...document.querySelectorAll('button, select, input, summary')].filter(n => !({named})(n)).length"
    )
    assert unnamed == 0


def test_dark_and_print(path, look):
    page = look(path, color_scheme="dark")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.get_by_role("button", name="Light page").click()
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    assert "theme=light" in page.evaluate("location.hash")
    assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")
    page.evaluate("() => dispatchEvent(new Event('beforeprint'))")
    assert page.locator(".printed").count() >= 12
    page.evaluate("() => dispatchEvent(new Event('afterprint'))")
    assert page.locator(".printed").count() == 0


def test_a_search_a_sort_and_a_narrow_window(path, look):
    page = look(path, viewport={"width": 420, "height": 900})
    page.get_by_label("Find a module, run or kind").fill("bora layer.2")
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    page.get_by_label("Find a module, run or kind").fill("layer.2.value")
    page.wait_for_function("() => document.querySelectorAll('#most tbody tr').length === 3")
    found = {}
    for _ in range(2):  # a click sorts the other way; the table is drawn a moment later
        before = page.locator("#most th", has_text="ΔM by row").get_attribute("aria-sort")
        page.locator("#most th button", has_text="ΔM by row").click()
        changed = (
            "before => [...document.querySelectorAll('#most th')].some(th => "
            "th.innerText.includes('ΔM by row') && th.getAttribute('aria-sort') !== before)"
        )
        page.wait_for_function(changed, arg=before)
        way = page.locator("#most th", has_text="ΔM by row").get_attribute("aria-sort")
        found[way] = page.locator("#most tbody tr td:nth-child(5)").all_inner_texts()
    assert set(found) == {"ascending", "descending"}
    assert len(found["ascending"]) == 3
    assert found["ascending"] == found["descending"][::-1]


def test_a_link_of_another_report_is_no_error(path, look):
    page = look(path, hash="#kind=nothing&step=7&run=99&module=5000&map=x&between=y&k=800&sort=z&scale=q&off=0,1,2,77")
    assert page.locator(".chip[aria-pressed=true]").count() == 3
    show(page, "map")
    show(page, "runs-matrix")
