"""The words of the micro-Python family: what can be asked for, what does it, and what is written by mistake.

Every expression is Python over `xs`, a list of whole numbers; `{k}` is the number that the request names.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Word:
    """One thing that can be asked for. `asks` are ways to say it, `code` is right, `mistakes` look like it.

    `numbers` are those that {k} may stand for; empty where the word has none.
    """

    asks: tuple[str, str]
    code: str
    mistakes: tuple[str, str]
    numbers: tuple[int, ...] = ()


SMALL = (2, 3, 4, 5)
ANY = (2, 3, 4, 5, 6, 7, 8, 9)


def keep(asks: tuple[str, str], right: str, *mistakes: str, numbers: tuple[int, ...] = ()) -> Word:
    """Those numbers for which a condition holds."""
    code, first, second = (f"[x for x in xs if {condition}]" for condition in (right, *mistakes))
    return Word(asks, code, (first, second), numbers)


def each(asks: tuple[str, str], right: str, *mistakes: str, numbers: tuple[int, ...] = ()) -> Word:
    """Every number made into another."""
    code, first, second = (f"[{expression} for x in xs]" for expression in (right, *mistakes))
    return Word(asks, code, (first, second), numbers)


def pairs(asks: tuple[str, str], right: str, *mistakes: str) -> Word:
    """Every two neighbours made into one number."""
    code, first, second = (f"[{one} for a, b in zip(xs, xs[1:])]" for one in (right, *mistakes))
    return Word(asks, code, (first, second))


# From a list to a list.
STEPS = (
    keep(("keep the even numbers", "drop the odd numbers"), "x % 2 == 0", "x % 2", "x / 2 == 0"),
    keep(("keep the odd numbers", "drop the even numbers"), "x % 2 == 1", "x % 2 == 0", "x // 2 == 1"),
    keep(("keep the positive numbers", "keep what is above zero"), "x > 0", "x >= 0", "x"),
    keep(("keep the negative numbers", "keep what is below zero"), "x < 0", "x <= 0", "-x"),
    keep(("keep numbers above {k}", "keep what exceeds {k}"), "x > {k}", "x >= {k}", "x < {k}", numbers=ANY),
    keep(
        ("keep numbers below {k}", "keep what is less than {k}"),
        "x < {k}", "x <= {k}", "x > {k}", numbers=ANY,
    ),
    keep(
        ("keep numbers of at least {k}", "drop numbers below {k}"),
        "x >= {k}", "x > {k}", "x < {k}", numbers=ANY,
    ),
    keep(
        ("keep numbers of at most {k}", "drop numbers above {k}"),
        "x <= {k}", "x < {k}", "x >= {k}", numbers=ANY,
    ),
    keep(
        ("keep multiples of {k}", "keep what {k} divides"),
        "x % {k} == 0", "x // {k} == 0", "x % {k}", numbers=SMALL,
    ),
    keep(
        ("drop multiples of {k}", "drop what {k} divides"),
        "x % {k} != 0", "x % {k} == 0", "x // {k}", numbers=SMALL,
    ),
    keep(("drop the zeros", "keep what is not zero"), "x != 0", "x == 0", "x > 0"),
    each(("double each number", "multiply each by two"), "x * 2", "x ** 2", "x * x"),
    each(("square each number", "take the squares"), "x ** 2", "x * 2", "x ** 3"),
    each(("add {k} to each number", "raise each by {k}"), "x + {k}", "x * {k}", "x - {k}", numbers=ANY),
    each(("take {k} from each number", "lower each by {k}"), "x - {k}", "{k} - x", "x + {k}", numbers=ANY),
    each(("multiply each by {k}", "scale each by {k}"), "x * {k}", "x ** {k}", "x + {k}", numbers=(3, 4, 5)),
    each(("negate each number", "flip each sign"), "-x", "abs(x)", "1 - x"),
    each(("take absolute values", "drop each sign"), "abs(x)", "-x", "abs(-x - 1)"),
    each(("halve each number, rounding down", "floor each half"), "x // 2", "x / 2", "int(x / 2)"),
    each(
        ("take remainders by {k}", "reduce each modulo {k}"),
        "x % {k}", "x // {k}", "{k} % x", numbers=SMALL,
    ),
    Word(("sort upwards", "put the smallest first"), "sorted(xs)", ("sorted(xs, reverse=True)", "xs[::-1]")),
    Word(
        ("sort downwards", "put the largest first"),
        "sorted(xs, reverse=True)", ("sorted(xs)", "sorted(xs[::-1])"),
    ),
    Word(("reverse the list", "turn the list around"), "xs[::-1]", ("xs[:-1]", "xs.reverse()")),
    Word(("take the first {k}", "keep {k} from the front"), "xs[:{k}]", ("xs[{k}:]", "xs[1:{k}]"), SMALL),
    Word(("take the last {k}", "keep {k} from the back"), "xs[-{k}:]", ("xs[:-{k}]", "xs[{k}:]"), SMALL),
    Word(("skip the first {k}", "drop {k} from the front"), "xs[{k}:]", ("xs[:{k}]", "xs[-{k}:]"), SMALL),
    Word(("skip the last {k}", "drop {k} from the back"), "xs[:-{k}]", ("xs[-{k}:]", "xs[:{k}]"), SMALL),
    Word(("take every second number", "keep one in two"), "xs[::2]", ("xs[1::2]", "xs[:2]")),
    Word(
        ("drop repeats", "keep each number once"),
        "list(dict.fromkeys(xs))", ("list(set(xs))", "sorted(set(xs))"),
    ),
    pairs(("take differences of neighbours", "subtract each from its next"), "b - a", "a - b", "abs(b - a)"),
    pairs(("add up neighbours", "sum each pair of neighbours"), "a + b", "a * b", "a - b"),
    Word(("put {k} in front", "begin with {k}"), "[{k}] + xs", ("xs + [{k}]", "xs[{k}:]"), ANY),
    Word(("put {k} behind", "end with {k}"), "xs + [{k}]", ("[{k}] + xs", "xs[:{k}]"), ANY),
)  # fmt: skip

# From a list to the answer.
ENDINGS = (
    Word(("return the list", "give the list"), "xs", ("sorted(xs)", "xs[0]")),
    Word(("return the sum", "give the total"), "sum(xs)", ("len(xs)", "max(xs)")),
    Word(("return how many there are", "count them"), "len(xs)", ("sum(xs)", "len(xs) - 1")),
    Word(("return how many differ", "count distinct ones"), "len(set(xs))", ("len(xs)", "set(xs)")),
    Word(
        ("return the largest, or 0", "give the maximum, or 0"),
        "max(xs, default=0)", ("max(xs)", "min(xs, default=0)"),
    ),
    Word(
        ("return the smallest, or 0", "give the minimum, or 0"),
        "min(xs, default=0)", ("min(xs)", "max(xs, default=0)"),
    ),
    Word(
        ("return the first, or None", "give the first, or None"),
        "xs[0] if xs else None", ("xs[0]", "xs[1] if xs else None"),
    ),
    Word(
        ("return the last, or None", "give the last, or None"),
        "xs[-1] if xs else None", ("xs[-1]", "xs[0] if xs else None"),
    ),
    Word(
        ("return the sum of squares", "add up the squares"),
        "sum(x ** 2 for x in xs)", ("sum(xs) ** 2", "sum(x * 2 for x in xs)"),
    ),
    Word(
        ("return whether any is negative", "tell if one is below zero"),
        "any(x < 0 for x in xs)", ("all(x < 0 for x in xs)", "any(x <= 0 for x in xs)"),
    ),
    Word(
        ("return whether all are positive", "tell if all exceed zero"),
        "all(x > 0 for x in xs)", ("any(x > 0 for x in xs)", "all(x >= 0 for x in xs)"),
    ),
    Word(
        ("join them with commas", "return them as text with commas"),
        "','.join(str(x) for x in xs)", ("','.join(xs)", "' '.join(str(x) for x in xs)"),
    ),
)  # fmt: skip
