"""AdaLoRA's allocation of ranks, beside the paper's formulas written out, and its penalty."""

import copy

import pytest
import torch
from torch import nn

from deltaw.adapters import AdaLoRA, LoRA, OptionError, RankAllocator, TargetError, adapted, inject, penalty

OPTIONS = {"rank": 4, "target_rank": 2, "interval": 2, "warmup_share": 0.2, "final_share": 0.4, "beta1": 0.7}


def small():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 5), nn.Tanh(), nn.Linear(5, 5)).double()
    return inject(model, AdaLoRA(**OPTIONS), targets=["0", "2", "4"], seed=0)


def batches(steps):
    return torch.randn(steps, 6, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def step(model, optimizer, x):
    (model(x).square().mean() + penalty(model)).backward()
    optimizer.step()
    optimizer.zero_grad()


def by_the_paper(model, x, total):
    """Algorithm 1, with equations 6 to 12 entry by entry; the step is plain gradient descent."""
    layers, method = list(adapted(model).values()), AdaLoRA(**OPTIONS)
    names, first = ("lora_A", "lora_B", "lora_E"), 4 * 3
    begin, end = int(0.2 * total), total - int(0.4 * total)
    mean, spread, counts, left = {}, {}, [], None
    for t, batch in enumerate(x, 1):
        model.zero_grad()
        (model(batch).square().mean() + penalty(model)).backward()
        with torch.no_grad():
            for k, layer in enumerate(layers):
                for name in names:
                    w = layer.tensor(name)
                    s = (w * w.grad).abs()
                    mean[k, name] = method.beta1 * mean.get((k, name), 0) + (1 - method.beta1) * s
                    change = (s - mean[k, name]).abs()
                    spread[k, name] = method.beta2 * spread.get((k, name), 0) + (1 - method.beta2) * change
                    w -= 0.1 * w.grad
            scores = []
            for k in range(len(layers)):
                a, b, e = (mean[k, name] * spread[k, name] for name in names)
                scores += [(float(e[i, 0] + b[:, i].mean() + a[i].mean()), k, i) for i in range(4)]
            budget = first if t <= begin else 2 * 3
            if begin < t < end:
                budget = int(6 + (12 - 6) * (1 - (t - begin) / (end - begin)) ** 3)
            if (begin < t < end and t % 2 == 0) or t == end:
                left = {(k, i) for _, k, i in sorted(scores, key=lambda found: -found[0])[:budget]}
            if (begin < t < end and t % 2 == 0) or t >= end:
                for k, layer in enumerate(layers):
                    for i in range(4):
                        if (k, i) not in left:
                            layer.tensor("lora_E")[i] = 0
        counts.append([int(layer.tensor("lora_E").count_nonzero()) for layer in layers])
    return counts


def test_the_ranks_are_those_of_the_algorithm():
    model, total = small(), 20
    other = copy.deepcopy(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    allocator = RankAllocator(model, optimizer, total)
    counts = []
    for x in batches(total):
        step(model, optimizer, x)
        counts.append(list(allocator.ranks().values()))
    assert counts == by_the_paper(other, batches(total), total)
    assert counts[3] == [4, 4, 4]  # before the pruning
    assert sum(counts[-1]) == 2 * 3
    assert sum(counts[5]) == 6 + int(6 * 0.75**3)  # on its way
    assert counts[6] == [4, 4, 4]  # between two prunings all are trained
    for one, two in zip(adapted(model).values(), adapted(other).values(), strict=True):
        torch.testing.assert_close(one.update(), two.update())
    assert [torch.linalg.matrix_rank(layer.update()).item() for layer in adapted(model).values()] == counts[-1]


def test_the_budget_falls_from_all_to_the_last():
    model = small()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    found = [RankAllocator(model, optimizer, 100).budget(t) for t in range(1, 101)]
    assert found[:20] == [12] * 20
    assert found[59:] == [6] * 41
    assert sorted(found, reverse=True) == found


def test_an_interrupted_training_goes_on_to_the_same_weights():
    def train(model, optimizer, x):
        RankAllocator(model, optimizer, 20)
        for batch in x:
            step(model, optimizer, batch)
        return model

    def adam(model):
        return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)

    x, whole = batches(20), small()
    train(whole, adam(whole), x)
    for stop in (7, 15):  # while the budget falls, and when it has fallen
        first = small()
        optimizer = adam(first)
        train(first, optimizer, x[:stop])
        second = small()
        second.load_state_dict(first.state_dict())
        again = adam(second)
        again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        train(second, again, x[stop:])
        for (name, one), two in zip(whole.named_parameters(), second.parameters(), strict=True):
            assert torch.equal(one, two), name


def test_the_penalty_is_the_mean_distance_from_orthogonality():
    model = small()
    found = []
    for layer in adapted(model).values():
        A, B = layer.tensor("lora_A"), layer.tensor("lora_B")
        found += [(P.T @ P - torch.eye(4)).square().sum().sqrt() for P in (B, A.T)]
    torch.testing.assert_close(penalty(model), 0.5 * sum(found) / 6)
    with torch.no_grad():
        for layer in adapted(model).values():
            nn.init.orthogonal_(layer.lora_A)
            nn.init.orthogonal_(layer.lora_B)
    assert penalty(model) < 1e-12
    assert penalty(inject(nn.Sequential(nn.Linear(7, 9)), AdaLoRA(rank=2, orthogonality=0), ["0"])) == 0.0
    assert penalty(nn.Linear(3, 3)) == 0.0


@pytest.mark.parametrize(
    ("options", "named"),
    [({"target_rank": 13}, "target_rank 13"), ({"warmup_share": 0.5}, "together"), ({"beta1": 1.0}, "beta1"),
     ({"orthogonality": -1.0}, "orthogonality"), ({"interval": 0}, "interval"), ({"final_share": 1.0}, "final_share")],
)  # fmt: skip
def test_bad_options_are_named(options, named):
    with pytest.raises(OptionError, match=named):
        AdaLoRA(**options)


def test_only_a_model_with_one_budget_has_an_allocator():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
    with pytest.raises(TargetError, match="no layer of AdaLoRA"):
        RankAllocator(inject(nn.Sequential(nn.Linear(7, 9)), LoRA(rank=2), ["0"]), optimizer, 10)
    two = {"0": AdaLoRA(rank=3), "1": AdaLoRA(rank=6)}
    with pytest.raises(TargetError, match="differ"):
        RankAllocator(inject(nn.Sequential(nn.Linear(7, 9), nn.Linear(9, 7)), two), optimizer, 10)
