"""The channel half of a gate: squeeze, two layers, activation; and back."""

# numba gives these functions types of its own, and `range` over them is meant
# pyright: reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false

import math

from foveal.ops.kernels.native.axes import (
    add_rows,
    along_row,
    down_columns,
    jit,
    mean_of_row,
    share,
    sigmoid,
    tile_rows,
    wait,
)
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
    B1,
    B2,
    CHANNEL_ARGMAX,
    CHANNEL_GAIN,
    CHANNELS,
    CHANNELS_LAST,
    DGATE,
    DHIDDEN,
    GATE,
    HARD,
    HIDDEN,
    IMAGES,
    MEAN,
    PARTIAL,
    POSITIONS,
    SEEN,
    SEEN_CHANNELS,
    SEEN_POSITIONS,
    SQUEEZE,
    SQUEEZED,
    TILES,
    W1,
    W2,
    WIDTH,
)

SMALL_LAYERS = 2**15
"""Weights of a layer up to which every thread computes all of it: sooner done than waited for."""


@jit
def squeeze(args, image, part, parts):
    """Mean and maximum of each channel of SEEN over all positions, into SQUEEZED."""
    x, c, n = map_at(args, SEEN), slot(args, SEEN_CHANNELS), slot(args, SEEN_POSITIONS)
    mean, largest = sums_at(args, SQUEEZED), sums_at(args, SQUEEZED)
    argmax, want_index = ints_at(args, CHANNEL_ARGMAX), slot(args, CHANNEL_ARGMAX) != 0
    to_mean, to_max = image * c, (slot(args, IMAGES) + image) * c
    start, size = image * c * n, like(x, n)
    lo, hi = share(c, part, parts)
    if slot(args, CHANNELS_LAST) == 0:
        for r in range(lo, hi):
            if slot(args, SQUEEZE) == MEAN:
                write(mean, to_mean + r, mean_of_row(x, start + r * n, n))
                continue
            total, top, first = along_row(x, start + r * n, n, mean, 0, False, want_index)
            write(mean, to_mean + r, total / size)
            write(largest, to_max + r, top)
            if want_index:
                argmax[image * c + r] = first
        wait(args, parts)
        return
    step = tile_rows(n)
    tiles = (n + step - 1) // step
    partial = sums_at(args, PARTIAL)
    own = image * TILES * 2 * c
    t0, t1 = share(tiles, part, parts)
    for tile in range(t0, t1):
        totals, maxima = shifted(partial, own + 2 * tile * c), shifted(partial, own + (2 * tile + 1) * c)
        for q in range(c):
            write(totals, q, like(x, 0.0))
            write(maxima, q, like(x, -math.inf))
        end = min((tile + 1) * step, n)
        if slot(args, SQUEEZE) == MEAN:
            add_rows(x, start, c, tile * step, end, totals)
            continue
        down_columns(x, start, c, tile * step, end, 0, c, mean, 0, False, totals, maxima)
    wait(args, parts)
    for q in range(lo, hi):
        total, top, best = 0.0, like(x, -math.inf), 0
        for tile in range(tiles):
            total += read(partial, own + 2 * tile * c + q)
            value = read(partial, own + (2 * tile + 1) * c + q)
            if value > top or (value != value and top == top):
                top, best = value, tile
        write(mean, to_mean + q, like(x, total) / size)
        write(largest, to_max + q, top)
        if want_index:
            index = best * step
            while index < n - 1:
                value = read(x, start + index * c + q)
                if value == top or value != value:
                    break
                index += 1
            argmax[image * c + q] = index
    wait(args, parts)


