"""Training at two levels: the hypergradient beside double differentiation, the examples, and BiDoRA's run."""

import copy

import pytest
import torch
from torch import nn

from deltaw.adapters import BiDoRA, DoRA, OptionError, adapted, create, inject, penalty
from deltaw.adapters.method import Bilevel
from deltaw.analysis import Trajectory
from deltaw.trainers import hypergradient
from deltaw.trainers.bilevel import TwoPhases
from deltaw.trainers.cola import ColaSettings, train_cola
from deltaw.trainers.cola.data import BUILTIN


def bidora():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 4)).double()
    inject(model, BiDoRA(rank=2), targets=["0", "2"], seed=0)
    layers = list(adapted(model).values())
    with torch.no_grad():
        for layer in layers:
            layer.tensor("lora_B").normal_(generator=torch.Generator().manual_seed(1)).mul_(0.1)
    upper = [layer.tensor("magnitude") for layer in layers]
    return model, [layer.tensor(name) for layer in layers for name in ("lora_A", "lora_B")], upper


def losses(model):
    x, y, u, w = (torch.randn(9, n, generator=torch.Generator().manual_seed(n)).double() for n in (7, 4, 7, 4))
    return lambda: (model(x) - y).square().mean() + penalty(model), lambda: (model(u) + w).square().mean()


