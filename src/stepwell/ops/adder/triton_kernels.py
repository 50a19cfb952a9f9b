"""The adder layer for GPUs, in Triton: see `stepwell.ops.adder.reference` for the equations.

Importing this module needs Triton. Each program computes a block of the result, in float32, and reads
one number of each patch and of each filter at a time, which stay in the cache of its multiprocessor.
"""

# mypy: ignore-errors
import triton
import triton.language as tl


@triton.jit
def forward(
    x, weight, out, images, height, width, channels, filters, kernel_h, kernel_w, stride_h, stride_w,
    padding_h, padding_w, out_h, out_w, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Y[p,m] = -sum_k |X[p,k] - F[k,m]| for ROWS positions p and COLUMNS filters m.

    x: (images, height, width, channels). weight: (kernel_h, kernel_w, channels, filters).
    """
    p = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    m = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    image, row, column = p // (out_h * out_w), p // out_w % out_h, p % out_w
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for i in range(kernel_h):
        for j in range(kernel_w):
            y, z = row * stride_h - padding_h + i, column * stride_w - padding_w + j
            inside = (image < images) & (y >= 0) & (y < height) & (z >= 0) & (z < width)
            at = ((image * height + y) * width + z) * channels
            taps = weight + (i * kernel_w + j) * channels * filters + m
            for k in range(channels):
                patch = tl.load(x + at + k, mask=inside, other=0.0)  # padding is with zeros
                row_of_filters = tl.load(taps + k * filters, mask=m < filters, other=0.0)
                total += tl.abs(patch[:, None] - row_of_filters[None, :])
    place = out + p[:, None] * filters + m[None, :]
    tl.store(place, -total, mask=(image < images)[:, None] & (m < filters)[None, :])


@triton.jit
def input_gradient(
    grad, x, weight, out, images, height, width, channels, filters, kernel_h, kernel_w, stride_h,
    stride_w, padding_h, padding_w, out_h, out_w, kind, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """gX[q,k] = sum_{p,m} d(F[m,k] - X[q,k]) · g[p,m] over the patches p that hold position q.

    d clips to [-1, 1] (`kind` 0), takes the sign (1), or does nothing (2). grad: (images, out_h,
    out_w, filters). weight: (filters, kernel_h, kernel_w, channels).
    """
    q = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    k = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    image, row, column = q // (height * width), q // width % height, q % width
    known = (image < images)[:, None] & (k < channels)[None, :]
    place = q[:, None] * channels + k[None, :]
    here = tl.load(x + place, mask=known, other=0.0)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for i in range(kernel_h):
        for j in range(kernel_w):
            y, z = row + padding_h - i, column + padding_w - j
            a, b = y // stride_h, z // stride_w
            hit = (image < images) & (y >= 0) & (z >= 0) & (a * stride_h == y) & (b * stride_w == z)
            hit = hit & (a < out_h) & (b < out_w)
            at = ((image * out_h + a) * out_w + b) * filters
            for m in range(filters):
                g = tl.load(grad + at + m, mask=hit, other=0.0)
                taps = weight + ((m * kernel_h + i) * kernel_w + j) * channels + k
                d = tl.load(taps, mask=k < channels, other=0.0)[None, :] - here
                if kind == 0:
                    d = tl.where(d > 1, 1.0, tl.where(d < -1, -1.0, d))  # NaN stays
                elif kind == 1:
                    d = tl.where(d > 0, 1.0, tl.where(d < 0, -1.0, 0.0))
                total += tl.where(hit[:, None], d * g[:, None], 0.0)
    tl.store(out + place, total, mask=known)
