"""Texts that tokenizers get wrong: source in many languages, scripts, white space, and Python's own."""

import sysconfig
from pathlib import Path

SOURCE = [
    'def f(x: int = 0) -> "str":\n\t"""Doc."""\n    return f"{x!r:>10}" if x else None  # ok\n',
    "fn main() -> Result<(), Box<dyn Error>> {\n    let v: Vec<&'static str> = vec![];\n    Ok(())\n}\n",
    '#include <stdio.h>\r\nint main(void) {\r\n\tprintf("%d\\n", 1 << 31);\r\n\treturn 0;\r\n}\r\n',
    'package main\n\nimport (\n\t"fmt"\n)\n\nfunc (s *Server) Do(ctx context.Context) error { return nil }\n',
    "const f = async ({a, ...b}) => { await g?.(a ?? b?.[0]); return `${a}\\u{1F600}`; };\n",
    "public final class A<T extends Comparable<? super T>> { @Override int x() { return 0xFFL; } }\n",
    "SELECT a.id, COUNT(*) FROM t AS a LEFT JOIN b USING (id) WHERE x >= '2024-01-01' GROUP BY 1;\n",
    "<!DOCTYPE html><div class='a' onclick=\"f('x')\">&nbsp;&lt;</div><!-- it's -->\n",
    "main :: IO ()\nmain = mapM_ print $ takeWhile (< 100) [x ^ 2 | x <- [1 ..], odd x]\n",
    "(defn f [x & xs] (->> xs (map inc) (reduce + x)))\n",
    '#!/bin/bash\nset -euo pipefail\nfor i in {1..10}; do echo "$i ${A:-b}" >> /tmp/x 2>&1 || true; done\n',
    "all: $(OBJ)\n\t@$(CC) -o $@ $^\n\n.PHONY: all\n",
    "key: &anchor\n  - 'it''s'\n  - |\n    block\n\n  - 1e-10\n? complex\n: *anchor\n",
    '{"a": [1, 2.50, -3e+7, null, true], "\\u00e9": "\\\\\\"\\n"}\n',
    "diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1,3 +1,4 @@\n-old\n+new\n \\ No newline at end of file\n",
    "I'm we'll THEY'RE it'S 'tis o'clock 's 't'd I'VE I’m\n",
]

SCRIPTS = [
    "你好，世界！这是一个测试。「引用」《书名》——省略……",
    "今日はとても良い天気ですね。カタカナ、ひらがな、漢字。ﾊﾝｶｸ",
    "안녕하세요 세계 ㄱㄴㄷ \u1112\u1161\u11ab\u1100\u1173\u11af",
    "مرحبا بالعالم، كيف حالك؟ ١٢٣٤٥ \u200fنص\u200e",
    "नमस्ते दुनिया क्षत्रिय १२३",
    "สวัสดีชาวโลก ภาษาไทยไม่มีวรรค ๑๒๓",
    "Привет, мир! Ёлка. Ѝ",
    "Γειά σου Κόσμε ΐ ώ",
    "שלום עולם נִקּוּד",
    "Ünïcödé naïve façade Ångström İstanbul ı ß ẞ ﬁ ǅ",
    "e\u0301 a\u030a o\u0308\u0304 \u1e69 s\u0323\u0307 s\u0307\u0323 \u212b \u2126 \ufb2f \u0344",
    "\u0301 lone combining \u20dd\u0338 and q\u0307\u0323",
    "👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 🇩🇪🇯🇵 #️⃣ ☺️ 🫠🥷🏿",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𠀀𠮷𪚥 \U000e0001\U000f0000",
    "∀x∈ℝ: ⌈x⌉ ≤ ½ ² ⅷ ① ٣ 〇 Ⅻ ๙",
    "\ufeffBOM \u200bzero\u200dwidth\u2060 \xadsoft",
]

SPACES = [
    "",
    " ",
    "  ",
    "\n",
    "\r\n\r\n",
    "\r",
    "\t\t x",
    "a" + " " * 300 + "b",
    "\n" * 50 + " " * 7 + "\n\n",
    "a  \n  b \t\n\n   c   ",
    "x\u00a0y\u2003z\u3000w\u2028v\u2029u\x85t",
    "tabs\tand\tmore\t\t\n\t\tdeep",
    " trailing ",
    "a \n",
    " \n a",
    "\x0b\x0c\x1c\x1d\x1e\x1f",
]

NUMBERS = [
    "0 1 12 123 1234 12345 1234567890 3.14159 1,000,000 0x1F 1e10 ٣٤٥ ½",
    "v1.2.3-rc.4+build.567 2024-02-30T12:34:56.789Z 192.168.0.1:8080",
    "a1b22c333 1 2  3   4",
]

CONTROL = [
    "\x00\x01\x02\x7f\x80\x9f",
    "nul\x00inside",
    "\ufffd\ufffe\uffff",
    "".join(map(chr, range(1, 256))),
    "-" * 200 + "=" * 200 + "_" * 100 + "*" * 77 + "#" * 65,
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "https://example.org/a/b?c=d&e=%20f#g user@example.org C:\\Users\\x\\n",
]


def python_files(count: int = 25, size: int = 12_000) -> list[str]:
    """The beginnings of files of the standard library, the same wherever the Python is."""
    library = Path(sysconfig.get_path("stdlib"))
    files = sorted(library.glob("*.py")) + sorted((library / "encodings").glob("*.py"))
    step = max(1, len(files) // count)
    return [file.read_text(encoding="utf-8", errors="replace")[:size] for file in files[::step]][:count]


TEXTS = [*SOURCE, *SCRIPTS, *SPACES, *NUMBERS, *CONTROL]
