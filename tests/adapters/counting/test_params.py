"""Trainable parameters: the named configurations, the count against inject, and the papers' tables."""

import json
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

from deltaw.adapters import METHODS, LoRA, create, inject
from deltaw.adapters.counting.configs import CONFIGS
from deltaw.adapters.counting.params import count_trainable, model_from_config
from deltaw.adapters.errors import DataError, OptionError, TargetError
from deltaw.adapters.methods.magnitude import Magnitude

DOCS = Path(__file__).parents[3] / "docs"
PAPERS = runpy.run_path(str(DOCS / "paper_parameters.py"))
FIGURES = PAPERS["FIGURES"]

PUBLISHED = {
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama2-7b": 6_738_415_616,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "mistral-7b": 7_241_732_096,
    "roberta-base": 124_645_632,
    "roberta-large": 355_359_744,
    "deberta-xxl": 1_564_549_632,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    # BART-base's 139,420,416, 200 words more, and the embedding of features, boxes and of which image it is
    "vl-bart": 139_420_416 + 200 * 768 + (2048 + 1 + 2) * 768 + (5 + 1 + 2) * 768 + 2 * 768,
    "vl-bart-video": 139_420_416 + 200 * 768 + (512 + 1 + 2) * 768 + (5 + 1 + 2) * 768 + 2 * 768,
}


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.parametrize("name", CONFIGS)
def test_named_configurations_have_the_published_size(name):
    model = model_from_config(name)
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[name]
    assert all(p.device.type == "meta" for p in model.parameters())


