"""A repository of two modules with a suite, as people have them: a flaky test, a failing one, leftovers."""

from pathlib import Path

FILES = {
    "LICENSE": "Permission is hereby granted, free of charge, to any person …\n",
    "pyproject.toml": '[project]\nname = "till"\n[tool.pytest.ini_options]\naddopts = "--strict-markers"\n',
    "src/till/__init__.py": '"""A shop\'s till."""\n\nfrom till.money import Price, total\n',
    "src/till/money.py": '''\
"""Amounts in cents."""


class Price:
    """An amount of a currency."""

    def __init__(self, cents, currency="EUR"):
        self.cents = cents
        self.currency = currency

    def __repr__(self):
        return f"{self.cents / 100:.2f} {self.currency}"

    def with_tax(self, percent):
        """The amount with tax, rounded half up to cents."""
        return Price((self.cents * (100 + percent) + 50) // 100, self.currency)


def total(cents, discount=0):
    """The sum of some amounts, less a discount in percent from 100.00 on."""
    result = 0
    for each in cents:
        if each < 0:
            raise ValueError("no amount is negative")
        result += each
    if result >= 10_000 and discount:
        result -= result * discount // 100
    return result


def never_tested(value):
    if value > 3:
        return value - 1
    return value
''',
    "src/till/change.py": '''\
"""Coins to give back."""

from till.money import total

COINS = (200, 100, 50, 20, 10, 5, 2, 1)


def change(paid, prices):
    """The fewest coins that are given back, the largest first."""
    left = paid - total(prices)
    if left < 0:
        raise ValueError("not enough")
    coins = []
    for coin in COINS:
        while left >= coin:
            coins.append(coin)
            left -= coin
    return coins


def pairs(items):
    """Neighbours, one pair after the other."""
    items = list(items)
    for place in range(len(items) - 1):
        yield items[place], items[place + 1]
''',
    "tests/test_money.py": """\
import pathlib

import pytest

from till import Price, total


@pytest.mark.parametrize("cents, wanted", [([100, 250], 350), ([], 0), ([5], 5)])
def test_total(cents, wanted):
    assert total(cents) == wanted


def test_discount():
    assert total([9_999], 10) == 9_999
    assert total([10_000], 10) == 9_000


def test_negative():
    with pytest.raises(ValueError):
        total([-1])


class TestPrice:
    def test_tax(self):
        assert Price(1000).with_tax(19).cents == 1190
        assert Price(3).with_tax(50).cents == 5

    def test_text(self):
        assert repr(Price(1990)) == "19.90 EUR"


def test_flaky():
    assert hash("a") % 2 == 0


def test_broken():
    assert total([1]) == 2
""",
    "tests/test_change.py": """\
import pytest

from till.change import change, pairs


def test_coins():
    assert change(500, [230]) == [200, 50, 20]


def test_nothing_back():
    assert change(230, [230]) == []


def test_not_enough():
    with pytest.raises(ValueError):
        change(100, [230])


def test_pairs():
    assert list(pairs("abc")) == [("a", "b"), ("b", "c")]
""",
}
LEFTOVERS = {
    "build/lib/till/change.py": FILES["src/till/change.py"],
    "src/till.egg-info/PKG-INFO": "Name: till\nVersion: 1.0\nLicense: MIT\n",
    "src/till.egg-info/SOURCES.txt": "src/till/change.py\n",
    "src/till/change.py.orig": FILES["src/till/change.py"],
    "src/till/__pycache__/change.cpython-311.pyc": "compiled",
}


def write(folder: Path, files: dict[str, str]) -> Path:
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, "utf-8")
    return folder