def test_the_hypergradient_is_that_of_one_unrolled_step():
    """Differentiated twice by autograd: ∇_M of L_val(V − ξ ∇_V L_train(V, M), M)."""
    model, lower, upper = bidora()
    training, validation = losses(model)
    before = [p.detach().clone() for p in model.parameters()]
    rate = 0.3
    found = hypergradient(lower, upper, training, validation, rate, distance=1e-4)
    assert all(torch.equal(one, two) for one, two in zip(before, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())

    names = {id(p): name for name, p in model.named_parameters()}
    x, y, u, w = (torch.randn(9, n, generator=torch.Generator().manual_seed(n)).double() for n in (7, 4, 7, 4))

    def output(values, inputs):
        return torch.func.functional_call(model, values, (inputs,))

    fixed = {names[id(p)]: p.detach().clone().requires_grad_(True) for p in [*lower, *upper]}
    V, M = [names[id(p)] for p in lower], [names[id(p)] for p in upper]
    weights = {f"{k}": layer for k, layer in zip((0, 2), adapted(model).values(), strict=True)}

    def dense(values, inputs):
        """The model from the definition of W', which differentiates twice."""
        hidden = inputs
        for k, layer in weights.items():
            state = {name: values[f"{k}.{name}"] for name in ("lora_A", "lora_B", "magnitude")}
            hidden = nn.functional.linear(hidden, layer.method.weight(layer.base, state), layer.bias)
            hidden = torch.tanh(hidden) if k == "0" else hidden
        return hidden

    torch.testing.assert_close(dense(fixed, x), output(fixed, x))
    loss = (dense(fixed, x) - y).square().mean()
    first = torch.autograd.grad(loss, [fixed[name] for name in V], create_graph=True)
    orthogonal = torch.autograd.grad(penalty(model), lower)  # a constant for M
    moved = {name: fixed[name] - rate * (g + o) for name, g, o in zip(V, first, orthogonal, strict=True)}
    wanted = torch.autograd.grad((dense(fixed | moved, u) + w).square().mean(), [fixed[name] for name in M])
    direct = torch.autograd.grad((dense(fixed, u) + w).square().mean(), [fixed[name] for name in M])
    for got, exact, simple in zip(found, wanted, direct, strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-5, atol=1e-9)
        assert (exact - simple).norm() > 1e-3 * exact.norm()  # the lower level's answer does matter

    given = torch.autograd.grad(training(), lower)
    again = hypergradient(lower, upper, training, validation, rate, gradient=given, distance=1e-4)
    assert all(torch.equal(one, two) for one, two in zip(found, again, strict=True))
    at_zero = hypergradient(lower, upper, training, validation, 0.0)
    for got, simple in zip(at_zero, direct, strict=True):
        torch.testing.assert_close(got, simple)


def test_both_sides_of_the_difference_have_the_same_dropout():
    V, M = torch.ones(50, requires_grad=True), torch.ones(50, requires_grad=True)

    def training():
        return (nn.functional.dropout(V * M, 0.5)).sum()

    state = torch.get_rng_state()
    found = hypergradient([V], [M], training, lambda: V.sum(), 0.1, gradient=[torch.ones(50)])
    assert torch.equal(torch.get_rng_state(), state)
    # ∇_M L_train = mask·V/(1 − p): the difference along v is the mask, 0 or 2, and nothing of size 1/ε.
    assert {round(value, 3) for value in (found[0] / -0.1).tolist()} == {0.0, 2.0}


def test_an_interrupted_hypergradient_leaves_the_parameters():
    model, lower, upper = bidora()
    training, _ = losses(model)
    before = [p.detach().clone() for p in lower]

    def broken():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hypergradient(lower, upper, training, broken, 0.1)
    assert all(torch.equal(one, two) for one, two in zip(before, lower, strict=True))


def test_the_two_phases_of_examples():
    levels = Bilevel((), 0.8, 0.4)
    batches = TwoPhases(23, 4, seed=3, epochs=5, levels=levels)
    assert len(batches.inner) == 18
    assert sorted(batches.inner + batches.outer) == list(range(23))
    assert (batches.search_epochs, len(batches)) == (2, 6)
    for epoch in range(5):
        batches.set_epoch(epoch)
        found = list(batches)
        assert [len(batch) for batch in found] == [4] * 5 + [3]
        assert found == list(batches)  # the same whenever it is asked
        keys = [key for batch in found for key in batch]
        assert set(keys) == set(batches.inner if epoch < 2 else range(23))
    outer = [key for step in range(12) for key in batches.validation(step)]
    assert set(outer) == set(batches.outer)
    assert max(map(outer.count, batches.outer)) - min(map(outer.count, batches.outer)) <= 2
    assert TwoPhases(23, 4, seed=4, epochs=5, levels=levels).outer != batches.outer
    for epochs, searching in ((2, 1), (3, 1), (80, 32)):
        assert TwoPhases(23, 4, seed=3, epochs=epochs, levels=levels).search_epochs == searching
    with pytest.raises(OptionError, match="2 epochs"):
        TwoPhases(23, 4, seed=3, epochs=1, levels=levels)


def test_the_penalty_is_the_distance_of_the_directions_from_orthogonality():
    model, _, _ = bidora()
    found = []
    for layer in adapted(model).values():
        V = layer.base + layer.tensor("lora_B") @ layer.tensor("lora_A")
        D = V / V.norm(dim=0)
        found.append((D.T @ D - torch.eye(V.shape[1])).square().sum().sqrt())
    torch.testing.assert_close(penalty(model), 1e-5 * sum(found) / 2)


def test_bidora_is_dora_with_a_full_gradient():
    model, _, _ = bidora()
    other = copy.deepcopy(model)
    for layer in adapted(other).values():
        layer.method = DoRA(rank=2, detach_norm=False)
    x = torch.randn(5, 7, dtype=torch.float64)
    assert torch.equal(model(x), other(x))


@pytest.mark.parametrize(
    "options", [{"inner_share": 1.0}, {"search_share": 0.0}, {"magnitude_ratio": 0}, {"orthogonality": -1}]
)
def test_bad_options_are_named(options):
    with pytest.raises(OptionError, match=next(iter(options))):
        create("bidora", **options)


def settings(small, **options):
    chosen = {"epochs": 3, "batch_size": 16, "record_every": 1, "learning_rate": 1e-2, "warmup_ratio": 0.0}
    return ColaSettings(method="bidora", model=str(BUILTIN / "model"), data=str(small), **chosen | options)


def test_a_run_searches_and_then_trains_anew(small, tmp_path):
    train_cola(settings(small), tmp_path / "run", progress=False)
    run = Trajectory.open(tmp_path / "run")
    last = run.steps[-1]
    turn = last // 3  # one epoch of three
    module = run.modules[0]
    state = {step: run.state(module, step) for step in run.steps}
    m = [state[step]["magnitude"] for step in run.steps]
    assert not torch.equal(m[0], m[turn])  # the search moves m
    assert all(torch.equal(m[turn], m[step]) for step in range(turn, last + 1))  # and it stays
    A, B = ([state[step][name] for step in run.steps] for name in ("lora_A", "lora_B"))
    assert B[0].abs().max() == 0
    assert B[turn].abs().max() > 0
    # From the start again:
    assert torch.linalg.vector_norm(A[turn + 1] - A[0]) < torch.linalg.vector_norm(A[turn] - A[0])
    assert B[last].abs().max() > 0


def test_an_interrupted_run_goes_on_to_the_same_weights(small, tmp_path, monkeypatch):
    from deltaw.trainers.bilevel import BilevelTrainer

    train_cola(settings(small, save_every=1), tmp_path / "whole", progress=False)
    whole = Trajectory.open(tmp_path / "whole")
    training_step = BilevelTrainer.training_step
    for stop in (1, 2):  # where the search ends, and after it

        def stopping(self, *args, stop=stop, **kwargs):
            if self.state.global_step == stop * len(self.phases):
                raise KeyboardInterrupt
            return training_step(self, *args, **kwargs)

        folder = tmp_path / f"stopped {stop}"
        monkeypatch.setattr(BilevelTrainer, "training_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            train_cola(settings(small, save_every=1), folder, progress=False)
        monkeypatch.setattr(BilevelTrainer, "training_step", training_step)
        train_cola(settings(small, save_every=1), folder, progress=False)
        again = Trajectory.open(folder)
        assert again.steps == whole.steps
        for module in whole.modules:
            for name, value in whole.state(module, whole.steps[-1]).items():
                assert torch.equal(value, again.state(module, whole.steps[-1])[name])
