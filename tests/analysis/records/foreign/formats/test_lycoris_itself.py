"""What LyCORIS's own modules compute, where it is installed (``pip install lycoris-lora``), held to what is read."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from deltaw.analysis import Trajectory

CASES = {
    "locon": ("locon.LoConModule", {}),
    "locon, core": ("locon.LoConModule", {"use_tucker": True}),
    "loha": ("loha.LohaModule", {"use_scalar": True}),
    "loha, core": ("loha.LohaModule", {"use_tucker": True}),
    "lokr": ("lokr.LokrModule", {}),
    "lokr, core": ("lokr.LokrModule", {"use_tucker": True, "factor": 4}),
    "lokr, products": ("lokr.LokrModule", {"decompose_both": True, "factor": 4}),
    "lokr, whole": ("lokr.LokrModule", {"full_matrix": True}),
    "ia3, inputs": ("ia3.IA3Module", {"train_on_input": True}),
    "ia3, rows": ("ia3.IA3Module", {"train_on_input": False}),
}
DORA = {
    "no dora": {},
    "rows": {"weight_decompose": True, "wd_on_out": True},
    "inputs": {"weight_decompose": True, "wd_on_out": False},
}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("layer", ["linear", "conv"])
@pytest.mark.parametrize("dora", DORA)
@pytest.mark.parametrize("case", CASES)
def test_the_forward_of_lycoris(case, dora, layer, tmp_path):
    pytest.importorskip("lycoris")
    from importlib import import_module

    name, options = CASES[case]
    module, _, kind = name.partition(".")
    if module == "ia3" and dora != "no dora":
        pytest.skip("IA3 has no DoRA")
    torch.manual_seed(0)
    base = nn.Linear(12, 16) if layer == "linear" else nn.Conv2d(12, 16, 3, padding=1)
    x = torch.randn(2, 12) if layer == "linear" else torch.randn(2, 12, 6, 6)
    adapter = getattr(import_module(f"lycoris.modules.{module}"), kind)("x", base, 1.0, 4, 2.0, **options, **DORA[dora])
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    tensors = adapter.custom_state_dict() or adapter.state_dict()
    save_file(
        {f"lora_unet_x.{key}": value.detach().clone() for key, value in tensors.items()}, tmp_path / "a.safetensors"
    )
    W = base.weight.detach().clone()
    adapter.apply_to()
    run = Trajectory.open(tmp_path / "a.safetensors", base={"x.weight": W})
    found = run.weight(run.modules[0], 0, torch.float32).reshape(W.shape)
    own = (
        torch.nn.functional.linear
        if layer == "linear"
        else lambda *given: torch.nn.functional.conv2d(*given, padding=1)
    )
    torch.testing.assert_close(own(x, found, base.bias), adapter.eval()(x), rtol=1e-4, atol=1e-5)
