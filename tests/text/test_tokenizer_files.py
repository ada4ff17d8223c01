"""Where vocabularies come from and go to, and what is refused."""

import base64
import json

import pytest
import tokenizers
from text_corpus import TEXTS

from lathe.errors import CheckpointError
from lathe.text.tokenizer import Tokenizer


@pytest.fixture(params=["qwen", "smollm2"])
def tokenizer(request) -> Tokenizer:
    return request.getfixturevalue(request.param)


def same(ours: Tokenizer, other: Tokenizer, texts: list[str]) -> bool:
    return (
        all(ours.encode(text) == other.encode(text) for text in texts)
        and ours.special_tokens == other.special_tokens
        and (ours.eos_token_id, ours.bos_token_id) == (other.eos_token_id, other.bos_token_id)
        and ours.vocab_size == other.vocab_size
    )


def test_saved_and_read_again(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    again = Tokenizer.from_folder(tmp_path)
    assert same(tokenizer, again, TEXTS)
    ids = list(tokenizer.special_tokens.values())
    assert again.decode(ids, skip_special=True) == tokenizer.decode(ids, skip_special=True)


def test_transformers_reads_what_smollm2_saves(smollm2, tmp_path, corpus):
    from transformers import AutoTokenizer

    smollm2.save(tmp_path)
    reference = AutoTokenizer.from_pretrained(tmp_path)
    assert (reference.bos_token, reference.eos_token) == ("<|im_start|>", "<|im_end|>")
    for text in [*corpus, "".join(smollm2.special_tokens), "a<|im_end|>\n<file_sep>b"]:
        ids = reference.encode(text, add_special_tokens=False)
        assert smollm2.encode(text, allow_special=True) == ids
        assert smollm2.decode(ids) == reference.decode(ids)


def test_through_gguf_and_back(tokenizer):
    metadata = json.loads(json.dumps(tokenizer.gguf_metadata()))  # plain values
    assert same(tokenizer, Tokenizer.from_gguf(metadata), TEXTS)


def test_rows_without_a_token_are_filled_and_left_out_again(qwen):
    metadata = qwen.gguf_metadata(num_rows=151936)
    assert len(metadata["tokenizer.ggml.tokens"]) == len(metadata["tokenizer.ggml.token_type"]) == 151936
    assert Tokenizer.from_gguf(metadata).vocab_size == 151669
    with pytest.raises(CheckpointError, match="151000 rows"):
        qwen.gguf_metadata(num_rows=151000)


def test_gguf_metadata_equals_the_files_own(smollm2, smollm2_metadata):
    written = smollm2.gguf_metadata()
    assert {key: smollm2_metadata[key] for key in written} == written


def rank_file(path, tokens: list[bytes]):
    lines = [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens)]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def small_folder(tmp_path):
    """A tokenizer.json with all bytes, four words and three special tokens."""
    words = [b"He", b"ll", b"llo", b"Hello"]
    ranks = rank_file(tmp_path / "small.tiktoken", [bytes([byte]) for byte in range(256)] + words)
    special = {"<|im_start|>": 260, "<think>": 261, "</think>": 262}
    Tokenizer.from_tiktoken(ranks, special).save(tmp_path)
    return tmp_path


def edit(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    return path


def test_merges_as_pairs_and_as_text_are_the_same(small_folder):
    def join(data):
        data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]

    before = Tokenizer.from_folder(small_folder)
    after = Tokenizer.from_file(edit(small_folder / "tokenizer.json", join))
    assert before.vocabulary == after.vocabulary
    assert after.encode("Hello") == [259]


def test_encode_adds_nothing_and_cuts_nothing(small_folder):
    def burden(data):
        start = {"id": "<|im_start|>", "ids": [260], "tokens": ["<|im_start|>"]}
        data["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|im_start|>": start},
        }
        data["truncation"] = {"max_length": 2, "direction": "Right", "strategy": "LongestFirst", "stride": 0}
        data["model"]["dropout"] = 0.5  # for training

    path = edit(small_folder / "tokenizer.json", burden)
    assert tokenizers.Tokenizer.from_file(str(path)).encode("Hello").ids[0] == 260
    tokenizer = Tokenizer.from_file(path)
    assert all(tokenizer.encode("Hello" * 3) == [259] * 3 for _ in range(20))
    assert tokenizer.encode("Hello", allow_special=True) == [259]


def test_tokens_of_the_config_count_too(small_folder):
    def drop(data):
        data["added_tokens"] = data["added_tokens"][:1]

    def add(data):
        data["added_tokens_decoder"] = {"262": {"content": "</think>", "special": False}}
        data["eos_token"] = {"content": "<|im_start|>"}

    edit(small_folder / "tokenizer_config.json", add)
    tokenizer = Tokenizer.from_file(edit(small_folder / "tokenizer.json", drop))
    assert tokenizer.special_tokens == {"<|im_start|>": 260, "</think>": 262}
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id) == (260, None)


