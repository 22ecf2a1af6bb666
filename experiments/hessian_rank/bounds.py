"""Upper bounds of the ranks of a linear CNN's curvature matrices under the squared loss.

The networks have convolutions ``l = 1 … L`` of stride 1 without padding or biases, with kernels of ``k_l`` entries per
dimension and ``m_l`` output channels; ``m_0`` are the input's. The output is flattened to ``K`` numbers. With the
residuals ``f - y``, the Hessian ``H = H_o + H_f`` is the Gauss-Newton matrix ``H_o = 1/N Σ_n J_nᵀ J_n`` and the
functional Hessian ``H_f = 1/N Σ_n Σ_c (f_c - y_c) ∂²f_c/∂θ²``.

**Dense.** A dense linear network of widths ``n_0 … n_L``, inputs of rank ``r``, ``K`` outputs, ``q`` the smallest of
``r, n_1 … n_L`` and ``s = min(r, K)`` has (Singh, Bachmann and Hofmann, NeurIPS 2021, as in their published code)::

    rank H_o ≤ q (r + K - q)
    rank H_f ≤ 2 q M + 2 q s - L q²                with M = n_1 + … + n_(L-1)
    rank H   ≤ 2 q M - L q² + q (r + K)

A CNN is a dense network whose weights are Toeplitz matrices, linear in the kernels (Singh, Hofmann and Schölkopf, ICML
2023): ``θ_dense = Q θ``, so ``H = Qᵀ H_dense Q``, and each rank is at most the dense one and the number of parameters.

**Shared.** That forgets that weights are shared. Layers ``i+1 … j`` together are one convolution, of
``κ(i, j) = Π_dimensions (1 + Σ_(i < t ≤ j) (k_t - 1))`` entries. What follows is derived here, for random weights.

- The output depends on ``m_0 m_L κ(0, L)`` numbers, and does not change when a hidden layer's channels are mixed and
  unmixed. Either bounds ``rank H_o``.
- The rows of ``H_f`` that belong to layer ``l``, as matrices ``[m_l, k_l m_(l-1)]``, are sums of two kinds. Changes of
  layers above leave those below as they are: rows lie in a space of ``β_l`` dimensions. Changes of layers below leave
  those above: seen as ``[m_l k_l, m_(l-1)]``, columns lie in one of ``α_l``. Here ::

      β_l = min(k_l m_(l-1), m_j κ(j, l) for j < l - 1, m_L κ(l, L))
      α_l = min(k_l m_l, m_j κ(l-1, j) for j > l, m_0 κ(0, l-1))

  whose last terms are what residuals times inputs, a convolution of ``κ(0, L)`` entries, let pass. The rank is at most
  ``Σ_l (m_l β_l + α_l m_(l-1))``, without ``β_L`` and ``α_1``. It is also at most twice that sum over all layers but
  one, since the diagonal blocks of ``H_f`` vanish.
- Rows of ``H_o`` are of both kinds, without the residuals' limits. So those of ``H`` are of the same two kinds if one
  of the limits is taken off.
- The gradient lies in the range of ``H_o`` and, as ``H_f θ = (L - 1) ∇``, in that of ``H_f``:
  ``rank H ≤ rank H_o + rank H_f - 1``.

For ``L = 2`` that of ``H_f`` is ``2 m_1 min(m_0 k_1, m_2 k_2)``.
"""

from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class LinearCNN:
    """Sizes of a linear CNN.

    Args:
        size: Of the input, in each dimension.
        channels: ``m_0 … m_L``.
        kernels: Sizes of each layer's kernel.

    Example:
        >>> net = LinearCNN((8,), (1, 4, 1), ((3,), (6,)))
        >>> net.parameters, net.outputs, bounds(net, 8)
        (36, 1, {'H_o': 8, 'H_f': 24, 'H': 26})
    """

    size: tuple[int, ...]
    channels: tuple[int, ...]
    kernels: tuple[tuple[int, ...], ...]

    @property
    def depth(self) -> int:
        """Number of layers ``L``."""
        return len(self.kernels)

    @property
    def parameters(self) -> int:
        """Number of weights."""
        pairs = zip(self.channels, self.channels[1:], self.kernels, strict=False)
        return sum(inner * outer * prod(kernel) for inner, outer, kernel in pairs)

    def positions(self, layer: int) -> int:
        """Positions of the output of a layer, of the input for 0."""
        sizes = (size - sum(k[dim] - 1 for k in self.kernels[:layer]) for dim, size in enumerate(self.size))
        return prod(sizes)

    @property
    def outputs(self) -> int:
        """``K``."""
        return self.channels[-1] * self.positions(self.depth)

    def entries(self, below: int, to: int) -> int:
        """``κ(i, j)``: entries of the convolution that layers ``i+1 … j`` are together."""
        return prod(1 + sum(k[dim] - 1 for k in self.kernels[below:to]) for dim in range(len(self.size)))


def bounds(net: LinearCNN, rank: int) -> dict[str, int]:
    """The smaller one of the dense and the shared bound of each matrix, for inputs of a rank."""
    below, above = dense_bounds(net, rank), shared_bounds(net)
    return {name: min(net.parameters, below[name], above[name]) for name in below}


def dense_bounds(net: LinearCNN, rank: int) -> dict[str, int]:
    """Those of the dense network that ignores shared weights."""
    inner = [net.channels[layer] * net.positions(layer) for layer in range(1, net.depth)]
    outputs, total = net.outputs, sum(inner)
    q, s = min(rank, outputs, *inner), min(rank, outputs)
    return {
        "H_o": q * (rank + outputs - q),
        "H_f": 2 * q * total + 2 * q * s - net.depth * q**2,
        "H": 2 * q * total - net.depth * q**2 + q * (rank + outputs),
    }


def shared_bounds(net: LinearCNN) -> dict[str, int]:
    """Those that count, layer by layer, what shared weights leave."""
    m, last = net.channels, net.depth
    functional, whole, blocks, mixed = [], [], [], 0
    for layer, kernel in enumerate(net.kernels, 1):
        outer, inner, entries = m[layer], m[layer - 1], prod(kernel)
        weights = outer * inner * entries
        rows = min([entries * inner, *(m[j] * net.entries(j, layer) for j in range(layer - 1))])
        columns = min([entries * outer, *(m[j] * net.entries(layer - 1, j) for j in range(layer + 1, last + 1))])
        fewer_rows = min(rows, m[last] * net.entries(layer, last)) if layer < last else 0
        fewer_columns = min(columns, m[0] * net.entries(0, layer - 1)) if layer > 1 else 0
        functional.append(min(weights, outer * fewer_rows + fewer_columns * inner))
        whole.append(min(weights, outer * rows + fewer_columns * inner, outer * fewer_rows + columns * inner))
        blocks.append(min(weights, outer * rows, columns * inner))
        if layer > 1:
            above = min([inner, *(m[j] * net.entries(layer - 1, j) for j in range(layer, last + 1))])
            below = min([inner, *(m[j] * net.entries(j, layer - 1) for j in range(layer - 1))])
            mixed += inner**2 - (inner - above) * (inner - below)
    first = min(m[0] * m[last] * net.entries(0, last), net.parameters - mixed)
    second = min(sum(functional), *(2 * (sum(functional) - one) for one in functional))
    both = (2 * (sum(whole) - one) + block for one, block in zip(whole, blocks, strict=True))
    return {"H_o": first, "H_f": second, "H": min(sum(whole), first + second - 1, *both)}
