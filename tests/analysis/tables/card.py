"""A device that is none: tensors that say they are on "card:0", and refuse what a GPU's would refuse.

Run as a program, it makes every table of some recorded runs there and prints how far each is from the processor's. It
is a process of its own, as torch can be told of such a device only once and for good.
"""

import json
import sys
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

CPU = torch.device("cpu")
aten = torch.ops.aten


class OnCard(torch.Tensor):
    """A tensor that says it is on the card; its numbers are in ``inner``."""

    @staticmethod
    def __new__(cls, inner):
        about = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, device="card:0", **about)

    def __init__(self, inner):
        self.inner = inner

    def numpy(self, **_):
        raise TypeError("can't convert a tensor on the card to numpy; use Tensor.cpu() first")

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return dispatched(function, args, kwargs or {})


class Card(TorchDispatchMode):
    """What makes new tensors, and moves them, on the card."""

    copies = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return dispatched(function, args, kwargs or {})


def dispatched(function, args, kwargs):
    """Compute with the inner tensors; raise where tensors of both devices meet."""
    tensors = []
    tree_map(lambda x: tensors.append(x) if isinstance(x, torch.Tensor) else None, (args, kwargs))
    cards = [tensor for tensor in tensors if isinstance(tensor, OnCard)]
    device = kwargs.get("device")
    inner, options = tree_map(lambda x: x.inner if isinstance(x, OnCard) else x, (args, dict(kwargs)))
    options |= {"device": CPU} if "device" in options else {}
    options.pop("pin_memory", None)
    name = function.overloadpacket
    if name is aten._to_copy:
        there = cards if device is None else device.type == "card"
        Card.copies += bool(there) and not cards
        return OnCard(function(*inner, **options)) if there else function(*inner, **options)
    if name is aten.copy_:
        function(*inner, **options)
        return args[0]
    if cards and any(tensor.dim() > 0 and not isinstance(tensor, OnCard) for tensor in tensors):
        raise RuntimeError(f"{function}: Expected all tensors to be on the same device, found card:0 and cpu")
    found = function(*inner, **options)
    if not (cards if device is None else device.type == "card"):
        return found

    def outside(x):
        same = [card for card in cards if card.inner is x]
        return same[0] if same else OnCard(x) if isinstance(x, torch.Tensor) else x

    return tree_map(outside, found)


def main(folder: Path) -> None:
    """Print the largest relative difference of every column of every table of the runs in a folder."""
    from deltaw.analysis import open_runs
    from deltaw.analysis.tables.registry import TABLES
    from deltaw.analysis.tables.work import Work

    given = {"intruders": {"k": 2, "steps": [2]}, "amplification": {"ranks": [1, 2], "steps": [2]}}
    found = {}
    for path in sorted(folder.iterdir()):
        for name, kind in TABLES.items():
            runs, options = open_runs([path]), given.get(name, {})
            want = kind.make(runs, **options)
            before = Card.copies
            with Card():
                have = kind.make(runs, work=Work(device="card"), **options)
            assert Card.copies > before, f"{path.name} {name}: nothing was computed on the card"
            numbers = want.select_dtypes("float").columns
            assert have.drop(columns=numbers).equals(want.drop(columns=numbers)), f"{path.name} {name}"
            apart = (have[numbers] - want[numbers]).abs().div(want[numbers].abs().clip(lower=1e-300))
            nan = have[numbers].isna().equals(want[numbers].isna())
            found[f"{path.name} {name}"] = float(apart.max().max()) if nan else float("inf")
    print(json.dumps(found))


if __name__ == "__main__":
    _setup_privateuseone_for_python_backend("card")
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