# What is refused


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data["model"].update(type="Unigram"), "Unigram"),
        (lambda data: data.update(decoder={"type": "Metaspace"}), "SentencePiece"),
        (lambda data: data.update(pre_tokenizer=None), "SentencePiece"),
        (lambda data: data["model"].update(byte_fallback=True), "byte_fallback"),
        (lambda data: data["model"].update(end_of_word_suffix="</w>"), "end_of_word_suffix"),
    ],
)
def test_other_kinds_of_tokenizer_json_are_refused(small_folder, change, reason):
    with pytest.raises(CheckpointError, match=reason):
        Tokenizer.from_file(edit(small_folder / "tokenizer.json", change))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data["model"]["merges"].append(["He", "zz"]), "`zz` out of vocabulary"),
        (lambda data: data["model"]["merges"].append("He"), "make no tokenizer"),
        (lambda data: data["added_tokens"].append({}), r"tokenizer\.json is damaged.*content"),
        (lambda data: data.update(model="x"), r"tokenizer\.json is damaged"),
        (lambda data: data["pre_tokenizer"]["pretokenizers"].append({"type": "Odd"}), "make no tokenizer"),
    ],
)
def test_a_damaged_tokenizer_json_is_refused(small_folder, change, reason):
    with pytest.raises(CheckpointError, match=reason):
        Tokenizer.from_file(edit(small_folder / "tokenizer.json", change))


def test_a_pre_tokenizer_without_a_name_has_no_place_in_a_gguf(small_folder):
    def change(data):
        data["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": r"\w+"}

    tokenizer = Tokenizer.from_file(edit(small_folder / "tokenizer.json", change))
    with pytest.raises(CheckpointError, match="qwen2, llama-bpe, smollm"):
        tokenizer.gguf_metadata()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tokenizer.ggml.pre": "poro-chat"}, "'poro-chat'.*known are qwen2, llama-bpe"),
        ({"tokenizer.ggml.model": "llama"}, "'llama'.*byte-level"),
        ({"tokenizer.ggml.merges": None}, "tokenizer.ggml.merges"),
        ({"tokenizer.ggml.merges": ["ab"]}, "no pair: 'ab'"),
        ({"tokenizer.ggml.token_type": [1]}, "but 1 token types"),
        ({"tokenizer.ggml.token_type": [6] * 49152}, r"types \[6\]"),
    ],
)
def test_other_kinds_of_gguf_are_refused(smollm2_metadata, change, reason):
    metadata = {key: value for key, value in {**smollm2_metadata, **change}.items() if value is not None}
    with pytest.raises(CheckpointError, match=reason):
        Tokenizer.from_gguf(metadata)


def test_a_folder_without_a_tokenizer(tmp_path, qwen_ranks):
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)
    for text, reason in (("{", "can't be read"), ("[1]", "JSON object")):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(CheckpointError, match=reason):
            Tokenizer.from_folder(tmp_path)


def test_merges_follow_from_ranks(tmp_path):
    # "abcd" was made of "ab" and "cd", although "abc" exists: it came later.
    path = rank_file(tmp_path / "small.tiktoken", [b"a", b"b", b"c", b"d", b"ab", b"cd", b"abcd", b"abc"])
    tokenizer = Tokenizer.from_folder(path.parent)
    assert tokenizer.vocabulary.merges == [("a", "b"), ("c", "d"), ("ab", "cd"), ("ab", "c")]
    assert tokenizer.encode("abcdabc") == [6, 7]


@pytest.mark.parametrize(
    ("text", "reason"),
    [("YQ== 0\n!!! 1", "line 2"), ("YQ== x", "line 1"), ("", "no tokens"), ("YQ== 0\nYmNk 1", "b'bcd'")],
)
def test_damaged_rank_files_are_refused(tmp_path, text, reason):
    (tmp_path / "x.tiktoken").write_text(text)
    with pytest.raises(CheckpointError, match=reason):
        Tokenizer.from_tiktoken(tmp_path / "x.tiktoken")


def test_control_tokens_must_not_take_the_ids_of_others(tmp_path):
    path = rank_file(tmp_path / "small.tiktoken", [b"a", b"b"])
    with pytest.raises(CheckpointError, match="Pass special_tokens"):
        Tokenizer.from_tiktoken(path, {"<end>": 1})
    assert Tokenizer.from_tiktoken(path, {"<end>": 2}).encode("a<end>", allow_special=True) == [0, 2]
