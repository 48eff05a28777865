"""A device that is none: tensors that say they are on "card:0", and refuse what a GPU's would refuse.

Run as a program, it makes every table of some recorded runs there and prints how far each is from the processor's. It
is a process of its own, as torch can be told of such a device only once and for good.
"""

import contextlib
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
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

    def record_stream(self, stream):
        Streams.recorded += 1

    def numpy(self, **_):
        raise TypeError("can't convert a tensor on the card to numpy; use Tensor.cpu() first")

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return dispatched(function, args, kwargs or {})


class Streams:
    """The card's streams, which count what is asked of them."""

    waited = recorded = 0

    def Stream(self, device):  # noqa: N802 - torch's name
        return self

    def stream(self, stream):
        return contextlib.nullcontext()

    def current_stream(self, device):
        return self

    def record_event(self):
        return "an event"

    def wait_event(self, event):
        Streams.waited += 1

    def is_available(self):
        return True

    def is_initialized(self):
        return True

    def device_count(self):
        return 1

    def current_device(self):
        return 0

    def _is_in_bad_fork(self):
        return False

    def manual_seed_all(self, seed):
        pass


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


def apart(have: float, want: float) -> float:
    """Return the relative difference, 0 where both are NaN."""
    return 0.0 if have == want or (have != have and want != want) else abs(have - want) / max(abs(want), 1e-300)


def compared(made) -> float:
    """Return the largest relative difference of a table from the device, which a function of its ``work`` makes."""
    want, before = made(HERE), Card.copies
    with Card():
        have = made(Work(device="card"))
    assert Card.copies > before, "nothing was computed on the card"
    numbers = want.select_dtypes("float").columns
    assert have.drop(columns=numbers).equals(want.drop(columns=numbers))
    pairs = [zip(have[column], want[column], strict=True) for column in numbers]
    return max(apart(*pair) for column in pairs for pair in column)


def tables(folder: Path) -> dict[str, float]:
    """Return the largest relative difference of every table of the runs in a folder."""
    found = {}
    given = {"intruders": {"k": 2, "steps": [2]}, "amplification": {"ranks": [1, 2], "steps": [2]}}
    given |= {"heads": {"heads": 3, "pairs": "consecutive"}, "matrix": {"axes": ("matrix",)}}
    made = {name: kind for name, kind in TABLES.items() if name != "experts"} | {"matrix": TABLES["changes"]}
    for path in sorted(folder.iterdir()):
        for name, kind in made.items():
            make = partial(kind.make, open_runs([path]), **given.get(name, {}))
            found[f"{path.name} {name}"] = compared(lambda work, make=make: make(work=work))
    first, second = open_runs([folder / "lora", folder / "bora"])
    found["overlap"] = compared(lambda work: subspace_overlap(first, second, ranks=[1, 2], work=work))
    found["angles"] = compared(lambda work: subspace_angles(first, second, rank=2, work=work))
    return found


def measures() -> dict[str, float]:
    """Return the relative difference of measures of large matrices, which go other ways than small ones."""
    torch.manual_seed(0)
    low = torch.randn(800, 30) @ torch.randn(30, 800)
    full, before = torch.randn(300, 200), torch.randn(300, 200)
    of = {
        "gram": lambda x: spectrum(x[:300, :200]).effective_rank,
        "svd": lambda x: spectrum(x[:100, :100]).effective_rank,
        "stored": lambda x: spectrum(x, stored=torch.bfloat16, weight=x + 1).frobenius,
        "rank": lambda x: spectrum(x).rank,
        "leading": lambda x: leading_spectrum(x, energy=[0.9]).stable_rank,
        "factors": lambda x: spectrum(factors=(x[:, :64], x[:64])).effective_rank,
        "bfloat16 factors": lambda x: spectrum(factors=(x[:, :64].bfloat16(), x[:64].bfloat16())).nuclear,
    }
    found = {}
    with Card():
        for name, measure in of.items():
            found[name] = apart(measure(low.to("card")), measure(low))
        for axis in ("row", "column", "matrix"):
            found[f"change {axis}"] = apart(
                *(change(*pair, axis).delta_d for pair in both(before, before + 1e-5 * full))
            )
        blocks = equal_blocks("column", 200, 8)
        found["change head"] = apart(
            *(change(*pair, "head", blocks=blocks).delta_d for pair in both(before, before * 1.25 + 1e-5 * full))
        )
        found["long vectors"] = apart(*(change(*pair, "matrix").delta_m for pair in both(before, before.T.T * 1.25)))
        found["zero vectors"] = apart(*(change(*pair, "row").delta_m for pair in both(0 * full, full)))
        found["similarity"] = apart(*(dissimilarity(*pair) for pair in both(before, full)))
        found["survival"] = apart(*(survival(*pair, torch.bfloat16).error for pair in both(before, full)))
    return found


def both(*matrices):
    """Return matrices on the card, and as they are."""
    return [matrix.to("card") for matrix in matrices], matrices


if __name__ == "__main__":
    _setup_privateuseone_for_python_backend("card", backend_module=Streams())
    torch.set_num_threads(1)

    from deltaw.analysis import open_runs
    from deltaw.analysis.measures.blocks import equal_blocks
    from deltaw.analysis.measures.change import change
    from deltaw.analysis.measures.leading import leading_spectrum
    from deltaw.analysis.measures.similarity import dissimilarity
    from deltaw.analysis.measures.spectrum import spectrum
    from deltaw.analysis.measures.survival import survival
    from deltaw.analysis.tables import device
    from deltaw.analysis.tables.registry import TABLES
    from deltaw.analysis.tables.subspaces import subspace_angles, subspace_overlap
    from deltaw.analysis.tables.work import HERE, Work

    pool = ThreadPoolExecutor(1, initializer=lambda: Card().__enter__())  # a mode is the thread's own
    device._reader = lambda: pool
    found = {"tables": tables(Path(sys.argv[1])), "measures": measures()}
    print(json.dumps(found | {"devices": device.devices(), "waited": Streams.waited, "recorded": Streams.recorded}))
