"""The convolution of CBAM's spatial gate, on maps with a border of zeros, for 1 to 3 spatial sizes; and back."""

# numba gives these functions types of its own, and `range` over them is meant
# pyright: reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false

from foveal.ops.kernels.native.axes import jit, share, wait
from foveal.ops.kernels.native.language import like, read, shifted, slot, sums_at, write
from foveal.ops.kernels.native.slots import (
    BREADTH,
    CHANNELS,
    DEPTH,
    DKERNEL,
    DSTATISTICS,
    FLIPPED,
    HEIGHT,
    KERNEL,
    KERNEL_BREADTH,
    KERNEL_DEPTH,
    KERNEL_HEIGHT,
    LANES,
    LOGITS,
    MAX_FIRST,
    PADDED_DLOGITS,
    POSITIONS,
    ROOM,
    STATISTICS,
)


@jit
def padded_shape(args):
    """Lines of a plane, stride of a line and size of one padded map; a 1-D or 2-D map has one plane or line."""
    lines = slot(args, HEIGHT) + slot(args, KERNEL_HEIGHT) - 1
    stride = line_room(args) + slot(args, KERNEL_BREADTH) - 1
    return lines, stride, (slot(args, DEPTH) + slot(args, KERNEL_DEPTH) - 1) * lines * stride


@jit
def line_room(args):
    """Values of a line, up to a multiple of LANES."""
    return (slot(args, BREADTH) + LANES - 1) // LANES * LANES


@jit
def padded_line(args, row):
    """Where the window of row number ``row`` (of all planes) begins in a padded map."""
    lines, stride, _ = padded_shape(args)
    return (row // slot(args, HEIGHT) * lines + row % slot(args, HEIGHT)) * stride


@jit
def padded_inside(args, row):
    """Where row number ``row`` itself begins in a padded map."""
    lines, stride, _ = padded_shape(args)
    down = slot(args, KERNEL_DEPTH) // 2 * lines + slot(args, KERNEL_HEIGHT) // 2
    return padded_line(args, row) + down * stride + slot(args, KERNEL_BREADTH) // 2


@jit
def pad_into(args, values, padded, lo, hi):
    """Copy the positions lo to hi into the inside of a padded map."""
    breadth, at = slot(args, BREADTH), lo
    while at < hi:
        row, column = at // breadth, at % breadth
        count = min(breadth - column, hi - at)
        target = padded_inside(args, row) + column
        for j in range(count):
            write(padded, target + j, read(values, at + j))
        at += count


@jit
def convolve_line(args, source, weights, row, result):
    """Add to ``result`` what one channel's kernel gives for one row, up to a multiple of LANES."""
    lines, stride, _ = padded_shape(args)
    begin, wide, breadth = padded_line(args, row), line_room(args), slot(args, KERNEL_BREADTH)
    for plane in range(slot(args, KERNEL_DEPTH)):
        for line in range(slot(args, KERNEL_HEIGHT)):
            at = begin + (plane * lines + line) * stride
            w = (plane * slot(args, KERNEL_HEIGHT) + line) * breadth
            for column in range(breadth):
                weight = read(weights, w + column)
                for j in range(wide):
                    write(result, j, read(result, j) + weight * read(source, at + column + j))


@jit
def kernel_size(args):
    """Weights of the spatial kernel for one of its two channels."""
    return slot(args, KERNEL_DEPTH) * slot(args, KERNEL_HEIGHT) * slot(args, KERNEL_BREADTH)


@jit
def convolve(args, image, part, parts):
    """The convolution of the statistics, into LOGITS."""
    n, breadth, wide = slot(args, POSITIONS), slot(args, BREADTH), line_room(args)
    _, _, size = padded_shape(args)
    rows = n // breadth
    lo, hi = share(rows, part, parts)
    for row in range(lo, hi):
        result = shifted(sums_at(args, ROOM), (image * rows + row) * wide)
        for j in range(wide):
            write(result, j, like(result, 0.0))
        for channel in range(2):
            order = 1 - channel if slot(args, MAX_FIRST) != 0 else channel
            source = shifted(sums_at(args, STATISTICS), (2 * image + channel) * size)
            weights = shifted(sums_at(args, KERNEL), order * kernel_size(args))
            convolve_line(args, source, weights, row, result)
        logits = shifted(sums_at(args, LOGITS), image * n + row * breadth)
        for j in range(breadth):
            write(logits, j, read(result, j))
    wait(args, parts)


@jit
def through_convolution(args, image, part, parts):
    """The gradients of the statistics, into DSTATISTICS, and of this image's kernel, into DKERNEL."""
    c, n, breadth, wide = slot(args, CHANNELS), slot(args, POSITIONS), slot(args, BREADTH), line_room(args)
    lines, stride, padded = padded_shape(args)
    rows, size = n // breadth, kernel_size(args)
    gradient = shifted(sums_at(args, PADDED_DLOGITS), image * padded)
    lo, hi = share(rows, part, parts)
    for row in range(lo, hi):
        result = shifted(sums_at(args, ROOM), (image * rows + row) * wide)
        for channel in range(2):
            order = 1 - channel if slot(args, MAX_FIRST) != 0 else channel
            for j in range(wide):
                write(result, j, like(result, 0.0))
            convolve_line(args, gradient, shifted(sums_at(args, FLIPPED), order * size), row, result)
            target = shifted(sums_at(args, DSTATISTICS), (2 * image + channel) * n + row * breadth)
            divisor = like(result, c) if channel == 0 else like(result, 1.0)
            for j in range(breadth):
                write(target, j, read(result, j) / divisor)
    per_channel = slot(args, KERNEL_DEPTH) * slot(args, KERNEL_HEIGHT)
    lo, hi = share(2 * per_channel, part, parts)
    for index in range(lo, hi):
        channel, line = index // per_channel, index % per_channel
        order = 1 - channel if slot(args, MAX_FIRST) != 0 else channel
        source = shifted(sums_at(args, STATISTICS), (2 * image + channel) * padded)
        down = (line // slot(args, KERNEL_HEIGHT) * lines + line % slot(args, KERNEL_HEIGHT)) * stride
        for column in range(slot(args, KERNEL_BREADTH)):
            total = like(source, 0.0)
            for row in range(rows):
                one, other = padded_inside(args, row), padded_line(args, row) + down + column
                for j in range(wide):
                    total += read(gradient, one + j) * read(source, other + j)
            at = 2 * image * size + order * size + line * slot(args, KERNEL_BREADTH) + column
            write(sums_at(args, DKERNEL), at, total)
    wait(args, parts)
