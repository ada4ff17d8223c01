"""What the hidden tests compare with, and what they hand over."""

import math


def same(wanted, got):
    """Equal; floating-point numbers up to rounding, wherever they stand. A NaN is a NaN."""
    if isinstance(wanted, (float, complex)) and isinstance(got, (int, float, complex)):
        if wanted != wanted or got != got:
            return wanted != wanted and got != got
        if wanted == got or math.isinf(abs(wanted)):
            return wanted == got
        return abs(wanted - got) <= max(1e-9 * abs(wanted), 1e-12)
    for kind in (list, tuple):
        if isinstance(wanted, kind):
            return isinstance(got, kind) and len(wanted) == len(got) and all(map(same, wanted, got))
    if isinstance(wanted, dict) and isinstance(got, dict):
        return wanted.keys() == got.keys() and all(same(wanted[key], got[key]) for key in wanted)
    return wanted == got


def raised(kinds, function, *args, **kwargs):
    """Does the call raise one of these?"""
    try:
        result = function(*args, **kwargs)
        if hasattr(result, "__next__"):
            list(result)
    except kinds:
        return True
    return False
