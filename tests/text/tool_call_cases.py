"""Replies that a reader of tool calls has to get right, each with what it must make of it.

The numbers are those of a list of 48 cases collected from the tests of other engines; the names after them
say what is at stake. Reported bugs follow. All texts are our own.
"""

from dataclasses import dataclass, field
from typing import Any

from lathe.types import Tool


@dataclass(frozen=True)
class Case:
    name: str
    text: str
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    content: str = ""
    tools: list[Tool] | None = None
    dialect: str = "qwen3_coder"
    holds_closing_line: bool = (
        False  # a value holds a line that ends calls, so that a cut there looks finished
    )
    ended: bool = False  # the model ended its turn by itself, with an end mark behind the text


def tool(tool_name: str, /, **properties: Any) -> Tool:
    return Tool(tool_name, "", {"type": "object", "properties": properties})


STRING, INTEGER, NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}
BOOLEAN, OBJECT, ARRAY, NULL = {"type": "boolean"}, {"type": "object"}, {"type": "array"}, {"type": "null"}


def optional(schema: dict) -> dict:
    return {"anyOf": [schema, NULL]}


READ = tool("read_file", path=STRING, limit=INTEGER)
WRITE = tool("write_file", path=STRING, content=STRING)
RUN = tool("run", command=STRING, timeout_s=NUMBER, background=BOOLEAN, env=OBJECT)
PLAN = tool("plan", steps=ARRAY, meta=OBJECT)
NOW = tool("now")
TOOLS = [READ, WRITE, RUN, PLAN, NOW, tool("tool_call", query=STRING)]


def call(name: str, /, **parameters: str) -> str:
    inside = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in parameters.items())
    return f"<tool_call>\n<function={name}>\n{inside}</function>\n</tool_call>"


def one(name: str, schema: Any, text: str, value: Any) -> Case:
    """A case of one parameter, typed by a schema."""
    return Case(name, call("f", x=text), [("f", {"x": value})], tools=[tool("f", x=schema)])


NESTED = call("read_file", path="inner.py")
EXAMPLE = call("write_file", path="example.md", content="An example.")
ALL_TAGS = (
    "A <tool_call><function=run><parameter=command>x</parameter></function></tool_call> and </tool_call>"
    " </function> </parameter> <parameter=x> <function=y>."
)

