"""The spatial half of a gate: statistics over channels, BatchNorm and sigmoid of their convolution; and back."""

# numba gives these functions types of its own, and `range` over them is meant
# pyright: reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false

import math

from foveal.ops.kernels.native.axes import (
    along_row,
    dot,
    down_columns,
    first_in_columns,
    jit,
    mean_of_row,
    share,
    sigmoid,
    stretches,
    tile_rows,
    wait,
)
from foveal.ops.kernels.native.convolution import pad_into, padded_shape
from foveal.ops.kernels.native.language import (
    ints_at,
    like,
    map_at,
    read,
    real_at,
    shifted,
    slot,
    sums_at,
    write,
)
from foveal.ops.kernels.native.slots import (
    BATCH,
    BLOCK,
    CHANNELS,
    CHANNELS_LAST,
    COLUMNS,
    DGATE,
    DLOGITS,
    DSTATISTICS,
    GATE,
    IMAGES,
    LOGITS,
    MEANS,
    NORM,
    NORM_EPS,
    NORM_SCALE,
    NORM_SHIFT,
    PADDED_DLOGITS,
    PARTIAL,
    POSITION_ARGMAX,
    POSITIONS,
    SPATIAL_GAIN,
    SPATIAL_GATE,
    STATISTICS,
    TILES,
    X,
)


@jit
def describe(args, image, part, parts):
    """Mean and maximum over the channels of the gated map, into STATISTICS, which has a border of zeros."""
    x, c, n = map_at(args, X), slot(args, CHANNELS), slot(args, POSITIONS)
    gate = sums_at(args, GATE)
    argmax, want_index = ints_at(args, POSITION_ARGMAX), slot(args, POSITION_ARGMAX) != 0
    mean = shifted(sums_at(args, SPATIAL_GATE), image * n)  # until the gate is written there
    largest = shifted(sums_at(args, LOGITS), image * n)
    start, size = image * c * n, like(x, c)
    if slot(args, CHANNELS_LAST) != 0:
        lo, hi = share(n, part, parts)
        step, count = stretches(c, lo, hi)
        for stretch in range(count):
            begin = lo + (count - 1 - stretch) * step
            for r in range(begin, min(begin + step, hi)):
                total, top, first = along_row(x, start + r * c, c, gate, image * c, True, want_index)
                write(mean, r, total / size)
                write(largest, r, top)
                if want_index:
                    argmax[image * n + r] = first
    else:
        tiles = (n + COLUMNS - 1) // COLUMNS
        t0, t1 = share(tiles, part, parts)
        lo, hi = t0 * COLUMNS, min(t1 * COLUMNS, n)
        for q0 in range(lo, hi, COLUMNS):
            q1 = min(q0 + COLUMNS, n)
            for q in range(q0, q1):
                write(mean, q, like(x, 0.0))
                write(largest, q, like(x, -math.inf))
            down_columns(x, start, n, 0, c, q0, q1, gate, image * c, True, mean, largest)
            if want_index:
                index = shifted(argmax, image * n)
                first_in_columns(x, start, n, 0, c, q0, q1, gate, image * c, largest, index)
            for q in range(q0, q1):
                write(mean, q, read(mean, q) / size)
    _, _, padded = padded_shape(args)
    statistics = shifted(sums_at(args, STATISTICS), 2 * image * padded)
    pad_into(args, mean, statistics, lo, hi)
    pad_into(args, largest, shifted(statistics, padded), lo, hi)
    wait(args, parts)


@jit
def batch_moments(args):
    """Mean and variance of all logits: every thread for itself, in the same order."""
    logits, size = sums_at(args, LOGITS), slot(args, IMAGES) * slot(args, POSITIONS)
    mean = mean_of_row(logits, 0, size)
    variance = 0.0
    for block in range(0, size, BLOCK):
        partial = like(logits, 0.0)
        for j in range(block, min(block + BLOCK, size)):
            partial += (read(logits, j) - mean) * (read(logits, j) - mean)
        variance += partial
    return mean, like(logits, variance) / like(logits, size)


@jit
def scale_and_shift(args, mean, variance):
    """What BatchNorm does to a logit, as one product and one sum."""
    logits = sums_at(args, LOGITS)
    scale, shift = like(logits, 1.0), like(logits, 0.0)
    if slot(args, NORM) != 0:
        scale = read(sums_at(args, NORM_SCALE), 0) / like(
            logits, math.sqrt(variance + real_at(args, NORM_EPS))
        )
        shift = read(sums_at(args, NORM_SHIFT), 0) - mean * scale
    return scale, shift


@jit
def open_gate(args, image, part, parts, mean, variance):
    """BatchNorm and sigmoid, from LOGITS into SPATIAL_GATE."""
    n = slot(args, POSITIONS)
    logits, gate = sums_at(args, LOGITS), sums_at(args, SPATIAL_GATE)
    scale, shift = scale_and_shift(args, mean, variance)
    gain = real_at(args, SPATIAL_GAIN)
    lo, hi = share(n, part, parts)
    for p in range(image * n + lo, image * n + hi):
        write(gate, p, gain * like(logits, sigmoid(read(logits, p) * scale + shift)))
    wait(args, parts)


