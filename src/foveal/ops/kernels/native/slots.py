"""The slots of a kernel's argument: sizes, flags, and addresses (0 where there is none), in this order."""

# fmt: off
(
    # threads, how many of them share an image, the map and its gradients
    BARRIER, THREADS, THREAD, TEAM, IMAGES, CHANNELS, POSITIONS, CHANNELS_LAST, X, Y, SHORTCUT, RELU, DY, DX,
    # the map whose statistics make the channel gate: X, but for a squeeze that is taken before a convolution
    SEEN, SEEN_CHANNELS, SEEN_POSITIONS,
    # the channel half; GATE is always there, of ones if need be, and SQUEEZE says which statistics make it, or none
    GATE, SQUEEZE, SQUEEZED, CHANNEL_ARGMAX, W1, B1, W2, B2, WIDTH, HIDDEN, HARD, CHANNEL_GAIN, DGATE, DHIDDEN,
    # the spatial half, where there is a KERNEL
    KERNEL, KERNEL_DEPTH, KERNEL_HEIGHT, KERNEL_BREADTH, DEPTH, HEIGHT, BREADTH, MAX_FIRST, STATISTICS, LOGITS,
    SPATIAL_GATE, POSITION_ARGMAX, SPATIAL_GAIN, NORM, NORM_SCALE, NORM_SHIFT, NORM_MEAN, NORM_VAR, NORM_EPS, MOMENTS,
    DLOGITS, DSTATISTICS, DKERNEL, FLIPPED, PADDED_DLOGITS, DMOMENTS, MEANS,
    # room for what lies between two steps
    PARTIAL, ROOM,
) = range(60)
# fmt: on

SLOTS = {name.lower(): number for name, number in globals().items() if name.isupper()}
"""The number of each slot by its name in lower case."""

MEAN, MAX = 1, 2  # bits of SQUEEZE
RUNNING, BATCH = 1, 2  # values of NORM; 0: none

# How a map is split, the same for any number of threads.
BLOCK = 512
"""Values whose sum is float32; the sum of such sums is float64."""
TILE, TILES = 64, 64
"""Rows whose columns are summed together, more where there would be over TILES tiles."""
STRETCH = 2**16
"""Values that are read in the order of memory where a pass begins with what the pass before it read last."""
COLUMNS = 256
"""Columns of a contiguous map that are taken together where a column is summed."""
LANES = 16
"""Lines of the spatial convolution are padded to a multiple of it."""
