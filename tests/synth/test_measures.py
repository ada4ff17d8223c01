"""Choosing tests, rewriting programs, agreeing on outputs, drawing inputs, reading a corpus."""

import ast
import importlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lathe.errors import UserError
from lathe.synth.argument_types import calls_in, parameters_of, written_type
from lathe.synth.corpus import Origin, SourceFile, read_corpus
from lathe.synth.extract import NotSelfContained, candidates_of, extract, scopes_of
from lathe.synth.inputs import Constants, draw, drawn_calls
from lathe.synth.lab import Outcome
from lathe.synth.majority import majority, ranked_solutions
from lathe.synth.rewrites import REWRITES, rewrites_of
from lathe.synth.suite import Case, call_of, choose_cases

PROGRAM = '''
def f(items, limit=3):
    """Says something."""
    total = 0
    names = []
    seen = [each for each in items if each > 0]
    for item in items:
        if item in names:
            continue
        if item < limit:
            total += item
        elif item == 7:
            names.append(item)
        else:
            break
    try:
        ratio = total / len(seen)
    except ZeroDivisionError as error:
        ratio = str(error)
    return (total, names, seen, ratio if total else None)
'''

VARIANTS = rewrites_of(ast.parse(PROGRAM), "f")


def run(source, *args):
    space = {}
    exec(source, space)
    return space["f"](*args)


@given(st.lists(st.integers(-3, 9)), st.integers(0, 9))
def test_rewrites_keep_what_a_function_does(items, limit):
    assert set(VARIANTS) == {*REWRITES, "all of them"}
    for what, source in VARIANTS.items():
        assert run(source, list(items), limit) == run(PROGRAM, list(items), limit), what


def cases(count):
    return [Case(f"(({place},), {{}})", Outcome(value=str(place * 3))) for place in range(count)]


@given(st.lists(st.text("01", min_size=12, max_size=12), max_size=12))
def test_chosen_tests_reject_whatever_any_test_rejects(letters):
    chosen = choose_cases(cases(12), letters, cover=1, max_cases=12)
    assert len(chosen) >= 5
    for row in letters:
        assert ("0" in row) == any(row[place] == "0" for place in chosen)


def test_tests_that_reject_nothing_are_dropped():
    letters = ["1" * 40, "0" + "1" * 39, "11100" + "1" * 35]
    chosen = choose_cases(cases(40), letters)
    assert len(chosen) == 5 and {0, 3, 4} <= set(chosen)


def test_always_the_same_answer_is_rejected():
    mostly = [Case(f"(({place},), {{}})", Outcome(value="True")) for place in range(20)]
    mostly[13] = Case("((13,), {})", Outcome(value="False"))
    assert 13 in choose_cases(mostly, [])


def outcomes(*values):
    return [Outcome(skip="slow") if value is None else Outcome(value=value) for value in values]


def test_the_majority_of_independent_solutions_decides():
    votes = [
        outcomes("1", "2", "3", "a", None),
        outcomes("1", "2", "4", "b", None),
        outcomes("1", "5", "3", "c", "9"),
    ]
    agreed = majority(votes)
    assert {place: each.value for place, each in agreed.outcomes.items()} == {0: "1", 1: "2", 2: "3"}
    assert agreed.shares[0] == 1.0 and ranked_solutions(votes, agreed)[0] == 0
    assert majority(votes[:2]).outcomes.keys() == {0, 1}  # a tie decides nothing
    assert majority([]).outcomes == {}


def file_of(text, module="m", where=None):
    return SourceFile(where or f"{module}.py", module, text, Origin("corpus"))


def extracted(name, *files):
    (candidate,) = (each for each in candidates_of(files) if each.node.name == name)
    return extract(candidate, scopes_of(files))


def test_a_program_has_what_its_function_needs_and_no_more():
    main = file_of(
        "import os\nimport re\nfrom .tools import twice as double\nLIMIT = 3\nOTHER = 4\n\n\n"
        "class Own(ValueError):\n    pass\n\n\ndef helper(a):\n    return re.escape(a)\n\n\n"
        "def f(a: os.PathLike) -> str:\n    if len(a) > LIMIT:\n        raise Own\n"
        "    return double(helper(a))\n",
        "p.main",
        "p/main.py",
    )
    tools = file_of("def twice(a):\n    return a * 2\n", "p.tools", "p/tools.py")
    source = extracted("f", main, tools).source
    assert run(source, "a.") == "a\\.a\\."
    assert "OTHER" not in source and "import os" not in source


@pytest.mark.parametrize(
    "body, reason",
    [
        ("return open(a)", "depends on more"), ("return time.time() + a", "may not"),
        ("return nothing(a)", "unknown"),
        ("global X\n    X = a\n    return a", "depends on more"), ("return os.environ[a]", "may not|depends"),
    ],
)  # fmt: skip
def test_what_depends_on_more_than_its_arguments_is_no_candidate(body, reason):
    with pytest.raises(NotSelfContained, match=reason):
        extracted("f", file_of(f"import os, time\n\n\ndef f(a):\n    {body}\n"))


