"""``--watch``: the report is written anew as checkpoints come, and an open page follows it."""

import json
import re

import pytest
import torch
from torch import nn

from deltaw.adapters import LoRA, inject
from deltaw.adapters.errors import OptionError
from deltaw.analysis.report.watch import watched
from deltaw.trainers import Recorder


def about(path):
    text = path.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="about">(.*?)</script>', text)[1])


def test_it_follows_a_run_that_is_being_recorded(tmp_path):
    torch.manual_seed(0)
    model = inject(nn.ModuleDict({"query": nn.Linear(6, 6)}), LoRA(rank=2), targets=["query"])
    waited = []
    with Recorder(model, tmp_path / "run") as recorder:
        recorder.step(0)

        def wait(seconds):
            waited.append(seconds)
            if len(waited) % 2 == 0:  # every other look finds a new checkpoint
                recorder.step(len(waited))

        pages = watched([tmp_path / "run"], tmp_path / "report.html", every=5, wait=wait, check=False)
        seen = [about(next(pages)) for _ in range(3)]
        assert [page["runs"][0]["steps"] for page in seen] == [[0], [0, 2], [0, 2, 4]]
        assert {page["watch"] for page in seen} == {5}
        assert waited == [5] * 4
        pages.close()
    assert about(tmp_path / "report.html")["watch"] is None


@pytest.mark.parametrize("every", [0, -1, "soon", True])
def test_wrong_seconds(every, tmp_path):
    with pytest.raises(OptionError, match="every is"):
        next(watched([tmp_path], tmp_path / "report.html", every=every))


@pytest.mark.slow
def test_an_open_page_reads_its_file_anew_with_the_same_selection(runs, tmp_path, look):
    pages = watched(runs[:1], tmp_path / "report.html", every=1, wait=lambda _: None, check=False)
    path = next(pages)
    page = look(path, hash="#axis=column", again=True)
    pages = watched(runs[:2], tmp_path / "report.html", every=1, wait=lambda _: None, check=False)
    next(pages)
    page.wait_for_function("() => document.querySelectorAll('.chip').length === 2", timeout=30_000)
    assert "axis=column" in page.evaluate("location.hash")
    pages.close()


@pytest.mark.slow
def test_the_page_stays_where_it_is_read_and_waits_while_something_is_typed(runs, tmp_path, look):
    pages = watched(runs[:1], tmp_path / "report.html", every=4, wait=lambda _: None, check=False)
    page = look(next(pages), again=True)
    search = page.get_by_label("Find a module, run or kind")
    search.evaluate("node => { window.first = true; node.focus({ preventScroll: true }); }")
    assert page.evaluate("() => /made [\\d-]+ [\\d:]+ UTC/.test(document.getElementById('runs').textContent)")
    top = "() => document.getElementById('spectrum').getBoundingClientRect().top"
    page.evaluate("() => document.getElementById('spectrum').scrollIntoView()")
    page.wait_for_function("() => document.getElementById('by-layer').card.made")
    page.wait_for_timeout(6000)  # more than two looks, of which none is taken
    assert page.evaluate("() => window.first")
    before = page.evaluate(top)
    page.locator("#by-layer .plot").evaluate("node => node.focus({ preventScroll: true })")
    page.wait_for_function("() => !window.first && document.documentElement.dataset.ready", timeout=30_000)
    page.wait_for_function(f"before => Math.abs(({top})() - before) < 3", arg=before)
    page.wait_for_function("() => document.activeElement === document.querySelector('#by-layer .plot')")
    pages.close()
