"""What kernels for a CPU are written in: Python that numba compiles, on raw pointers.

A kernel has one argument, a pointer to slots of 64 bits that hold sizes and addresses. The pointer's type says what a
feature map holds: ``float32``, ``float64``, or ``uint16`` for the bits of bfloat16. Sums are float32, of float64 maps
float64. Pointers instead of arrays, because an array's index may be negative, which keeps loops from being vectorised.
"""

# numba gives these functions types of its own
# pyright: reportReturnType=false, reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

SUMS = {types.float32: types.float32, types.float64: types.float64, types.uint16: types.float32}
"""What a map holds -> what its sums are computed in."""

_I64, _I32, _I16 = ir.IntType(64), ir.IntType(32), ir.IntType(16)


def _slot(builder, args, index):
    slots = builder.bitcast(args, _I64.as_pointer())
    return builder.load(builder.gep(slots, [index]))


def _pointer_reader(pointee):
    """An intrinsic that reads an address from a slot, as a pointer to ``pointee(type of the map)``."""

    def typing(typingctx, args, index):
        wanted = types.CPointer(pointee(args.dtype))

        def codegen(context, builder, signature, values):
            return builder.inttoptr(_slot(builder, *values), context.get_value_type(wanted))

        return wanted(args, types.int64), codegen

    return intrinsic(typing)


map_at = _pointer_reader(lambda dtype: dtype)
sums_at = _pointer_reader(lambda dtype: SUMS[dtype])
ints_at = _pointer_reader(lambda dtype: types.int32)


@intrinsic
def slot(typingctx, args, index):
    """Read a number from a slot."""
    return types.int64(args, types.int64), lambda context, builder, signature, values: _slot(builder, *values)


@intrinsic
def real_at(typingctx, args, index):
    """Read a float64 that was stored in a slot, in the type of sums."""
    wanted = SUMS[args.dtype]

    def codegen(context, builder, signature, values):
        double = builder.bitcast(_slot(builder, *values), ir.DoubleType())
        return context.cast(builder, double, types.float64, wanted)

    return wanted(args, types.int64), codegen


@intrinsic
def like(typingctx, pointer, value):
    """Cast a number to the type of the sums that ``pointer``, to a map or to sums, goes with."""
    wanted = SUMS[pointer.dtype]

    def codegen(context, builder, signature, values):
        return context.cast(builder, values[1], signature.args[1], wanted)

    return wanted(pointer, value), codegen


@intrinsic
def read(typingctx, pointer, index):
    """Read a value of a map, in the type of its sums."""
    dtype = pointer.dtype

    def codegen(context, builder, signature, values):
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        value = builder.load(builder.gep(values[0], [values[1]]))
        if dtype != types.uint16:
            return value
        wide = builder.shl(builder.zext(value, _I32), ir.Constant(_I32, 16))
        return builder.bitcast(wide, ir.FloatType())

    return SUMS[dtype](pointer, types.int64), codegen


@intrinsic
def write(typingctx, pointer, index, value):
    """Write a value of a map: bfloat16 is rounded to nearest, ties to even, and NaN stays NaN."""
    dtype = pointer.dtype

    def codegen(context, builder, signature, values):
        target, at, number = values
        if dtype == types.uint16:
            bits = builder.bitcast(number, _I32)
            odd = builder.and_(builder.lshr(bits, ir.Constant(_I32, 16)), ir.Constant(_I32, 1))
            rounded = builder.add(bits, builder.add(odd, ir.Constant(_I32, 0x7FFF)))
            is_nan = builder.fcmp_unordered("uno", number, number)
            bits = builder.select(is_nan, ir.Constant(_I32, 0x7FC00000), rounded)
            number = builder.trunc(builder.lshr(bits, ir.Constant(_I32, 16)), _I16)
        builder.store(number, builder.gep(target, [at]))
        return context.get_dummy_value()

    return types.void(pointer, types.int64, SUMS[dtype]), codegen


@intrinsic
def shifted(typingctx, pointer, offset):
    """The pointer to what lies ``offset`` values further on."""
    return pointer(pointer, types.int64), lambda context, builder, signature, values: builder.gep(
        values[0], [values[1]]
    )


@intrinsic
def maximum(typingctx, one, other):
    """The larger of two numbers, NaN if either is; of two zeros any, which spares two instructions of five."""

    def codegen(context, builder, signature, values):
        kind = context.get_value_type(one)
        function = ir.FunctionType(kind, [kind, kind])
        function = builder.module.declare_intrinsic("llvm.maximum", [kind], function)
        return builder.call(function, values, fastmath=("nsz",))

    return one(one, one), codegen


@intrinsic
def times_power_of_two(typingctx, value, exponent):
    """``value 2^exponent`` for a whole ``exponent`` from -1022 to 1023, both float64."""

    def codegen(context, builder, signature, values):
        biased = builder.add(builder.fptosi(values[1], _I32), ir.Constant(_I32, 1023))
        bits = builder.shl(builder.zext(biased, _I64), ir.Constant(_I64, 52))
        return builder.fmul(values[0], builder.bitcast(bits, ir.DoubleType()))

    return types.float64(types.float64, types.float64), codegen


@intrinsic
def nearest_whole(typingctx, value):
    """The whole number next to a float64."""

    def codegen(context, builder, signature, values):
        kind = ir.DoubleType()
        function = builder.module.declare_intrinsic("llvm.rint", [kind], ir.FunctionType(kind, [kind]))
        return builder.call(function, values)

    return types.float64(types.float64), codegen


@intrinsic
def call(typingctx, address):
    """Call the ``int (void)`` function at an address; what a ``void`` function returns means nothing."""

    def codegen(context, builder, signature, values):
        function = ir.FunctionType(_I32, []).as_pointer()
        return builder.sext(builder.call(builder.inttoptr(values[0], function), []), _I64)

    return types.int64(types.int64), codegen
