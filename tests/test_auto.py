"""The model card's classes on real weights, and the card's own snippet."""

import runpy
from pathlib import Path

import pytest
import torch

from lathe import AutoModelForCausalLM, AutoTokenizer
from lathe.errors import InvalidRequest

EXAMPLES = Path(__file__).parent.parent / "examples"
ASK = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained("smollm2")


@pytest.fixture(scope="module")
def model():
    made = AutoModelForCausalLM.from_pretrained("smollm2", torch_dtype="auto", device_map="auto")
    yield made
    made.close()


def test_the_model_cards_snippet_runs(tmp_path, capsys):
    """With nothing changed but the number of new tokens, so that the test is quick."""
    card = (EXAMPLES / "model_card.py").read_text()
    assert "from lathe import AutoModelForCausalLM, AutoTokenizer" in card
    script = tmp_path / "model_card.py"
    script.write_text(card.replace("max_new_tokens=512", "max_new_tokens=24"))
    model = runpy.run_path(str(script))["model"]
    model.close()
    said = capsys.readouterr().out
    assert said.startswith("content: ")
    assert len(said) > 40
    assert "<|im_" not in said


def test_a_batch_of_texts_is_padded_on_the_left(model, tokenizer):
    texts = ["The capital of France is", "1, 2, 3, 4,"]
    together = model.generate(**tokenizer(texts, return_tensors="pt"), max_new_tokens=6, do_sample=False)
    for row, text in zip(together, texts, strict=True):
        alone = model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=6, do_sample=False)
        assert tokenizer.decode(row, skip_special_tokens=True) == tokenizer.decode(
            alone[0], skip_special_tokens=True
        )


def test_logits_of_padded_rows_are_those_of_the_rows_alone(model, tokenizer):
    batch = tokenizer(["Hello there, general", "Hi"], return_tensors="pt")
    logits = model(**batch).logits
    for row, mask, row_logits in zip(batch.input_ids, batch.attention_mask.bool(), logits, strict=True):
        alone = model(row[mask][None]).logits[0]
        assert (row_logits[mask] - alone).abs().max() < 1e-4
        assert (row_logits[~mask] == 0).all()
    with torch.inference_mode():
        greedy = model.generate(batch.input_ids[:1], max_new_tokens=1, do_sample=False)[0, -1]
    assert int(greedy) == int(logits[0, -1].argmax())


def test_a_chat_as_text_as_ids_and_as_tensors(tokenizer):
    text = tokenizer.apply_chat_template(ASK, tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|im_start|>assistant\n")
    ids = tokenizer.apply_chat_template(ASK, add_generation_prompt=True).input_ids
    assert ids == tokenizer.encode(text) == tokenizer(text).input_ids
    tensors = tokenizer.apply_chat_template(ASK, add_generation_prompt=True, return_tensors="pt")
    assert tensors.input_ids.tolist() == [ids]
    assert tokenizer.batch_decode([ids]) == [text]


def test_unknown_options_are_named(model, tokenizer):
    with pytest.raises(InvalidRequest, match="num_beams"):
        model.generate(**tokenizer("a", return_tensors="pt"), num_beams=4)