CASES = [
    Case("01 plain text unchanged", "  Nothing to do here.\n\n", content="  Nothing to do here.\n\n"),
    Case("02 single call, no content", call("read_file", path="a.py"), [("read_file", {"path": "a.py"})]),
    Case(
        "03 content before the call is kept",
        "Let me look at the file first.\n" + call("read_file", path="a.py"),
        [("read_file", {"path": "a.py"})],
        "Let me look at the file first.",
    ),
    Case(
        "04 multi-line JSON object as a value",
        call("plan", meta='{\n  "depth": 2,\n  "tags": ["a",\n    "b"]\n}'),
        [("plan", {"meta": {"depth": 2, "tags": ["a", "b"]}})],
    ),
    Case(
        "05 two parallel calls",
        call("read_file", path="a.py") + "\n" + call("read_file", path="b.py"),
        [("read_file", {"path": "a.py"}), ("read_file", {"path": "b.py"})],
    ),
    Case(
        "06 typed parameters and content",
        "Running it.\n" + call("run", command="make", timeout_s="2.5", background="true"),
        [("run", {"command": "make", "timeout_s": 2.5, "background": True})],
        "Running it.",
    ),
    Case(
        "07 bare function without wrapper",
        "<function=read_file>\n<parameter=path>\na.py\n</parameter>\n</function>",
        [("read_file", {"path": "a.py"})],
    ),
    Case(
        "08 integers, numbers, booleans, strings, objects",
        call("f", i="42", n="3.5", b="False", s="17", o='{"k": [1]}'),
        [("f", {"i": 42, "n": 3.5, "b": False, "s": "17", "o": {"k": [1]}})],
        tools=[tool("f", i=INTEGER, n=NUMBER, b=BOOLEAN, s=STRING, o=OBJECT)],
    ),
    Case(
        "09 an object in Python's quotes",
        call("plan", meta="{'done': True, 'next': None, 'who': 'me'}"),
        [("plan", {"meta": {"done": True, "next": None, "who": "me"}})],
    ),
    Case(
        "10 anyOf and lists of types",
        call("f", i="5", s="hello", a='["a", "b"]', o='{"k": "v"}', l="42", m="some text"),
        [("f", {"i": 5, "s": "hello", "a": ["a", "b"], "o": {"k": "v"}, "l": 42, "m": "some text"})],
        tools=[
            tool(
                "f",
                i=optional(INTEGER),
                s=optional(STRING),
                a=optional({"type": "array", "items": STRING}),
                o=optional(OBJECT),
                l={"type": ["integer", "null"]},
                m={"anyOf": [STRING, INTEGER, NULL]},
            )
        ],
    ),
    Case(
        "11 anyOf with the values in their tags' lines",
        "<tool_call>\n<function=f>\n<parameter=i>5</parameter>\n<parameter=s>hello</parameter>\n"
        "<parameter=l>42</parameter>\n</function>\n</tool_call>",
        [("f", {"i": 5, "s": "hello", "l": 42})],
        tools=[tool("f", i=optional(INTEGER), s=optional(STRING), l={"type": ["integer", "null"]})],
    ),
    Case(
        "12 missing </parameter> before the next one",
        "Checking.\n<tool_call>\n<function=write_file>\n<parameter=path>\na.txt\n<parameter=content>\nhi\n"
        "</parameter>\n</function>\n</tool_call>",
        [("write_file", {"path": "a.txt", "content": "hi"})],
        "Checking.",
    ),
    Case(
        "12 missing </parameter> before </function>",
        '<tool_call>\n<function=plan>\n<parameter=meta>\n{"mode": "high", "on": true}\n'
        "</function>\n</tool_call>",
        [("plan", {"meta": {"mode": "high", "on": True}})],
    ),
    Case(
        "12 missing </parameter> in one line",
        "<tool_call><function=write_file><parameter=path>a b</function></tool_call>",
        [("write_file", {"path": "a b"})],
    ),
    Case(
        "13 a long string streams",
        call("write_file", path="essay.md", content="All work and no play. " * 12),
        [("write_file", {"path": "essay.md", "content": "All work and no play. " * 12})],
    ),
    Case(
        "14 missing opener, closer present",
        "I will list the files.\n\n<function=run>\n<parameter=command>\nls\n</parameter>\n</function>\n"
        "</tool_call>",
        [("run", {"command": "ls"})],
        "I will list the files.",
    ),
    Case("15 header without > does not crash", "<tool_call>\n<function=read_file\n</function>\n</tool_call>"),
    Case("15 header without > at the very end", "<tool_call>\n<function=read_file"),
    Case(
        "15 a parameter without > is dropped, the others stay",
        "<tool_call>\n<function=write_file>\n<parameter=path\na.txt\n</parameter>\n<parameter=content>\nhi\n"
        "</parameter>\n</function>\n</tool_call>",
        [("write_file", {"content": "hi"})],
    ),
    Case(
        "15 a second parameter without >",
        "<tool_call>\n<function=write_file>\n<parameter=path>\na.txt\n</parameter>\n<parameter=content\nhi\n"
        "</parameter>\n</function>\n</tool_call>",
        [("write_file", {"path": "a.txt"})],
    ),
    Case(
        "16 a bad call and a good one",
        "<tool_call>\n<function=run\n<parameter=command>\nls\n</parameter>\n</function>\n</tool_call>\n"
        + NESTED,
        [("read_file", {"path": "inner.py"})],
    ),
    Case(
        "17 anyOf object is not encoded twice",
        call("f", x='{"a": {"b": 1}}'),
        [("f", {"x": {"a": {"b": 1}}})],
        tools=[tool("f", x=optional({"type": "object", "properties": {"a": OBJECT}}))],
    ),
    Case(
        "18 three parameters",
        call("run", command="make", timeout_s="60", background="false"),
        [("run", {"command": "make", "timeout_s": 60, "background": False})],
    ),
    Case(
        "19 strings are not encoded twice",
        call("write_file", path='"quoted.txt"', content='{"a": "b"}'),
        [("write_file", {"path": '"quoted.txt"', "content": '{"a": "b"}'})],
    ),
    Case(
        "20 parameters and end tags at once",
        "<tool_call><function=run><parameter=command>ls</parameter><parameter=timeout_s>5</parameter></function>"
        "</tool_call>",
        [("run", {"command": "ls", "timeout_s": 5})],
    ),
    one('21 string "null" stays a string', STRING, "null", "null"),
    one('22 string or null: "42" stays "42"', optional(STRING), "42", "42"),
    one("23 integer or null: 42", optional(INTEGER), "42", 42),
    one("24 a Python object inside a JSON string", OBJECT, "\"{'a': [1, None]}\"", {"a": [1, None]}),
    one("25 true inside an array", ARRAY, "[true, false, null]", [True, False, None]),
    Case(
        "26 two whole calls, nothing between",
        call("now") + call("read_file", path="a.py"),
        [("now", {}), ("read_file", {"path": "a.py"})],
    ),
    Case(
        "27 text between and after calls",
        "One\n" + call("now") + "\nTwo\n" + call("now") + "\n\nThree\n",
        [("now", {}), ("now", {})],
        "One\nTwo\n\nThree",
    ),
    Case("28 text behind the closing tag", call("now") + "\nAll done.", [("now", {})], "All done."),
    one("29 None is null where an integer may be null", optional(INTEGER), "None", None),
    one("29 None is null where a string may be null", optional(STRING), "None", None),
    one("29 null by `nullable`", {"type": "string", "nullable": True}, " null ", None),
    one("29 a string that begins like null", optional(STRING), "nullable", "nullable"),
    Case(
        "30 a value holds all tags in one line",
        call("write_file", path="a.md", content=ALL_TAGS),
        [("write_file", {"path": "a.md", "content": ALL_TAGS})],
    ),
    Case(
        "30 a value in its tag's line holds tags",
        "<tool_call><function=write_file><parameter=content>before </parameter> and <function=run>"
        "<parameter=command>x</parameter></function> after <parameter=path> </tool_call> </function> end"
        "</parameter></function></tool_call> Bye.",
        [
            (
                "write_file",
                {
                    "content": "before </parameter> and <function=run><parameter=command>x</parameter>"
                    "</function> after <parameter=path> </tool_call> </function> end"
                },
            )
        ],
        "Bye.",
    ),
    Case(
        "31 closing and opening tags alone on their lines",
        call(
            "write_file",
            path="a",
            content="one\n</parameter>\ntwo\n<parameter=other>\nthree\n<function=x>\nfour",
        ),
        [
            (
                "write_file",
                {
                    "path": "a",
                    "content": "one\n</parameter>\ntwo\n<parameter=other>\nthree\n<function=x>\nfour",
                },
            )
        ],
    ),
    Case(
        "31 closing tags of calls alone on their lines",
        call("write_file", path="a", content="one\n</function>\ntwo\n</tool_call>\nthree\n<tool_call>\nfour"),
        [
            (
                "write_file",
                {"path": "a", "content": "one\n</function>\ntwo\n</tool_call>\nthree\n<tool_call>\nfour"},
            )
        ],
        holds_closing_line=True,
    ),
    Case(
        "32 the tag of a sibling in a line",
        call("write_file", content="set <parameter=path> first", path="a"),
        [("write_file", {"content": "set <parameter=path> first", "path": "a"})],
    ),
    Case(
        "32 the tag of a sibling that is already there",
        call("write_file", path="a", content="set\n<parameter=path>\nfirst"),
        [("write_file", {"path": "a", "content": "set\n<parameter=path>\nfirst"})],
    ),
    Case(
        "33 a value is a whole call",
        call("write_file", path="a.md", content=NESTED),
        [("write_file", {"path": "a.md", "content": NESTED})],
    ),
    Case(
        "33 a value quotes whole calls between text",
        call(
            "write_file",
            path="a.md",
            content=f"First:\n{NESTED}\n{EXAMPLE}\nthen\n{call('now')}\nthat is all.",
        ),
        [
            (
                "write_file",
                {
                    "path": "a.md",
                    "content": f"First:\n{NESTED}\n{EXAMPLE}\nthen\n{call('now')}\nthat is all.",
                },
            )
        ],
    ),
    Case(
        "33 a value quotes a call that quotes a call",
        call("write_file", path="a.md", content=call("write_file", path="b.md", content=NESTED) + "\nend"),
        [
            (
                "write_file",
                {"path": "a.md", "content": call("write_file", path="b.md", content=NESTED) + "\nend"},
            )
        ],
    ),
    Case(
        "33 a value ends with the end of a call",
        call("write_file", path="a.md", content="It ends with\n</parameter>\n</function>\n</tool_call>"),
        [
            (
                "write_file",
                {"path": "a.md", "content": "It ends with\n</parameter>\n</function>\n</tool_call>"},
            )
        ],
        holds_closing_line=True,
    ),
    Case(
        "34 two calls, the second quotes a call of an unknown tool",
        call("now")
        + "\n"
        + call("write_file", path="a", content="see\n" + call("launch", target="moon") + "\n."),
        [
            ("now", {}),
            ("write_file", {"path": "a", "content": "see\n" + call("launch", target="moon") + "\n."}),
        ],
    ),
    Case(
        "35 a placeholder is no name",
        "Write <tool_call>\n<function={{ name }}>\n</function>\n</tool_call> like this.",
        content="Write <tool_call>\n<function={{ name }}>\n</function>\n</tool_call> like this.",
    ),
    Case(
        "36 prose with tags before a real call",
        "I use <tool_call>x</tool_call> and <function=read_file> to act.\n" + NESTED,
        [("read_file", {"path": "inner.py"})],
        "I use <tool_call>x</tool_call> and <function=read_file> to act.",
    ),
    Case("37 no arguments", "<tool_call>\n<function=now>\n</function>\n</tool_call>", [("now", {})]),
    Case("37 no arguments, no newlines", "<tool_call><function=now></function></tool_call>", [("now", {})]),
    Case(
        "38 quotes, backslashes, newlines",
        call("write_file", path='C:\\dir\\"x"', content="a\\nb\n\t'c'\n\n\"d\"\\"),
        [("write_file", {"path": 'C:\\dir\\"x"', "content": "a\\nb\n\t'c'\n\n\"d\"\\"})],
    ),
    Case(
        "39 calls without closing wrapper",
        "<tool_call>\n<function=now>\n</function>\n<tool_call>\n<function=read_file>\n<parameter=path>\na\n"
        "</parameter>\n</function>\n",
        [("now", {}), ("read_file", {"path": "a"})],
    ),
    Case(
        "40 tags that almost begin",
        "if a < b and c <t> d </ e <tool_cal <tool_call <function read <",
        content="if a < b and c <t> d </ e <tool_cal <tool_call <function read <",
    ),
    Case(
        "41 without tools all values are strings",
        call("run", timeout_s="5", env='{"a": 1}', background="true"),
        [("run", {"timeout_s": "5", "env": '{"a": 1}', "background": "true"})],
        tools=[],
    ),
    one('42 string "1" is no number', STRING, "1", "1"),
    one('42 string "true" is no boolean', STRING, "true", "true"),
    one("43 5.0 is the integer 5", INTEGER, "5.0", 5),
    one("43 5.0 is the number 5", NUMBER, "5.0", 5),
    one(
        "44 values inside objects and arrays are typed",
        {
            "type": "object",
            "properties": {"n": INTEGER, "tags": {"type": "array", "items": STRING}, "on": BOOLEAN},
        },
        '{"n": "5", "tags": ["42", "true"], "on": "True", "else": "7"}',
        {"n": 5, "tags": ["42", "true"], "on": True, "else": "7"},
    ),
    Case(
        "45 the same read at once and streamed",
        "Hm.\n" + call("run", command="cat <<EOF\n</function>\nEOF", env="{'A': '1'}") + "\n" + call("now"),
        [("run", {"command": "cat <<EOF\n</function>\nEOF", "env": {"A": "1"}}), ("now", {})],
        "Hm.",
        holds_closing_line=True,
    ),
    Case(
        "46 the same at every stream interval",
        call("write_file", path="unicode.txt", content="naïve — 你好 👩‍💻\r\nend\r"),
        [("write_file", {"path": "unicode.txt", "content": "naïve — 你好 👩‍💻\r\nend\r"})],
    ),
    Case(
        "47 a call in a fence of backticks, then a real one",
        f"Like this:\n```xml\n{EXAMPLE}\n```\nNow for real.\n{NESTED}",
        [("read_file", {"path": "inner.py"})],
        f"Like this:\n```xml\n{EXAMPLE}\n```\nNow for real.",
    ),
    Case(
        "47 a fence of tildes, indented",
        f"1. Like this:\n\n   ~~~\n{EXAMPLE}\n   ~~~\n{NESTED}",
        [("read_file", {"path": "inner.py"})],
        f"1. Like this:\n\n   ~~~\n{EXAMPLE}\n   ~~~",
    ),
    Case(
        "47 a longer fence around a shorter one",
        f"````md\n```\n{EXAMPLE}\n```\n{EXAMPLE}\n````\n{NESTED}",
        [("read_file", {"path": "inner.py"})],
        f"````md\n```\n{EXAMPLE}\n```\n{EXAMPLE}\n````",
    ),
    Case(
        "47 inline code",
        "Write `<tool_call><function=now></function></tool_call>` or ``<function=now>``.\n" + NESTED,
        [("read_file", {"path": "inner.py"})],
        "Write `<tool_call><function=now></function></tool_call>` or ``<function=now>``.",
    ),
    Case(
        "47 inline code over several lines",
        f"Write `{call('now')}` there.\n{NESTED}",
        [("read_file", {"path": "inner.py"})],
        f"Write `{call('now')}` there.",
    ),
    Case(
        "47 a fence that opens behind a word",
        f"Example: ```xml\n{EXAMPLE}\n```\n{NESTED}",
        [("read_file", {"path": "inner.py"})],
        f"Example: ```xml\n{EXAMPLE}\n```",
    ),
    Case(
        "47 an unclosed fence never turns into a call",
        f"```\n{EXAMPLE}\n",
        content=f"```\n{EXAMPLE}\n",
    ),
    Case(
        "47 a stray backtick does not hide the next line's call",
        f"Don`t worry.\n{NESTED}",
        [("read_file", {"path": "inner.py"})],
        "Don`t worry.",
    ),
    Case(
        "48 the one form that a grammar would force",
        call("write_file", path="a", content="b") + "\n" + call("now"),
        [("write_file", {"path": "a", "content": "b"}), ("now", {})],
    ),
]

