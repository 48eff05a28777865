"""ΔM and ΔD against exact arithmetic, and the laws they obey."""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltaw.adapters.errors import NonFiniteError, OptionError, ShapeError
from deltaw.analysis.measures.change import AXES, change, changes
from deltaw.analysis.measures.compensated import difference_of_squares

PROMISE = 1e-5


def exact(before, after, axis):
    """The papers' definitions, word by word, with 120 digits: [(magnitude, direction)] for every vector."""
    if axis == "column":
        before, after = before.T, after.T
    with mpmath.workdps(120):
        found = []
        for a_row, b_row in zip(before.double().tolist(), after.double().tolist(), strict=True):
            a, b = ([mpmath.mpf(x) for x in row] for row in (a_row, b_row))
            a_norm, b_norm = mpmath.sqrt(mpmath.fdot(a, a)), mpmath.sqrt(mpmath.fdot(b, b))
            if a_norm and b_norm:
                direction = 1 - mpmath.fdot(a, b) / (a_norm * b_norm)
            else:
                direction = mpmath.mpf(0) if a_norm == b_norm else mpmath.nan
            found.append((abs(b_norm - a_norm), direction))
        return found


def longdouble(before, after, axis):
    """The same for larger matrices, in the 64-bit mantissa of np.longdouble, from the difference."""
    a, b = (t.double().numpy().astype(np.longdouble) for t in (before, after))
    dim = 0 if axis == "column" else 1
    d = b - a
    a_norm, b_norm = np.sqrt((a * a).sum(dim)), np.sqrt((b * b).sum(dim))
    grown = ((a + b) * d).sum(dim) / (a_norm + b_norm)
    return np.abs(grown), ((d * d).sum(dim) - grown**2) / (2 * a_norm * b_norm)


def check(before, after, axis):
    """Hold one change against exact arithmetic, by the promise in the docstring."""
    got = change(before, after, axis)
    wanted = exact(before, after, axis)
    assert got.magnitude.dtype == got.direction.dtype == torch.float64
    assert got.magnitude.shape == got.direction.shape == (len(wanted),)
    with mpmath.workdps(120):
        for magnitude, direction, (dm, dd) in zip(got.magnitude.tolist(), got.direction.tolist(), wanted, strict=True):
            assert abs(magnitude - dm) <= PROMISE * dm
            if mpmath.isnan(dd):
                assert math.isnan(direction)
                continue
            assert 0 <= direction <= 2
            assert abs(direction - dd) <= (PROMISE * dd if dd >= 1e-12 else 1e-11 * mpmath.sqrt(abs(dd)) + 1e-28)
        defined = [dd for _, dd in wanted if not mpmath.isnan(dd)]
        delta_m = mpmath.fsum(dm for dm, _ in wanted) / len(wanted)
        assert abs(got.delta_m - delta_m) <= PROMISE * delta_m
        if defined:
            assert abs(got.delta_d - mpmath.fsum(defined) / len(defined)) <= PROMISE * mpmath.fsum(defined) + 1e-28
        else:
            assert math.isnan(got.delta_d)
    assert got.undefined == len(wanted) - len(defined)
    assert got.nonfinite == 0


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


