"""Tasks from functions of other languages."""

import shutil

import pytest

from lathe.errors import UserError
from lathe.synth.foreign import ForeignMaker, foreign_candidates
from lathe.synth.functions import FunctionsConfig
from lathe.synth.gates import gates_of
from lathe.synth.languages import JAVASCRIPT, PERL, slips_of
from lathe.tasks.patch import Patch
from lathe.tasks.verify import verify

SCRIPT = """
const path = require("path");

/**
 * Counts how often each word of a text is said, whatever its case.
 * @param {string} text
 */
function wordCounts(text) {
  const counts = {};
  for (const word of text.toLowerCase().split(" ")) {
    if (word.length > 0 && word !== "b") {
      counts[word] = (counts[word] || 0) + 1; // one more
    }
  }
  return counts;
}

function here(name) {
  if (name === "x") {
    return 1 + 2;
  }
  return process.cwd() + name;
}
"""
MODULE = """
package Small;

# The longest run of one letter in a word, in letters.
sub longest_run {
    my ($word) = @_;
    my ($best, $count, $last) = (0, 0, '');
    for my $char (split //, $word) {
        $count = $char eq $last ? $count + 1 : 1;
        $last = $char;
        $best = $count if $count > $best;
    }
    return $best;
}

1;
"""


def candidates(tmp_path, name, text, language):
    (tmp_path / name).write_text(text)
    return {each.name: each for each in foreign_candidates([str(tmp_path)], language, "MIT")}


def test_functions_are_found_with_their_comments(tmp_path):
    found = candidates(tmp_path, "a.js", SCRIPT, JAVASCRIPT)
    assert found["wordCounts"].arguments == ("text",) and "Counts how often" in found["wordCounts"].comment
    assert found["wordCounts"].source.startswith("function wordCounts") and found["wordCounts"].line == 8
    assert candidates(tmp_path, "b.pm", MODULE, PERL)["longest_run"].arguments == ("$word",)
    with pytest.raises(UserError, match="no function of perl"):
        foreign_candidates([str(tmp_path / "a.js")], PERL)


def test_slips_leave_comments_and_strings_alone():
    source = 'function f(a) {\n  // a < b\n  return a < 3 ? "x < y" : a + 1;\n}\n'
    slips = slips_of(source, JAVASCRIPT)
    assert len(slips) >= 6 and all("// a < b" in each and '"x < y"' in each for each in slips)


@pytest.mark.parametrize(
    "file, text, language, name, other",
    [
        pytest.param(
            "a.js", SCRIPT, JAVASCRIPT, "wordCounts",
            "const wordCounts = (t) => t.toLowerCase().split(' ').filter((w) => w && w !== 'b')\n"
            "  .reduce((all, w) => ({ ...all, [w]: (all[w] ?? 0) + 1 }), {});\n",
            marks=pytest.mark.slow,  # node takes its time to start, for each mutant
        ),
        ("b.pm", MODULE, PERL, "longest_run",
         "sub longest_run { my $w = shift; my $b = 0;\n"
         "  while ($w =~ /((.)\\2*)/sg) { $b = length $1 if length $1 > $b } return $b }\n1;\n"),
    ],
)  # fmt: skip
async def test_they_become_tasks_that_other_solutions_solve(
    pool, tmp_path, file, text, language, name, other
):
    if shutil.which(language.start[0]) is None:
        pytest.skip(f"no {language.start[0]} here")
    candidate = candidates(tmp_path, file, text, language)[name]
    config = FunctionsConfig(num_gold=1, num_inputs=30)
    made = await ForeignMaker(pool, config).make(candidate)
    tasks = {task.info["kind"]: task for task in made.tasks}
    assert set(tasks) == {"write", "fix", "predict"}, made.drops
    gates = gates_of(tasks["write"])
    assert gates.flake == gates.noop == gates.stub == 0.0 and gates.mutation >= 0.6
    assert (await verify(tasks["write"], Patch.of({language.file: other}), pool)).reward == 1.0
    assert tasks["fix"].files[language.file] != candidate.source
    assert candidate.source not in tasks["write"].prompt and tasks["write"].licence == "MIT"


async def test_what_depends_on_more_is_dropped(pool, tmp_path):
    made = await ForeignMaker(pool).make(candidates(tmp_path, "a.js", SCRIPT, JAVASCRIPT)["here"])
    assert [(drop.reason, drop.detail) for drop in made.drops] == [
        ("depends on more than its arguments", "uses process")
    ]
