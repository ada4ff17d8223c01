"""What needs no sandbox: clean copies, cut tests, undone commits, issues that don't tell."""

import subprocess

import pytest
import small_repository
from small_repository import FILES, LEFTOVERS

from lathe.errors import UserError
from lathe.sandbox.images import ImageStore
from lathe.synth.mutations import functions_of, mutate
from lathe.synth.repository.bugs import Bug, changed_places, does_something, slips_and_bodies
from lathe.synth.repository.checkout import check_out, licence_of, pytest_arguments, roots_of
from lathe.synth.repository.hiding import twin_of, without_tests
from lathe.synth.repository.history import merged, undone_commits
from lathe.synth.repository.issue import Example, describe, leak, variants_of
from lathe.synth.repository.rewrite import function_in, in_place
from lathe.synth.repository.suite import Call, Suite

CHANGE = "src/till/change.py"


@pytest.fixture
def check(tmp_path):
    store = ImageStore(tmp_path / "images")
    (tmp_path / "clean").mkdir()
    return lambda folder: check_out(folder, tmp_path / "clean", store)


def suite_of(*names: str, calls=None) -> Suite:
    """All functions reached by one test each."""
    functions = tuple((path, name) for path, _, name in (each.partition("::") for each in names))
    reach = {f"tests/test_x.py::test_{number}": (number,) for number in range(len(names))}
    return Suite(
        ("tests/test_x.py",), tuple(reach), tuple(reach), 1, 0, 0, 0, 1.0, functions, reach, calls=calls or {}
    )


def test_a_clean_copy(check, tmp_path):
    folder = small_repository.write(tmp_path / "till-1.0", {**FILES, **LEFTOVERS})
    (folder / "outside").symlink_to("/etc")
    repository = check(folder)
    assert set(repository.texts) == {*FILES, "src/till.egg-info/PKG-INFO"}
    assert not (repository.folder / "outside").is_symlink()
    assert repository.name == "till" and repository.packages == ("till",)
    assert repository.tests == ("tests/test_change.py", "tests/test_money.py")
    assert set(repository.sources) == {"src/till/__init__.py", "src/till/change.py", "src/till/money.py"}
    assert repository.arguments == ("-o", "pythonpath=src")
    assert repository.module("src/till/__init__.py") == "till" and repository.module(CHANGE) == "till.change"
    assert repository.licence == "MIT" and repository.commit is None


@pytest.mark.parametrize(
    "files, complaint",
    [({"a.py": "x = 1\n"}, "no test files"), ({"test_a.py": "def test_a(): pass\n"}, "nothing to break")],
)
def test_what_no_task_can_be_made_of(files, complaint, check, tmp_path):
    with pytest.raises(UserError, match=complaint):
        check(small_repository.write(tmp_path / "bad", files))


def test_no_such_folder(check, tmp_path):
    with pytest.raises(UserError, match="no folder"):
        check(tmp_path / "nowhere")


def test_settings_of_pytest_that_the_judge_needs():
    texts = {
        "pyproject.toml": "[tool.pytest.ini_options]\n"
        'addopts = ["--import-mode=importlib"]\npythonpath = ["."]\n'
    }
    assert pytest_arguments({**texts, "src/a.py": ""}, ("src", "")) == (
        "-o",
        "pythonpath=. src",
        "--import-mode=importlib",
    )
    assert roots_of({"lib/a/__init__.py": "", "b.py": ""}) == ("lib", "")
    assert licence_of({"COPYING": "GNU GENERAL PUBLIC LICENSE\nVersion 3"}) == "GPL"


def test_failing_tests_are_cut_out():
    text = FILES["tests/test_money.py"]
    cut = without_tests(text, ["test_total", "TestPrice::test_tax"])
    assert "def test_total" not in cut and "parametrize" not in cut and "test_tax" not in cut
    assert "class TestPrice:\n    def test_text" in cut and "def test_discount" in cut
    compile(cut, "cut", "exec")
    compile(without_tests(text, ["TestPrice::test_tax", "TestPrice::test_text"]), "cut", "exec")
    assert without_tests(text, ["test_of_nowhere", "test_text"]) == text