BASE = random(7, 40) * 0.02
HOSTILE = {
    "identical": (BASE, BASE.clone()),
    "tiny update": (BASE, BASE + random(7, 40, seed=1) * 2e-8),
    "small update": (BASE, BASE + random(7, 40, seed=1) * 2e-6),
    "large update": (BASE, BASE + random(7, 40, seed=1)),
    "unrelated": (BASE, random(7, 40, seed=1)),
    "doubled": (BASE, BASE * 2),
    "tripled": (BASE, BASE * 3),
    "doubled and hardly turned": (BASE, 2 * (BASE + random(7, 40, seed=1) * 1e-7)),
    "tripled and hardly turned": (BASE, 3 * BASE * (1 + 1e-6 * random(7, 40, seed=1))),
    "shrunk and hardly turned": (BASE, 1e-3 * BASE * (1 + 1e-6 * random(7, 40, seed=1))),
    "sign flipped": (BASE, -BASE),
    "flipped and hardly turned": (BASE, -BASE * (1 + 1e-6 * random(7, 40, seed=1))),
    "far longer": (BASE, 1e9 * random(7, 40, seed=1)),
    "far shorter": (BASE, 1e-9 * random(7, 40, seed=1)),
    "reversed: turned, same length": (BASE, BASE.flip(1)),
    "reversed and hardly longer": (BASE, BASE.flip(1) * (1 + 1e-6 * random(7, 40, seed=1))),
    "zeros": (torch.zeros(7, 40), torch.zeros(7, 40)),
    "from zero": (torch.zeros(7, 40), BASE),
    "to zero": (BASE, torch.zeros(7, 40)),
    "some zero": (BASE * (torch.arange(7) % 2)[:, None], BASE * (torch.arange(7) % 3)[:, None]),
    "some columns zero": (BASE * (torch.arange(40) % 2), BASE * (torch.arange(40) % 3)),
    "duplicated rows": (BASE[:1].repeat(7, 1), (BASE[:1] + 1e-4).repeat(7, 1)),
    "constant": (torch.full((7, 40), 0.3), torch.full((7, 40), 0.7)),
    "huge": (BASE * 1e38, (BASE + random(7, 40, seed=1) * 1e-6) * 1e38),
    "subnormal": (BASE * 1e-38, (BASE + random(7, 40, seed=1) * 1e-3) * 1e-38),
    "huge and small in one": (BASE * 10.0 ** torch.linspace(-30, 30, 40), BASE * 10.0 ** torch.linspace(-29, 31, 40)),
    "one row": (BASE[:1], BASE[1:2]),
    "one column": (BASE[:, :1], BASE[:, 1:2]),
    "one number": (BASE[:1, :1], BASE[1:2, :1]),
    "bfloat16": (BASE.bfloat16(), (BASE * 1.01).bfloat16()),
    "float16": (BASE.half(), (BASE + random(7, 40, seed=1) * 1e-3).half()),
    "mixed dtypes": (BASE.bfloat16(), BASE),
    "float64": (BASE.double(), BASE.double() * (1 + 1e-6 * random(7, 40, seed=1, dtype=torch.float64))),
    "float64, huge": (BASE.double() * 1e250, BASE.double() * 1e250 * (1 + random(7, 40, seed=1).double() * 1e-5)),
    "float64, tiny": (BASE.double() * 1e-250, BASE.double() * 1e-250 * (1 + random(7, 40, seed=1).double() * 1e-5)),
    "float64, worlds apart": (BASE.double() * 1e-150, random(7, 40, seed=1).double() * 1e150),
    "not contiguous": (BASE.repeat_interleave(2, 1)[:, ::2], BASE.T.contiguous().T * 1.01),
}


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("name", HOSTILE)
def test_exact_on_hostile_matrices(name, axis):
    check(*HOSTILE[name], axis)


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def pairs(draw):
    """Two small matrices of any float32 numbers, the second often close to the first, in part or in direction."""
    height, width = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    entries = st.lists(FLOATS, min_size=height * width, max_size=height * width)
    before = torch.tensor(draw(entries), dtype=torch.float32).view(height, width)
    scale = draw(st.sampled_from([1.0, 1.0, -1.0, 2.0, 3.0, 1e-3]))
    relative = torch.tensor(draw(entries), dtype=torch.float32).view(height, width).nan_to_num().clamp(-1, 1)
    after = before * scale * (1 + relative * draw(st.sampled_from([0.0, 1e-6, 1e-3, 1.0])))
    return before, after.nan_to_num().clamp(-3e38, 3e38)


@given(pairs(), st.sampled_from(AXES))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_exact_on_any_numbers(pair, axis):
    check(*pair, axis)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("size", [1.0, 1e-2, 1e-4, 1e-6])
def test_exact_on_large_matrices(size, axis):
    before = random(700, 900) * 0.02
    after = before + random(700, 900, seed=1) * 0.02 * size
    got, (dm, dd) = change(before, after, axis), longdouble(before, after, axis)
    np.testing.assert_allclose(got.magnitude.numpy(), dm.astype(float), rtol=PROMISE)
    np.testing.assert_allclose(got.direction.numpy(), dd.astype(float), rtol=PROMISE)
    assert got.delta_m == pytest.approx(float(dm.mean()), rel=1e-7)
    assert got.delta_d == pytest.approx(float(dd.mean()), rel=1e-7)


def test_the_textbook_line_is_what_it_is_said_to_be():
    before = random(700, 900) * 0.02
    after = before + random(700, 900, seed=1) * 0.02 * 1e-4
    textbook = float((1 - torch.cosine_similarity(before, after, dim=1)).double().mean())
    assert textbook != pytest.approx(change(before, after, "row").delta_d, rel=0.5)


