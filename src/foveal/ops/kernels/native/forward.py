"""The forward pass of a gate in one call: squeeze, layers, statistics, convolution, sigmoid and product.

An image goes through all steps before the next one comes, so that its map is still in cache when it is read again: by
one thread while there are images for all of them, the rest by all threads together. How a sum is split never depends
on the number of threads: the bits do not.
"""

# numba gives these functions types of its own, and `range` over them is meant
# pyright: reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false

import math

from foveal.ops.kernels.native.axes import inlined, jit, share, stretches, wait
from foveal.ops.kernels.native.channel import excite, squeeze
from foveal.ops.kernels.native.convolution import convolve
from foveal.ops.kernels.native.language import call, like, map_at, read, shifted, slot, sums_at, write
from foveal.ops.kernels.native.slots import (
    BARRIER,
    BATCH,
    CHANNELS,
    CHANNELS_LAST,
    GATE,
    IMAGES,
    KERNEL,
    LOGITS,
    MOMENTS,
    NORM,
    NORM_MEAN,
    NORM_VAR,
    POSITIONS,
    RELU,
    RUNNING,
    SHORTCUT,
    SPATIAL_GATE,
    SQUEEZE,
    TEAM,
    THREAD,
    THREADS,
    X,
    Y,
)
from foveal.ops.kernels.native.spatial import batch_moments, describe, open_gate


@jit
def multiply(args, image, part, parts):
    """The map times its gates into Y; with a shortcut Y is X, and the sum goes through a ReLU if asked for."""
    x, y, shortcut = map_at(args, X), map_at(args, Y), map_at(args, SHORTCUT)
    adds, relu, both = slot(args, SHORTCUT) != 0, slot(args, RELU) != 0, slot(args, KERNEL) != 0
    rows, columns, by_row, by_column = slot(args, CHANNELS), slot(args, POSITIONS), GATE, SPATIAL_GATE
    if slot(args, CHANNELS_LAST) != 0:
        rows, columns, by_row, by_column = columns, rows, by_column, by_row
    row_factor, column_factor = sums_at(args, by_row), shifted(sums_at(args, by_column), image * columns)
    one, floor = like(x, 1.0), like(x, 0.0 if relu else -math.inf)
    has_row, has_column = both or by_row == GATE, both or by_column == GATE
    lo, hi = share(rows, part, parts)
    # a describing pass has turned around already
    step, count = stretches(columns, lo, hi)
    forward = both and slot(args, CHANNELS_LAST) != 0
    for stretch in range(count):
        first = lo + (stretch if forward else count - 1 - stretch) * step
        for r in range(first, min(first + step, hi)):
            at = (image * rows + r) * columns
            factor = read(row_factor, image * rows + r) if has_row else one
            if adds and has_column:  # in place: through one pointer, or the loop would not be vectorised
                for q in range(columns):
                    value = read(y, at + q) * (read(column_factor, q) * factor) + read(shortcut, at + q)
                    write(y, at + q, floor if value < floor else value)
            elif adds:
                for q in range(columns):
                    value = read(y, at + q) * factor + read(shortcut, at + q)
                    write(y, at + q, floor if value < floor else value)
            elif has_column:
                for q in range(columns):
                    write(y, at + q, read(x, at + q) * factor * read(column_factor, q))
            else:
                for q in range(columns):
                    write(y, at + q, read(x, at + q) * factor)


@inlined
def first_half(args, image, part, parts):
    """All of an image up to the logits of its positions."""
    if slot(args, SQUEEZE) != 0:
        squeeze(args, image, part, parts)
        excite(args, image, part, parts)
    if slot(args, KERNEL) != 0:
        describe(args, image, part, parts)
        convolve(args, image, part, parts)


@inlined
def second_half(args, image, part, parts, mean, variance):
    """From the logits on."""
    if slot(args, KERNEL) != 0:
        open_gate(args, image, part, parts, mean, variance)
    if slot(args, Y) != 0:
        multiply(args, image, part, parts)


@jit
def team(args):
    """The number of this thread, of all, of those that share an image, and in how many images it has a part."""
    threads, me, images, size = 1, 0, slot(args, IMAGES), slot(args, TEAM)
    if slot(args, BARRIER) != 0:
        threads, me = call(slot(args, THREADS)), call(slot(args, THREAD))
    if threads % size != 0:  # fewer than were asked for
        size = threads
    teams = threads // size
    return me, threads, size, images // teams + images % teams


@jit
def turn_of(args, turn, me, threads, size):
    """The image of a turn, this thread's part of it, and of how many: an image a team, then those that all share.

    Teams wait for one another, as the barrier is one for all: their images are of one size.
    """
    teams = threads // size
    whole = slot(args, IMAGES) // teams
    if turn < whole:
        return me // size + turn * teams, me % size, size
    return whole * teams + turn - whole, me, threads


@inlined
def forward(args):
    """The whole forward pass."""
    me, threads, size, turns = team(args)
    batch = slot(args, NORM) == BATCH
    zero = like(sums_at(args, LOGITS), 0.0)
    mean, variance = zero, zero
    if slot(args, NORM) == RUNNING:
        mean, variance = read(sums_at(args, NORM_MEAN), 0), read(sums_at(args, NORM_VAR), 0)
    for turn in range(turns):
        image, part, parts = turn_of(args, turn, me, threads, size)
        first_half(args, image, part, parts)
        if not batch:
            second_half(args, image, part, parts, mean, variance)
    if batch:
        wait(args, threads)
        mean, variance = batch_moments(args)
        if me == 0:
            write(sums_at(args, MOMENTS), 0, mean)
            write(sums_at(args, MOMENTS), 1, variance)
        for turn in range(turns):
            image, part, parts = turn_of(args, turn, me, threads, size)
            second_half(args, image, part, parts, mean, variance)


def entry(version):
    """The function to compile, called by every thread; another version is another function, for the cache on disk."""

    def forward_kernel(args):
        if version >= 0:
            forward(args)

    return forward_kernel