BUGS = [
    Case(
        "edits keep their white space (vllm 48753)",
        call("write_file", path="a.py", content="    return 1\n\n"),
        [("write_file", {"path": "a.py", "content": "    return 1\n\n"})],
    ),
    Case(
        "prose that names <tool_call> keeps flowing (vllm 22975)",
        "A <tool_call> block holds calls. It ends with </tool_call>.\n\nThat is all there is to it.",
        content="A <tool_call> block holds calls. It ends with </tool_call>.\n\nThat is all there is to it.",
    ),
    Case(
        "the same without tools",
        "A <tool_call> block. Then <tool_call>\nmore.",
        content="A <tool_call> block. Then <tool_call>\nmore.",
        tools=[],
    ),
    Case(
        "the wrapper is forgotten after prose (ollama 16686)",
        "I'll look:\n<function=read_file>\n<parameter=path>\na\n</parameter>\n</function>\n</tool_call>\n"
        "<function=now>\n</function>\n</tool_call>",
        [("read_file", {"path": "a"}), ("now", {})],
        "I'll look:",
    ),
    Case(
        "a bare header of a tool that is not on offer is text",
        "<function=launch>\n<parameter=x>\n1\n</parameter>\n</function>",
        content="<function=launch>\n<parameter=x>\n1\n</parameter>\n</function>",
    ),
    Case(
        "a wrapped call of an unknown tool is reported",
        call("launch", at="noon"),
        [("launch", {"at": "noon"})],
    ),
    Case("an unknown parameter is a string", call("now", zone="5"), [("now", {"zone": "5"})]),
    Case(
        "a tool by the name of tool_call (Qwen Code)",
        call("tool_call", query="<tool_call>"),
        [("tool_call", {"query": "<tool_call>"})],
    ),
    Case(
        "two functions in one block do not merge (mlx-lm)",
        "<tool_call>\n<function=now>\n</function>\n<function=read_file>\n<parameter=path>\na\n</parameter>\n"
        "</function>\n</tool_call>",
        [("now", {}), ("read_file", {"path": "a"})],
    ),
    Case(
        "the first of two equal parameters counts",
        call("read_file", path="a")[: -len("</function>\n</tool_call>")]
        + "<parameter=path>\nb\n</parameter>\n</function>\n</tool_call>",
        [("read_file", {"path": "a"})],
    ),
    Case(
        "a call that is cut is no call (vllm 53269)",
        "So:\n<tool_call>\n<function=write_file>\n<parameter=path>\na\n</parameter>\n"
        "<parameter=content>\nhalf of",
        content="So:",
    ),
    Case(
        "values that are no numbers stay text (mlx-lm)",
        call("f", i="five", n="1e999", m="nan", o="{broken", l="[1, 2"),
        [("f", {"i": "five", "n": "1e999", "m": "nan", "o": "{broken", "l": "[1, 2"})],
        tools=[tool("f", i=INTEGER, n=NUMBER, m=NUMBER, o=OBJECT, l=ARRAY)],
    ),
    Case(
        "CRLF throughout",
        "Ok.\r\n" + call("write_file", path="a", content="1\n2").replace("\n", "\r\n"),
        [("write_file", {"path": "a", "content": "1\r\n2"})],
        "Ok.",
    ),
    Case(
        "a closing tag with a slash too many (sglang 27337)",
        call("read_file", path="a").replace("</parameter>", "</parameter/>"),
        [("read_file", {"path": "a"})],
    ),
    Case(
        "nothing between the words and the tag",
        "before<tool_call><function=now></function></tool_call>after",
        [("now", {})],
        "beforeafter",
    ),
    Case(
        "a closing tag at the end of the value's line",
        "<tool_call>\n<function=write_file>\n<parameter=path>\na</parameter>\n<parameter=content>\nb</parameter>\n"
        "</function>\n</tool_call>",
        [("write_file", {"path": "a", "content": "b"})],
    ),
    Case(
        "no </function>",
        "<tool_call>\n<function=read_file>\n<parameter=path>\na\n</parameter>\n</tool_call>",
        [("read_file", {"path": "a"})],
    ),
    Case(
        "only </tool_call> is left of the end",
        "<tool_call>\n<function=read_file>\n<parameter=path>\na\n</tool_call>",
        [("read_file", {"path": "a"})],
    ),
    Case(
        "a number beyond 64 bits (ollama 18421)",
        call("run", timeout_s="1e20"),
        [("run", {"timeout_s": 1e20})],
    ),
]