@pytest.mark.parametrize("shape", [(1, 5), (3, 1), (16, 4096), (33, 4096), (2, 70_000), (70_000, 2), (257, 255)])
def test_blocks_make_no_difference(shape):
    before, after = random(*shape), random(*shape, seed=1)
    for axis, found in changes(before, after).items():
        dim = 1 if axis == "row" else 0
        a, b = before.double(), after.double()
        # 1e-6 is what the bound lets a vector pass with; of 70,000 vectors of two entries a few make use of it
        torch.testing.assert_close(found.magnitude, (b.norm(dim=dim) - a.norm(dim=dim)).abs(), rtol=1e-6, atol=1e-14)
        torch.testing.assert_close(found.direction, 1 - torch.cosine_similarity(a, b, dim=dim), rtol=1e-6, atol=1e-14)


@pytest.mark.parametrize("name", HOSTILE)
def test_both_axes_in_one_pass_are_the_two_alone(name):
    for axis, found in changes(*HOSTILE[name]).items():
        alone = change(*HOSTILE[name], axis)
        torch.testing.assert_close(found.magnitude, alone.magnitude, rtol=0, atol=0)
        torch.testing.assert_close(found.direction, alone.direction, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("threads", [1, 2, 5, 64])
def test_threads_make_no_difference(threads, monkeypatch):
    before, after = random(1001, 1003).requires_grad_(), random(1001, 1003, seed=1)
    wanted = longdouble(before.detach(), after, "row"), longdouble(before.detach(), after, "column")
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for found, (dm, dd) in zip(changes(before, after).values(), wanted, strict=True):
        np.testing.assert_allclose(found.magnitude.numpy(), dm.astype(float), rtol=PROMISE)
        np.testing.assert_allclose(found.direction.numpy(), dd.astype(float), rtol=PROMISE)


def close(one, two, scale=1.0):
    """Equal up to what the promise allows."""
    torch.testing.assert_close(one.magnitude, two.magnitude * scale, rtol=PROMISE, atol=0)
    torch.testing.assert_close(one.direction, two.direction, rtol=PROMISE, atol=1e-17, equal_nan=True)
    assert one.undefined == two.undefined


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("name", HOSTILE)
def test_swapping_the_checkpoints_changes_nothing(name, axis):
    before, after = HOSTILE[name]
    close(change(before, after, axis), change(after, before, axis))


@pytest.mark.parametrize("name", HOSTILE)
def test_transposing_swaps_the_axes(name):
    before, after = HOSTILE[name]
    for copy in (lambda t: t.T, lambda t: t.T.contiguous()):
        close(change(before, after, "row"), change(copy(before), copy(after), "column"))
        close(change(before, after, "column"), change(copy(before), copy(after), "row"))


@pytest.mark.parametrize("axis", AXES)
def test_rescaling_both_scales_the_magnitude_alone(axis):
    for scale in (1e-30, 0.3, 1e30):
        before, after = BASE.double(), (BASE + random(7, 40, seed=1) * 1e-4).double()
        close(change(before * scale, after * scale, axis), change(before, after, axis), scale)


@pytest.mark.parametrize("axis", AXES)
def test_rotating_the_other_side_changes_nothing(axis):
    before, after = random(30, 40, dtype=torch.float64), random(30, 40, seed=1, dtype=torch.float64)
    size = 40 if axis == "row" else 30
    q = torch.linalg.qr(random(size, size, seed=2, dtype=torch.float64)).Q
    turned = (before @ q, after @ q) if axis == "row" else (q @ before, q @ after)
    close(change(*turned, axis), change(before, after, axis))


def test_identical_matrices_did_not_change():
    for found in changes(BASE, BASE.clone()).values():
        assert found.delta_m == found.delta_d == 0
        assert not found.magnitude.any()
        assert not found.direction.any()


def test_an_undefined_direction_is_counted_and_left_out_of_the_mean():
    before, after = (
        torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]),
        torch.tensor([[0.0, 0.0], [0.0, 1.0], [3.0, 4.0]]),
    )
    found = change(before, after, "row")
    assert found.magnitude.tolist() == [0, 0, 5]
    assert found.direction[:2].tolist() == [0, 1]
    assert math.isnan(found.direction[2])
    assert (found.undefined, found.delta_d, found.delta_m) == (1, 0.5, pytest.approx(5 / 3))


def test_the_inputs_are_left_alone():
    before, after = BASE.clone().requires_grad_(), BASE * 1.1
    kept = after.clone()
    found = change(before, after, "row")
    assert not found.magnitude.requires_grad
    assert torch.equal(before, BASE)
    assert torch.equal(after, kept)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("which", [["before"], ["after"], ["before", "after"]])
