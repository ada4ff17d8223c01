"""What was encoded is not encoded again, and is the same."""

import threading

from lathe.testing import tiny_tokenizer
from lathe.text.known_texts import KnownTexts


def test_a_text_is_encoded_once(monkeypatch):
    tokenizer = tiny_tokenizer()
    encoded = []
    whole = tokenizer._encode_whole
    monkeypatch.setattr(tokenizer, "_encode_whole", lambda text: (encoded.append(text), whole(text))[1])
    first = tokenizer.encode("grün")
    first.append(0)  # what a caller does with its list is its own
    assert tokenizer.encode("grün") == list("grün".encode()) and encoded == ["grün"]
    assert tokenizer.encode("a\ud800") == tokenizer.encode("a\ud800") == list("a\ufffd".encode())
    assert tokenizer.encode("") == tokenizer.encode("") == []


def test_the_texts_of_long_ago_are_forgotten():
    known = KnownTexts(max_chars=100)
    for n in range(10):
        known.put(f"{n}" * 12, [n])
        assert known.get("0" * 12) == [0]  # asked for, so it stays
    assert known.num_chars <= 100
    kept = [n for n in range(10) if known.get(f"{n}" * 12)]
    assert kept == [0, 3, 4, 5, 6, 7, 8, 9]
    known.put("x" * 13, [1])  # more than an eighth
    assert known.get("x" * 13) is None
    known.put("9" * 12, [7, 8])
    assert known.get("9" * 12) == [7, 8] and known.num_chars <= 100


def test_many_threads_at_once():
    known, wrong = KnownTexts(max_chars=500), []

    def work(seed: int) -> None:
        for step in range(2000):
            text = str((seed * step) % 97)
            ids = known.get(text)
            if ids not in (None, [int(text)]):
                wrong.append((text, ids))
            known.put(text, [int(text)])

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and known.num_chars <= 500