@pytest.mark.parametrize(
    "written, wanted",
    [
        ("int", "int"), ("Sequence[str]", "list[str]"), ("typing.Optional[int]", "int | None"), ("T", "Any"),
        ("dict[str, list[int]]", "dict[str, list[int]]"), ("'str'", "str"), ("Path", None),
        ("Path | None", None),
        ("str | Path", "str"), ("Literal['a', 'b']", "Literal['a', 'b']"),
        ("tuple[int, ...]", "tuple[int, ...]"),
    ],
)  # fmt: skip
def test_annotations(written, wanted):
    assert written_type(ast.parse(written, mode="eval").body) == wanted


def parameters(text, name="f"):
    file = file_of(text)
    (node,) = (each for each in file.tree.body if isinstance(each, ast.FunctionDef) and each.name == name)
    return [(each.name, each.types) for each in parameters_of(node, calls_in([file]).get(name, ()))]


def test_types_come_from_calls_doctests_defaults_and_use():
    text = (
        'def f(a, b, c=1.5, d=None):\n    """Does.\n\n    >>> f("x", [1, 2])\n    """\n    return a\n\n\n'
        'f("y", ["z"], 2.0)\n\n\ndef g(a, n):\n    return a.upper() + "x" * n if n > 2 else a\n'
    )
    assert dict(parameters(text))["a"] == ("str",)
    assert set(dict(parameters(text))["b"]) == {"list[str]", "list[int]"}
    assert dict(parameters(text))["c"] == ("float",) and "d" not in dict(parameters(text))
    assert dict(parameters(text, "g"))["a"][0] == "str" and dict(parameters(text, "g"))["n"][0] == "int"


def test_drawn_inputs_have_the_types_and_know_the_programs_constants():
    function = ast.parse("def f(a, *, b):\n    return a == 123456 or b == 'secret word'\n")
    known = Constants.of(function)
    rows = parameters_of(function.body[0], [])
    calls = drawn_calls(rows, ("int", "list[str]"), known, 80, 7)
    values = [eval(each) for each in calls]
    assert all(type(args[0]) is int and type(kwargs["b"]) is list for args, kwargs in values)
    assert any(args[0] == 123456 for args, _ in values) and any(
        "secret word" in kwargs["b"] for _, kwargs in values
    )
    assert calls == drawn_calls(rows, ("int", "list[str]"), known, 80, 7)


def test_calls_are_written_as_people_write_them():
    assert call_of("f", "(([1], 'a', ), {'key': 2})") == "f([1], 'a', key=2)"


def test_a_corpus_is_files_folders_and_installed_packages(tmp_path):
    (tmp_path / "LICENSE").write_text("MIT License\n\nCopyright\n")
    (tmp_path / "one.py").write_text("def f(a):\n    return a\n")
    (file,) = read_corpus([str(tmp_path)])
    assert (file.origin.licence, file.module, file.is_importable) == ("MIT License", "one", False)
    (installed,) = read_corpus(["textwrap"])
    assert (installed.origin.name, installed.origin.licence, installed.is_importable) == (
        "cpython",
        "PSF-2.0",
        True,
    )
    assert {each.origin.name for each in read_corpus(["pluggy"])} == {"pluggy"}
    for nothing in ("no_such_package_anywhere", str(tmp_path / "missing.py")):
        with pytest.raises(UserError, match="no file, no folder"):
            read_corpus([nothing])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no Python"):
        read_corpus([str(tmp_path / "empty")])


def test_what_is_imported_changes_no_draw(tmp_path, monkeypatch):
    before = draw(st.tuples(st.integers(-1000, 1000), st.text(max_size=8)), 200, 3)
    names = "\n".join(f"number_{place} = {place}\ntext_{place} = 'word {place}'" for place in range(100, 200))
    (tmp_path / "many_constants.py").write_text(names)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("many_constants")
    assert draw(st.tuples(st.integers(-1000, 1000), st.text(max_size=8)), 200, 3) == before


def test_a_programs_regular_expressions_are_drawn_from():
    program = ast.parse(
        "import re\nOWN = re.compile('v([0-9]+)[.]X', re.IGNORECASE)\n\n\ndef f(a: str):\n    return OWN\n"
    )
    known = Constants.of(program)
    assert known.patterns == (("v([0-9]+)[.]X", int(re.IGNORECASE)),)
    calls = drawn_calls(parameters_of(program.body[-1], []), ("str",), known, 80, 7)
    assert any(re.fullmatch("v[0-9]+[.]X", eval(each)[0][0], re.IGNORECASE) for each in calls)
