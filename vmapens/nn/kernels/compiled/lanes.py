"""Vector arithmetic as LLVM instructions: what the compiled kernel's inner loops are made of.

Numba turns plain loops into machine code, but leaves to chance whether they use the whole width of a vector register,
and has no exponential that does. So the few innermost loops are given to LLVM as vector instructions: a `Lanes` stands
for one register of numbers and is used like a number, and `elementwise` and `tile` make functions that jitted code
calls with addresses and lengths. Every length is a multiple of `PADDING`, so there is no remainder, and an element's
result does not depend on its place.

Source of the exponential and the hyperbolic tangent: the polynomials of Cephes (S. L. Moshier), single precision,
errors below 2 units in the last place.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

_FEATURES = llvmlite.binding.get_host_cpu_features()
LANES = 16 if _FEATURES.get("avx512f") else 8
ROWS = 8 if LANES == 16 else 4  # of a tile, by 3 registers at most: as many sums as registers hold
PADDING = 16
"""Row lengths are padded to a multiple of this many elements, numbers of rows to a multiple of 8."""

HAS_BF16 = LANES == 16 and bool(_FEATURES.get("avx512bf16"))
"""Whether this processor multiplies bfloat16 numbers, in pairs, into float32 sums."""

_FLOAT, _INT, _ADDRESS = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_VECTOR, _INTEGERS = ir.VectorType(_FLOAT, LANES), ir.VectorType(_INT, LANES)


class _BFloat(ir.Type):  # type: ignore[misc]
    """LLVM's bfloat, which llvmlite does not name."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


_HALVES, _PAIRS = (ir.VectorType(_BFloat(), count * LANES) for count in (1, 2))


class Lanes:
    """One register of float32 numbers, while code is generated."""

    def __init__(self, builder: ir.IRBuilder, value: ir.Value) -> None:
        self.builder, self.value = builder, value

    def __add__(self, other: "Lanes | float") -> "Lanes":
        return Lanes(self.builder, self.builder.fadd(self.value, self._value(other)))

    def __sub__(self, other: "Lanes | float") -> "Lanes":
        return Lanes(self.builder, self.builder.fsub(self.value, self._value(other)))

    def __rsub__(self, other: float) -> "Lanes":
        return Lanes(self.builder, self.builder.fsub(self._value(other), self.value))

    def __mul__(self, other: "Lanes | float") -> "Lanes":
        return Lanes(self.builder, self.builder.fmul(self.value, self._value(other)))

    def __truediv__(self, other: "Lanes | float") -> "Lanes":
        return Lanes(self.builder, self.builder.fdiv(self.value, self._value(other)))

    def __rtruediv__(self, other: float) -> "Lanes":
        return Lanes(self.builder, self.builder.fdiv(self._value(other), self.value))

    def fma(self, factor: "Lanes | float", term: "Lanes | float") -> "Lanes":
        """Self * factor + term, rounded once."""
        return self.call("fma", factor, term)

    def call(self, name: str, *others: "Lanes | float") -> "Lanes":
        """An LLVM intrinsic of this and other registers."""
        function = _declared(self.builder, f"llvm.{name}.v{LANES}f32", [_VECTOR] * (1 + len(others)), _VECTOR)
        return Lanes(self.builder, self.builder.call(function, [self.value, *map(self._value, others)]))

    def where(self, comparison: str, bound: "Lanes | float", yes: "Lanes | float", no: "Lanes | float") -> "Lanes":
        """`yes` where the ordered comparison with `bound` holds, else `no`; a NaN never compares."""
        holds = self.builder.fcmp_ordered(comparison, self.value, self._value(bound))
        return Lanes(self.builder, self.builder.select(holds, self._value(yes), self._value(no)))

    def _value(self, other: "Lanes | float") -> ir.Value:
        return other.value if isinstance(other, Lanes) else ir.Constant(_VECTOR, [float(other)] * LANES)