@jit
def through_sigmoid(args, image, part, parts):
    """DLOGITS from the gradient of the gate to that of what went into the sigmoid."""
    n, gate, dlogits = slot(args, POSITIONS), sums_at(args, SPATIAL_GATE), sums_at(args, DLOGITS)
    gain = real_at(args, SPATIAL_GAIN)
    lo, hi = share(n, part, parts)
    for p in range(image * n + lo, image * n + hi):
        opened = read(gate, p)
        write(dlogits, p, read(dlogits, p) * opened * (like(gate, 1.0) - opened / gain))
    wait(args, parts)


@jit
def norm_gradients(args, mean, variance):
    """The gradients of BatchNorm's shift and scale, over all images: every thread for itself, in the same order."""
    logits, dlogits = sums_at(args, LOGITS), sums_at(args, DLOGITS)
    size = slot(args, IMAGES) * slot(args, POSITIONS)
    inverse = like(logits, 1.0) / like(logits, math.sqrt(variance + real_at(args, NORM_EPS)))
    dshift, dscale = 0.0, 0.0
    for block in range(0, size, BLOCK):
        one, other = like(logits, 0.0), like(logits, 0.0)
        for p in range(block, min(block + BLOCK, size)):
            one += read(dlogits, p)
            other += read(dlogits, p) * (read(logits, p) - mean)
        dshift += one
        dscale += other
    return like(logits, dshift), like(logits, dscale) * inverse


@jit
def through_norm(args, image, part, parts, mean, variance, dshift, dscale):
    """The gradient of the convolution's output, into PADDED_DLOGITS; the statistics again, into STATISTICS."""
    x, c, n = map_at(args, X), slot(args, CHANNELS), slot(args, POSITIONS)
    logits, dlogits = sums_at(args, LOGITS), sums_at(args, DLOGITS)
    means, gate, argmax = sums_at(args, MEANS), sums_at(args, GATE), ints_at(args, POSITION_ARGMAX)
    _, _, padded = padded_shape(args)
    statistics = shifted(sums_at(args, STATISTICS), 2 * image * padded)
    room = shifted(sums_at(args, DSTATISTICS), 2 * image * n)
    lo, hi = share(n, part, parts)
    inverse, size = like(logits, 1.0), like(logits, slot(args, IMAGES) * n)
    scale = inverse
    if slot(args, NORM) != 0:
        inverse = inverse / like(logits, math.sqrt(variance + real_at(args, NORM_EPS)))
        scale = read(sums_at(args, NORM_SCALE), 0) * inverse
    for p in range(lo, hi):
        value = read(dlogits, image * n + p)
        if slot(args, NORM) == BATCH:
            value -= (dshift + (read(logits, image * n + p) - mean) * inverse * dscale) / size
        write(room, p, value * scale)
    pad_into(args, room, shifted(sums_at(args, PADDED_DLOGITS), image * padded), lo, hi)
    for p in range(lo, hi):
        write(room, p, read(means, image * n + p) / like(x, c))
    pad_into(args, room, statistics, lo, hi)
    last = slot(args, CHANNELS_LAST) != 0
    for p in range(lo, hi):
        channel = int(argmax[image * n + p])
        at = p * c + channel if last else channel * n + p
        write(room, p, read(x, image * c * n + at) * read(gate, image * c + channel))
    pad_into(args, room, shifted(statistics, padded), lo, hi)
    wait(args, parts)


@jit
def through_statistics(args, image, part, parts):
    """Add to DGATE what comes through the statistics of the gated map."""
    x, c, n = map_at(args, X), slot(args, CHANNELS), slot(args, POSITIONS)
    dgate, argmax = shifted(sums_at(args, DGATE), image * c), ints_at(args, POSITION_ARGMAX)
    dmean = shifted(sums_at(args, DSTATISTICS), 2 * image * n)
    dmax, start = shifted(dmean, n), image * c * n
    lo, hi = share(c, part, parts)
    if slot(args, CHANNELS_LAST) == 0:
        for r in range(lo, hi):
            write(dgate, r, read(dgate, r) + dot(shifted(x, start + r * n), dmean, n))
        for p in range(n):
            channel = int(argmax[image * n + p])
            if lo <= channel < hi:
                value = read(dmax, p) * read(x, start + channel * n + p)
                write(dgate, channel, read(dgate, channel) + value)
        wait(args, parts)
        return
    step = tile_rows(n)
    tiles = (n + step - 1) // step
    partial = shifted(sums_at(args, PARTIAL), image * max(TILES, (n + COLUMNS - 1) // COLUMNS) * c)
    t0, t1 = share(tiles, part, parts)
    for tile in range(t0, t1):
        sums = shifted(partial, tile * c)
        for q in range(c):
            write(sums, q, like(x, 0.0))
        for r in range(tile * step, min((tile + 1) * step, n)):
            at, factor = start + r * c, read(dmean, r)
            for q in range(c):
                write(sums, q, read(sums, q) + read(x, at + q) * factor)
            channel = int(argmax[image * n + r])
            write(sums, channel, read(sums, channel) + read(dmax, r) * read(x, at + channel))
    wait(args, parts)
    for q in range(lo, hi):
        total = 0.0
        for tile in range(tiles):
            total += read(partial, tile * c + q)
        write(dgate, q, read(dgate, q) + like(x, total))
    wait(args, parts)
