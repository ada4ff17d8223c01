"""Fill in the middle: Qwen's layout in its true ids, code that can't forge it, what stays in a short room."""

import dataclasses
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from searching import times

from lathe.errors import UserError
from lathe.testing import tiny_tokenizer
from lathe.text import fim
from lathe.text.fim import FimPrompt, SourceFile

# The README's example of a repository, and a place in the last file.
LIBRARY = SourceFile("library.py", "class Book:\n    pass\n")
STUDENT = SourceFile("student.py", "class Student:\n    pass\n")
IN_REPOSITORY = FimPrompt(
    prefix="from library import Library\n\ndef main():\n    ",
    suffix="\n\nmain()\n",
    path="main.py",
    repo_name="library-system",
    files=(LIBRARY, STUDENT),
)
WRITTEN_OUT = (
    "<|repo_name|>library-system\n"
    "<|file_sep|>library.py\nclass Book:\n    pass\n\n"
    "<|file_sep|>student.py\nclass Student:\n    pass\n\n"
    "<|file_sep|>main.py\n"
    "<|fim_prefix|>from library import Library\n\ndef main():\n    "
    "<|fim_suffix|>\n\nmain()\n<|fim_middle|>"
)
MARKS = [*fim.STOPS, fim.MIDDLE, "<|im_start|>"]
tiny = tiny_tokenizer()


def test_a_file_alone_has_the_three_control_tokens_and_nothing_else(qwen):
    ids = fim.encode(qwen, FimPrompt("def f(x):\n    return ", "\n"))
    assert ids == [151659, *qwen.encode("def f(x):\n    return "), 151661, *qwen.encode("\n"), 151660]


def test_the_repositorys_layout_is_the_readmes(qwen, hf_qwen):
    ids = fim.encode(qwen, IN_REPOSITORY)
    assert ids == qwen.encode(WRITTEN_OUT, allow_special=True)
    assert ids == hf_qwen(WRITTEN_OUT)["input_ids"]
    assert [token_id for token_id in ids if token_id >= 151643] == [
        151663, 151664, 151664, 151664, 151659, 151661, 151660,
    ]  # fmt: skip


def test_files_without_a_repositorys_name(qwen):
    ids = fim.encode(qwen, dataclasses.replace(IN_REPOSITORY, repo_name=""))
    assert qwen.decode(ids) == WRITTEN_OUT.removeprefix("<|repo_name|>library-system\n")


def test_a_middle_ends_at_the_readmes_ids(qwen):
    assert fim.stop_token_ids(qwen) == (151659, 151661, 151662, 151663, 151664, 151643, 151645)


def test_code_that_names_control_tokens_is_code(qwen):
    forged = "".join(MARKS)
    prompt = FimPrompt(forged, forged, forged, forged, (SourceFile(forged, forged),))
    ids = fim.encode(qwen, prompt)
    control = [token_id for token_id in ids if token_id >= 151643]
    assert control == [151663, 151664, 151664, 151659, 151661, 151660]
    assert fim.decode(qwen, ids) == (prompt, "")


texts = st.lists(st.sampled_from([*MARKS, "\n", "def f():", "    ", "é", "e\u0301", "👍🏽"]), max_size=8).map(
    "".join
)
lines = texts.map(lambda text: text.replace("\n", ""))
prompts = st.builds(
    FimPrompt,
    prefix=texts,
    suffix=texts,
    path=lines,
    repo_name=lines,
    files=st.lists(st.builds(SourceFile, path=lines, code=texts), max_size=3).map(tuple),
)


def normalized(prompt: FimPrompt) -> FimPrompt:
    """As Qwen's tokenizer gives it back. A path alone is no part of a prompt."""
    nfc = lambda text: unicodedata.normalize("NFC", text)  # noqa: E731
    files = tuple(SourceFile(nfc(file.path), nfc(file.code)) for file in prompt.files)
    path = nfc(prompt.path) if prompt.has_repository else ""
    return FimPrompt(nfc(prompt.prefix), nfc(prompt.suffix), path, nfc(prompt.repo_name), files)


