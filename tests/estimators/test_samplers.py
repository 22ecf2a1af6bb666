"""Positions that an output uses, and how places are drawn."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from randbp.draws.draw import windows
from randbp.estimators import Draw
from randbp.estimators.positions import used_positions
from randbp.tn import position_classes
from tests.cases import Case, cases, transposed_cases

CPU = torch.device("cpu")


@given(case=st.one_of(cases(largest=8), transposed_cases()))
def test_every_position_that_an_output_uses_is_taken_once(case: Case) -> None:
    x, weight, _ = case.tensors()
    spec = case.spec()
    grad = torch.autograd.grad(case.native(x, weight, None).sum(), x)[0]  # all kernel entries are positive
    grid, x = used_positions(spec, "input"), x.detach()
    numbers = torch.arange(float(x[0, 0].numel())).view(1, 1, *x.shape[2:])
    used = grid.take(numbers).flatten().long().tolist()
    met = set(grad[0].sum(0).flatten().nonzero().flatten().tolist())
    assert len(set(used)) == len(used) == grid.size and met <= set(used)
    if max(p.dilation for p in spec.patterns) == max(p.stride for p in spec.patterns) == 1 and type(case) is Case:
        assert set(used) == met
    assert set(grid.put_back(grid.take(numbers + 1).flatten(2)).flatten().tolist()) <= {0, *(u + 1.0 for u in used)}
    found = []
    for each in position_classes(spec, "input"):
        members = grid.members(each, CPU)
        found += list(range(grid.size)) if members is None else members.tolist()
        here = numbers[0, 0][torch.meshgrid(*(torch.tensor(list(a)) for a in each.positions), indexing="ij")]
        assert here.flatten().tolist() == [used[i] for i in found[-each.size :]]
    assert len(found) <= grid.size


@given(size=st.integers(1, 40), share=st.floats(0, 1), batch=st.integers(1, 9), seed=st.integers(0, 99))
def test_sums_keep_disjoint_stretches_in_turn(size: int, share: float, batch: int, seed: int) -> None:
    count = max(1, round(share * size))
    kept = windows(Draw(seed), size, count, batch, CPU)
    assert kept.shape == (batch, count) and bool((kept.diff(dim=1) > 0).all())
    assert int(kept.min()) >= 0 and int(kept.max()) < size
    different = min(batch, size // min(count, size - count) if count < size else 1)
    times = kept[:different].flatten().bincount(minlength=size)
    assert int(times.max() - times.min()) <= 1  # any two stretches, of those kept or those left out, are disjoint


def test_places_are_equally_likely_for_each_sum() -> None:
    """Each of 7 places is kept by 4 in 7 draws: 5 sums, 4000 draws, error rate below 1e-6 for all together."""
    draws = torch.stack([windows(Draw(seed), 7, 4, 5, CPU) for seed in range(4000)])
    rates = torch.nn.functional.one_hot(draws, 7).sum(2).double().mean(0)
    assert bool(((rates - 4 / 7).abs() < 5.5 * (4 / 7 * 3 / 7 / 4000) ** 0.5).all())
