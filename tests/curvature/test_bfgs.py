"""Updates of inverses by BFGS against the textbook, and the damping of pairs."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from randbp.curvature.bfgs import LEAST, bfgs_inverse, damped_pair, dot, times

F64 = torch.float64
seeds, sizes = st.integers(0, 2**32 - 1), st.tuples(st.integers(1, 3), st.integers(1, 7))


def drawn(seed, *shape, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def positive(seed, groups, rows, least=0.1):
    root = drawn(seed, groups, rows, rows)
    return root @ root.mT / rows + least * torch.eye(rows, dtype=F64)


def textbook(inverse, s, y):
    """Of one group, from the update of ``B = H⁻¹``: ``B - B s sᵀ B / sᵀB s + y yᵀ / yᵀs``."""
    b = torch.linalg.inv(inverse)
    b = b - torch.outer(b @ s, b @ s) / (s @ b @ s) + torch.outer(y, y) / (y @ s)
    return torch.linalg.inv(b)


@given(seeds, sizes)
def test_updates_are_the_textbooks(seed, size):
    inverse, truth = positive(seed, *size), positive(seed + 1, *size)
    step = drawn(seed + 2, *size)
    change = times(truth, step)
    found = bfgs_inverse(inverse, step, change)
    for group in range(size[0]):
        expected = textbook(inverse[group], step[group], change[group])
        torch.testing.assert_close(found[group], expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(times(found, change), step, rtol=1e-8, atol=1e-8)  # the secant equation
    torch.testing.assert_close(found, found.mT, rtol=1e-12, atol=1e-12)


@given(seeds, sizes)
def test_inverses_stay_positive_definite(seed, size):
    """Over pairs of which no two belong to the same matrix, or to any positive definite one."""
    inverse = positive(seed, *size)
    for number in range(20):
        step, change = drawn(seed + 2 * number, *size), drawn(seed + 2 * number + 1, *size)
        inverse = bfgs_inverse(inverse, *damped_pair(inverse, step, change, 0.1))
        assert (torch.linalg.eigvalsh(inverse) > 0).all()


@given(seeds, sizes, st.sampled_from([1e-3, 0.1, 2.0]))
def test_damping_moves_a_pair_no_further_than_it_must(seed, size, damping):
    inverse, step, change = positive(seed, *size), drawn(seed + 1, *size), drawn(seed + 2, *size)
    moved = times(inverse, change)
    product, bound = dot(step, change), LEAST * dot(change, moved)
    damped, other = damped_pair(inverse, step, change, damping)
    torch.testing.assert_close(dot(damped, change), torch.maximum(product, bound), rtol=1e-9, atol=1e-12)
    assert all(torch.equal(a, b) for a, b, was, low in zip(damped, step, product, bound, strict=True) if was >= low)
    on_one_line = torch.linalg.matrix_rank(torch.stack([damped - moved, step - moved], 1), tol=1e-9) <= 1
    assert on_one_line.all()
    torch.testing.assert_close(other, change + damping * damped)
    values = dot(damped, damped) / dot(damped, other)  # of the updated inverse in the direction of the change
    assert (values <= 1 / damping).all()


@pytest.mark.parametrize("action", [False, True])
def test_inverses_of_quadratics_are_found(action):
    """From pairs of a fixed matrix along any directions, and along ``H u`` as of an input factor."""
    truth, inverse = positive(0, 2, 6), torch.eye(6, dtype=F64).repeat(2, 1, 1)
    for number in range(300):
        step = drawn(number + 1, 2, 6)
        step = times(inverse, step) if action else step
        inverse = bfgs_inverse(inverse, step, times(truth, step))
    torch.testing.assert_close(inverse @ truth, torch.eye(6, dtype=F64).repeat(2, 1, 1), rtol=1e-6, atol=1e-6)


def test_conjugate_steps_find_the_inverse_in_as_many_as_there_are_rows():
    truth, inverse = positive(3, 1, 5), torch.eye(5, dtype=F64)[None]
    _, vectors = torch.linalg.eigh(truth)
    for number in range(5):
        step = vectors[:, :, number]
        inverse = bfgs_inverse(inverse, step, times(truth, step))
    torch.testing.assert_close(inverse, torch.linalg.inv(truth), rtol=1e-9, atol=1e-9)


BAD = {
    "no step": (0.0, 1.0),
    "no change": (1.0, 0.0),
    "negative curvature": (1.0, -1.0),
    "not a number": (math.nan, 1.0),
    "infinite": (1.0, math.inf),
    "a large step": (1e30, 1e-30),
    "a small step": (1e-30, 1e-30),
}


@pytest.mark.parametrize("kind", BAD)
def test_pairs_without_use_change_nothing(kind):
    """Of one group; the other one's pair is good."""
    inverse = positive(0, 2, 4).float()
    good = drawn(1, 4, dtype=torch.float32)
    step, change = (torch.stack([factor * good, good]) for factor in BAD[kind])
    found = bfgs_inverse(inverse, step, change)
    assert torch.equal(found[0], inverse[0])
    torch.testing.assert_close(found[1] @ good, good)


def test_single_precision_stays_positive_definite_for_long():
    truth = positive(0, 1, 8, least=1e-3).float()
    inverse = torch.eye(8)[None]
    for number in range(2000):
        step = times(inverse, drawn(number, 1, 8, dtype=torch.float32))
        inverse = bfgs_inverse(inverse, step, times(truth, step))
    values = torch.linalg.eigvalsh(inverse)
    assert values.min() > 0
    torch.testing.assert_close(inverse @ truth, torch.eye(8)[None], rtol=0.01, atol=0.01)
