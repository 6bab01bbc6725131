"""The backward pass of a gate in one call; images and threads as in ``forward``.

With ``y = g_c s_p x``: one pass over ``x`` and ``dy`` gives the gradient of ``s``, a share of that of ``g``, and the
means over channels again; small maps lead from there to the gradients of the statistics; a pass over ``x`` gives the
other share of the gradient of ``g``, and, after the layers', a pass over ``dy`` writes the gradient of ``x``.
"""

# numba gives these functions types of its own, and `range` over them is meant
# pyright: reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false

from foveal.ops.kernels.native.axes import dot, inlined, jit, share, stretches, tile_rows, wait
from foveal.ops.kernels.native.channel import through_layers
from foveal.ops.kernels.native.convolution import through_convolution
from foveal.ops.kernels.native.forward import team, turn_of
from foveal.ops.kernels.native.language import ints_at, like, map_at, read, shifted, slot, sums_at, write
from foveal.ops.kernels.native.slots import (
    BATCH,
    CHANNEL_ARGMAX,
    CHANNELS,
    CHANNELS_LAST,
    COLUMNS,
    DGATE,
    DLOGITS,
    DMOMENTS,
    DSTATISTICS,
    DX,
    DY,
    GATE,
    IMAGES,
    KERNEL,
    LOGITS,
    MEANS,
    MOMENTS,
    NORM,
    PARTIAL,
    POSITION_ARGMAX,
    POSITIONS,
    SPATIAL_GATE,
    SQUEEZE,
    SQUEEZED,
    TILES,
    X,
)
from foveal.ops.kernels.native.spatial import (
    norm_gradients,
    open_gate,
    through_norm,
    through_sigmoid,
    through_statistics,
)


@jit
def row_of_both(x, dy, at, lo, hi, factor, by_column, into_columns, means):
    """One row of a contiguous map: adds to the columns' sums, returns the row's sum."""
    total = like(x, 0.0)
    for q in range(lo, hi):
        value = read(x, at + q)
        product = value * read(dy, at + q)
        write(into_columns, q, read(into_columns, q) + factor * product)
        write(means, q, read(means, q) + factor * value)
        total += product * read(by_column, q)
    return total


