"""ΔM and ΔD from ρ, γ, U and V are those of the dense W', and of exact arithmetic."""

import mpmath
import pytest
import torch
from torch import Tensor

from deltaw.adapters import METHODS, create
from deltaw.adapters.compiled.built import schedule
from deltaw.adapters.method import ScaledLowRank
from deltaw.analysis.measures import again
from deltaw.analysis.measures.built import Built, built_sums
from deltaw.analysis.measures.change import AXES, Change, PairChanges, changes

OUT, IN, RANK = 37, 29, 3
FORMS = ["lora", "rslora", "lora-fa", "dora", "dora-row", "bora", "vera", "dvora", "sbora-fa", "sbora-fb", "pissa"]
FORMS += ["asylora", "oa", "lora+", "delta-lora", "magnitude", "adalora", "delora", "map", "bidora"]


def states(name: str, size: float, shape=(OUT, IN)) -> tuple[object, Tensor, list[dict[str, Tensor]]]:
    """W₀ in float32, and a method's tensors at two steps that are apart by so much of their size."""
    generator = torch.Generator().manual_seed(3)
    options = {} if name == "magnitude" else {"rank": RANK}
    method = create(name, **options, **({"alpha": 200.0} if name == "adalora" else {}))  # of three small matrices
    base = torch.randn(shape, generator=generator) * 0.1
    first = method.start(base, generator, {})

    def moved(state, by):
        return {
            key: value
            + by
            * value.std(correction=int(value.numel() > 1)).clamp(min=0.1)
            * torch.randn(value.shape, generator=generator)
            if key in method.shapes(*base.shape)
            else value
            for key, value in state.items()
        }

    before = moved(first, 0.3)
    return method, base, [before, moved(before, size)]


def wide(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.double() if value.is_floating_point() else value for key, value in state.items()}


def from_forms(method, base: Tensor, two: list[dict[str, Tensor]], pair=(0, 1)) -> dict[str, Change]:
    forms = [method.scaled_low_rank(base, wide(state)) for state in two]
    before, after = (base if place < 0 else Built(base, forms[place]) for place in pair)
    return PairChanges([(before, after)], built_sums(base, forms, [pair])).of(0, AXES)