PATH = ("read_file", {"path": "a.py"})
PARAMETER = "<parameter=path>\na.py\n</parameter>\n"
EDIT = Tool(
    "edit",
    "",
    {"type": "object", "properties": {"path": STRING, "text": STRING}, "required": ["path", "text"]},
)


def leaked(
    name: str, text: str, calls: list[tuple[str, dict[str, Any]]] = (), content: str = "", **more
) -> Case:
    return Case(f"leaked: {name}", text, list(calls), content, **more)


def prose(name: str, text: str, **more) -> Case:
    return Case(f"prose: {name}", text, content=text, **more)


# What models forget of a call (ollama 17742, 18530, 17914; sglang 27337; vllm 39771), and prose that must not
# be taken for one.
LEAKED = [
    leaked(
        "a header behind prose in its line",
        f"I'll read it: <function=read_file>\n{PARAMETER}</function>",
        [PATH],
        "I'll read it:",
    ),
    leaked(
        "all in one line",
        "I'll read it: <function=read_file><parameter=path>a.py</parameter></function>",
        [PATH],
        "I'll read it:",
    ),
    leaked(
        "an orphan closer is swallowed",
        f"I'll read it:<function=read_file>\n{PARAMETER}</function>\n</tool_call>\nThere.",
        [PATH],
        "I'll read it:\nThere.",
    ),
    leaked(
        "closers without end are swallowed",
        f"<tool_call>\n<function=read_file>\n{PARAMETER}</function>\n</function>\n</tool_call>\n</tool_call>\nThere.",
        [PATH],
        "There.",
    ),
    leaked(
        "no parameters, behind prose", "Now: <function=now>\n</function>", [("now", {})], "Now:", ended=True
    ),
    leaked(
        "no parameters, and a closer", "Now: <function=now></function></tool_call>.", [("now", {})], "Now:."
    ),
    leaked(
        "in a list",
        f"- <function=read_file>\n{PARAMETER}</function>\n- <function=now>\n</function>\n",
        [PATH, ("now", {})],
        "-\n-",
    ),
    leaked(
        "two behind prose, one closer",
        f"Both: <function=read_file>\n{PARAMETER}</function>\n<function=now>\n</function>\n</tool_call>",
        [PATH, ("now", {})],
        "Both:",
    ),
    leaked(
        "several calls in one wrapper",
        f"<tool_call>\n<function=read_file>\n{PARAMETER}</function>\n<function=launch>\n</function>\n</tool_call>",
        [PATH, ("launch", {})],
    ),
    leaked(
        "a second wrapper, and the first is not closed",
        f"<tool_call><function=read_file>{PARAMETER}</function><tool_call><function=now></function></tool_call>",
        [PATH, ("now", {})],
    ),
    leaked(
        "</parameter> missing behind prose",
        "Go: <function=write_file>\n<parameter=path>\na\n<parameter=content>\nb\n</function>\n</tool_call>",
        [("write_file", {"path": "a", "content": "b"})],
        "Go:",
    ),
    leaked(
        "a parameter without > behind prose",
        "Go: <function=write_file>\n<parameter=path>\na\n</parameter>\n<parameter=content\nb\n</parameter>\n"
        "</function>",
        [("write_file", {"path": "a"})],
        "Go:",
    ),
    *(
        leaked(
            f"{closer} for </parameter>",
            f"<tool_call>\n<function=write_file>\n<parameter=path>\na\n{closer}\n<parameter=content>\nb\n{closer}\n"
            "</function>\n</tool_call>",
            [("write_file", {"path": "a", "content": "b"})],
        )
        for closer in ("</parameter/>", "</parameter1>", "</parameter")
    ),
    *(
        leaked(
            f"{closer} for two tags",
            f"Hm. <function=read_file>\n<parameter=path>\na.py\n{closer}\n</tool_call>",
            [PATH],
            "Hm.",
        )
        for closer in ("</parameter_function>", "</parameterfunction>")
    ),
    leaked(
        "the turn ends behind a value", f"Hm.\n<function=read_file>\n{PARAMETER}", [PATH], "Hm.", ended=True
    ),
    leaked("the reply is cut behind a value", f"Hm.\n<function=read_file>\n{PARAMETER}", content="Hm."),
    leaked(
        "the turn ends with </function> for </parameter>",
        "Hm. <function=read_file><parameter=path>a.py</function>",
        [PATH],
        "Hm.",
        ended=True,
    ),
    leaked(
        "the turn ends behind a header without parameters",
        "<tool_call>\n<function=now>",
        [("now", {})],
        ended=True,
    ),
    leaked(
        "the turn ends in a value",
        f"Hm.\n\n<tool_call>\n<function=read_file>\n{PARAMETER}<parameter=limit>\n5\n",
        content=f"Hm.\n\n<tool_call>\n<function=read_file>\n{PARAMETER}<parameter=limit>\n5\n",
        ended=True,
    ),
    leaked(
        "the turn ends in the second call's value",
        f"{call('now')}\n<tool_call>\n<function=read_file>\n<parameter=path>\na",
        [("now", {})],
        "<tool_call>\n<function=read_file>\n<parameter=path>\na",
        ended=True,
    ),
    leaked(
        "the turn ends before what the tool requires",
        "Hm. <function=edit>\n<parameter=path>\na\n</parameter>\n",
        content="Hm. <function=edit>\n<parameter=path>\na\n</parameter>\n",
        tools=[EDIT],
        ended=True,
    ),
    leaked(
        "the turn ends behind a header",
        "<tool_call>\n<function=read_file>",
        content="<tool_call>\n<function=read_file>",
        ended=True,
    ),
    prose("a tool that is not on offer", "Hm: <function=launch><parameter=x>1</parameter></function>"),
    prose(
        "a tool that is not on offer, in its own line",
        "Hm:\n<function=launch>\n<parameter=x>\n1\n</parameter>\n</function>",
    ),
    prose("no tools at all", f"Hm: <function=read_file>\n{PARAMETER}</function>", tools=[]),
    prose("words between the tags", "Write <function=read_file>, then <parameter=path>, then </function>."),
    prose("tags in a row", "The tags: <function=read_file> <parameter=path> </parameter> </function>"),
    prose("what is quoted", 'It said "<function=now></function>" and ‘<function=now>\n</function>’.'),
    prose("a placeholder", "Write <function=read_file><parameter=NAME>value</parameter></function> to read."),
    prose("an empty call in a sentence", "Call <function=now></function> to see the time."),
    prose("indented code", "So:\n\n    <function=now>\n    </function>\n\n\tx <function=now></function>\n"),
    prose("a fence", "So:\n```\nx: <function=now></function>\n```\n"),
    prose("inline code", f"So: `x <function=read_file>{PARAMETER}</function>`"),
    prose("a header in its own line, and the turn's end", "It begins with\n<function=now>", ended=True),
    prose(
        "a header and a parameter, and then words",
        "It begins with\n<function=read_file>\n<parameter=path>\nand so on. That is all there is to it.\n",
        ended=True,
    ),
]


