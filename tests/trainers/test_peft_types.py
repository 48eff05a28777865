"""Every type of PEFT whose formula is known is recorded as its own tensors, and W' is that of its layer."""

import copy
import json

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from deltaw.adapters.errors import OptionError, RecordError
from deltaw.adapters.modules import is_peft
from deltaw.adapters.peft.recorded import RECORDED, WHOLE, method_of_record
from deltaw.analysis import Trajectory, inspect_run
from deltaw.trainers import Recorder

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's own, of its own doing


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.value, self.key = nn.Linear(12, 8), nn.Linear(8, 12), nn.Linear(12, 12)

    def forward(self, x):
        return self.key(self.value(self.query(x)))


def net():
    torch.manual_seed(0)
    return nn.Sequential(Block(), Block())


def config(name, **options):
    return lambda: getattr(peft, name)(target_modules=["query", "value", "key"], **options)


# By type, then what tells two of one type apart; what PEFT computes in float32 itself has a wider tolerance.
CASES = {
    "ADALORA": config("AdaLoraConfig", total_step=10, init_r=3, target_r=2),
    "LOHA": config("LoHaConfig", r=2, alpha=3),
    "LOKR": config("LoKrConfig", r=2, alpha=3, decompose_both=True),
    "VERA": config("VeraConfig", r=2),
    "PVERA": config("PveraConfig", r=2),
    "RANDLORA": config("RandLoraConfig", r=2),
    "HIRA": config("HiraConfig", r=2),
    "DELORA": config("DeloraConfig", r=2, delora_lambda=3),
    "GRALORA": config("GraloraConfig", r=2, gralora_k=2),
    "VBLORA": config("VBLoRAConfig", r=2, num_vectors=8, vector_length=4),
    "UNILORA": config("UniLoraConfig", r=2, theta_d_length=40),
    "TINYLORA": config("TinyLoraConfig", r=2, u=3),
    "TINYLORA tied": config("TinyLoraConfig", r=2, u=3, weight_tying=0.5),
    "OFT": config("OFTConfig", oft_block_size=4),
    "BOFT": config("BOFTConfig", boft_block_size=4),
    "HRA": config("HRAConfig", r=2),
    "ROAD": config("RoadConfig", group_size=4, variant="road_2"),
    "PSOFT": config("PsoftConfig", r=2),
    "IA3": config("IA3Config", feedforward_modules=["key"]),
    "MISS": config("MissConfig", r=2),
    "SHIRA": config("ShiraConfig", r=2),
    "SUPERTUNING": config("SupertuningConfig", sparsity=0.8),
    "FOURIERFT": config("FourierFTConfig", n_frequency=10),
    "WAVEFT": config("WaveFTConfig", n_frequency=10),
    "C3A": config("C3AConfig", block_size=4),
    "DEFT": config("DeftConfig", r=2),
    "GLORA": config("GloraConfig", r=2),
    "POLY": config("PolyConfig", r=2, n_skills=3),
    "FROD": config("FrodConfig", sparse_rate=0.1, progressbar=False),
    "ADAMSS": config("AdamssConfig", r=5, num_subspaces=3, subspace_rank=2),
    "OSF": config("OSFConfig", effective_rank=4),
    "PEANUT": config("PeanutConfig", r=2),
}
LOOSE = {
    "RANDLORA": 2e-5,
    "FROD": 1e-5,
    "ADAMSS": 1e-5,
    "OSF": 1e-5,
    "PSOFT": 1e-5,
    "FOURIERFT": 1e-5,
    "DEFT": 1e-5,
    "C3A": 1e-5,
    "OFT": 1e-6,
}


def moved(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))


def own_weight(layer):
    x = torch.eye(layer.get_base_layer().in_features)
    with torch.no_grad():
        if hasattr(layer, "poly_router"):  # it takes sentences, of a task each
            task = torch.zeros(1, dtype=torch.long)
            return (layer(x[None], task_ids=task) - layer(torch.zeros_like(x[None]), task_ids=task))[0].T
        return (layer(x) - layer(torch.zeros_like(x[:1]))).T


def made(case):
    options = CASES[case]()
    return peft.get_peft_model(net(), options).eval()


def test_each_type_with_a_formula_has_a_case():
    assert {case.split()[0] for case in CASES} == set(RECORDED)
    assert not set(RECORDED) & set(WHOLE)


@pytest.mark.parametrize("case", CASES)
def test_the_record_holds_the_adapters_tensors_and_w_is_the_layers(case, tmp_path):
    model = made(case)
    wanted = {}
    with Recorder(model, tmp_path / "run") as recorder:
        for step in range(3):
            recorder.step(step)
            wanted[step] = {n: own_weight(m) for n, m in model.base_model.model.named_modules() if is_peft(m)}
            moved(model, step)
    run = Trajectory.open(tmp_path / "run")
    assert run.method == case.split()[0].lower()
    assert set(run.modules) == set(wanted[0])
    for step, weights in wanted.items():
        for module, weight in weights.items():
            assert "weight" not in run.source.state(module, step)
            found = run.weight(module, step)
            torch.testing.assert_close(found, weight, rtol=0, atol=LOOSE.get(case, 5e-6))
            torch.testing.assert_close(
                run.update(module, step), run.weight(module, step, torch.float64) - run.base(module).double()
            )
    assert len(run.changes("base")) == 2 * 3 * 6
    assert (run.spectra(steps=[1, 2])["rank"] > 0).all()
    assert not inspect_run(tmp_path / "run")["broken"]


