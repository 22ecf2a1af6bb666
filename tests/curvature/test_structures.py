"""Structured matrices against dense ones in double precision."""

import pytest
import torch

from randbp.curvature.inverse_free import InverseFree
from randbp.curvature.structures import STRUCTURES

GROUPS = 2
SIZES = 1, 2, 15, 16, 29, 30, 31, 45, 67


def present(name, rows):
    """Entries ``[rows, rows]`` that a structure has, from its picture."""
    i, j = torch.meshgrid(torch.arange(rows), torch.arange(rows), indexing="ij")
    if name == "hierarchical":
        last = max(rows - 15, 15)
        return (i < 15) | (i == j) | ((i >= last) & (j >= 15))
    others = {"dense": i >= 0, "diagonal": i == j, "block": i // 30 == j // 30, "triangular": i >= j}
    return others[name]


def projected(name, matrix):
    """``Π`` of a symmetric matrix: entries without counterpart count twice."""
    has = present(name, matrix.shape[-1])
    return matrix * has * torch.where(has.mT, 1, 2)


def drawn(*shape):
    return torch.randn(GROUPS, *shape, dtype=torch.float64)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("name", STRUCTURES)
def test_operations_are_those_of_dense_matrices(name, rows):
    torch.manual_seed(rows)
    structure, matrix, vectors = STRUCTURES[name](rows), drawn(rows, rows), drawn(rows, 4)
    matrix = matrix + matrix.mT
    first, second = (structure.project(each + each.mT) for each in (drawn(rows, rows), drawn(rows, rows)))
    k, other = structure.to_dense(first), structure.to_dense(second)
    close(structure.to_dense(structure.project(matrix)), projected(name, matrix))
    close(structure.to_dense(structure.product(first, second)), k @ other)
    close(structure.to_dense(structure.outer(vectors)), projected(name, vectors @ vectors.mT))
    close(structure.to_dense(structure.square(first)), projected(name, k.mT @ k))
    close(structure.to_dense(structure.congruence(first, matrix)), projected(name, k.mT @ matrix @ k))
    gram = structure.gram(first, vectors.mT)
    close(structure.to_dense(gram), projected(name, k.mT @ vectors @ vectors.mT @ k))
    close(structure.times(first, vectors), k @ vectors)
    close(structure.transposed_times(first, vectors), k.mT @ vectors)
    close(structure.precondition(first, vectors.mT), vectors.mT @ k @ k.mT)
    close(structure.mean_diagonal(first), k.diagonal(dim1=1, dim2=2).mean(1))
    eye, zeros = structure.identity(GROUPS, matrix), structure.zeros(GROUPS, matrix)
    close(structure.to_dense(eye), torch.eye(rows, dtype=torch.float64).expand(GROUPS, -1, -1))
    assert gram.shape == eye.shape == zeros.shape == (GROUPS, *structure.packed_shape) and not zeros.any()


def test_sizes_grow_linearly():
    """Of 4,608 rows a diagonal, blocks and a hierarchy hold less than two per cent of a dense matrix."""
    for name in ("diagonal", "block", "hierarchical"):
        assert STRUCTURES[name](4608).identity(1, torch.ones(())).numel() < 0.02 * 4608**2


def step(names, roots, momenta, factors, damping, rate, momentum, normalized, adaptive):
    """The update of one group as it is published, with dense matrices."""
    inner = [k.mT @ factor @ k for k, factor in zip(roots, factors, strict=True)]
    squares = [k.mT @ k for k in roots]
    trace = [float(each.trace()) / len(each) if adaptive else 1.0 for each in inner]
    square = [float(each.trace()) / len(each) if adaptive else 1.0 for each in squares]
    new_roots, new_momenta = [], []
    for side, other in ((0, 1), (1, 0)):
        eye = torch.eye(len(roots[side]), dtype=torch.float64)
        pull = trace[other] * inner[side] + damping * square[other] * squares[side] - eye
        weight = (1 - momentum) / 2 if normalized else 0.5
        m = momentum * momenta[side] + weight * projected(names[side], pull)
        length = max(1.0, float(m.abs().max())) if normalized else 1.0
        new_momenta.append(m)
        new_roots.append(roots[side] @ (eye - rate / length * m))
    return new_roots, new_momenta


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize(
    "names", [*((name, name) for name in STRUCTURES), ("diagonal", "dense"), ("block", "triangular")]
)
def test_updates_are_the_published_ones(names, normalized, adaptive):
    torch.manual_seed(0)
    sizes = 37, 31
    structures = tuple(STRUCTURES[name](size) for name, size in zip(names, sizes, strict=True))
    numbers = {"damping": 0.03, "rate": 0.1, "momentum": 0.6, "normalized": normalized, "adaptive": adaptive}
    update, like = InverseFree(**numbers), torch.ones((), dtype=torch.float64)
    roots = tuple(structure.identity(GROUPS, like) for structure in structures)
    momenta = tuple(structure.zeros(GROUPS, like) for structure in structures)
    dense_roots = [[torch.eye(size, dtype=torch.float64) for size in sizes] for _ in range(GROUPS)]
    dense_momenta = [[torch.zeros(size, size, dtype=torch.float64) for size in sizes] for _ in range(GROUPS)]
    for number in range(6):
        vectors = [drawn(5, size) * (0.2 if number % 2 else 0.5) for size in sizes]
        curvature = tuple(s.gram(root, v) for s, root, v in zip(structures, roots, vectors, strict=True))
        roots, momenta = update(structures, roots, momenta, curvature)
        for group in range(GROUPS):
            factors = [v[group].mT @ v[group] for v in vectors]
            dense = step(names, dense_roots[group], dense_momenta[group], factors, **numbers)
            dense_roots[group], dense_momenta[group] = dense
            for side, structure in enumerate(structures):
                close(structure.to_dense(roots[side])[group], dense_roots[group][side])
                close(structure.to_dense(momenta[side])[group], dense_momenta[group][side])


@pytest.mark.parametrize("name", ["dense", "triangular"])
def test_the_fixed_point_is_the_damped_inverse(name):
    """Without adaptive traces ``K Kᵀ`` becomes ``(A + λ I)⁻¹``, although nothing is inverted."""
    torch.manual_seed(0)
    rows, structure = drawn(40, 6) / 40**0.5, STRUCTURES[name](6)
    structures = structure, STRUCTURES["diagonal"](3)
    update = InverseFree(damping=0.1, rate=0.2, momentum=0.0, normalized=False, adaptive=False)
    roots = tuple(each.identity(GROUPS, rows) for each in structures)
    momenta = tuple(each.zeros(GROUPS, rows) for each in structures)
    for _ in range(300):
        curvature = structure.gram(roots[0], rows), structures[1].zeros(GROUPS, rows)
        roots, momenta = update(structures, roots, momenta, curvature)
    k = structure.to_dense(roots[0])
    expected = torch.linalg.inv(rows.mT @ rows + 0.1 * torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(k @ k.mT, expected, rtol=1e-8, atol=1e-8)
