"""What is each method's own: its start, what its layers share, its paper's numbers, its errors."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deltaw.adapters import (
    METHODS,
    BoRA,
    CorDA,
    DeltaLoRA,
    DoRA,
    DualLoRA,
    FullFineTuning,
    HiRA,
    LoRA,
    Magnitude,
    MoRA,
    OptionError,
    OrthogonalAdaptation,
    PiSSA,
    ShapeError,
    TargetError,
    adapted,
    base_weight,
    create,
    effective_weight,
    inject,
    input_covariances,
    load_adapters,
    merge,
    save_adapters,
)
from deltaw.adapters.errors import NonFiniteError
from deltaw.analysis import Trajectory, spectrum
from deltaw.trainers import Recorder


def linear(rows=10, columns=7, seed=0):
    torch.manual_seed(seed)
    return nn.Linear(columns, rows).double()


def one(method, rows=10, columns=7, **options):
    return adapted(inject(nn.Sequential(linear(rows, columns)), method, targets=["0"], **options))["0"]


def network():
    """Layers of three shapes."""
    torch.manual_seed(0)
    sizes = [(6, 12), (12, 12), (12, 12), (12, 5)]
    return nn.Sequential(*(nn.Linear(columns, rows) for columns, rows in sizes)).double()


# What is drawn


def test_the_rows_of_asylora_are_orthonormal():
    A = one(create("asylora", rank=5)).tensor("lora_A")
    torch.testing.assert_close(A @ A.T, torch.eye(5, dtype=torch.float64))


def test_lora_fa_is_lora_with_a_frozen_a():
    frozen, free = one(create("lora-fa", rank=3), seed=4), one(create("lora", rank=3), seed=4)
    assert torch.equal(frozen.tensor("lora_A"), free.tensor("lora_A"))
    assert [name for name, p in frozen.named_parameters() if p.requires_grad] == ["lora_B"]


def test_lora_fa_keeps_no_input_for_the_backward_pass():
    layer, kept = one(create("lora-fa", rank=2), 60, 50), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        layer(torch.randn(9, 50, dtype=torch.float64, requires_grad=True)).sum().backward()
    assert (9, 50) not in kept


def test_tasks_of_one_basis_are_orthogonal_and_merge_by_sum():
    tasks = [one(OrthogonalAdaptation(rank=2, task=p, basis_seed=3), seed=p) for p in range(3)]
    with torch.no_grad():
        for p, layer in enumerate(tasks):
            layer.tensor("lora_B").copy_(torch.randn(10, 2, generator=torch.Generator().manual_seed(p)))
    A = [layer.tensor("lora_A") for layer in tasks]
    for p in range(3):
        for q in range(3):
            wanted = torch.eye(2, dtype=torch.float64) if p == q else torch.zeros(2, 2, dtype=torch.float64)
            torch.testing.assert_close(A[p] @ A[q].T, wanted, rtol=0, atol=1e-14)
    merged = sum(layer.update() for layer in tasks)
    for layer, rows in zip(tasks, A, strict=True):
        torch.testing.assert_close(merged @ rows.T, layer.tensor("lora_B").detach(), rtol=0, atol=1e-13)
    other = one(OrthogonalAdaptation(rank=2, basis_seed=4))
    assert not torch.allclose(other.tensor("lora_A"), A[0])


def test_a_basis_holds_so_many_tasks():
    one(OrthogonalAdaptation(rank=3, task=1))
    with pytest.raises(OptionError, match=r"basis of 7 vectors holds 2 tasks of rank 3, 0 to 1"):
        one(OrthogonalAdaptation(rank=3, task=2))
    with pytest.raises(OptionError, match="task"):
        OrthogonalAdaptation(task=-1)


# What layers have in common


@pytest.mark.parametrize("name", ["vera", "dvora", "randlora", "oa"])
def test_what_is_shared_is_stored_once(name, tmp_path):
    model = inject(network(), create(name, rank=3), targets=["*"], seed=1)
    layers = adapted(model)
    key = {"oa": "lora_A", "randlora": "randlora_B"}.get(name, "vera_A")

    def places(of):
        return {layer.tensor(key).untyped_storage().data_ptr() for layer in adapted(of).values()}

    wanted = len({layer.in_features for layer in layers.values()}) if name == "oa" else 1
    assert len(places(model)) == wanted
    assert len(places(copy.deepcopy(model))) == wanted
    moved = copy.deepcopy(model).float()  # parts of different sizes part company, equal ones stay together
    assert len(places(moved)) == len({layer.tensor(key).shape for layer in layers.values()})
    assert len(places(moved.double())) == len(places(moved))

    file = tmp_path / "adapters.safetensors"
    save_adapters(model, file)
    once = adapted(load_adapters(network(), file))
    assert once.keys() == layers.keys()
    for module, layer in layers.items():
        for tensor, value in layer.state().items():
            assert torch.equal(once[module].tensor(tensor), value)
    assert once["1"].tensor(key).data_ptr() == once["2"].tensor(key).data_ptr()

    with Recorder(model, tmp_path / "run") as recorder:
        recorder.record(0)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += 0.1
        recorder.record(1)
    run = Trajectory.open(tmp_path / "run")
    trained = sum(p.numel() * 8 for p in model.parameters() if p.requires_grad)
    assert (tmp_path / "run/checkpoints/0000000001.safetensors").stat().st_size < trained + 3000
    assert run.manifest.constants["2." + key] == run.manifest.constants["1." + key] == f"1.{key}"
    for module, layer in layers.items():
        assert torch.equal(run.weight(module, 1), effective_weight(layer))


def test_what_is_shared_stays_so_by_pickle_and_by_loading_and_each_model_has_its_own():
    model = inject(network(), create("vera", rank=3), targets=["[12]"], seed=1)

    def at(of):
        return {layer.tensor("vera_B").data_ptr() for layer in adapted(of).values()}

    copied = pickle.loads(pickle.dumps(model))
    assert len(at(copied)) == len(at(model)) == 1
    assert at(copied) != at(model)
    assert len(at(copied.double())) == 1
    copied.load_state_dict(model.state_dict())
    assert len(at(copied.float())) == 1
    apart = copy.deepcopy(model)
    apart.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
    assert len(at(apart)) == 2
    adapted(apart)["1"].half()
    assert len(at(apart.to("cpu", torch.float64))) == 2


def test_layers_without_values_share_nothing():
    model = inject(network(), create("sbora-fa", rank=2), ["[12]"], seed=0).to("meta").to_empty(device="cpu")
    first, second = (layer.tensor("indices") for layer in adapted(model).values())
    assert first.data_ptr() != second.data_ptr()


def test_a_run_goes_on_only_with_the_same_constants(tmp_path):
    from deltaw.adapters import RecordError

    with Recorder(inject(network(), create("sbora-fa", rank=2), ["*"], seed=0), tmp_path) as recorder:
        recorder.record(0)
    with Recorder(inject(network(), create("sbora-fa", rank=2), ["*"], seed=0), tmp_path, resume=True) as recorder:
        recorder.record(1)
    other = inject(network(), create("sbora-fa", rank=2), ["*"], seed=9)
    with pytest.raises(RecordError, match="indices"), Recorder(other, tmp_path, resume=True):
        pass


# Starts from W₀


@pytest.mark.parametrize("options", [{}, {"alpha": 6.0}, {"iterations": 16}])
def test_pissa_starts_from_the_principal_triples(options):
    layer = one(PiSSA(rank=3, **options))
    U, S, Vh = torch.linalg.svd(layer.base.detach())
    product = layer.method.scaling * layer.tensor("lora_B") @ layer.tensor("lora_A")
    torch.testing.assert_close(product.detach(), U[:, :3] * S[:3] @ Vh[:3], rtol=1e-6, atol=1e-6)
    assert spectrum(factors=layer.factors()).rank == 0
    with torch.no_grad():
        layer.tensor("lora_B").add_(torch.randn(10, 3, dtype=torch.float64))
        layer.tensor("lora_A").add_(torch.randn(3, 7, dtype=torch.float64))
    assert spectrum(factors=layer.factors()).rank == spectrum(layer.update()).rank == 6  # 2r


@pytest.mark.parametrize("mode", ["ipm", "kpm"])
def test_corda_splits_w_by_what_the_inputs_use(mode):
    model = nn.Sequential(linear(10, 7))
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(40, 7, generator=generator, dtype=torch.float64) * torch.logspace(0, -3, 7) for _ in range(4)]
    context = input_covariances(model, "0", inputs)
    x = torch.cat(inputs)
    torch.testing.assert_close(context["0"], x.T @ x / len(x))
    layer = adapted(inject(model, CorDA(rank=2, mode=mode, damping=1e-12), ["0"], context=context))["0"]
    part = layer.tensor("start_B") @ layer.tensor("start_A")
    # In the norm of the inputs' covariance, the principal part is the best of its rank, and the rest is nothing.
    U, S, Vh = torch.linalg.svd(layer.base.detach() @ context["0"])
    chosen = slice(0, 2) if mode == "ipm" else slice(5, 7)
    torch.testing.assert_close(part @ context["0"], (U[:, chosen] * S[chosen]) @ Vh[chosen], rtol=1e-6, atol=1e-9)
    moved = (x @ part.T).norm() / (x @ layer.base.T).norm()
    assert moved > 0.9 if mode == "ipm" else moved < 1e-2


def test_corda_needs_a_sound_context():
    with pytest.raises(OptionError, match=r"no covariance for module '0'; pass context=input_covariances"):
        one(CorDA(rank=2))
    with pytest.raises(ShapeError, match=r"\(3, 3\), not \(7, 7\)"):
        one(CorDA(rank=2), context={"0": torch.eye(3)})
    with pytest.raises(NonFiniteError, match="module '0'"):
        one(CorDA(rank=2), context={"0": torch.eye(7) * math.nan})
    with pytest.raises(OptionError, match="all zero"):
        one(CorDA(rank=2), context={"0": torch.zeros(7, 7)})
    singular = one(CorDA(rank=2), context={"0": torch.ones(7, 7)})  # damped until it can be inverted
    assert effective_weight(singular).isfinite().all()
    with pytest.raises(OptionError, match="no input reached module '0'"):
        input_covariances(nn.Sequential(linear()), "0", [])


def test_covariances_leave_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)).train()
    input_covariances(model, "0", [(torch.ones(2, 3),)])
    assert model.training
    assert not model[0]._forward_pre_hooks


# Formulas


@pytest.mark.parametrize(
    ("variant", "wanted"),
    [
        ("sharing", [4.3, 15.9, 27.5, 39.1, 4.3, 15.9, 27.5, 39.1, 4.3, 15.9]),
        ("rotation", [2.0, 6.0, 10.0, 14.0, 2.514849, 7.254983, 11.995117, 16.735251, 2.0, 6.0]),
    ],
)
def test_mora_is_the_authors_code(variant, wanted):
    """The numbers: types 1 and 6 of ``_apply_mora`` in kongds/MoRA (peft-mora/src/peft/tuners/lora/layer.py)."""
    layer = one(MoRA(rank=1, variant=variant), 10, 7)
    with torch.no_grad():
        layer.tensor("mora_M").copy_(torch.arange(16.0).view(4, 4) / 10)
    x = torch.arange(1.0, 8.0, dtype=torch.float64)
    found = layer(x) - F.linear(x, layer.base, layer.bias)
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-6)


def test_mora_says_which_rank_fits():
    with pytest.raises(OptionError, match=r"square of 10 for module '0' \(10 × 7\).*at most 3"):
        one(MoRA(rank=6))
    one(MoRA(rank=3))


def test_hira_leaves_zeros_and_has_high_rank():
    layer = one(HiRA(rank=1), 10, 7)
    with torch.no_grad():
        layer.weight[0, 0] = 0
        layer.tensor("hira_B").add_(1.0)
    assert layer.update()[0, 0] == 0
    assert spectrum(layer.update()).rank == 7


@pytest.mark.parametrize("start", [0, 3])
def test_delta_lora_is_its_step_by_step_rule(start):
    """W moved after every step as in algorithm 1, with LoRA's gradients, against the closed form."""
    torch.manual_seed(0)
    batches = [torch.randn(5, 7, dtype=torch.float64) for _ in range(8)]
    layer = one(DeltaLoRA(rank=2, alpha=3.0, ratio=2.0, start_step=start), seed=5)
    optimizer = torch.optim.AdamW([layer.lora_A, layer.lora_B], lr=0.05)
    W, s = layer.base.detach().clone(), 1.5
    A, B = (layer.tensor(n).detach().clone().requires_grad_(True) for n in ("lora_A", "lora_B"))
    other = torch.optim.AdamW([A, B], lr=0.05)
    for step, x in enumerate(batches):
        layer(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        F.linear(x, W + s * B @ A, layer.bias).square().sum().backward()
        before = (B @ A).detach()
        other.step()
        other.zero_grad()
        if step >= start:
            W += 2.0 * s * ((B @ A).detach() - before)
        torch.testing.assert_close(effective_weight(layer), (W + s * B @ A).detach(), rtol=1e-12, atol=1e-12)
    assert spectrum(factors=layer.factors()).rank == (4 if start else 2)
    torch.testing.assert_close(base_weight(layer), layer.base.detach())


def test_dual_loras_signs():
    x = torch.tensor([[-2.0, 1.0], [0.0, 3.0]], dtype=torch.float64)
    state = {"lora_A": x, "lora_C": torch.eye(2, dtype=torch.float64), "lora_D": x.clone().requires_grad_(True)}
    wanted = {
        "ste": [[-1, 1], [-1, 1]],
        "none": [[-2, 1], [0, 3]],
        "xnor": [[-1.5, 1.5], [-1.5, 1.5]],
        "dorefa": [[-1.5, 1.5], [-1.5, 1.5]],
    }
    state["lora_D"].data[1, 1] = 5.0
    wanted["none"][1][1] = 5
    wanted["xnor"][1] = [-2.5, 2.5]
    wanted["dorefa"] = [[-2, 2], [-2, 2]]
    for sign, values in wanted.items():
        state["lora_D"].grad = None
        found = DualLoRA(rank=2, sign=sign).direction_group(state)
        assert found.tolist() == values, sign
        (found * 7).sum().backward()
        assert state["lora_D"].grad.unique().tolist() == [1.0 if sign == "ste" else 7.0], sign


def test_dual_loras_scaling_and_counts():
    assert DualLoRA(rank=4, direction_rank=16, alpha=8.0).scaling == 1.0
    assert DualLoRA(rank=4, direction_rank=16).count(10, 20) == 20 * 30
    assert DualLoRA(rank=4, sign="fixed", alpha=8.0).scaling == 2.0  # α / r₁, appendix B.1
    assert DualLoRA(rank=4, sign="fixed").count(10, 20) == 4 * 30
    fixed = one(DualLoRA(rank=2, sign="fixed"))
    assert set(fixed.tensor("signs").unique().tolist()) == {-1, 1}
    assert "signs" in fixed.constants()
    assert "steps" not in fixed.constants()


# Different methods on different modules


def test_a_method_for_each_pattern():
    """DoRA, Table 6: magnitude and direction on some modules, the magnitude alone on others."""
    model = inject(network(), {"*": Magnitude(), "[12]": DoRA(rank=2)}, seed=0, trainable=["3.bias"])
    assert {name: layer.method.name for name, layer in adapted(model).items()} == {
        "0": "magnitude", "1": "dora", "2": "dora", "3": "magnitude"
    }  # fmt: skip
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {"0.magnitude", "1.lora_A", "3.bias"} <= trained
    x = torch.randn(3, 6, dtype=torch.float64)
    torch.testing.assert_close(model(x), network()(x))
    merge(model)
    torch.testing.assert_close(model(x), network()(x))


def test_bad_mappings():
    with pytest.raises(OptionError, match="keys of the mapping"):
        inject(network(), {"0": LoRA()}, ["1"])
    with pytest.raises(TargetError, match="no target"):
        inject(network(), LoRA(rank=2), [])
    with pytest.raises(OptionError, match="goes with no other"):
        inject(network(), {"0": FullFineTuning(), "1": LoRA(rank=2)})
    with pytest.raises(OptionError, match="must be a method"):
        inject(network(), {"0": "lora"})
    with pytest.raises(TargetError, match="nothing"):
        inject(network(), {"0": BoRA(rank=2), "query": LoRA(rank=2)})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("asylora", {"task": 1}), ("pissa", {"iterations": -1}), ("corda", {"mode": "both"}), ("corda", {"damping": 0}),
        ("vera", {"d_initial": 0}), ("dvora", {"axis": "both"}), ("mora", {"variant": "six"}),
        ("delta-lora", {"ratio": 0}), ("delta-lora", {"start_step": -1}), ("magnitude", {"axis": "both"}),
        ("magnitude", {"rank": 4}), ("dual-lora", {"sign": "bnn"}), ("dual-lora", {"activation": "gelu"}),
        ("dual-lora", {"direction_rank": 0}), ("dual-lora", {"sign": "fixed", "direction_rank": 4}),
    ],
)  # fmt: skip
def test_bad_options_are_named(name, options):
    with pytest.raises(OptionError, match=list(options)[-1]):
        create(name, **options)
    assert name in METHODS