def test_a_folder_is_read_like_the_name(tmp_path):
    sizes = {"model_type": "llama", "vocab_size": 50, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    model = model_from_config(str(tmp_path))
    assert "lm_head.weight" in dict(model.named_parameters())
    assert sum(p.numel() for p in model.parameters()) == 2 * 50 * 8 + 4 * 8 * 8 + 3 * 8 * 16 + 3 * 8


def test_an_unknown_model_is_told_the_names():
    with pytest.raises(DataError, match="llama-7b") as error:
        model_from_config("./nowhere")
    assert "\n" not in str(error.value)


def build():
    return nn.ModuleDict({"query": nn.Linear(6, 4), "value": nn.Linear(6, 4), "head": nn.Linear(4, 2)})


@pytest.mark.parametrize("trainable", [[], ["head"], ["*bias"], ["query"]])
@pytest.mark.parametrize("name", ["lora", "bora", "sbora-fb", "magnitude"])
def test_it_counts_what_inject_trains(name, trainable):
    method = create(name) if name == "magnitude" else create(name, rank=2)
    counted = count_trainable(build(), method, ["query", "value"], trainable=trainable)
    model = inject(build(), method, ["query", "value"], trainable=trainable)
    assert counted["trainable"] == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert counted["total"] == sum(p.numel() for p in build().parameters())
    assert counted["share"] == counted["trainable"] / counted["total"]
    added = method.count(4, 6) * 2
    assert counted["share_of_all"] == counted["trainable"] / (counted["total"] + added)


def test_it_counts_a_mapping_as_inject_does():
    methods = {"query": Magnitude(), "value": Magnitude(), "quer*": LoRA(rank=2)}  # the last that fits counts
    counted = count_trainable(build(), methods)
    model = inject(build(), methods)
    assert counted["trainable"] == sum(p.numel() for p in model.parameters() if p.requires_grad) == 2 * 10 + 6
    assert counted["modules"] == 2
    assert counted["method"] == "lora and magnitude"


def test_full_fine_tuning_counts_everything_and_goes_alone():
    counted = count_trainable(build(), create("ft"), ["query"])
    assert counted["share"] == counted["share_of_all"] == 1
    with pytest.raises(OptionError, match="alone"):
        count_trainable(build(), {"query": create("ft"), "value": LoRA(rank=2)})


def test_mistakes():
    with pytest.raises(TargetError, match="qery"):
        count_trainable(build(), LoRA(rank=2), ["qery"])
    with pytest.raises(TargetError, match="haed"):
        count_trainable(build(), LoRA(rank=2), ["query"], trainable=["haed"])
    with pytest.raises(OptionError, match="rank 5"):
        count_trainable(build(), LoRA(rank=5), ["query"])
    with pytest.raises(OptionError, match="mapping"):
        count_trainable(build(), {"query": LoRA(rank=2)}, ["query"])


def describe(figure):
    return f"{figure.paper}-{figure.table}-{figure.model}-{figure.label}-{figure.printed}".replace(" ", "_")


@pytest.mark.parametrize("figure", FIGURES, ids=describe)
def test_the_papers_figures_agree_or_are_listed(figure):
    computed = PAPERS["value"](figure)
    if not figure.reason:
        assert PAPERS["agrees"](figure, computed), f"printed {figure.printed}, computed {computed:.4f}"
        return
    assert not PAPERS["agrees"](figure, computed), f"it agrees now ({computed:.4f}); take the reason away"
    if figure.fits:
        assert PAPERS["agrees"](figure, PAPERS["reading"](figure)), f"{figure.fits!r} does not explain it"


def test_a_figure_is_rounded_at_its_own_precision():
    figure = next(f for f in FIGURES if f.printed == "0.202")
    assert PAPERS["agrees"](figure, 0.2024)
    assert not PAPERS["agrees"](figure, 0.2026)


def test_one_magnitude_per_column_or_per_row_is_what_each_paper_counts():
    """The choice between ``dora`` and ``dora-row`` is the figures' own: the other one would not fit."""
    for paper, tabled in (("DoRA", "6"), ("BoRA", "4"), ("SBoRA", "3"), ("Dual LoRA", "1")):
        other = {"dora": "dora-row", "dora-row": "dora"}
        figures = [f for f in FIGURES if (f.paper, f.table) == (paper, tabled) and not f.reason]
        turned = [
            PAPERS["replace"](
                figure,
                parts=tuple((other.get(name, name), rank, targets) for name, rank, targets in figure.parts),
                options={"axis": "row"} if len(figure.parts) > 1 else {},
            )
            for figure in figures
            if any(name in other for name, _, _ in figure.parts)
        ]
        assert not all(PAPERS["agrees"](figure, PAPERS["value"](figure)) for figure in turned), paper


@pytest.mark.parametrize("row", PAPERS["SBORA_TABLE_1"], ids=lambda row: f"{row[0]}-{row[1]}")
@pytest.mark.parametrize(("d", "k", "r"), [(4096, 4096, 32), (1024, 4096, 8), (11008, 4096, 64)])
def test_sboras_formulas(row, d, k, r):
    name, what, printed, own, formula = row
    method = create(name, rank=r)
    counted = method.count(d, k)
    if what == "total":
        counted += sum(torch.Size(shape).numel() for shape in method.frozen_shapes(d, k).values())
    assert counted == formula(d, k, r)
    as_printed = eval(printed.replace("×", "*"), {"d": d, "k": k, "r": r})
    assert (as_printed == counted) == (printed == own or d == k)


def test_randlora_without_a_rank_in_the_paper():
    """The note on it says that rank 30 counts what is printed."""
    counted = count_trainable(
        model_from_config("llama3-8b"), dict.fromkeys(PAPERS["QKVUD"], create("randlora", rank=30))
    )
    assert round(100 * counted["share_of_all"], 2) == 0.70


def test_the_page_of_the_papers_figures_is_up_to_date():
    generate = runpy.run_path(str(DOCS / "generate.py"))
    assert generate["PARAMETERS"].read_text(encoding="utf-8") == generate["parameters_page"](), "run: make docs"


def test_every_method_of_the_figures_exists():
    assert {name for figure in FIGURES for name, _, _ in figure.parts} <= set(METHODS)
