"""Arithmetic in one precision: the result of each step is rounded to it."""

from dataclasses import dataclass

from quantarray import _xp
from quantarray._xp import Array, Namespace
from quantarray.formats import EPSILON, LARGEST, SMALLEST_NORMAL


def working_dtype(dtype: str) -> str:
    """Name the dtype that arithmetic on values of `dtype` is done in."""
    return "float64" if dtype == "float64" else "float32"


@dataclass(frozen=True)
class Arithmetic:
    """IEEE operations on arrays of `dtype`, each rounded to what `precision` holds."""

    dtype: str
    precision: str
    xp: Namespace

    @property
    def tiny(self) -> float:
        """The smallest normal number of the arrays' dtype."""
        return SMALLEST_NORMAL[self.dtype]

    @property
    def smallest_normal(self) -> float:
        """The smallest normal number of the precision."""
        return SMALLEST_NORMAL[self.precision]

    @property
    def limit(self) -> float:
        """The largest number."""
        return LARGEST[self.precision]

    @property
    def epsilon(self) -> float:
        """The step from 1 to the next number."""
        return EPSILON[self.precision]

    def rounded(self, x: Array) -> Array:
        """Round to the precision."""
        return x if self.precision == self.dtype else _xp.round_to(x, self.precision, self.xp)

    def divide(self, a: Array, b: Array | float) -> Array:
        """Divide."""
        return self.rounded(_xp.divide(a, b, self.xp))

    def multiply(self, a: Array, b: Array | float) -> Array:
        """Multiply."""
        return self.rounded(_xp.multiply(a, b, self.xp))

    def reciprocal(self, x: Array, times: float = 1.0) -> Array:
        """Give ``times * (1 / x)``, or almost the largest number if that is larger."""
        inverse = self.rounded(_xp.reciprocal(x, self.xp))
        if times == 1:
            return inverse
        bound = self.limit / times * (1 - 2**-22)  # whose product does not round to Inf
        return self.multiply(_xp.clip(inverse, -bound, bound, self.xp), times)

    def by_reciprocal(self, a: Array, b: Array, times: float = 1.0) -> Array:
        """Give ``a * (times * (1 / b))``; ``a / b * times`` where ``1 / b`` would be subnormal."""
        quotient = self.divide(a, b)
        quotient = quotient if times == 1 else self.multiply(quotient, times)
        large = self.xp.abs(b) > 1 / self.tiny
        product = self.multiply(a, self.reciprocal(b, times))
        return _xp.where(large, quotient, product, self.xp)

    def add(self, a: Array, b: Array | float) -> Array:
        """Add."""
        return self.rounded(a + b)

    def subtract(self, a: Array | float, b: Array) -> Array:
        """Subtract."""
        return self.rounded(a - b)

    def flush(self, x: Array) -> Array:
        """Take subnormal elements for zeros of their sign."""
        return _xp.flush(x, self.tiny, self.xp)


def plain(x: Array, xp: Namespace) -> Arithmetic:
    """Give the arithmetic of an array's own dtype."""
    name = _xp.dtype_name(x.dtype)
    return Arithmetic(name, name, xp)