@pytest.mark.parametrize("size", [2e-5, 1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("name", FORMS)
def test_the_fast_way_is_the_dense_way(name, size):
    method, base, two = states(name, size)
    dense = [method.weight(base.double(), wide(state)) for state in two]
    for pair, before in ((0, 1), dense[0]), ((-1, 1), base.double()):
        found = from_forms(method, base, two, pair)
        for axis, want in changes(before, dense[1]).items():
            seen = want.direction >= 1e-12
            assert bool(seen.any()) or size < 1e-4 or name == "magnitude"  # which rescales alone
            torch.testing.assert_close(found[axis].direction[seen], want.direction[seen], rtol=1e-5, atol=0)
            torch.testing.assert_close(found[axis].magnitude, want.magnitude, rtol=1e-5, atol=1e-13)
            assert found[axis].delta_m == pytest.approx(want.delta_m, rel=1e-5, abs=1e-13)


def exact(method, base: Tensor, state: dict[str, Tensor]) -> list[list[mpmath.mpf]]:
    """W' of DoRA or BoRA by its formula, in 60 digits."""
    mp = {key: mpmath.matrix(value.double().tolist()) for key, value in state.items()}
    V = mpmath.matrix(base.double().tolist()) + mp["lora_B"] * mp["lora_A"]
    rows, columns = V.rows, V.cols

    def along(matrix, axis):
        length = rows if axis == "row" else columns
        entries = [
            [matrix[k, j] if axis == "row" else matrix[j, k] for j in range(columns if axis == "row" else rows)]
            for k in range(length)
        ]
        return [mpmath.sqrt(mpmath.fsum(x * x for x in vector)) for vector in entries]

    steps = [("row", "magnitude_row"), ("column", "magnitude_column")]
    for axis, key in steps if method.name == "bora" else [(method.axis, "magnitude")]:
        norms = along(V, axis)
        factor = [mp[key][k] / norms[k] for k in range(len(norms))]
        for i in range(rows):
            for j in range(columns):
                V[i, j] *= factor[i if axis == "row" else j]
    return V.tolist()


@pytest.mark.parametrize("size", [3e-6, 1e-3, 1.0])
@pytest.mark.parametrize("name", ["dora", "dora-row", "bora"])
def test_exact_arithmetic(name, size):
    method, base, two = states(name, size, (7, 6))
    found = from_forms(method, base, two)
    with mpmath.workdps(60):
        a, b = (exact(method, base, state) for state in two)
        for axis, (first, second) in {"row": (a, b), "column": (zip(*a, strict=True), zip(*b, strict=True))}.items():
            for k, (x, y) in enumerate(zip(first, second, strict=True)):
                one, two_ = (mpmath.sqrt(mpmath.fdot(v, v)) for v in (x, y))
                direction = 1 - mpmath.fdot(x, y) / (one * two_)
                assert float(found[axis].magnitude[k]) == pytest.approx(float(abs(two_ - one)), rel=1e-5, abs=1e-15)
                if direction >= 1e-12:
                    assert float(found[axis].direction[k]) == pytest.approx(float(direction), rel=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (130, 515), (65, 1030)])
@pytest.mark.parametrize("rank", [0, 1, 5])
def test_any_shape_and_rank(shape, rank):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(shape, generator=generator)

    def draw(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    forms = [
        ScaledLowRank(draw(shape[0]), draw(shape[1]), draw(shape[0], rank), draw(rank, shape[1])) for _ in range(3)
    ]
    dense = [f.rho[:, None] * (base.double() + f.U @ f.V) * f.gamma for f in forms] + [base.double()]
    pairs = [(0, 1), (-1, 2), (1, 2)]
    sums = built_sums(base, forms, pairs)
    for k, (a, b) in enumerate(pairs):
        d = dense[b] - dense[a]
        for product, row, column in zip((dense[a] ** 2, dense[a] * d, d * d), sums["row"], sums["column"], strict=True):
            torch.testing.assert_close(row[k], product.sum(1), rtol=1e-11, atol=1e-11)
            torch.testing.assert_close(column[k], product.sum(0), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_and_neighbours_make_no_difference(threads):
    method, base, two = states("bora", 1e-3, (300, 700))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        forms = [method.scaled_low_rank(base, wide(state)) for state in two]
        want = built_sums(base, forms, [(0, 1)])
        torch.set_num_threads(threads)
        forms = [method.scaled_low_rank(base, wide(state)) for state in two]
        found = built_sums(base, [*forms, forms[0]], [(2, 0), (-1, 1), (0, 1)])
    finally:
        torch.set_num_threads(before)
    for axis in want:
        assert all(torch.equal(x[0], y[2]) for x, y in zip(want[axis], found[axis], strict=True))
        assert not found[axis].dd[0].any()


def test_a_pair_is_summed_as_soon_as_it_can_be():
    pairs = ((2, 4), (-1, 0), (0, 1), (1, 2), (2, 3), (3, 4), (4, 0), (-1, -1))
    order, slots, ends = schedule(5, pairs)
    there, done = {0: -1}, 0
    for step in range(5):
        there[slots[step]] = step  # in the place of a step that no later pair needs
        for number, first, second in order[done : ends[step]]:
            assert (there[first], there[second]) == pairs[number]
        done = ends[step]
    assert sorted(number for number, _, _ in order) == list(range(len(pairs)))
    assert max(slots) == 4  # 0, 2, and two more
    assert max(schedule(9, tuple((k, k + 1) for k in range(8)))[1]) == 2


@pytest.mark.parametrize(("name", "size"), [("magnitude", 1e-2), ("map", 1e-6), ("map", 1e-3), ("lora", 1e-9)])
def test_many_directions_together_are_those_alone(name, size, monkeypatch):
    """Of matrices that are rescaled and hardly turned, and of one of which a row and a column are zero."""
    generator = torch.Generator().manual_seed(4)
    method = create(name, **({} if name == "magnitude" else {"rank": 3}))
    base = torch.randn(150, 170, generator=generator)
    base[7], base[:, 9] = 0, 0
    state = method.start(base, generator, {})
    two = [wide(state), wide(state)]
    for step, by in zip(two, (0.1, 0.2), strict=True):
        for key in method.shapes(*base.shape):
            draw = torch.randn(step[key].shape, generator=generator, dtype=torch.float64)
            moved = 1 + by * draw.abs() if key.startswith("magnitude") else 1.0
            step[key] = step[key] * moved + (size * draw if key != "magnitude" else 0.0)
    forms = [method.scaled_low_rank(base, step) for step in two]
    pairs = [(0, 1), (-1, 1), (1, -1), (0, 0)]
    both = [tuple(base if place < 0 else Built(base, forms[place]) for place in pair) for pair in pairs]
    together = PairChanges(both, built_sums(base, forms, pairs))
    for number, (pair, matrices) in enumerate(zip(pairs, both, strict=True)):
        sums = built_sums(base, forms, [pair])
        found, alone = together.of(number, AXES), PairChanges([matrices], sums).of(0, AXES)
        with monkeypatch.context() as patch:
            patch.setattr(again, "_MANY", 10**9)
            slow = PairChanges([matrices], sums).of(0, AXES)
        for axis, want in slow.items():
            direction, exact = found[axis].direction, want.direction
            assert torch.equal(direction.nan_to_num(9), alone[axis].direction.nan_to_num(9))
            assert found[axis].delta_d == alone[axis].delta_d == pytest.approx(want.delta_d, rel=1e-6, abs=1e-28)
            assert found[axis].undefined == want.undefined
            assert torch.equal(found[axis].magnitude, want.magnitude)
            assert torch.equal(direction.isnan(), exact.isnan())
            assert bool(((direction - exact).abs() <= 1e-11 * exact.sqrt() + 1e-28)[~exact.isnan()].all())
            seen = exact >= 1e-12
            torch.testing.assert_close(direction[seen], exact[seen], rtol=1e-7, atol=0)
        assert name != "magnitude" or float(found["column"].direction.nan_to_num().max()) < 1e-28


def test_no_vector_of_a_rescaled_matrix_is_built_alone(monkeypatch):
    method, base, two = states("magnitude", 1e-3, (130, 140))
    monkeypatch.setattr(Built, "take", None)
    assert from_forms(method, base, two)["column"].delta_d < 1e-28


def test_which_methods_have_the_form():
    without = {"ft", "dual-lora", "mora", "hira", "randlora", "galore", "corda", "oft"}
    assert set(FORMS) == set(METHODS) - without
