"""``deltaw params``: named configurations, several methods and ranks, options, what else is trained."""

import json

import pytest

from deltaw.adapters import METHODS
from deltaw.adapters.counting.configs import CONFIGS
from deltaw.cli import main

COMMONSENSE = ["--targets", "*.[qkvud]*_proj"]  # query, key, value, up, down


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def params(capsys):
    """Call the verb; return the exit code and its rows, or the one line of its error."""

    def call(*arguments):
        code = main(["params", *map(str, arguments), "--json"])
        out, err = capsys.readouterr()
        if code:
            assert "Traceback" not in err
            return code, err.splitlines()[-1]
        return code, json.loads(out)

    return call


def test_a_papers_setting_by_name(params):
    code, rows = params("--model", "llama-7b", "--method", "lora,dora", "--rank", "32", *COMMONSENSE)
    assert code == 0
    assert [(row["method"], row["trainable"]) for row in rows] == [("lora", 56_098_816), ("dora", 56_975_360)]
    assert {row["total"] for row in rows} == {6_738_415_616}
    assert [round(100 * row["share_of_all"], 2) for row in rows] == [0.83, 0.84]  # DoRA, Table 1


def test_ranks_and_methods_by_comma_or_repeated(params):
    _, rows = params(
        "--model", "roberta-base", "--method", "lora", "--method", "bora,ft", "--rank", "4,8", "--rank", 16
    )
    assert [(row["method"], row["rank"]) for row in rows] == [
        *(("lora", rank) for rank in (4, 8, 16)),
        *(("bora", rank) for rank in (4, 8, 16)),
        ("ft", None),
    ]
    assert rows[0]["trainable"] == 24 * 4 * (768 + 768)


def test_every_method_by_default(params):
    _, rows = params("--model", "roberta-base", "--rank", 4)
    assert [row["method"] for row in rows] == list(METHODS)


def test_an_option_goes_to_the_methods_that_have_it(params):
    _, rows = params("--model", "llama3-8b", "--method", "lora,dora", "--option", "axis=row", "--targets", "*.k_proj")
    assert [row["trainable"] for row in rows] == [32 * 8 * (1024 + 4096), 32 * (8 * (1024 + 4096) + 1024)]
    code, line = params("--model", "roberta-base", "--method", "lora,ft", "--option", "axis=row")
    assert code == 2
    assert "'axis'" in line
    code, line = params("--model", "roberta-base", "--method", "lora", "--option", "axis")
    assert code == 2
    assert "NAME=VALUE" in line
    code, line = params("--model", "roberta-base", "--method", "lora", "--option", "rank=4")
    assert code == 2
    assert "--rank" in line


def test_what_else_is_trained(params):
    _, (row,) = params("--model", "roberta-base", "--method", "lora", "--trainable", "pooler")
    assert row["trainable"] == 24 * 8 * (768 + 768) + 768 * 768 + 768
    code, line = params("--model", "roberta-base", "--method", "lora", "--trainable", "classifier")
    assert code == 2
    assert "classifier" in line


def test_mistakes_name_the_choices(params):
    code, line = params("--model", "./nowhere", "--method", "lora")
    assert code == 1
    assert all(name in line for name in ("./nowhere", *CONFIGS))
    code, line = params("--model", "llama-7b", "--method", "lora")
    assert code == 2
    assert "q_proj" in line
    code, line = params("--model", "roberta-base", "--method", "lorax")
    assert code == 2
    assert "lorax" in line