def exp(x: Lanes) -> Lanes:
    """e^x, for x clamped to -87..88; NaN stays NaN."""
    x = x.where(">", 88.0, 88.0, x)
    x = x.where("<", -87.0, -87.0, x)
    magic = 12582912.0  # 1.5 * 2^23: adding it rounds to a whole number, which stands in the lowest bits
    shifted = x.fma(1.44269504088896341, magic)
    n = shifted - magic
    r = n.fma(2.12194440e-4, n.fma(-0.693359375, x))
    y = r.fma(1.9875691500e-4, 1.3981999507e-3)
    for coefficient in (8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        y = y.fma(r, coefficient)
    y = y.fma(r * r, r) + 1.0
    bits = x.builder.bitcast(shifted.value, _INTEGERS)
    exponent = x.builder.shl(bits, ir.Constant(_INTEGERS, [23] * LANES))
    scale = x.builder.add(exponent, ir.Constant(_INTEGERS, [127 << 23] * LANES))
    return y * Lanes(x.builder, x.builder.bitcast(scale, _VECTOR))


def sigmoid(x: Lanes) -> Lanes:
    """1 / (1 + e^-x)."""
    return 1.0 / (exp(x * -1.0) + 1.0)


def tanh(x: Lanes) -> Lanes:
    """Hyperbolic tangent: an odd polynomial near zero, by the exponential elsewhere."""
    square = x * x
    y = square.fma(-5.70498872745e-3, 2.06390887954e-2)
    for coefficient in (-5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1):
        y = y.fma(square, coefficient)
    near = (y * square).fma(x, x)
    size = x.call("fabs")
    far = (1.0 - 2.0 / (exp(size + size) + 1.0)).call("copysign", x)
    return size.where("<", 0.625, near, far)


def elementwise(inputs: int, outputs: int, scalars: int = 0) -> Callable[[Callable[..., Any]], Any]:
    """Make a function of `inputs` registers, that gives `outputs` of them, a function of rows for jitted code.

    The result is called with the addresses of the input rows, then of the output rows, then `scalars` float32 numbers,
    which the function gets as registers, then the number of elements.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        def generate(builder: ir.IRBuilder, arguments: Sequence[ir.Value]) -> None:
            rows, numbers, n = arguments[: inputs + outputs], arguments[inputs + outputs : -1], arguments[-1]
            spread = [_spread(builder, number) for number in numbers]
            with _steps(builder, n) as offset:
                given = [_load(builder, row, offset) for row in rows[:inputs]]
                results = function(*given, *spread)
                results = results if isinstance(results, tuple) else (results,)
                for row, result in zip(rows[inputs:], results, strict=True):
                    _store(builder, row, offset, result)

        kinds = [types.int64] * (inputs + outputs) + [types.float32] * scalars + [types.int64]
        return _function(kinds, generate)

    return decorate


def reduction(inputs: int, start: float, combine: str) -> Callable[[Callable[..., Any]], Any]:
    """Like `elementwise`, but the registers are combined (`maxnum` or `fadd`) into the one number that is returned."""

    def decorate(function: Callable[..., Any]) -> Any:
        def generate(builder: ir.IRBuilder, arguments: Sequence[ir.Value]) -> ir.Value:
            rows, n = arguments[:inputs], arguments[-1]
            sums = cgutils.alloca_once_value(builder, ir.Constant(_VECTOR, [start] * LANES))
            with _steps(builder, n) as offset:
                value = function(*(_load(builder, row, offset) for row in rows))
                before = Lanes(builder, builder.load(sums))
                after = before + value if combine == "fadd" else before.call(combine, value)
                builder.store(after.value, sums)
            values, total = builder.load(sums), None
            for lane in range(LANES):  # in order, so that the sum is the same each time
                one = builder.extract_element(values, _INT(lane))
                if total is None:
                    total = one
                elif combine == "fadd":
                    total = builder.fadd(total, one)
                else:
                    total = builder.call(_declared(builder, f"llvm.{combine}.f32", [_FLOAT] * 2, _FLOAT), [total, one])
            return total

        return _function([types.int64] * (inputs + 1), generate, types.float32)

    return decorate


def tile(rows: int, columns: int) -> Any:
    """Make a function for jitted code: a tile of a matrix product, `rows` x `columns` registers, kept in registers.

    The result is called with (c, ldc, a, a_row, a_column, b, ldb, k, accumulate, pairs): addresses, and distances in
    elements between rows (and columns of a). C [rows, columns * LANES] is set to, or with `accumulate` increased by,
    A [rows, k] times B [k, columns * LANES]. With `pairs` an element of A and B is two bfloat16 numbers, consecutive
    terms of a sum, and k counts pairs; only where HAS_BF16.
    """

    def generate(builder: ir.IRBuilder, arguments: Sequence[ir.Value]) -> None:
        c, ldc, a, a_row, a_column, b, ldb, k, accumulate, pairs = arguments
        places = [
            [builder.add(builder.mul(ldc, _ADDRESS(i)), _ADDRESS(j * LANES)) for j in range(columns)]
            for i in range(rows)
        ]
        zero = ir.Constant(_VECTOR, [0.0] * LANES)
        sums = [[cgutils.alloca_once_value(builder, zero) for _ in range(columns)] for _ in range(rows)]
        with builder.if_then(accumulate):
            for i in range(rows):
                for j in range(columns):
                    builder.store(_load(builder, c, places[i][j]).value, sums[i][j])

        def add(term: Callable[[Lanes, Lanes, Lanes], Lanes]) -> None:
            with cgutils.for_range(builder, k, intp=_ADDRESS) as loop:
                b_start = builder.mul(loop.index, ldb)
                of_b = [_load(builder, b, builder.add(b_start, _ADDRESS(j * LANES))) for j in range(columns)]
                a_start = builder.mul(loop.index, a_column)
                for i in range(rows):
                    place = builder.add(a_start, builder.mul(a_row, _ADDRESS(i)))
                    of_a = _spread(builder, builder.load(_pointer(builder, a, place, _FLOAT)))
                    for j in range(columns):
                        before = Lanes(builder, builder.load(sums[i][j]))
                        builder.store(term(of_a, of_b[j], before).value, sums[i][j])

        if HAS_BF16:
            with builder.if_else(pairs) as (of_pairs, of_numbers):
                with of_pairs:
                    add(_dot_pairs)
                with of_numbers:
                    add(Lanes.fma)
        else:
            add(Lanes.fma)
        for i in range(rows):
            for j in range(columns):
                _store(builder, c, places[i][j], Lanes(builder, builder.load(sums[i][j])))

    return _function([types.int64] * 8 + [types.boolean] * 2, generate)


def _dot_pairs(a: Lanes, b: Lanes, term: Lanes) -> Lanes:
    """Per lane, the sum of `term` and of the products of two pairs of bfloat16 numbers."""
    name = "llvm.x86.avx512bf16.dpbf16ps.512"
    function = _declared(a.builder, name, [_VECTOR, _PAIRS, _PAIRS], _VECTOR)
    pairs = [a.builder.bitcast(lanes.value, _PAIRS) for lanes in (a, b)]
    return Lanes(a.builder, a.builder.call(function, [term.value, *pairs]))


def _narrow(lanes: Lanes) -> ir.Value:
    """Rounded to the nearest bfloat16."""
    return lanes.builder.fptrunc(lanes.value, _HALVES)


def _generate_narrowed(builder: ir.IRBuilder, arguments: Sequence[ir.Value]) -> None:
    row, out, n = arguments
    with _steps(builder, n) as offset:
        place = builder.add(out, builder.mul(offset, _ADDRESS(2)))
        target = builder.inttoptr(place, _HALVES.as_pointer())
        builder.store(_narrow(_load(builder, row, offset)), target).align = 2


def _generate_paired(builder: ir.IRBuilder, arguments: Sequence[ir.Value]) -> None:
    first, second, out, n = arguments
    shorts = ir.VectorType(ir.IntType(16), LANES)
    with _steps(builder, n) as offset:
        low, high = (
            builder.zext(builder.bitcast(_narrow(_load(builder, row, offset)), shorts), _INTEGERS)
            for row in (first, second)
        )
        pair = builder.or_(low, builder.shl(high, ir.Constant(_INTEGERS, [16] * LANES)))
        _store(builder, out, offset, Lanes(builder, builder.bitcast(pair, _VECTOR)))


def _function(
    kinds: Sequence[types.Type],
    generate: Callable[[ir.IRBuilder, Sequence[ir.Value]], ir.Value | None],
    gives: types.Type = types.void,
) -> Any:
    """A function for jitted code, whose body `generate` writes."""

    def typed(context: Any, arguments: Any) -> Any:
        def lower(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
            result = generate(builder, cgutils.unpack_tuple(builder, values[0], len(kinds)))
            return context.get_dummy_value() if result is None else result

        return gives(types.BaseTuple.from_types(kinds)), lower

    return intrinsic(typed)


def _address(context: Any, array: Any) -> Any:

    def lower(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        data = context.make_array(signature.args[0])(context, builder, values[0]).data
        return builder.ptrtoint(data, _ADDRESS)

    return types.int64(array), lower


address: Any = intrinsic(_address)
"""Where an array's first element lies, as a number, for jitted code."""


def _declared(builder: ir.IRBuilder, name: str, takes: Sequence[ir.Type], gives: ir.Type) -> ir.Function:
    known = builder.module.globals.get(name)
    return known or ir.Function(builder.module, ir.FunctionType(gives, takes), name)


@contextmanager
def _steps(builder: ir.IRBuilder, n: ir.Value) -> Iterator[ir.Value]:
    with cgutils.for_range_slice(builder, _ADDRESS(0), n, _ADDRESS(LANES), intp=_ADDRESS) as (offset, _):
        yield offset


def _pointer(builder: ir.IRBuilder, base: ir.Value, offset: ir.Value, kind: ir.Type) -> ir.Value:
    place = builder.add(base, builder.mul(offset, _ADDRESS(4)))
    return builder.inttoptr(place, kind.as_pointer())


def _load(builder: ir.IRBuilder, base: ir.Value, offset: ir.Value) -> Lanes:
    value = builder.load(_pointer(builder, base, offset, _VECTOR))
    value.align = 4
    return Lanes(builder, value)


def _store(builder: ir.IRBuilder, base: ir.Value, offset: ir.Value, lanes: Lanes) -> None:
    builder.store(lanes.value, _pointer(builder, base, offset, _VECTOR)).align = 4


def _spread(builder: ir.IRBuilder, number: ir.Value) -> Lanes:
    one = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), number, _INT(0))
    zeros = ir.Constant(_INTEGERS, [0] * LANES)
    return Lanes(builder, builder.shuffle_vector(one, ir.Constant(_VECTOR, ir.Undefined), zeros))


narrowed = _function([types.int64] * 3, _generate_narrowed)
"""For jitted code: (row, out, n) rounds n float32 numbers to n bfloat16 numbers."""

paired = _function([types.int64] * 4, _generate_paired)
"""For jitted code: (first, second, out, n) rounds two rows, and puts what stands at the same place side by side."""