def test_slips_are_the_same_every_time_and_stay_in_reached_functions(check, tmp_path):
    repository = check(small_repository.write(tmp_path / "till", FILES))
    suite = suite_of(f"{CHANGE}::change", f"{CHANGE}::pairs")
    found = list(slips_and_bodies(repository, suite, seed=3))
    assert [each.id for each in found] == [each.id for each in slips_and_bodies(repository, suite, seed=3)]
    assert {each.kind for each in found} == {"slip", "slips", "body", "pair"}
    assert {place for each in found for place in each.places} == {(CHANGE, "change"), (CHANGE, "pairs")}
    for each in found:
        assert set(changed_places(repository, each.files)) == set(each.places)


def test_commits_are_undone(check, tmp_path):
    folder = tmp_path / "till"

    def commit(**changes: str):
        small_repository.write(
            folder, {path.replace("__", "/") + ".py": text for path, text in changes.items()}
        )
        for line in (["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "A fix"]):
            subprocess.run(["git", *line], cwd=folder, check=True)

    folder.mkdir()
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    old = "def f(x):\n    return x\n\n\n\n\ndef g(x):\n    return 2 * x\n"
    commit(a=old, test_a="from a import f\n\ndef test_f():\n    assert f(1) == 2\n", b="X = 1\n")
    commit(a=old.replace("return x", "return x + 1"))
    commit(a=old.replace("return x", "return x + 1").replace("2 * x", "3 * x"), c="Y = 2\n")
    repository = check(folder)
    assert repository.commit and not (repository.folder / ".git").exists()
    (bug,) = undone_commits(repository)  # the last one brought a file, the first one all
    assert bug.files == {"a.py": old.replace("2 * x", "3 * x")}
    assert bug.places == (("a.py", "f"),) and bug.note.endswith(": A fix")
    assert merged("a = 3\n", "a = 1\n", "a = 2\n") is None


def test_an_issue_shows_what_a_user_sees():
    example = Example(
        Call("till.change", "pairs", "pairs('ab')", True),
        "pairs('ab')",
        ("list", "[]"),
        ("list", "[('a', 'b')]"),
        False,
    )
    text = describe(example, suite_of(), [])
    assert ">>> from till.change import pairs\n>>> list(pairs('ab'))\n" in text
    assert text.endswith("I expected `[('a', 'b')]`.")
    calls = {"t.py::test_a": (Call("till.money", "Price.__init__", None, True),)}
    text = describe(None, suite_of(calls=calls), ["t.py::test_a"])
    assert "`till.money.Price`" in text and "- `test_a`" in text


def test_variants_of_a_call():
    assert "f([2, 2], x='ab')" in variants_of("f([1, 2], x='ab')")
    assert variants_of("f([])") == []


def test_an_issue_that_tells_the_answer(check, tmp_path):
    repository = check(small_repository.write(tmp_path / "till", FILES))
    bug = Bug(
        "slip", "", {CHANGE: FILES[CHANGE].replace("left >= coin", "left > coin")}, ((CHANGE, "change"),)
    )
    assert leak(repository, bug, "change(5, [3]) gives [2]") < 0.5
    assert leak(repository, bug, "It should say `while left >= coin:` there.") == 1.0
    assert leak(repository, bug, f"Look into {CHANGE}.") == 1.0


def test_the_same_code_elsewhere(check, tmp_path):
    copy = FILES[CHANGE].replace("def change(", "def old_change(")
    repository = check(small_repository.write(tmp_path / "till", {**FILES, "examples/old.py": copy}))
    assert twin_of(repository, Bug("slip", "", {}, ((CHANGE, "change"),))) == "examples/old.py: old_change"
    assert twin_of(repository, Bug("slip", "", {}, (("src/till/money.py", "total"),))) is None


def test_a_model_s_function_takes_the_old_one_s_place():
    text = "class A:\n    @property\n    def b(self):\n        return 1\n\n    c = 2\n"
    (function,) = functions_of(text)
    written = function_in("```python\nclass A:\n    def b(self):\n        x = 3\n        return x\n```", "b")
    assert mutate(text, in_place(text, function, written)) == text.replace(
        "return 1", "x = 3\n        return x"
    )
    assert function_in("```python\ndef c(): pass\n```", "b") is None and function_in("no code", "b") is None


def test_functions_that_do_something():
    found = {
        each.name: does_something(each)
        for each in functions_of('def a(): "x"\ndef b(): raise E\ndef c(): return 1\n')
    }
    assert found == {"a": False, "b": False, "c": True}
