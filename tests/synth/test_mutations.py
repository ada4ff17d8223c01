"""Faults are put where they belong, change nothing else, and make programs."""

import ast
import inspect
import textwrap

import pytest

from lathe.synth.faults import mutations_of
from lathe.synth.mutations import Edit, Mutation, combine, functions_of, mutate, without_body

SOURCE = '''\
"""Ähnlich: what stands before is no ASCII."""


class Queue:
    def __init__(self, size=3):
        self.size = size  # how many
        self.items = []

    def push(self, item, *, front: bool = False) -> bool:
        """Put an item in. False when there is no room."""
        if len(self.items) >= self.size:  # <= is no operator here
            return False
        if front:
            self.items.insert(0, item)
        else:
            self.items.append(item)
        return not self.is_empty()

    def is_empty(self): return len(self.items) == 0


@staticmethod
def scale(values, by):
    total = 0
    for value in values[1:by]:
        if value is None: continue
        total += value * (by - 1)
    return f"{total + 1}" if total and (by or
        values) else (total, by)
'''


def mutants(name: str, source: str = SOURCE) -> dict[str, str]:
    """For each fault's note the lines that differ, as `was -> now`."""
    (function,) = [each for each in functions_of(source) if each.name == name]
    found = {}
    for mutation in mutations_of(source, function):
        try:
            text = mutate(source, mutation)
        except ValueError:
            continue
        was, now = source.splitlines(), text.splitlines()
        gone, new = (
            [line.strip() for line in was if line not in now],
            [line.strip() for line in now if line not in was],
        )
        found[f"{mutation.kind}: {mutation.note}"] = f"{' / '.join(gone)} -> {' / '.join(new)}"
    return found


def test_functions_by_their_names_and_lines():
    found = functions_of(SOURCE)
    assert [each.name for each in found] == ["Queue.__init__", "Queue.push", "Queue.is_empty", "scale"]
    assert (found[3].first, found[3].start, found[3].end) == (22, 23, 29)
    assert [each.is_public for each in functions_of("def _a(): 0\nclass B:\n def __len__(self): 0\n")] == [
        False,
        True,
    ]


def test_faults_of_a_method():
    found = mutants("Queue.push")
    assert found["boundary: >= became >"].endswith(
        "-> if len(self.items) > self.size:  # <= is no operator here"
    )
    assert found["condition: a condition is negated"].endswith("-> if not front:")
    assert found["constant: False became True"]
    assert found["arguments: two arguments are swapped"].endswith("-> self.items.insert(item, 0)")
    assert found["branch: what is done otherwise is left out"] == "else: / self.items.append(item) -> "
    assert found["statement: left out: self.items.insert(0, item)"].endswith("-> pass")
    assert found["condition: not is gone"].endswith("-> return self.is_empty()")
    assert found["return: nothing is returned"].endswith("-> return None")


def test_faults_across_lines_and_brackets():
    found = mutants("scale")
    assert found["operator: * became +"].endswith("-> total += value + (by - 1)")
    assert found["operator: += became -="].endswith("-> total -= value * (by - 1)")
    assert found["boundary: a slice's end is moved"].endswith("-> for value in values[1:by + 1]:")
    assert found["condition: or became and"].endswith("if total and (by and")
    assert found["statement: left out: continue"].endswith("-> if value is None: pass")
    assert found["return: nothing is returned"].endswith("-> return None")


def test_what_is_not_touched_stays_as_it_was():
    for function in functions_of(SOURCE):
        for mutation in mutations_of(SOURCE, function):
            try:
                now = mutate(SOURCE, mutation).splitlines()
            except ValueError:
                continue
            was = SOURCE.splitlines()
            assert now[: function.first - 1] == was[: function.first - 1]
            assert now[len(now) - len(was) + function.end :] == was[function.end :]


@pytest.mark.parametrize("module", [ast, pytest.param(inspect, marks=pytest.mark.slow), textwrap])
def test_faults_of_real_modules_make_programs(module):
    source = inspect.getsource(module)
    functions = functions_of(source)
    found = [(each, mutation) for each in functions for mutation in mutations_of(source, each)]
    assert len(found) > 2 * len(functions)
    refused = 0
    for function, mutation in found[:: max(1, len(found) // 25)]:
        assert function.start <= mutation.line <= function.end
        try:
            assert mutate(source, mutation) != source
        except ValueError:
            refused += 1
    assert refused <= 3


def test_a_body_is_taken_out():
    found = {each.name: each for each in functions_of(SOURCE)}
    text = mutate(SOURCE, without_body(SOURCE, found["Queue.push"]))
    assert '"""Put an item in. False when there is no room."""\n        raise NotImplementedError\n\n' in text
    assert "insert" not in text
    text = mutate(SOURCE, without_body(SOURCE, found["Queue.is_empty"], "pass"))
    assert "def is_empty(self): pass\n" in text
    one_line = 'def f(): "what it does"; return 1\n'
    assert mutate(one_line, without_body(one_line, functions_of(one_line)[0])) == (
        'def f(): "what it does"; raise NotImplementedError\n'
    )


def test_several_faults_in_one():
    function = functions_of(SOURCE)[1]
    one, other = (
        next(each for each in mutations_of(SOURCE, function) if each.kind == kind)
        for kind in ("boundary", "arguments")
    )
    both = combine(one, other)
    text = mutate(SOURCE, both)
    assert both.kind == "arguments+boundary"
    assert "> self.size" in text and "insert(item, 0)" in text
    with pytest.raises(ValueError, match="overlap"):
        mutate(SOURCE, combine(one, one))


def test_what_is_no_fault_is_refused():
    with pytest.raises(ValueError, match="no Python"):
        mutate("a = 1\n", Mutation("constant", 1, (Edit(4, 5, "("),), ""))
    with pytest.raises(ValueError, match="changes nothing"):
        mutate("a = 1\n", Mutation("constant", 1, (Edit(4, 5, "1 "),), ""))
    with pytest.raises(ValueError, match="no Python"):
        mutate("def f(): return 1\n", Mutation("return", 1, (Edit(0, 8, ""),), ""))
