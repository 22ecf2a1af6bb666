"""Constants of a machine: what its operations take, and sizes from which on kernels are worth their while."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """Times and sizes that the search and the kernels go by; the defaults were measured on two CPU cores.

    A multiply-add in a matrix product is far cheaper than moving an element through memory; times are in multiply-adds.
    """

    # Costs of steps, of the order found on current CPUs and GPUs; orders of contraction hardly depend on them
    stream: float = 16  # one read or write in order [multiply-adds per element]
    gather: float = 64  # one read or write through an index [multiply-adds per element]
    launch: float = 20_000  # fixed cost of a step [multiply-adds]
    last_resort: float = 1000  # factor on scattering into zeros, which is avoided if possible [per element moved]
    reorder: float = 2.5  # passes over its tensors of a native input gradient; a matrix product has one [passes]
    blocks: float = 1.5  # a multiply-add of a native weight gradient over blocks [multiply-adds]
    # Matrix products
    line: int = 8  # a copy moves at least this number of neighbours in memory together [elements]
    few: int = 64  # products of matrices up to this width run below full speed [columns]
    products: int = 2**18  # products that are held before they are summed [elements]
    # Gram matrices of windows
    gram_positions: int = 1024  # positions per product when windows are unfolded for a few examples [positions]
    gram_rows: int = 512  # from this size on, only blocks above the diagonal are multiplied [rows]
    gram_blocks: int = 8  # rows of blocks then [blocks]
    gram_narrow: float = 48  # products of channels take as long as if there were so many more [channels]
    gram_copy: float = 120  # writing one entry of an input in another order [multiply-adds]
    gram_part: int = 2**21  # inputs whose shifts are multiplied while they stay in the cache [elements]
    gram_start: float = 1_500_000  # starting one product of lines at a lag [multiply-adds]
    gram_write: float = 300  # writing one entry of the result from blocks of lags [multiply-adds]
    gram_mirror: float = 100  # writing one entry of the result and mirroring it [multiply-adds]
    # Native convolutions
    placeholder: int = 2**14  # a plan holds a placeholder for weights up to this size [elements]
    large: int = 2**25  # tensors from this size on are processed in parts [bytes]
    mapped: int = 2**20  # tensors from this size on may be returned to the system when they are freed [bytes]
    part: int = 2**23  # size of a part of a kernel's largest tensor [bytes]
    # Sums with bands
    joint: int = 10_000  # up to this size, one product with the joint band is fastest [entries]
    small: int = 2_000_000  # a joint product up to this size costs less than starting several kernels [multiply-adds]
    narrow: int = 16  # products with fewer columns take as long [columns]
    shorter: int = 2  # a dimension has a product of its own if that makes it shorter by this factor [factor]
    partial_sums: int = 2**19  # largest size of partial sums [elements]
    partial_share: float = 0.02  # largest size of partial sums [share of the input]
    # Depthwise weight gradients
    block: int = 16  # outputs of the last dimension per product [outputs]
    chunk: int = 2**20  # operands or products handled at a time, so that they stay in the cache [elements]
    native: float = 15  # one multiply-add of a native kernel [multiply-adds]
    native_3x3: float = 4.5  # the same of a native kernel that was written for the size [multiply-adds]
    native_entry: float = 400  # a kernel entry of an example, where none was written for the size [multiply-adds]
    diagonal_sums: float = 30  # summing the diagonals, for each pair of positions [multiply-adds]
    diagonal: float = 200  # starting the sum of one diagonal, for few are long [multiply-adds]
    copy: float = 20  # laying out one element in blocks [multiply-adds]
    start: float = 12_500  # starting one product [multiply-adds]
    wide: int = 16  # products of fewer outputs take as long [outputs]
    margin: float = 0.8  # largest ratio of times at which products replace native kernels, which need no memory [ratio]
    meeting: float = 3.5  # a multiply-add of the fused sums over pairs [multiply-adds]
    meeting_laid: float = 40  # laying out one element with channels innermost for these [multiply-adds]
    meeting_start: float = 2000  # starting them, per channel [multiply-adds]
    meetings: int = 2**16  # pairs of positions that are listed at most: a mebibyte [pairs]
    # Weight gradients by lines
    line_wide: int = 256  # lines pay from this width on for both sides [channels]
    line_widest: int = 512  # and from this one on for one side [channels]
    line_long: int = 128  # least length of a line [positions times examples]
    line_small: int = 8  # up to this length they pay even where native kernels use AVX-512 [outputs]
    # Rows through an index
    row_width: int = 4096  # most channels gathered for one matrix product [channels]
    row_piece: int = 2**21  # examples that are processed together [elements]
    row_weighted: int = 2**18  # gathered at a time if not multiplied as matrices [elements]
    row_narrow: int = 8  # products of narrower matrices are slow [columns]
    row_gathered: int = 2**20  # gathered at a time, to be multiplied before they leave the cache [elements]


cpu = Machine()
"""The machine that plans are made for."""