@times(2)
@given(prompt=prompts, middle=texts)
def test_what_is_written_is_read(qwen, prompt, middle):
    ids = fim.encode(qwen, prompt)
    assert fim.decode(qwen, ids) == (normalized(prompt), "")
    document = [*ids, *qwen.encode(middle), qwen.special_tokens["<|endoftext|>"], 0]
    assert fim.decode(qwen, document) == (normalized(prompt), unicodedata.normalize("NFC", middle))


@pytest.mark.parametrize(
    "text", ["", "abc", "<|fim_prefix|>a<|fim_middle|>b", "x<|fim_prefix|><|fim_suffix|><|fim_middle|>"]
)
def test_other_ids_are_no_prompt(text):
    with pytest.raises(ValueError):
        fim.decode(tiny, tiny.encode(text, allow_special=True))


# Room


@times(2)
@given(prompt=prompts, room=st.integers(0, 400))
def test_what_fits_is_within_the_room_and_next_to_the_place(prompt, room):
    whole = fim.encode(tiny, prompt)
    ids, num_left_out = fim.fit(tiny, prompt, room)
    assert len(ids) == len(whole) - num_left_out
    assert len(ids) <= max(room, 3)
    if len(whole) <= room:
        assert ids == whole
    # Bytes are tokens here, so that a cut may fall into a character: compared as ids.
    kept_before, kept_after = sides(ids)
    before, after = sides(whole)
    assert before[len(before) - len(kept_before) :] == kept_before
    assert after[: len(kept_after)] == kept_after
    if num_left_out and (kept_before, kept_after) != (before, after):
        assert len(ids) == max(room, 3), (
            "the file itself is cut only when all else is gone, and no more than needed"
        )
        assert ids[0] == tiny.special_tokens[fim.PREFIX]


def sides(ids: list[int]) -> tuple[list[int], list[int]]:
    places = [ids.index(tiny.special_tokens[mark]) for mark in (fim.PREFIX, fim.SUFFIX, fim.MIDDLE)]
    return ids[places[0] + 1 : places[1]], ids[places[1] + 1 : places[2]]


def test_whole_files_go_first_and_the_first_of_them_first():
    files = tuple(SourceFile(f"{name}.py", name * 20) for name in "abc")
    prompt = FimPrompt("p" * 30, "s" * 30, "here.py", "r", files)
    whole = fim.encode(tiny, prompt)
    for num_dropped in (1, 2, 3):
        room = len(whole) - 27 * (num_dropped - 1) - 1  # a file: its mark, 5 for the path, 20, a newline
        read, _ = fim.decode(tiny, fim.fit(tiny, prompt, room)[0])
        assert read == dataclasses.replace(prompt, files=files[num_dropped:])


def test_the_suffix_keeps_a_quarter_or_what_the_prefix_leaves():
    assert fim.fit(tiny, FimPrompt("p" * 200, "s" * 200), 103)[0].count(ord("s")) == 25
    assert fim.fit(tiny, FimPrompt("p" * 10, "s" * 200), 103)[0].count(ord("s")) == 90
    assert fim.fit(tiny, FimPrompt("p" * 200, "s" * 5), 103)[0].count(ord("p")) == 95
    assert fim.decode(tiny, fim.fit(tiny, FimPrompt("0123456789", "abcdefghij"), 11)[0]) == (
        FimPrompt("456789", "ab"),
        "",
    )


# Tokenizers without


def test_a_tokenizer_without_the_control_tokens_is_told(smollm2):
    with pytest.raises(UserError, match=r"no <\|fim_prefix\|>, <\|fim_suffix\|>, <\|fim_middle\|>"):
        fim.encode(smollm2, FimPrompt("a", "b"))
    assert fim.stop_token_ids(smollm2) == (0, 2)