def test_a_record_goes_on_in_another_process(tmp_path):
    model = made("SHIRA")
    with Recorder(model, tmp_path / "run") as recorder:
        recorder.step(0)
    moved(model, 0)
    with Recorder(model, tmp_path / "run", resume=True) as recorder:
        recorder.step(1)
    run = Trajectory.open(tmp_path / "run")
    assert run.steps == [0, 1]
    layer = model.base_model.model.get_submodule(run.modules[0])
    torch.testing.assert_close(run.weight(run.modules[0], 1), own_weight(layer), rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", ["LOHA", "OFT", "VERA", "SHIRA", "VBLORA"])
def test_half_precision_is_widened_exactly(case, tmp_path):
    model = made(case).bfloat16()
    moved(model, 3)
    with Recorder(model, tmp_path / "run") as recorder:
        recorder.step(0)
    run, wide = Trajectory.open(tmp_path / "run"), copy.deepcopy(model).float()
    for module in run.modules:
        layer = wide.base_model.model.get_submodule(module)
        torch.testing.assert_close(run.weight(module, 0), own_weight(layer), rtol=0, atol=1e-5)


def test_what_cannot_be_told_by_one_adapter_is_recorded_whole(tmp_path):
    model = made("LOHA")
    model.add_adapter("other", CASES["LOHA"]())
    model.base_model.set_adapter(["default", "other"])
    with Recorder(model, tmp_path / "run") as recorder:
        recorder.step(0)
    assert "weight" in Trajectory.open(tmp_path / "run").source.state("0.query", 0)


@pytest.mark.parametrize("case", ["ADALORA", "LOHA", "LOKR", "RANDLORA", "GRALORA", "PSOFT", "SHIRA", "PEANUT"])
def test_a_scaling_set_by_hand_is_in_what_is_recorded(case, tmp_path):
    model = made(case)
    moved(model, 0)
    for layer in (m for m in model.modules() if is_peft(m)):
        layer.scaling["default"] *= 2
    with Recorder(model, tmp_path / "run") as recorder:
        recorder.step(0)
    run = Trajectory.open(tmp_path / "run")
    layer = model.base_model.model.get_submodule("0.query")
    torch.testing.assert_close(run.weight("0.query", 0), own_weight(layer), rtol=0, atol=5e-5)
    other = made(case)
    with Recorder(other, tmp_path / "other") as recorder:
        recorder.step(0)
        for layer in (m for m in other.modules() if is_peft(m)):
            layer.scaling["default"] *= 2
        with pytest.raises(RecordError, match="scaling of PEFT's adapter 'default' was changed"):
            recorder.step(1)


def test_a_base_that_takes_the_adapter_in_is_refused(tmp_path):
    model = made("LOHA")
    with Recorder(model, tmp_path / "run") as recorder:
        recorder.step(0)
        moved(model, 0)
        recorder.step(1)
        with torch.no_grad():
            layer = model.base_model.model.get_submodule("0.query")
            layer.get_base_layer().weight += layer.get_delta_weight("default")
        with pytest.raises(RecordError, match="has moved"):
            recorder.step(2)


def test_a_manifest_that_lies_is_refused():
    good = {"peft_type": "LOHA", "module": "q", "settings": {}, "trained": {"hada_w1_a": [4, 2]}, "frozen": {}}
    assert method_of_record("peft-loha", good).name == "peft-loha"
    for harm in (
        {"peft_type": "LORA"}, {"peft_type": 3}, {"settings": []}, {"trained": {"a": [-1]}}, {"trained": {"a": "x"}},
        {"trained": [1]}, {"frozen": {"a": [2**60]}}, {"number": -1}, {"layers": 2**40}, {"module": 3},
    ):  # fmt: skip
        with pytest.raises(OptionError):
            method_of_record("peft-loha", json.loads(json.dumps(good | harm)))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("way", ["ddp", "fsdp2"])
def test_each_type_over_two_processes_is_recorded_as_in_one(way, part, tmp_path, in_two):
    """The checkpoints are equal to the bit to those of one process that gathers the same weights."""

    def work(rank, path):
        equal = {}
        for case in list(CASES)[part::4]:
            model = made(case)
            moved(model, 5)
            alone = copy.deepcopy(model)
            # Of the whole model, as some types have a vector that all layers share.
            shared = nn.parallel.DistributedDataParallel(model) if way == "ddp" else fully_shard(model)
            name = case.replace(" ", "-")
            with Recorder(shared, path / name) as recorder:
                for step in range(2):
                    recorder.step(step)
                    moved_together(shared, alone, step)
            if rank == 0:
                with Recorder(alone, path / f"{name}-alone") as recorder:
                    recorder.step(1)
                one, other = Trajectory.open(path / name), Trajectory.open(path / f"{name}-alone")
                equal[case] = "weight" not in one.source.state("0.query", 1) and all(
                    torch.equal(value, other.source.state(module, 1)[key])
                    for module in one.modules
                    for key, value in one.source.state(module, 1).items()
                )
        return [case for case, same in equal.items() if not same]

    def moved_together(model, alone, step):
        """Multiply all that trains by one number, which needs no part of another process."""
        if step:
            return
        with torch.no_grad():
            for parameter in [*model.parameters(), *alone.parameters()]:
                if parameter.requires_grad:
                    parameter *= 1.25

    assert in_two(work, tmp_path) == ([], [])
