"""3x3 convolution with 16 multiplications for four pixels instead of 36.

Winograd's minimal filtering F(2x2, 3x3) (Lavin & Gray 2016, "Fast algorithms for convolutional
neural networks", section 4.1): with g the kernel and d the 4x4 pixels under an output tile of 2x2,

    Y = A' [(G g G') * (B' d B)] A,

where * goes element by element and its sum over channels is a matrix product for each of the 16
elements. Written with slices and sums, the transforms are linear in their argument, so that
gradients by transposition are of the same form.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array, lax

Lines = tuple[Array, ...]


def winograd(images: Array, kernel: Array) -> Array:
    """Returns the cross-correlation (N, H, W, O) of images (N, H, W, C), padded with a zero all
    around, with a kernel (3, 3, C, O)."""
    number, height, width, channels = images.shape
    down, across = -(-height // 2), -(-width // 2)
    # Up to whole tiles, which share two lines with the next.
    below, right = 2 * down + 1 - height, 2 * across + 1 - width
    padded = jnp.pad(images, ((0, 0), (1, below), (1, right), (0, 0)))
    products = []
    for lines, taps in zip(_of_pixels(_windows(padded, 1)), _of_kernel(tuple(kernel)), strict=True):
        elements = zip(_of_pixels(_windows(lines, 2)), _of_kernel(tuple(taps)), strict=True)
        products.append([tile.reshape(-1, channels) @ weight for tile, weight in elements])
    columns = [_to_pixels(row) for row in products]
    tiles = [_to_pixels(column) for column in zip(*columns, strict=True)]
    shape = number, down, across, kernel.shape[-1]
    rows = [
        jnp.stack([pixels.reshape(shape) for pixels in row], 3) for row in zip(*tiles, strict=True)
    ]
    whole = jnp.stack(rows, 2).reshape(number, 2 * down, 2 * across, kernel.shape[-1])
    return whole[:, :height, :width]


def _windows(images: Array, axis: int) -> Lines:
    """Returns the first, second, third and fourth line along `axis` of windows two lines apart.

    Even and odd lines are set apart first: strided slices would make for slow gradients.
    """
    before, (length, *after) = images.shape[:axis], images.shape[axis:]
    pairs = images.reshape(*before, length // 2, 2, *after)
    by_parity = [lax.index_in_dim(pairs, parity, axis + 1, keepdims=False) for parity in (0, 1)]
    windows = length // 2 - 1
    return tuple(
        lax.slice_in_dim(lines, start, start + windows, axis=axis)
        for start in (0, 1)
        for lines in by_parity
    )


def _of_pixels(d: Lines) -> Lines:
    """Returns B' d."""
    return d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]


def _of_kernel(g: Lines) -> Lines:
    """Returns G g."""
    ends, middle = (g[0] + g[2]) / 2, g[1] / 2
    return g[0], ends + middle, ends - middle, g[2]


def _to_pixels(m: Sequence[Array]) -> Lines:
    """Returns A' m."""
    return m[0] + m[1] + m[2], m[1] - m[2] - m[3]
