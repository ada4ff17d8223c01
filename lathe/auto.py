"""The two classes that model cards begin with, under the names that scripts already use.

`from lathe import AutoModelForCausalLM, AutoTokenizer` instead of `from transformers import …`: loading,
`apply_chat_template`, `generate` and `decode` read as on the card, and the engine does the work.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from lathe.engine.engine import Engine
from lathe.engine.llm import LLM
from lathe.engine.loading import load_template, load_tokenizer
from lathe.errors import InvalidRequest
from lathe.kernels.attention import causal_attention
from lathe.kernels.experts import grouped_experts
from lathe.model import hub
from lathe.model.checkpoint import open_checkpoint
from lathe.text.chat_template import ChatTemplate
from lathe.text.messages import to_messages, to_tools
from lathe.text.tokenizer import Tokenizer
from lathe.types import SamplingParams

Ids = Sequence[int] | Tensor


class Encoding(dict[str, Any]):
    """Token ids by name, also as attributes: `model.generate(**encoding)`, `encoding.input_ids`."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def to(self, device: torch.device | str) -> Encoding:
        return Encoding({name: ids.to(device) for name, ids in self.items()})


@dataclass(frozen=True)
class AutoTokenizer:
    """A checkpoint's tokenizer and chat template."""

    tokenizer: Tokenizer
    template: ChatTemplate

    @classmethod
    def from_pretrained(cls, name: str | Path, **_: Any) -> AutoTokenizer:
        """`name` as in `LLM`. transformers' other options have no meaning here and are ignored."""
        checkpoint = open_checkpoint(hub.resolve(str(name)))
        tokenizer = load_tokenizer(checkpoint)
        return cls(tokenizer, load_template(checkpoint, tokenizer))

    @property
    def eos_token_id(self) -> int | None:
        return self.tokenizer.eos_token_id

    @property
    def pad_token_id(self) -> int:
        return pad_id(self.tokenizer)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        return_dict: bool = True,
        return_tensors: str | None = None,
        **template_kwargs: Any,
    ) -> Any:
        """The prompt as text (`tokenize=False`), as ids, or as an Encoding.

        Ids made here are safe against control tokens in the messages; text that is tokenized later is not.
        """
        nouns = (to_messages(messages), to_tools(tools))
        options = {"add_generation_prompt": add_generation_prompt, **template_kwargs}
        if not tokenize:
            return self.template.render(*nouns, **options)
        ids = self.template.encode(self.tokenizer, *nouns, **options)
        if not return_dict:
            return _tensors([ids], self.pad_token_id)["input_ids"] if return_tensors else ids
        return _tensors([ids], self.pad_token_id) if return_tensors else Encoding(input_ids=ids)

    def __call__(self, text: str | Sequence[str], *, return_tensors: str | None = None, **_: Any) -> Encoding:
        """Ids of one text or several, control tokens read as such. Tensors are padded on the left."""
        texts = [text] if isinstance(text, str) else list(text)
        rows = [self.encode(one) for one in texts]
        if return_tensors is not None:
            return _tensors(rows, self.pad_token_id)
        return Encoding(input_ids=rows[0] if isinstance(text, str) else rows)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, allow_special=True)

    def decode(self, ids: Ids, *, skip_special_tokens: bool = False, **_: Any) -> str:
        return self.tokenizer.decode(_row(ids), skip_special=skip_special_tokens)

    def batch_decode(self, rows: Sequence[Ids] | Tensor, **options: Any) -> list[str]:
        return [self.decode(row, **options) for row in rows]


class AutoModelForCausalLM:
    """A checkpoint's model behind the engine."""

    def __init__(self, llm: LLM):
        self.llm = llm

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device_map: str | None = None,
        **_: Any,
    ) -> AutoModelForCausalLM:
        """`name` as in `LLM`; "auto" stands for Lathe's own choice of dtype and device."""
        wanted = dtype or torch_dtype
        if isinstance(wanted, str):
            wanted = None if wanted == "auto" else getattr(torch, wanted)
        return cls(LLM(name, dtype=wanted, device=device_map or "auto"))

    @property
    def device(self) -> torch.device:
        return self._engine.runner.cache.keys.device

    @property
    def _engine(self) -> Engine:
        assert isinstance(self.llm.engine, Engine)
        return self.llm.engine

    def close(self) -> None:
        self.llm.close()

    @torch.inference_mode()
    def __call__(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> SimpleNamespace:
        """`logits` [batch, tokens, vocabulary] of whole texts, [batch, tokens] ids. Padding gets zeros."""
        rows = list(_unpadded(input_ids, attention_mask))
        lengths = [len(row) for row in rows]
        model = self._engine.runner.model
        hidden_TD = model(
            torch.tensor([token_id for row in rows for token_id in row], device=self.device),
            torch.cat([torch.arange(length, device=self.device) for length in lengths]),
            lambda _, q, k, v: causal_attention(q, k, v, lengths),
            grouped_experts,
        )
        logits_TV = model.logits(hidden_TD)
        logits = logits_TV.new_zeros((*input_ids.shape, logits_TV.shape[-1]))
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        logits[mask.bool()] = logits_TV
        return SimpleNamespace(logits=logits)

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        max_new_tokens: int | None = None,
        do_sample: bool | None = None,
        stop_strings: str | Sequence[str] = (),
        **options: Any,
    ) -> Tensor:
        """The prompts with their continuations, [batch, tokens], padded on the right.

        `options` are fields of SamplingParams (temperature, top_p, …); the checkpoint's defaults otherwise.
        """
        sampling = replace(self.llm.default_sampling, max_tokens=max_new_tokens, **_known(options))
        if do_sample is False:
            sampling = replace(sampling, temperature=0.0)
        if stop_strings:
            stops = (stop_strings,) if isinstance(stop_strings, str) else tuple(stop_strings)
            sampling = replace(sampling, stop=stops)
        completions = self.llm.generate_many(list(_unpadded(input_ids, attention_mask)), sampling)
        width = max(len(completion.token_ids) for completion in completions)
        filler = pad_id(self.llm.tokenizer)
        new = [[*c.token_ids, *[filler] * (width - len(c.token_ids))] for c in completions]
        return torch.cat([input_ids, torch.tensor(new, device=input_ids.device)], dim=1)


def pad_id(tokenizer: Tokenizer) -> int:
    """Qwen pads with <|endoftext|>; where there is none, any id will do: the mask says what is padding."""
    return tokenizer.special_tokens.get("<|endoftext|>", tokenizer.eos_token_id or 0)


def _known(options: Mapping[str, Any]) -> dict[str, Any]:
    names = SamplingParams.__dataclass_fields__.keys() - {"n", "max_tokens"}
    unknown = [name for name in options if name not in names]
    if unknown:
        known = ", ".join(sorted(names))
        raise InvalidRequest(f"generate() has no option {unknown[0]!r}; known are {known}.")
    return dict(options)


def _tensors(rows: Sequence[Sequence[int]], pad: int) -> Encoding:
    width = max(len(row) for row in rows)
    return Encoding(
        input_ids=torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows]),
        attention_mask=torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
    )


def _unpadded(input_ids: Tensor, attention_mask: Tensor | None) -> Iterator[list[int]]:
    for index, row in enumerate(input_ids):
        yield _row(row if attention_mask is None else row[attention_mask[index].bool()])


def _row(ids: Ids) -> list[int]:
    return ids.tolist() if isinstance(ids, Tensor) else list(ids)
