"""PiSSA's residual in two processes: it follows what DDP sends, is not sent itself, and FSDP2 makes it no anew."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from deltaw.adapters import PiSSA, effective_weight, inject

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")


def made(seed=0):
    torch.manual_seed(seed)
    return inject(nn.Sequential(nn.Linear(6, 5), nn.Tanh()), PiSSA(rank=2, iterations=0), ["0"], seed=seed)


def is_the_definition(model, layer):
    x = torch.randn(4, 6)
    wanted = torch.tanh(x @ effective_weight(layer).T + layer.bias)
    torch.testing.assert_close(model(x), wanted, rtol=1e-5, atol=1e-5)


def test_ddp_brings_another_start_and_base(tmp_path, in_two):
    def work(rank, path):
        model = made(seed=rank)
        is_the_definition(model, model[0])
        other = nn.parallel.DistributedDataParallel(model)
        residual = model[0].residual
        for _ in range(3):
            is_the_definition(other, model[0])
        return residual.tolist(), model[0].residual is residual

    one, other = in_two(work, tmp_path)
    assert one == other
    assert one[1]


@pytest.mark.skipif(not hasattr(torch.distributed, "fsdp"), reason="this torch has no fully_shard")
@pytest.mark.parametrize("lower", [False, True])
def test_fsdp2_keeps_the_residual(lower, tmp_path, in_two):
    def work(rank, path):
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        model, x = made(), torch.ones(3, 6)
        wanted, residual = model(x), model[0].residual
        policy = {"mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16)} if lower else {}
        fully_shard(model, **policy)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0, fused=True)
        for _ in range(3):
            out = model(x)
            out.sum().backward()
            optimizer.step()
        torch.testing.assert_close(out.float(), wanted, rtol=1e-1 if lower else 1e-6, atol=5e-2 if lower else 1e-6)
        return model[0].residual is residual

    assert in_two(work, tmp_path) == (True, True)