def test_nan_and_infinity(value, dtype, axis, which):
    given = {"before": BASE.to(dtype), "after": (BASE * 1.1).to(dtype)}
    clean = change(**given, axis=axis)
    for name in which:
        given[name] = given[name].clone()
        given[name][3, 5] = value
    with pytest.raises(NonFiniteError, match=rf"{which[-1]}, {axis} {3 if axis == 'row' else 5};.*allow_nonfinite"):
        change(**given, axis=axis)
    found = change(**given, axis=axis, allow_nonfinite=True)
    place = 3 if axis == "row" else 5
    others = torch.arange(len(clean.magnitude)) != place
    assert (found.nonfinite, found.undefined) == (1, 0)
    assert math.isnan(found.magnitude[place])
    assert math.isnan(found.direction[place])
    torch.testing.assert_close(found.magnitude[others], clean.magnitude[others])
    torch.testing.assert_close(found.direction[others], clean.direction[others])
    assert found.delta_m == pytest.approx(float(clean.magnitude[others].mean()))
    assert found.delta_d == pytest.approx(float(clean.direction[others].mean()))


def test_errors_name_the_argument():
    with pytest.raises(ShapeError, match=r"before has shape \(2, 3\) and after has shape \(3, 2\)"):
        change(torch.ones(2, 3), torch.ones(3, 2), "row")
    with pytest.raises(OptionError, match="axis is 'diagonal'; choose one of 'row', 'column'"):
        change(torch.ones(2, 3), torch.ones(2, 3), "diagonal")
    with pytest.raises(ShapeError, match=r"before has shape \(3,\)"):
        change(torch.ones(3), torch.ones(3), "row")
    with pytest.raises(ShapeError, match=r"shape \(0, 3\)"):
        change(torch.ones(0, 3), torch.ones(0, 3), "row")
    with pytest.raises(OptionError, match=r"after is .*int64"):
        change(torch.ones(2, 3), torch.ones(2, 3, dtype=torch.int64), "row")
    with pytest.raises(OptionError, match="before is list"):
        change([[1.0]], torch.ones(1, 1), "row")
    with pytest.raises(OptionError, match=r"before is .*sparse"):
        change(torch.eye(2).to_sparse(), torch.eye(2), "row")


@given(st.lists(st.tuples(FLOATS, FLOATS), min_size=1, max_size=9))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_difference_of_squares_is_exact(entries):
    a, b = (torch.tensor([row], dtype=torch.float64).clamp(-1e30, 1e30) for row in zip(*entries, strict=True))
    with mpmath.workdps(400):
        a_squares, b_squares = ([mpmath.mpf(x) ** 2 for x in t[0].tolist()] for t in (a, b))
        wanted = mpmath.fsum(b_squares) - mpmath.fsum(a_squares)
        bound = 2e-16 * abs(wanted) + 1e-30 * mpmath.fsum(a_squares + b_squares)
        assert abs(float(difference_of_squares(a, b)) - wanted) <= bound


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_same_on_a_gpu():
    for before, after in HOSTILE.values():
        for axis in AXES:
            found = change(before.cuda(), after.cuda(), axis)
            assert found.magnitude.device.type == "cpu"
            close(found, change(before, after, axis))


def test_arrays_are_taken_and_other_things_named():
    a, b = np.eye(3), 2 * np.eye(3)
    assert change(a, b, axis="row").delta_m == 1.0
    for same in (b[::-1][::-1], b.astype(">f8"), b.astype("float32"), np.asfortranarray(b)):
        assert change(a, same, axis="column").delta_m == 1.0
    b.setflags(write=False)
    assert change(torch.eye(3), b, axis="row").delta_m == 1.0
    assert list(changes(a, b, "column")) == ["column"]
    for wrong in ("a", None, 3, [[1.0]], np.eye(3, dtype=int)):
        with pytest.raises(OptionError, match=r"before is .*pass a dense tensor or NumPy array"):
            change(wrong, b, axis="row")
    with pytest.raises(OptionError, match="axes is 3; choose one or several of 'row', 'column', 'matrix'"):
        changes(a, b, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(5, 8), (9, 40), (600, 264), (7, 13)], ids=str)
def test_16_bits_are_widened_in_the_loop_to_what_they_are(dtype, shape):
    """Those of every exponent, subnormal ones too; shapes that the loop reads as they are, and one that it does not."""
    draw = torch.Generator().manual_seed(0)
    before = (torch.randn(shape, generator=draw) * 2.0 ** torch.randint(-30, 8, shape, generator=draw)).to(dtype)
    after = (before + 0.01 * torch.randn(shape, generator=draw)).to(dtype)
    have, want = changes(before, after), changes(before.float(), after.float())
    for axis in AXES:
        assert torch.equal(have[axis].magnitude, want[axis].magnitude)
        assert torch.equal(have[axis].direction, want[axis].direction)
