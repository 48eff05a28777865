"""Runs of a few small matrices, and a headless browser that looks at their report."""

import os
import shutil

import pytest
import torch
from torch import nn

from deltaw.adapters import create, inject
from deltaw.trainers import Recorder

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def recorded(folder, method, *, layers=3, steps=6, size=12, rate=0.02, names=("query", "value")):
    """A run of small linear layers that random numbers move."""
    torch.manual_seed(0)
    blocks = [nn.ModuleDict({name: nn.Linear(size, size) for name in names}) for _ in range(layers)]
    model = nn.ModuleDict({"layer": nn.ModuleList(blocks)})
    inject(model, create(method, **({} if method == "ft" else {"rank": 2})), targets=["*"])
    with Recorder(model, folder) as recorder:
        for step in range(0, 10 * steps, 10):
            recorder.step(step, loss=1.0 / (step + 1), eval_accuracy=step / 100)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter += rate * torch.randn_like(parameter)
    return folder


@pytest.fixture(scope="session")
def record():
    return recorded


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [recorded(folder / method, method) for method in ("ft", "lora", "bora")]


@pytest.fixture(scope="session")
def browser():
    if CHROMIUM is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI needs a browser: apt-get install chromium")
        pytest.skip("no chromium here; apt-get install chromium")
    sync = pytest.importorskip("playwright.sync_api")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Looked:
    """A report in the browser, and all that went wrong or out while it was looked at."""

    def __init__(self, browser, path, *, hash="", again=False, **context):
        self.again = again  # the page reads its own file again and again
        self.context = browser.new_context(**({"viewport": {"width": 1400, "height": 1000}} | context))
        self.page = self.context.new_page()
        self.complaints, self.requests = [], []
        self.page.on("console", lambda said: said.type in ("error", "warning") and self.complaints.append(said.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(f"{path.as_uri()}{hash}")
        self.page.wait_for_selector("html[data-ready=true]", timeout=60_000)

    def close(self):
        self.context.close()
        assert not self.complaints
        asked = [url for url in self.requests if not url.startswith(("blob:", "data:"))]
        assert (set(asked) if self.again else asked) == ({self.requests[0]} if self.again else self.requests[:1])


@pytest.fixture
def look(browser):
    """look(path, …) opens a report; at the end of the test it must have complained of nothing and asked for nothing."""
    opened = []

    def open_report(path, **options):
        opened.append(Looked(browser, path, **options))
        return opened[-1].page

    yield open_report
    for one in opened:
        one.close()