@jit
def excite(args, image, part, parts):
    """The two layers and the sigmoid, into GATE; HIDDEN keeps the ReLU's output for backward."""
    c, seen, width, images = (
        slot(args, CHANNELS),
        slot(args, SEEN_CHANNELS),
        slot(args, WIDTH),
        slot(args, IMAGES),
    )
    w1, b1, w2, b2 = sums_at(args, W1), sums_at(args, B1), sums_at(args, W2), sums_at(args, B2)
    squeezed, hidden, gate = sums_at(args, SQUEEZED), sums_at(args, HIDDEN), sums_at(args, GATE)
    kind = slot(args, SQUEEZE)
    # sooner done than waited for: by each thread, which write the same
    if max(c, seen) * width <= SMALL_LAYERS:
        part, parts = 0, 1
    lo, hi = share(width, part, parts)
    for bit in range(2):
        if kind & (bit + 1):
            source, row = (bit * images + image) * seen, (bit * images + image) * width
            for j in range(lo, hi):
                total = like(w1, 0.0)
                for i in range(seen):
                    total += read(w1, j * seen + i) * read(squeezed, source + i)
                if slot(args, B1) != 0:
                    total += read(b1, j)
                write(hidden, row + j, like(w1, 0.0) if total < like(w1, 0.0) else total)
    wait(args, parts)
    gain, one = real_at(args, CHANNEL_GAIN), like(w1, 1.0)
    lo, hi = share(c, part, parts)
    for i in range(lo, hi):
        total = like(w1, 0.0)
        for bit in range(2):
            if kind & (bit + 1):
                row, logit = (bit * images + image) * width, like(w1, 0.0)
                for j in range(width):
                    logit += read(w2, i * width + j) * read(hidden, row + j)
                if slot(args, B2) != 0:
                    logit += read(b2, i)
                total += logit
        if slot(args, HARD) != 0:
            total = (total + like(w1, 3.0)) / like(w1, 6.0)
            total = like(w1, 0.0) if total < like(w1, 0.0) else total
            total = one if total > one else total
        else:
            total = like(w1, sigmoid(total))
        write(gate, image * c + i, gain * total)
    wait(args, parts)


@jit
def through_layers(args, image, part, parts):
    """DGATE becomes the gradient of the logits, DHIDDEN that of the first layer, SQUEEZED that of the statistics."""
    c, width, images, kind = slot(args, CHANNELS), slot(args, WIDTH), slot(args, IMAGES), slot(args, SQUEEZE)
    gate, dgate = shifted(sums_at(args, GATE), image * c), shifted(sums_at(args, DGATE), image * c)
    w1, w2 = sums_at(args, W1), sums_at(args, W2)
    gain, one, zero = real_at(args, CHANNEL_GAIN), like(w1, 1.0), like(w1, 0.0)
    lo, hi = share(c, part, parts)
    for i in range(lo, hi):
        opened = read(gate, i)
        slope = opened * (one - opened / gain)
        if slot(args, HARD) != 0:
            slope = gain / like(w1, 6.0) if zero < opened < gain else zero
        write(dgate, i, read(dgate, i) * slope)
    wait(args, parts)
    lo, hi = share(width, part, parts)
    for bit in range(2):
        if kind & (bit + 1):
            row = (bit * images + image) * width
            hidden, dhidden = shifted(sums_at(args, HIDDEN), row), shifted(sums_at(args, DHIDDEN), row)
            for j in range(lo, hi):
                write(dhidden, j, zero)
            for i in range(c):
                value = read(dgate, i)
                for j in range(lo, hi):
                    write(dhidden, j, read(dhidden, j) + value * read(w2, i * width + j))
            for j in range(lo, hi):
                write(dhidden, j, zero if read(hidden, j) == zero else read(dhidden, j))
    wait(args, parts)
    lo, hi = share(c, part, parts)
    for bit in range(2):
        if kind & (bit + 1):
            dhidden = shifted(sums_at(args, DHIDDEN), (bit * images + image) * width)
            dsqueezed = shifted(sums_at(args, SQUEEZED), (bit * images + image) * c)
            for i in range(lo, hi):
                write(dsqueezed, i, zero)
            for j in range(width):
                value = read(dhidden, j)
                for i in range(lo, hi):
                    write(dsqueezed, i, read(dsqueezed, i) + value * read(w1, j * c + i))
            if bit == 0:
                for i in range(lo, hi):
                    write(dsqueezed, i, read(dsqueezed, i) / like(w1, slot(args, POSITIONS)))
    wait(args, parts)
