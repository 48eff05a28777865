"""Tables along the axes "matrix", "head" and "expert", against plain torch."""

import warnings

import pytest
import torch
import transformers as t
from torch import nn

from deltaw.adapters import OptionError, create, inject
from deltaw.adapters.errors import DeltawWarning
from deltaw.analysis import Trajectory, correlation, expert_changes, head_changes, table, vector_changes
from deltaw.analysis.tables.kept import keeper
from deltaw.cli import main
from deltaw.trainers import Recorder

SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 20, "vocab_size": 30}
ALL = ("row", "column", "matrix", "head")
LLAMA = t.LlamaConfig(**SMALL, num_key_value_heads=2)
GPT2 = t.GPT2Config(n_embd=24, n_layer=2, n_head=4, vocab_size=30, n_positions=16)
TARGETS = {
    "llama": ["*.q_proj", "*.k_proj", "*.v_proj", "*.o_proj", "*.up_proj"],
    "gpt2": ["*.c_attn", "*.c_proj"],
}


def built(name):
    torch.manual_seed(0)
    return t.LlamaModel(LLAMA) if name == "llama" else t.GPT2Model(GPT2)


def nudge(model, size=1e-2):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn_like(parameter)


def recorded(folder, method="lora", name="llama", steps=3, **options):
    model = built(name)
    inject(model, create(method, **({} if method == "ft" else {"rank": 2})), targets=TARGETS[name])
    with Recorder(model, folder, modules=TARGETS[name], **options) as recorder:
        for step in range(steps):
            recorder.step(step)
            nudge(model)
    return Trajectory.open(folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {method: recorded(folder / method, method) for method in ("ft", "lora", "bora")}


def plain(before, after):
    """ΔM and ΔD of two vectors, by the textbook."""
    a, b = before.double().flatten(), after.double().flatten()
    return float((b.norm() - a.norm()).abs()), float(1 - a @ b / a.norm() / b.norm())


def by_head(run, module, step_from, step, heads, side):
    """The changes of single heads, by the textbook."""
    before, after = (run.weight(module, at, torch.float64) for at in (step_from, step))
    parts = zip(*(w.chunk(heads, dim=0 if side == "row" else 1) for w in (before, after)), strict=True)
    return [plain(a, b) for a, b in parts]


@pytest.mark.parametrize("method", ["ft", "lora", "bora"])
def test_a_table_is_its_definition(runs, method):
    run = runs[method]
    frame = run.changes(("consecutive", "base"), ALL)
    single = head_changes([run], "base")
    means = frame[frame["pairs"] == "base"]
    for module in run.modules:
        own = means[means["module"] == module].set_index(["axis", "step_to"])
        matrix = plain(run.base(module), run.weight(module, 2, torch.float64))
        assert own.loc["matrix", 2][["delta_m", "delta_d"]].tolist() == pytest.approx(matrix, rel=1e-6)
        kind = run.labels(module)["kind"]
        if kind == "up":
            assert "head" not in own.index
            continue
        heads, side = 2 if kind in ("key", "value") else 4, "column" if kind == "output" else "row"
        want = by_head(run, module, None, 2, heads, side)
        there = single[(single["module"] == module) & (single["step_to"] == 2)]
        assert there["head"].tolist() == list(range(heads))
        assert set(there["part"]) == {kind}
        for name, values in zip(("delta_m", "delta_d"), zip(*want, strict=True), strict=True):
            assert there[name].tolist() == pytest.approx(values, rel=1e-6, abs=1e-12)
            assert own.loc["head", 2][name] == pytest.approx(sum(values) / heads, rel=1e-6)
    plainly = run.changes(("consecutive", "base"))  # one pass for more axes changes no digit of the others
    rows = frame[frame["axis"].isin(["row", "column"])].reset_index(drop=True)
    assert rows.equals(plainly)


@pytest.mark.parametrize("method", ["ft", "bora"])
def test_the_same_bits_by_other_processes_and_from_what_was_kept(runs, method, monkeypatch):
    monkeypatch.setattr(keeper, "PAYS", 0.0)
    run = runs[method]
    here = run.changes(("consecutive", "base"), ALL, cache=False)
    assert run.changes(("consecutive", "base"), ALL, cache=False, jobs=2).equals(here)
    assert run.changes("base", ("head",), cache=False).equals(run.changes("base", ("head",), cache=False, jobs=2))
    for _ in range(2):
        assert table([run], "heads", cache=True).equals(table([run], "heads", cache=False))
    alone = run.changes("base", ("matrix",), cache=False)
    both = here[(here["pairs"] == "base") & (here["axis"] == "matrix")].drop(columns="pairs").reset_index(drop=True)
    assert both.equals(alone)


def test_query_key_and_value_in_one_recorded_matrix(tmp_path):
    run = recorded(tmp_path / "run", "lora", "gpt2")
    found = head_changes([run], "base", modules=["h.1.attn.c_attn"])
    last = found[found["step_to"] == 2]
    want = by_head(run, "h.1.attn.c_attn", None, 2, 12, "row")
    assert last["part"].tolist() == ["query"] * 4 + ["key"] * 4 + ["value"] * 4
    assert last["head"].tolist() == [0, 1, 2, 3] * 3
    assert last["delta_m"].tolist() == pytest.approx([m for m, _ in want], rel=1e-6)
    parts = head_changes([Trajectory.open(tmp_path / "run", split=True)], "base", modules=["h.1.attn.c_attn.*"])
    assert parts[parts["step_to"] == 2]["delta_m"].tolist() == pytest.approx(last["delta_m"].tolist(), rel=1e-12)
    assert set(head_changes([run], "base")["part"]) == {"query", "key", "value", "output"}


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_models_of_others(tmp_path, name):
    model = built(name)
    model.save_pretrained(tmp_path / "before")
    nudge(model)
    model.save_pretrained(tmp_path / "after")
    run = Trajectory.from_pair(tmp_path / "before", tmp_path / "after")
    found = head_changes([run], [(0, 1)])
    assert found.groupby("part")["head"].max().to_dict() == {
        "query": 3, "output": 3, **dict.fromkeys(("key", "value"), 1 if name == "llama" else 3)
    }  # fmt: skip
    for module, own in found.groupby("module"):
        side = "column" if run.labels(module)["kind"] == "output" else "row"
        want = by_head(run, module, 0, 1, len(own), side)
        assert own["delta_d"].tolist() == pytest.approx([d for _, d in want], rel=1e-6)
    swept = run.changes([(0, 1)], ALL)
    assert set(correlation(swept, by=["axis"])["axis"]) == set(ALL)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # between transformers and PEFT
def test_an_adapter_has_the_configuration_of_its_base(tmp_path):
    import peft

    model = built("llama")
    model.save_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "k_proj"]))
    nudge(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    run = Trajectory.open(tmp_path / "adapter", base=tmp_path / "base")
    found = run.changes("base", ("matrix", "head"))
    assert set(found["axis"]) == {"matrix", "head"}
    assert vector_changes([run], "base", ("head",), quantiles=None)["index"].max() == 3


def unnamed(folder, names=("query", "value", "up")):
    """A run whose model has no configuration."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"0": nn.ModuleDict({name: nn.Linear(8, 8) for name in names})})
    with Recorder(model, folder) as recorder:
        recorder.step(0)
        nudge(model)
        recorder.step(1)
    return Trajectory.open(folder)


def test_where_the_heads_are_not_known_the_other_axes_come(tmp_path):
    run = unnamed(tmp_path / "run")
    with pytest.warns(
        DeltawWarning, match=r"axis 'head' is left out of 0.query and 1 more: .*give them: heads="
    ) as told:
        found = run.changes("base", ALL)
    assert len(told) == 1
    assert set(found["axis"]) == {"row", "column", "matrix"}
    assert found.attrs["left_out"] == [str(told[0].message)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for heads in (2, {"num_attention_heads": 2}):
            given = head_changes([run], "base", heads=heads)
            assert given["head"].tolist() == [0, 1] * 4
            assert "head" in set(run.changes("base", ALL, heads=heads)["axis"])
    with pytest.warns(DeltawWarning, match="0.query of shape \\(8, 8\\) is not 3 heads by its rows"):
        assert "head" not in set(run.changes("base", ALL, heads=3)["axis"])
    with pytest.raises(OptionError, match="heads, num_attention_heads must be a whole number of at least 1, not 0"):
        run.changes("base", ALL, heads=0)


def test_a_table_of_heads_alone_says_why_it_is_empty(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(OptionError, match=r"head' is left out of 0.query and 1 more: .*give them: heads="):
            table([unnamed(tmp_path / "run")], "heads")
        with pytest.raises(OptionError, match=r"no attention matrix with heads that are known; ask for other axes, or"):
            table([unnamed(tmp_path / "up", ("up",))], "heads")
    with pytest.raises(
        OptionError, match=r"there is no expert \(….experts.0.…\) among its modules; ask for other axes"
    ):
        table([unnamed(tmp_path / "other", ("up", "down"))], "experts")


def test_at_the_command_line(runs, tmp_path, capsys):
    assert main(["changes", str(runs["lora"].path), "--axes", "matrix,head", "--pairs", "base", "--explain"]) == 0
    said = capsys.readouterr().out
    assert "delta_m_matrix" in said
    assert "delta_d_head" in said
    assert "delta_m_row" not in said
    own = str(unnamed(tmp_path / "run").path)
    assert main(["changes", own, "--axes", "head", "--pairs", "base"]) == 2
    told = capsys.readouterr().err
    assert "give them: heads=" in told
    for heads in ("2", "num_attention_heads=2"):
        assert main(["changes", own, "--axes", "head", "--pairs", "base", "--heads", heads, "--json"]) == 0
        assert '"head"' in capsys.readouterr().out
    assert main(["changes", own, "--heads", "two"]) == 2
    assert "'two' is neither a number nor names with numbers" in capsys.readouterr().err
    assert main(["plot", "heads", own, "--heads", "2", "-o", str(tmp_path / "heads.png")]) == 0
    assert main(["plot", "cloud", str(runs["ft"].path), "--axis", "matrix", "-o", str(tmp_path / "cloud.png")]) == 0
    assert (tmp_path / "heads.png").exists()


def test_a_record_keeps_what_the_configuration_says_of_heads(runs, tmp_path):
    kept = runs["lora"].info["architecture"]
    assert kept["num_attention_heads"] == 4
    assert kept["num_key_value_heads"] == 2
    assert "vocab_size" not in kept
    assert unnamed(tmp_path / "run").info == {}
    mine = recorded(tmp_path / "mine", info={"architecture": "mine", "seed": 3})
    assert mine.info == {"architecture": "mine", "seed": 3}  # what the caller says stands
    with pytest.warns(DeltawWarning, match="does not tell the heads"):
        mine.changes("base", ALL)


def test_experts_are_modules_of_their_own(tmp_path):
    torch.manual_seed(0)
    model = t.MixtralModel(
        t.MixtralConfig(**SMALL | {"num_hidden_layers": 1}, num_key_value_heads=2, num_local_experts=3)
    )
    model.save_pretrained(tmp_path / "before")
    nudge(model)
    model.save_pretrained(tmp_path / "after")
    run = Trajectory.from_pair(tmp_path / "before", tmp_path / "after")
    found = expert_changes([run], [(0, 1)])
    assert found.groupby("part")["expert"].apply(list).map(sorted).map(tuple).nunique() == 1
    assert sorted(found["expert"].unique()) == [0, 1, 2]
    for _, row in found.iterrows():
        want = plain(run.weight(row["module"], 0), run.weight(row["module"], 1))
        assert (row["delta_m"], row["delta_d"]) == pytest.approx(want, rel=1e-6)
    means = run.changes([(0, 1)], ("matrix", "expert"))
    assert len(means[means["axis"] == "expert"]) == len(found)
