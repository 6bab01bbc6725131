"""Sums and maxima of a map along its rows and down its columns.

A map is a matrix in memory: a row is a channel of a contiguous map, a position of a channels-last one. So one
statistic of a gate goes along rows and the other down columns, and both layouts take the same code.
"""

# numba gives these functions types of its own, and `range` over them is meant
# pyright: reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false

import math

from numba import njit

from foveal.ops.kernels.native.language import (
    call,
    like,
    maximum,
    nearest_whole,
    read,
    slot,
    times_power_of_two,
    write,
)
from foveal.ops.kernels.native.slots import BARRIER, BLOCK, STRETCH, TILE, TILES

_OPTIONS = {"error_model": "numpy", "fastmath": {"reassoc", "contract"}}
jit = njit(**_OPTIONS)
inlined = njit(**_OPTIONS, inline="always")
"""For functions that only call others: LLVM would optimise the code of all their callees once more for each of them."""
LOG_2, LOG2_E = math.log(2), 1 / math.log(2)
SERIES = tuple(1 / math.factorial(n) for n in range(12, -1, -1))


@jit
def wait(args, parts):
    """Wait until all threads that share this image are here."""
    if parts > 1:
        call(slot(args, BARRIER))


@jit
def share(size, part, parts):
    """The range that is ``part``'s."""
    return size * part // parts, size * (part + 1) // parts


@jit
def sigmoid(value):
    """``1 / (1 + exp(-value))`` in float64, of instructions that come as vectors: ``math.exp`` is a call a value.

    The exponential is a power of two times the Taylor series, for arguments up to log(2) / 2.
    """
    x = -float(value)
    x = -708.0 if x < -708.0 else x
    x = 708.0 if x > 708.0 else x
    whole = nearest_whole(x * LOG2_E)
    rest = x - whole * LOG_2
    series = 0.0
    for coefficient in SERIES:
        series = series * rest + coefficient
    opened = 1.0 / (1.0 + times_power_of_two(series, whole))
    return x if x != x else opened


@jit
def tile_rows(rows):
    return max(TILE, (rows + TILES - 1) // TILES)


@jit
def stretches(columns, lo, hi):
    """Of the rows lo to hi: how many make a stretch of memory, and how many such there are.

    A pass takes them from the last to the first, since what was read last is still in cache; within one it goes
    forward, as processors foresee.
    """
    step = max(1, STRETCH // columns)
    return step, (hi - lo + step - 1) // step


@jit
def mean_of_row(x, start, size):
    total = 0.0
    for block in range(0, size, BLOCK):
        partial = like(x, 0.0)
        for j in range(start + block, start + min(block + BLOCK, size)):
            partial += read(x, j)
        total += partial
    return like(x, total) / like(x, size)


@jit
def add_rows(x, start, columns, r0, r1, totals):
    """Add the rows r0 to r1, eight at a time, to the sums of all columns."""
    whole = r0 + (r1 - r0) // 8 * 8
    for r in range(r0, whole, 8):
        at = start + r * columns
        middle = at + 4 * columns
        for q in range(columns):
            one = read(x, at + q) + read(x, at + columns + q)
            two = read(x, at + 2 * columns + q) + read(x, at + 3 * columns + q)
            three = read(x, middle + q) + read(x, middle + columns + q)
            four = read(x, middle + 2 * columns + q) + read(x, middle + 3 * columns + q)
            write(totals, q, read(totals, q) + ((one + two) + (three + four)))
    for r in range(whole, r1):
        for q in range(columns):
            write(totals, q, read(totals, q) + read(x, start + r * columns + q))


@jit
def along_row(x, start, size, factor, factor_start, multiply, want_index):
    """Sum, maximum and first index of the maximum of a row, of the products with ``factor`` if ``multiply``."""
    total, largest, first = 0.0, like(x, -math.inf), 0
    for block in range(0, size, BLOCK):
        end = min(block + BLOCK, size)
        partial, top = like(x, 0.0), like(x, -math.inf)
        if multiply:
            for j in range(block, end):
                value = read(x, start + j) * read(factor, factor_start + j)
                partial += value
                top = maximum(top, value)
        else:
            for j in range(block, end):
                value = read(x, start + j)
                partial += value
                top = maximum(top, value)
        total += partial
        if top > largest or (top != top and largest == largest):
            largest, first = top, block
    if want_index:
        end, index = min(first + BLOCK, size), size
        if multiply:
            for j in range(first, end):
                value = read(x, start + j) * read(factor, factor_start + j)
                index = min(index, j if value == largest or value != value else size)
        else:
            for j in range(first, end):
                value = read(x, start + j)
                index = min(index, j if value == largest or value != value else size)
        first = min(index, size - 1)
    return like(x, total), largest, first


@jit
def down_columns(x, start, columns, r0, r1, q0, q1, factor, factor_start, multiply, totals, maxima):
    """Add rows r0 to r1 of the columns q0 to q1 to their sums, and raise their maxima."""
    one = like(x, 1.0)
    for r in range(r0, r1, 4):
        at = start + r * columns
        full = r + 4 <= r1
        f0, f1, f2, f3 = one, one, one, one
        if multiply:
            f0 = read(factor, factor_start + r)
            if full:
                f1, f2 = read(factor, factor_start + r + 1), read(factor, factor_start + r + 2)
                f3 = read(factor, factor_start + r + 3)
        if full:
            for q in range(q0, q1):
                v0, v1 = read(x, at + q) * f0, read(x, at + columns + q) * f1
                v2, v3 = read(x, at + 2 * columns + q) * f2, read(x, at + 3 * columns + q) * f3
                write(totals, q, read(totals, q) + ((v0 + v1) + (v2 + v3)))
                write(maxima, q, maximum(read(maxima, q), maximum(maximum(v0, v1), maximum(v2, v3))))
        else:
            for last in range(r, r1):
                if multiply:
                    f0 = read(factor, factor_start + last)
                for q in range(q0, q1):
                    v0 = read(x, start + last * columns + q) * f0
                    write(totals, q, read(totals, q) + v0)
                    write(maxima, q, maximum(read(maxima, q), v0))


@jit
def first_in_columns(x, start, columns, r0, r1, q0, q1, factor, factor_start, maxima, index):
    """Find the first of the rows r0 to r1 in which a column has its maximum."""
    for q in range(q0, q1):
        index[q] = -1
    for r in range(r0, r1):
        f = read(factor, factor_start + r)
        for q in range(q0, q1):
            v = read(x, start + r * columns + q) * f
            found = (v == read(maxima, q) or v != v) and index[q] < 0
            index[q] = r if found else index[q]


@jit
def dot(one, other, size):
    """The sum of products of two rows."""
    total = 0.0
    for block in range(0, size, BLOCK):
        partial = like(one, 0.0)
        for j in range(block, min(block + BLOCK, size)):
            partial += read(one, j) * read(other, j)
        total += partial
    return like(one, total)
