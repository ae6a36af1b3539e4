"""Vectors of 16 lanes, for compiled loops: arithmetic on these is written as on one number.

A search for scales has too many branches for a compiler to vectorize it. So 16 blocks are encoded
at once, a lane each: what is a branch for one block is a choice between two vectors here. LLVM cuts
these vectors to what the processor has; results do not depend on that, since no step of one lane
sees another, and no step is contracted.

Arrays hold the lanes of one vector side by side: float32, int32 (n, 16).
"""

import operator
from collections.abc import Callable
from typing import Any

import numba.extending
from llvmlite import ir
from numba import types
from numba.core import cgutils

LANES = 16

# Numba's functions have no types.
_numba: Any = numba.extending
_insert: Any = cgutils.get_or_insert_function


class Lanes(types.Type):
    """The type of 16 floats, whole numbers of 32 bits, or flags."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        super().__init__(name=f"Lanes({kind})")  # type: ignore[no-untyped-call,unused-ignore]


FLOATS, WHOLES, FLAGS = Lanes("floats"), Lanes("wholes"), Lanes("flags")
_SCALARS = {FLOATS: types.float32, WHOLES: types.int32, FLAGS: types.boolean}
_VECTORS = {
    FLOATS: ir.VectorType(ir.FloatType(), LANES),
    WHOLES: ir.VectorType(ir.IntType(32), LANES),
    FLAGS: ir.VectorType(ir.IntType(1), LANES),
}
_OF_ARRAY = {types.float32: FLOATS, types.int32: WHOLES}


@_numba.register_model(Lanes)
class _LanesModel(_numba.models.PrimitiveModel):  # type: ignore[misc,unused-ignore]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _VECTORS[kind])


def load(rows: Any, at: Any) -> Any:
    """Give the vector in a row of an array."""


def store(rows: Any, at: Any, lanes: Any) -> Any:
    """Write a vector to a row of an array."""


def spread(number: Any) -> Any:
    """Give a float32 in every lane."""


def choose(flags: Any, one: Any, other: Any) -> Any:
    """Take lanes of `one` where a flag is set, else of `other`."""


def some(flags: Any) -> Any:
    """Tell whether any flag is set."""


def least(one: Any, other: Any) -> Any:
    """Give the smaller whole numbers."""


def most(one: Any, other: Any) -> Any:
    """Give the larger whole numbers."""


def as_wholes(floats: Any) -> Any:
    """Give the bits of floats."""


def as_floats(wholes: Any) -> Any:
    """Give the floats of these bits."""


def to_floats(wholes: Any) -> Any:
    """Convert whole numbers."""


def root(floats: Any) -> Any:
    """Give the square roots."""


def size_of(floats: Any) -> Any:
    """Clear the signs."""


def _suits(kind: Any, other: Any) -> bool:
    """Tell whether a type is of such vectors, or a scalar that can be spread to one."""
    scalar = {FLOATS: types.Float, WHOLES: types.Integer, FLAGS: types.Boolean}
    return other == kind or isinstance(other, scalar[kind])


def _vector(context: Any, builder: Any, kind: Any, value: Any, given: Any) -> Any:
    """Spread a scalar."""
    if given == kind:
        return value
    scalar = context.cast(builder, value, given, _SCALARS[kind])
    if kind is FLAGS:
        scalar = builder.trunc(scalar, ir.IntType(1))
    vector = _VECTORS[kind]
    first = builder.insert_element(
        ir.Constant(vector, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0)
    )
    everywhere = ir.Constant(_VECTORS[WHOLES], [0] * LANES)
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), everywhere)


_KINDS = (Lanes, types.Float, types.Integer, types.Boolean)
_PAIRS = [(a, b) for a in _KINDS for b in _KINDS]


def _define(function: Any, typed: Callable[..., Any], lowered: Any, *arguments: Any) -> None:
    """Tell Numba what a function gives for types of arguments, and what LLVM is to do for these.

    Parameters
    ----------
    function : callable
        What is called in compiled code.
    typed : callable
        Gives the type of the result, or None where arguments do not suit.
    lowered : callable
        What Numba calls for the instructions.
    *arguments : tuple of type
        The classes of the types that arguments may have.
    """
    _numba.type_callable(function)(lambda context: typed)
    for kinds in arguments:
        _numba.lower_builtin(function, *kinds)(lowered)


def _binary(function: Any, built: dict[Any, tuple[Callable[..., Any], Any]]) -> None:
    """Define a function of two vectors, or a vector and a scalar.

    Parameters
    ----------
    function : callable
        What is called in compiled code.
    built : dict
        For each kind of vectors, how LLVM's instruction is built, and the kind of its result.
    """

    def find(a: Any, b: Any) -> Any:
        for kind in built:
            if kind in (a, b) and _suits(kind, a) and _suits(kind, b):
                return kind
        return None

    def typed(a: Any, b: Any) -> Any:
        kind = find(a, b)
        return None if kind is None else built[kind][1]

    def lowered(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = find(*signature.args)
        pairs = zip(arguments, signature.args, strict=True)
        vectors = [_vector(context, builder, kind, value, given) for value, given in pairs]
        return built[kind][0](builder, *vectors)

    _define(function, typed, lowered, *(pair for pair in _PAIRS if Lanes in pair))


def _unary(function: Any, kind: Any, build: Callable[..., Any], result: Any) -> None:
    """Define a function of one vector."""

    def lowered(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return build(builder, arguments[0])

    _define(function, lambda a: result if a == kind else None, lowered, (Lanes,))


def _simple(name: str) -> Callable[..., Any]:
    return lambda builder, a, b: getattr(builder, name)(a, b)


def _float_intrinsic(name: str) -> Callable[..., Any]:
    def build(builder: Any, a: Any) -> Any:
        kind = ir.FunctionType(a.type, [a.type])
        function = _insert(builder.module, kind, f"llvm.{name}.v{LANES}f32")
        return builder.call(function, [a])

    return build


def _order(sign: str) -> Callable[..., Any]:
    # A comparison with NaN is false, but for `!=`.
    compare = "fcmp_unordered" if sign == "!=" else "fcmp_ordered"
    return lambda builder, a, b: getattr(builder, compare)(sign, a, b)


def _whole_order(sign: str) -> Callable[..., Any]:
    return lambda builder, a, b: builder.icmp_signed(sign, a, b)


def _extreme(sign: str) -> Callable[..., Any]:
    return lambda builder, a, b: builder.select(builder.icmp_signed(sign, a, b), a, b)


for _function, _name in ((operator.add, "add"), (operator.sub, "sub"), (operator.mul, "mul")):
    _binary(_function, {FLOATS: (_simple("f" + _name), FLOATS), WHOLES: (_simple(_name), WHOLES)})
_binary(operator.truediv, {FLOATS: (_simple("fdiv"), FLOATS)})
for _function, _name in ((operator.and_, "and_"), (operator.or_, "or_")):
    _binary(_function, {kind: (_simple(_name), kind) for kind in (WHOLES, FLAGS)})
_binary(operator.lshift, {WHOLES: (_simple("shl"), WHOLES)})
_binary(operator.rshift, {WHOLES: (_simple("ashr"), WHOLES)})
for _function, _name in (
    (operator.lt, "<"),
    (operator.le, "<="),
    (operator.gt, ">"),
    (operator.ge, ">="),
    (operator.eq, "=="),
    (operator.ne, "!="),
):
    _binary(_function, {FLOATS: (_order(_name), FLAGS), WHOLES: (_whole_order(_name), FLAGS)})
_binary(least, {WHOLES: (_extreme("<"), WHOLES)})
_binary(most, {WHOLES: (_extreme(">"), WHOLES)})
_unary(operator.neg, FLOATS, lambda builder, a: builder.fneg(a), FLOATS)
_unary(operator.invert, FLAGS, lambda builder, a: builder.not_(a), FLAGS)
_unary(as_wholes, FLOATS, lambda builder, a: builder.bitcast(a, _VECTORS[WHOLES]), WHOLES)
_unary(as_floats, WHOLES, lambda builder, a: builder.bitcast(a, _VECTORS[FLOATS]), FLOATS)
_unary(to_floats, WHOLES, lambda builder, a: builder.sitofp(a, _VECTORS[FLOATS]), FLOATS)
_unary(root, FLOATS, _float_intrinsic("sqrt"), FLOATS)
_unary(size_of, FLOATS, _float_intrinsic("fabs"), FLOATS)
_unary(
    some,
    FLAGS,
    lambda builder, a: builder.icmp_unsigned(
        "!=", builder.bitcast(a, ir.IntType(LANES)), ir.Constant(ir.IntType(LANES), 0)
    ),
    types.boolean,
)


def _spread(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    return _vector(context, builder, FLOATS, arguments[0], signature.args[0])


def _type_choose(flags: Any, one: Any, other: Any) -> Any:
    for kind in (FLOATS, WHOLES):
        if flags == FLAGS and _suits(kind, one) and _suits(kind, other):
            return kind
    return None


def _choose(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    kind = signature.return_type
    one, other = (_vector(context, builder, kind, arguments[k], signature.args[k]) for k in (1, 2))
    return builder.select(arguments[0], one, other)


def _place(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Give the address of a row of 16 elements."""
    array, whole = signature.args[:2]
    data = context.make_array(array)(context, builder, arguments[0]).data
    at = context.cast(builder, arguments[1], whole, types.intp)
    start = builder.mul(at, ir.Constant(at.type, LANES))
    vector = _VECTORS[_OF_ARRAY[array.dtype]]
    return builder.bitcast(builder.gep(data, [start]), vector.as_pointer())


def _type_load(rows: Any, at: Any) -> Any:
    return _OF_ARRAY.get(rows.dtype) if isinstance(rows, types.Array) else None


def _load(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    return builder.load(_place(context, builder, signature, arguments), align=4)


def _type_store(rows: Any, at: Any, lanes: Any) -> Any:
    kind = _type_load(rows, at)
    return types.void if kind is not None and _suits(kind, lanes) else None


def _store(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    kind = _OF_ARRAY[signature.args[0].dtype]
    vector = _vector(context, builder, kind, arguments[2], signature.args[2])
    builder.store(vector, _place(context, builder, signature, arguments), align=4)
    return context.get_dummy_value()


_define(
    spread, lambda number: FLOATS if isinstance(number, types.Float) else None, _spread, _KINDS[1:2]
)
_define(choose, _type_choose, _choose, *((Lanes, *pair) for pair in _PAIRS))
_define(load, _type_load, _load, (types.Array, types.Integer))
_define(store, _type_store, _store, (types.Array, types.Integer, types.Any))