def json_call(text: str, name: str = "read_file") -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {text}}}\n</tool_call>'


def json_case(
    name: str, text: str, calls: list[tuple[str, dict[str, Any]]] = (), content: str = "", **more
) -> Case:
    return Case(name, text, list(calls), content, dialect="qwen3", **more)


A = ("read_file", {"path": "a"})
JSON_CASES = [
    json_case("json: plain text", "Just\ntext {\n", content="Just\ntext {\n"),
    json_case(
        "json: one call", json_call('{"path": "a", "limit": 5}'), [("read_file", {"path": "a", "limit": 5})]
    ),
    json_case(
        "json: content and two calls", "Hm.\n" + "\n".join([json_call('{"path": "a"}')] * 2), [A, A], "Hm."
    ),
    json_case("json: no arguments", json_call("{}", "now"), [("now", {})]),
    json_case("json: arguments missing", '<tool_call>\n{"name": "now"}\n</tool_call>', [("now", {})]),
    json_case(
        "json: arguments as JSON text",
        json_call('"{\\"path\\": \\"a\\", \\"limit\\": 5}"'),
        [("read_file", {"path": "a", "limit": 5})],
    ),
    json_case(
        "json: arguments first",
        '<tool_call>{"arguments": {"path": "a"}, "name": "read_file"}</tool_call>',
        [A],
    ),
    json_case(
        "json: single quotes", "<tool_call>{'name': 'read_file', 'arguments': {'path': 'a'}}</tool_call>", [A]
    ),
    json_case("json: an id behind", json_call('{"path": "a"}, "id": {"x": "}"}'), [A]),
    json_case(
        "json: strings hold tags, braces, escapes",
        json_call('{"path": "}</tool_call>{\\"\\\\\\n\\u00e9\\ud83d\\ude00 \\ud83d", "x": "[{"}'),
        [("read_file", {"path": '}</tool_call>{"\\\né😀 \ud83d', "x": "[{"})],
    ),
    json_case(
        "json: newlines in strings", json_call('{"path": "a\nb\tc"}'), [("read_file", {"path": "a\nb\tc"})]
    ),
    json_case(
        "json: Python's words in arguments",
        json_call('{"command": "ls", "background": True, "env": None}', "run"),
        [("run", {"command": "ls", "background": True, "env": None})],
    ),
    json_case(
        "json: typed by the schema",
        json_call('{"timeout_s": "2.5", "background": "true", "env": "{\\"a\\": 1}"}', "run"),
        [("run", {"timeout_s": 2.5, "background": True, "env": {"a": 1}})],
    ),
    json_case(
        "json: a brace is missing",
        '<tool_call>\n{"name": "read_file", "arguments": {"path": "a"}\n</tool_call>',
        [A],
    ),
    json_case(
        "json: prose about the format",
        'Use <tool_call>\n{"name": <function-name>, "arguments": <args>}\n</tool_call> or <tool_call>{...}.\n'
        + json_call('{"path": "a"}'),
        [A],
        'Use <tool_call>\n{"name": <function-name>, "arguments": <args>}\n</tool_call> or <tool_call>{...}.',
    ),
    json_case(
        "json: a fenced example",
        f"```\n{json_call('{}')}\n```\n" + json_call('{"path": "a"}'),
        [A],
        f"```\n{json_call('{}')}\n```",
    ),
    json_case(
        "json: a leaked object is a call when it is the whole turn",
        '\n{"name": "read_file", "arguments": {"path": "a"}}\n',
        [A],
        ended=True,
    ),
    json_case(
        "json: leaked objects, one a line, and an orphan closer",
        '{"name": "now", "arguments": {}}\n{"arguments": {"path": "a"}, "name": "read_file"}\n</tool_call>',
        [("now", {}), A],
        ended=True,
    ),
    json_case(
        "json: a leaked object in a turn that was cut",
        '{"name": "now", "arguments": {}}',
        content='{"name": "now", "arguments": {}}',
    ),
    json_case(
        "json: a leaked object of an unknown tool",
        '{"name": "launch", "arguments": {"x": 1}}',
        content='{"name": "launch", "arguments": {"x": 1}}',
        ended=True,
    ),
    json_case(
        "json: a leaked object with words behind, then a call",
        '{"name": "now", "arguments": {}}\nis how it looks.\n' + json_call("{}", "now"),
        [("now", {})],
        '{"name": "now", "arguments": {}}\nis how it looks.',
        ended=True,
    ),
    json_case(
        "json: a leaked object behind words",
        'So: {"name": "now", "arguments": {}}',
        content='So: {"name": "now", "arguments": {}}',
        ended=True,
    ),
    json_case(
        "json: a leaked object in a fence",
        '```json\n{"name": "now", "arguments": {}}\n```',
        content='```json\n{"name": "now", "arguments": {}}\n```',
        ended=True,
    ),
    json_case(
        "json: an answer in JSON",
        '{"name": "now", "age": 5, "arguments": "none"}\n',
        content='{"name": "now", "age": 5, "arguments": "none"}\n',
        ended=True,
    ),
    json_case(
        "json: half a leaked object",
        '{"name": "read_file", "arguments": {"path": "a',
        content='{"name": "read_file", "arguments": {"path": "a',
        ended=True,
    ),
    json_case("json: the turn ends without </tool_call>", json_call('{"path": "a"}')[:-12], [A], ended=True),
    json_case(
        "json: the turn ends without the last brace",
        'Hm.\n<tool_call>\n{"name": "read_file", "arguments": {"path": "a"}\n',
        [A],
        "Hm.",
        ended=True,
    ),
    json_case(
        "json: the turn ends in the arguments",
        'Hm.\n\n<tool_call>\n{"name": "read_file", "arguments": {"path": "a", "limit": 5\n',
        content='Hm.\n\n<tool_call>\n{"name": "read_file", "arguments": {"path": "a", "limit": 5\n',
        ended=True,
    ),
    json_case(
        "json: the turn ends in the header",
        'Hm.\n<tool_call>\n{"name": "read_',
        content='Hm.\n<tool_call>\n{"name": "read_',
        ended=True,
    ),
    json_case("json: cut in the arguments", "Hm.\n" + json_call('{"path": "a b c"}')[:-30], content="Hm."),
    json_case("json: a key twice", json_call('{"path": "a", "path": "b"}'), [A]),
    json_case(
        "json: broken arguments",
        "Hm.\n" + json_call('{"path": "a", 5: ?}') + " Bye.",
        content="Hm. Bye.",
    ),
    json_case("json: unknown tool", json_call('{"x": [1, "2"]}', "launch"), [("launch", {"x": [1, "2"]})]),
    json_case(
        "json: two objects in one block",
        '<tool_call>\n{"name": "now", "arguments": {}}\n{"name": "now", "arguments": {}}\n</tool_call>\nBye',
        [("now", {}), ("now", {})],
        "Bye",
    ),
]

ALL = CASES + BUGS + LEAKED + JSON_CASES
