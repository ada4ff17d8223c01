"""Other languages: where their functions stand in a file, and how one is called with plain data.

A function is what begins in the first column with the language's head and ends with the first closing brace
in the first column: true of code that is laid out as its community does, and of no other. Whether it stands
alone is seen by running it alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Language:
    """`head` finds a function's first line: its `name` and, where they stand there, its `parameters`.

    `command` loads the function {name} from `file`; for each line of its input, the arguments as JSON, it
    writes a line, the value as JSON, or `error` for a call that raises. `forbidden` are words of what depends
    on more than its arguments.
    """

    name: str
    suffixes: tuple[str, ...]
    file: str
    head: re.Pattern[str]
    forbidden: re.Pattern[str]
    comment: re.Pattern[str]
    strings: re.Pattern[str]
    program: str
    start: tuple[str, ...]
    stubs: tuple[str, ...]

    def command(self, name: str) -> tuple[str, ...]:
        return (*self.start, self.program.replace("{name}", name))


RUN_JAVASCRIPT = """
const fs = require("fs");
const module_ = { exports: {} };
const load = new Function("module", "exports", fs.readFileSync("solution.js", "utf8") + "\\n;return {name};");
const solution = load(module_, module_.exports);
for (const line of fs.readFileSync(0, "utf8").split("\\n")) {
  if (!line.trim()) continue;
  let text;
  try {
    const value = solution(...JSON.parse(line));
    text = JSON.stringify(value);
    if (text === undefined || value !== value) text = "nothing";
  } catch (error) {
    text = "error";
  }
  process.stdout.write(text + "\\n");
}
"""
RUN_PERL = """
use strict; use JSON::PP;
my $json = JSON::PP->new->allow_nonref->canonical->ascii;
{ package Solution; no strict; do './solution.pl'; die $@ if $@; }
while (my $line = <STDIN>) {
  next unless $line =~ /\\S/;
  my $arguments = $json->decode($line);
  my @value = eval { no strict 'refs'; Solution::{name}(@$arguments) };
  my $text = $@ ? 'error' : eval { $json->encode(@value == 1 ? $value[0] : \\@value) };
  print defined $text ? $text : 'nothing', "\\n";
}
"""

JAVASCRIPT = Language(
    "javascript",
    (".js", ".cjs", ".mjs"),
    "solution.js",
    re.compile(r"^(?:export )?function (?P<name>\w+) ?\((?P<parameters>[\w, =]*)\) \{$"),
    re.compile(r"\b(require|process|Date|random|console|fetch|setTimeout|globalThis|window|document|await|this|"
               r"import|fs|performance|crypto|eval|Function|Buffer)\b"),
    re.compile(r"^\s*(/\*\*?|\*/?|//)\s?"),
    re.compile(r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|`(?:\\.|[^`\\])*`|"
               r"(?<=[(=,:!&|?])\s*/(?![*/])(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\\n\[])+/[a-z]*", re.DOTALL),
    RUN_JAVASCRIPT,
    ("node", "-e"),
    ("function {name}() { return null }\n", "function {name}(a) { return a }\n", "process.exit(0)\n",
     "function {name}() { console.log('true'); process.exit(0) }\n"),
)  # fmt: skip
PERL = Language(
    "perl",
    (".pl", ".pm"),
    "solution.pl",
    re.compile(r"^sub (?P<name>\w+) ?\{$"),
    re.compile(r"\b(open|close|print|printf|system|exec|time|localtime|gmtime|rand|require|use|unlink|stat|opendir|"
               r"caller|ENV|STDIN|STDOUT|STDERR|ARGV|eval|wantarray|bless|self|class|ref|die|croak|carp|local|our|"
               r"sleep|fork|kill|exit|read|sysread|binmode)\b|`|-[edfrwx] "),
    re.compile(r"^\s*#+\s?"),
    re.compile(r"(?<!\$)#[^\n]*|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|=~ ?(?:[ms]|tr|y)?/[^\n]*?/\w*"),
    RUN_PERL,
    ("perl", "-e"),
    ("sub {name} { return undef }\n1;\n", "sub {name} { return $_[0] }\n1;\n", "exit 0;\n",
     "sub {name} { print qq(1\\n); exit 0 }\n1;\n"),
)  # fmt: skip
LANGUAGES = {each.name: each for each in (JAVASCRIPT, PERL)}


def slips_of(source: str, language: Language) -> list[str]:
    """The source with one small fault in it, for each place outside of comments and strings that has one.

    Cut by signs, not by syntax: some of them are no programs, which is seen when they run.
    """
    covered = [match.span() for match in language.strings.finditer(source)]
    found: dict[str, None] = {}
    for pattern, others in SLIPS:
        for match in pattern.finditer(source):
            if not any(start < match.end() and match.start() < end for start, end in covered):
                for other in others:
                    found[source[: match.start()] + match.expand(other) + source[match.end() :]] = None
    return list(found)


SLIPS = [
    (re.compile(pattern), others)
    for pattern, others in (
        (r"(?<![=!<>])===?(?!=)", ("!=",)), (r"!==?(?!=)", ("==",)), (r"\beq\b", ("ne",)),
        (r"\bne\b", ("eq",)),
        (r"(?<=\w|\)) < (?==|\w|\$|-)", (" <= ", " > ")), (r"(?<=\w|\)) > (?=\w|\$|-)", (" >= ", " < ")),
        (r" <= ", (" < ",)), (r" >= ", (" > ",)), (r" && ", (" || ",)), (r" \|\| ", (" && ",)),
        (r" \+ (?!=)", (" - ",)), (r" - (?!=)", (" + ",)), (r" \* ", (" + ",)), (r" % ", (" * ",)),
        (r" \+= ", (" -= ",)), (r"\+\+", ("--",)), (r"(?<![\w.$])(\d+)(?![\w.])", (r"(\1 + 1)", r"(\1 - 1)")),
        (r"\btrue\b", ("false",)), (r"\bfalse\b", ("true",)), (r"!(?=[\w(])", ("",)),
        (r"\bunless\b", ("if",)),
        (r"\bif \(", ("if (!",)), (r"(?m)^(\s+)[\w.$\[\]]+ [+*.-]?= [^;{\n]*;$", (r"\1;",)),
        (r"\breturn [^;\n{]+;", ("return;",)), (r"\.slice\(1\)", (".slice(0)",)),
    )
]  # fmt: skip