@jit
def read_both(args, image, part, parts):
    """DLOGITS becomes the gradient of the spatial gate, MEANS the sums over channels, DGATE its share of the gates'."""
    x, dy = map_at(args, X), map_at(args, DY)
    c, n, spatial = slot(args, CHANNELS), slot(args, POSITIONS), slot(args, KERNEL) != 0
    gate, start = shifted(sums_at(args, GATE), image * c), image * c * n
    opened = shifted(sums_at(args, SPATIAL_GATE), image * n)
    dgate = shifted(sums_at(args, DGATE), image * c)
    dspatial, means = shifted(sums_at(args, DLOGITS), image * n), shifted(sums_at(args, MEANS), image * n)
    lo, hi = share(c, part, parts)
    if slot(args, CHANNELS_LAST) == 0 and not spatial:
        for r in range(lo, hi):
            write(dgate, r, dot(shifted(x, start + r * n), shifted(dy, start + r * n), n))
        wait(args, parts)
        return
    zero = like(x, 0.0)
    step = COLUMNS if slot(args, CHANNELS_LAST) == 0 else tile_rows(n)
    tiles = (n + step - 1) // step
    partial = shifted(sums_at(args, PARTIAL), image * max(TILES, (n + COLUMNS - 1) // COLUMNS) * c)
    t0, t1 = share(tiles, part, parts)
    for tile in range(t0, t1):
        sums, first, end = shifted(partial, tile * c), tile * step, min((tile + 1) * step, n)
        if slot(args, CHANNELS_LAST) == 0:
            for q in range(first, end):
                write(dspatial, q, zero)
                write(means, q, zero)
            for r in range(c):
                at, factor = start + r * n, read(gate, r)
                write(sums, r, row_of_both(x, dy, at, first, end, factor, opened, dspatial, means))
            continue
        for q in range(c):
            write(sums, q, zero)
        for r in range(first, end):
            at = start + r * c
            if spatial:
                factor, total, mean = read(opened, r), zero, zero
                for q in range(c):
                    value = read(x, at + q)
                    product = value * read(dy, at + q)
                    total += product * read(gate, q)
                    mean += value * read(gate, q)
                    write(sums, q, read(sums, q) + factor * product)
                write(dspatial, r, total)
                write(means, r, mean)
            else:
                for q in range(c):
                    write(sums, q, read(sums, q) + read(x, at + q) * read(dy, at + q))
    wait(args, parts)
    for q in range(lo, hi):
        total = 0.0
        for tile in range(tiles):
            total += read(partial, tile * c + q)
        write(dgate, q, like(x, total))
    wait(args, parts)


@jit
def write_gradient(args, image, part, parts):
    """DX: what comes through the product, through both means, and at the places of the maxima."""
    dy, dx, c, n = map_at(args, DY), map_at(args, DX), slot(args, CHANNELS), slot(args, POSITIONS)
    start, kind, spatial = image * c * n, slot(args, SQUEEZE), slot(args, KERNEL) != 0
    gate, opened = shifted(sums_at(args, GATE), image * c), shifted(sums_at(args, SPATIAL_GATE), image * n)
    dmean = shifted(sums_at(args, DSTATISTICS), 2 * image * n)
    dmax, zero, one = shifted(dmean, n), like(dy, 0.0), like(dy, 1.0)
    even = shifted(sums_at(args, SQUEEZED), image * c)  # the same for all positions of a channel
    peak = shifted(sums_at(args, SQUEEZED), (slot(args, IMAGES) + image) * c)
    argmax, peaks = ints_at(args, POSITION_ARGMAX), ints_at(args, CHANNEL_ARGMAX)
    if slot(args, CHANNELS_LAST) == 0:
        lo, hi = share(c, part, parts)
        step, count = stretches(n, lo, hi)
        for stretch in range(count):
            first = lo + (count - 1 - stretch) * step
            for r in range(first, min(first + step, hi)):
                at, factor, added = start + r * n, read(gate, r), read(even, r) if kind & 1 else zero
                if spatial:
                    for q in range(n):
                        value = read(dy, at + q) * read(opened, q) + read(dmean, q)
                        write(dx, at + q, factor * value + added)
                else:
                    for q in range(n):
                        write(dx, at + q, factor * read(dy, at + q) + added)
                if kind & 2:
                    at += int(peaks[image * c + r])
                    write(dx, at, read(dx, at) + read(peak, r))
        if spatial:
            for p in range(n):
                channel = int(argmax[image * n + p])
                if lo <= channel < hi:
                    at = start + channel * n + p
                    write(dx, at, read(dx, at) + read(gate, channel) * read(dmax, p))
    else:
        lo, hi = share(n, part, parts)
        step, count = stretches(c, lo, hi)
        for stretch in range(count):
            first = lo + (count - 1 - stretch) * step
            for r in range(first, min(first + step, hi)):
                at = start + r * c
                factor, added = (read(opened, r), read(dmean, r)) if spatial else (one, zero)
                if kind & 1:
                    for q in range(c):
                        value = read(dy, at + q) * factor + added
                        write(dx, at + q, read(gate, q) * value + read(even, q))
                else:
                    for q in range(c):
                        write(dx, at + q, read(gate, q) * (read(dy, at + q) * factor + added))
                if spatial:
                    channel = int(argmax[image * n + r])
                    write(dx, at + channel, read(dx, at + channel) + read(gate, channel) * read(dmax, r))
        if kind & 2:
            for q in range(c):
                position = int(peaks[image * c + q])
                if lo <= position < hi:
                    at = start + position * c + q
                    write(dx, at, read(dx, at) + read(peak, q))


@inlined
def first_half(args, image, part, parts, mean, variance):
    """All of an image before the gradients of BatchNorm are known."""
    if slot(args, KERNEL) != 0:
        open_gate(args, image, part, parts, mean, variance)
    read_both(args, image, part, parts)
    if slot(args, KERNEL) != 0:
        through_sigmoid(args, image, part, parts)


@inlined
def second_half(args, image, part, parts, mean, variance, dshift, dscale):
    """From the gradient of what goes into the sigmoid on."""
    if slot(args, KERNEL) != 0:
        through_norm(args, image, part, parts, mean, variance, dshift, dscale)
        through_convolution(args, image, part, parts)
        if slot(args, SQUEEZE) != 0:
            through_statistics(args, image, part, parts)
    if slot(args, SQUEEZE) != 0:
        through_layers(args, image, part, parts)
    if slot(args, DX) != 0:
        write_gradient(args, image, part, parts)


@inlined
def backward(args):
    """The whole backward pass."""
    me, threads, size, turns = team(args)
    batch = slot(args, NORM) == BATCH
    zero = like(sums_at(args, LOGITS), 0.0)
    mean, variance, dshift, dscale = zero, zero, zero, zero
    if slot(args, NORM) != 0:
        mean, variance = read(sums_at(args, MOMENTS), 0), read(sums_at(args, MOMENTS), 1)
    for turn in range(turns):
        image, part, parts = turn_of(args, turn, me, threads, size)
        first_half(args, image, part, parts, mean, variance)
        if not batch:
            second_half(args, image, part, parts, mean, variance, dshift, dscale)
    if slot(args, NORM) != 0:
        wait(args, threads)
        dshift, dscale = norm_gradients(args, mean, variance)
        if me == 0:
            write(sums_at(args, DMOMENTS), 0, dshift)
            write(sums_at(args, DMOMENTS), 1, dscale)
    if batch:
        for turn in range(turns):
            image, part, parts = turn_of(args, turn, me, threads, size)
            second_half(args, image, part, parts, mean, variance, dshift, dscale)


def entry(version):
    """The function to compile, as in ``native_gate``."""

    def backward_kernel(args):
        if version >= 0:
            backward(args)

    return backward_kernel
