"""Division by a constant in generated loops: two products instead of a quotient, with the same result.

With h the reciprocal of c rounded towards zero and l the rest of it, rounded, fma(x, h, x * l) is x / c (Brisebarre and
Muller, "Correctly rounded multiplication by arbitrary precision constants", 2008). h lies less than 2^-23 of 1 / c
below it, so that l's rounding and that of x * l are less than 2^-47 of the quotient each, and what is rounded in the
end is nearer to it than 2^-45.9 of it. Let c be d times a power of two, d odd. A quotient of floats is never half way
between two floats (2 q + 1 with 25 bits would divide x), and its numerator over d is whole in units of the half way
number's last place: it is 2^-25 / d of itself or more away. So for d below 2^20 both are rounded alike. l has c's sign:
zeros, infinities and NaN come out as they do of a division. Quotients below 2^-100, where x * l loses bits, may differ
in their last bit.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ...ir.dtypes import DType
from ...ir.graph import Graph, Node
from .bytes import number

ODD = 1 << 20  # the divisor's odd part is below


@lru_cache(4096)
def reciprocal(c: float) -> tuple[np.float32, np.float32] | None:
    """(h, l) for which fma(x, h, x * l) is x / c in f32, None where that is not proven, or c is a power of two."""
    if not 2.0**-60 < abs(c) < 2.0**60 or float(np.float32(c)) != c:
        return None
    odd = int(np.frexp(abs(c))[0] * 2**24)
    odd //= odd & -odd
    if odd == 1 or odd >= ODD:
        return None
    h = np.float32(1 / c)
    if abs(float(h)) > abs(1 / c):
        h = np.nextafter(h, np.float32(0))
    return h, np.float32(1 / c - float(h))


def quotients(body: Graph) -> dict[Node, tuple[np.float32, np.float32]]:
    """Divisions that are two products, with the two factors."""
    out: dict[Node, tuple[np.float32, np.float32]] = {}
    for n in body.nodes:
        if n.op == "div" and n.types[0].dtype is DType.f32 and (c := number(n.operands[1])) is not None:
            found = reciprocal(float(c)) if np.isfinite(c) else None
            if found is not None:
                out[n] = found
    return out
