"""Token shards: what was written is what is read, and damage is noticed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lathe.errors import UserError
from lathe.train.token_shards import TokenShards, write_token_shards

DOCUMENTS = st.lists(st.lists(st.integers(0, 99_999), max_size=9), max_size=12)


@given(DOCUMENTS, st.integers(1, 20), st.booleans())
def test_round_trip(tmp_path_factory, documents, shard_tokens, wide):
    if not wide:
        documents = [[token_id % 65_536 for token_id in document] for document in documents]
    folder = tmp_path_factory.mktemp("shards")
    vocab_size = 100_000 if wide else 65_536
    write_token_shards(folder, documents, vocab_size=vocab_size, shard_tokens=shard_tokens)
    shards, kept = TokenShards(folder), [document for document in documents if document]
    assert [shards.read(number) for number in range(len(shards))] == kept
    assert shards.lengths().tolist() == list(map(len, kept))
    assert (shards.vocab_size, shards.num_tokens) == (vocab_size, sum(map(len, kept)))
    for number, document in enumerate(kept):
        assert shards.read(number, 1, 4) == document[1:4]


def test_what_is_refused(tmp_path):
    with pytest.raises(ValueError, match="outside of the 10"):
        write_token_shards(tmp_path / "a", [[1], [10]], vocab_size=10)
    with pytest.raises(UserError, match="no whole shards"):  # its index was never written
        TokenShards(tmp_path / "a")
    write_token_shards(tmp_path / "b", [[1, 2], [3]], vocab_size=10)
    with pytest.raises(UserError, match="holds tokens already"):
        write_token_shards(tmp_path / "b", [[1]], vocab_size=10)
    index = json.loads((tmp_path / "b" / "index.json").read_text())
    (tmp_path / "b" / "index.json").write_text(json.dumps({**index, "num_tokens": 4}))
    with pytest.raises(UserError, match="is damaged"):
        TokenShards(tmp_path / "b")
