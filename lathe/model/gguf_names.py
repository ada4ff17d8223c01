"""What GGUF calls things: a model's tensors, its config, its sampling defaults. Both directions.

Names are llama.cpp's (gguf-py/gguf/constants.py). What llama.cpp has no name for is kept under "lathe.": it
ignores keys that it doesn't know, and a checkpoint that went to GGUF and back is the same again.
"""

# V vocabulary, D hidden size, I intermediate size of a layer or of one expert, E experts, H heads, d head
# dimension

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lathe.errors import CheckpointError
from lathe.model.config import ModelConfig, YarnConfig

# ours -> general.architecture
ARCHITECTURES = {"qwen3": "qwen3", "qwen3_moe": "qwen3moe", "qwen2": "qwen2", "llama": "llama"}

# Rotary frequencies that llama.cpp computes by itself, in files of its first years.
DERIVED_TENSORS = ("attn_rot_embd.weight", "rope_freqs.weight")

# Settings that would change the maths, and that no model here has: anything but these values is refused.
NEUTRAL = (0, 1, False, None)
NOT_COMPUTED = (
    "attention.scale",
    "attention.clamp_kqv",
    "attention.max_alibi_bias",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "logit_scale",
    "embedding_scale",
    "residual_scale",
    "expert_shared_count",
    "expert_weights_scale",
    "use_parallel_residual",
)

# generation_config.json -> general.sampling.*
SAMPLING_KEYS = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}
TOKEN_ID_KEYS = {
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}
END_KEYS = [f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom")]
GENERATION_KEY = "lathe.generation_config"  # the rest of generation_config.json, as JSON text
DTYPE_KEY = "lathe.dtype"


@dataclass(frozen=True)
class Slot:
    """One tensor of a GGUF file, and where its numbers belong in our state dict.

    `half` is 0 or 1 where two tensors share one of ours: the gate and up of all experts lie in gate_up_proj.
    `rotary_heads` is the number of heads whose rows are interleaved in the file (llama only), 0 for none.
    """

    gguf: str
    ours: str
    shape: tuple[int, ...]
    half: int | None = None
    rotary_heads: int = 0

    def of(self, weight: Tensor) -> Tensor:
        """The view of our tensor that this one of the file fills."""
        return weight if self.half is None else weight.chunk(2, dim=-2)[self.half]


def slots(config: ModelConfig) -> list[Slot]:
    """Every tensor that a GGUF file of this model holds, in the order in which llama.cpp lists them."""
    D, V = config.hidden_size, config.vocab_size
    listed = [Slot("token_embd.weight", "embed_tokens.weight", (V, D))]
    for layer in range(config.num_layers):
        listed += _attention_slots(config, layer) + _mlp_slots(config, layer)
    listed.append(Slot("output_norm.weight", "norm.weight", (D,)))
    if not config.tie_word_embeddings:
        listed.append(Slot("output.weight", "lm_head.weight", (V, D)))
    return listed


def _attention_slots(config: ModelConfig, layer: int) -> list[Slot]:
    D, d = config.hidden_size, config.head_dim
    theirs, ours = f"blk.{layer}.", f"layers.{layer}."
    listed = [
        Slot(theirs + "attn_norm.weight", ours + "input_layernorm.weight", (D,)),
        Slot(theirs + "ffn_norm.weight", ours + "post_attention_layernorm.weight", (D,)),
        Slot(theirs + "attn_output.weight", ours + "self_attn.o_proj.weight", (D, config.num_heads * d)),
    ]
    for letter, heads in (("q", config.num_heads), ("k", config.num_kv_heads), ("v", config.num_kv_heads)):
        # The trap: Meta's llama rotates neighbours (0, 1), (2, 3) ...; Hugging Face rotates (0, d/2), (1, d/2
        # + 1) ... llama.cpp keeps Meta's order of rows for this architecture, and Hugging Face's for all of
        # Qwen's.
        interleaved = heads if config.architecture == "llama" and letter != "v" else 0
        projection = ours + f"self_attn.{letter}_proj."
        listed.append(
            Slot(theirs + f"attn_{letter}.weight", projection + "weight", (heads * d, D), None, interleaved)
        )
        if config.attention_bias:
            listed.append(
                Slot(theirs + f"attn_{letter}.bias", projection + "bias", (heads * d,), None, interleaved)
            )
        if config.qk_norm and letter != "v":
            listed.append(
                Slot(theirs + f"attn_{letter}_norm.weight", ours + f"self_attn.{letter}_norm.weight", (d,))
            )
    return listed


def _mlp_slots(config: ModelConfig, layer: int) -> list[Slot]:
    D = config.hidden_size
    theirs, ours = f"blk.{layer}.ffn_", f"layers.{layer}.mlp."
    if not config.is_sparse(layer):
        I = config.intermediate_size
        return [
            Slot(theirs + "gate.weight", ours + "gate_proj.weight", (I, D)),
            Slot(theirs + "up.weight", ours + "up_proj.weight", (I, D)),
            Slot(theirs + "down.weight", ours + "down_proj.weight", (D, I)),
        ]
    E, I = config.num_experts, config.moe_intermediate_size
    return [
        Slot(theirs + "gate_inp.weight", ours + "gate.weight", (E, D)),
        Slot(theirs + "gate_exps.weight", ours + "experts.gate_up_proj", (E, I, D), 0),
        Slot(theirs + "up_exps.weight", ours + "experts.gate_up_proj", (E, I, D), 1),
        Slot(theirs + "down_exps.weight", ours + "experts.down_proj", (E, D, I)),
    ]


def config_to_metadata(config: ModelConfig) -> dict[str, Any]:
    """The metadata that describes this model. Raises CheckpointError for what llama.cpp has no word for."""
    architecture = ARCHITECTURES[config.architecture]
    if config.num_experts and not (
        config.norm_topk_prob and all(map(config.is_sparse, range(config.num_layers)))
    ):
        raise CheckpointError(
            "GGUF can't say that some layers of a Qwen3-MoE are dense, or that the experts' weights are "
            "not normalised (norm_topk_prob false): llama.cpp would compute something else"
        )
    values = {
        "block_count": config.num_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": float(config.rope_theta),
        "vocab_size": config.vocab_size,
    }
    if config.num_experts:
        values["expert_count"] = config.num_experts
        values["expert_used_count"] = config.num_experts_per_tok
        values["expert_feed_forward_length"] = config.moe_intermediate_size
    if config.yarn:
        values |= _yarn_to_metadata(config.yarn)
    named = {f"{architecture}.{key}": value for key, value in values.items()}
    return {"general.architecture": architecture, **named, DTYPE_KEY: config.dtype}


def _yarn_to_metadata(yarn: YarnConfig) -> dict[str, Any]:
    if (yarn.beta_fast, yarn.beta_slow) != (32, 1):  # llama.cpp has keys, but not for these models
        raise CheckpointError(
            f"GGUF can't say that YaRN's betas are {yarn.beta_fast:g} and {yarn.beta_slow:g}: "
            "llama.cpp would compute with 32 and 1"
        )
    values: dict[str, Any] = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": float(yarn.factor),
        "rope.scaling.original_context_length": yarn.original_max_position_embeddings,
    }
    if yarn.attention_factor is not None:  # llama.cpp multiplies the paper's factor by this one
        values["rope.scaling.attn_factor"] = yarn.attention_factor / YarnConfig(yarn.factor, 1).scale
    return values


def config_from_metadata(metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """The model that a file describes; `shapes` are its tensors'. Raises CheckpointError, naming the key."""
    architecture = metadata.get("general.architecture")
    ours = next((name for name, theirs in ARCHITECTURES.items() if theirs == architecture), None)
    if ours is None:
        known = ", ".join(ARCHITECTURES.values())
        raise CheckpointError(f"general.architecture is {architecture!r}; known are {known}")
    read = _Reader(metadata, str(architecture))
    for key in NOT_COMPUTED:
        if read.get(key) not in NEUTRAL:
            raise CheckpointError(f"{architecture}.{key} is {read.get(key)!r}, which is not implemented")
    if "token_embd.weight" not in shapes:
        raise CheckpointError("it holds no tensor token_embd.weight")
    if read.size("block_count") > len(shapes):  # before anything counts up to it
        raise CheckpointError(
            f"{architecture}.block_count is {read.size('block_count')}, and there are {len(shapes)} tensors"
        )
    hidden_size, heads = read.size("embedding_length"), read.size("attention.head_count")
    if heads < 1:
        raise CheckpointError(f"{architecture}.attention.head_count is 0")
    head_dim = read.size("attention.key_length", read.size("rope.dimension_count", hidden_size // heads))
    for key in ("attention.value_length", "rope.dimension_count"):
        if read.size(key, head_dim) != head_dim:
            raise CheckpointError(
                f"{architecture}.{key} is {read.size(key)}, and a head has {head_dim} dimensions"
            )
    if ours != "qwen3_moe" and read.size("expert_count", 0):
        raise CheckpointError(f"{architecture}.expert_count is set; only qwen3moe's experts are implemented")
    experts: dict[str, Any] = {}
    if ours == "qwen3_moe":
        experts = {
            "num_experts": read.size("expert_count"),
            "num_experts_per_tok": read.size("expert_used_count"),
            "moe_intermediate_size": read.size("expert_feed_forward_length"),
            "norm_topk_prob": True,  # llama.cpp's qwen3moe always normalises
        }
    hf = dict(
        model_type=ours,
        vocab_size=shapes["token_embd.weight"][0],
        hidden_size=hidden_size,
        num_hidden_layers=read.size("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=read.size("attention.head_count_kv", heads),
        head_dim=head_dim,
        intermediate_size=read.size("feed_forward_length", 0 if experts else None),
        max_position_embeddings=read.size("context_length"),
        rms_norm_eps=read.number("attention.layer_norm_rms_epsilon"),
        rope_theta=read.number("rope.freq_base", 10_000.0),
        rope_scaling=_yarn_from_metadata(read),
        tie_word_embeddings="output.weight" not in shapes,
        torch_dtype=_dtype(metadata),
        **experts,
    )
    return ModelConfig.from_hf(hf)


def _dtype(metadata: Mapping[str, Any]) -> str:
    """What the weights were stored in before they were quantized."""
    if DTYPE_KEY in metadata:
        return str(metadata[DTYPE_KEY])
    file_type = metadata.get("general.file_type")
    return "float32" if file_type == 0 else "float16" if file_type == 1 else "bfloat16"


def _yarn_from_metadata(read: _Reader) -> dict[str, Any] | None:
    """Hugging Face's rope_scaling, whose numbers ModelConfig.from_hf then checks."""
    kind = read.get("rope.scaling.type")
    if kind in (None, "none"):
        return None
    for key, usual in (("rope.scaling.yarn_beta_fast", 32), ("rope.scaling.yarn_beta_slow", 1)):
        if read.number(key, usual) != usual:
            raise CheckpointError(
                f"{read.architecture}.{key} is not {usual}, which llama.cpp ignores as well"
            )
    factor = read.number("rope.scaling.factor")
    rope: dict[str, Any] = {
        "rope_type": kind,
        "factor": factor,
        "original_max_position_embeddings": read.size("rope.scaling.original_context_length", 0) or None,
    }
    attn_factor = read.number("rope.scaling.attn_factor", 1.0)
    if attn_factor != 1:
        rope["attention_factor"] = attn_factor * YarnConfig(factor, 1).scale
    return rope


@dataclass(frozen=True)
class _Reader:
    """Typed look-ups of "{architecture}.{key}"; an absent key gives `default`, or an error that names it."""

    metadata: Mapping[str, Any]
    architecture: str

    def get(self, key: str) -> Any:
        value = self.metadata.get(f"{self.architecture}.{key}")
        if isinstance(value, list):  # one number a layer: fine if they are all the same
            if len(set(value)) != 1:
                raise CheckpointError(
                    f"{self.architecture}.{key} differs from layer to layer, which is not implemented"
                )
            return value[0]
        return value

    def number(self, key: str, default: float | None = None) -> Any:
        value = self.get(key)
        value = default if value is None else value
        if value is None:
            raise CheckpointError(f"its metadata has no {self.architecture}.{key}")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise CheckpointError(f"{self.architecture}.{key} is {value!r}, not a number")
        if not (math.isfinite(value) and value >= 0):
            raise CheckpointError(f"{self.architecture}.{key} is {value!r}, not a sensible number")
        return value

    def size(self, key: str, default: int | None = None) -> int:
        value = self.number(key, default)
        if not isinstance(value, int) or not 0 <= value < 2**31:
            raise CheckpointError(f"{self.architecture}.{key} is {value!r}, not a sensible whole number")
        return value


def generation_to_metadata(generation: Mapping[str, Any]) -> dict[str, Any]:
    """generation_config.json as sampling defaults that llama.cpp knows, and whole as JSON under our key."""
    metadata: dict[str, Any] = {}
    for name, key in SAMPLING_KEYS.items():
        if isinstance(value := generation.get(name), (int, float)):
            metadata[key] = int(value) if name == "top_k" else float(value)
    if generation:
        metadata[GENERATION_KEY] = json.dumps(dict(generation))
    return metadata


def generation_from_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The other way: our own key, overruled by general.sampling.*, which other tools edit.

    Without our own key the token ids are the tokenizer's. eos_token_id is a list when the file names several
    tokens that end a turn.
    """
    ids: dict[str, Any] = {}
    for name, key in TOKEN_ID_KEYS.items():
        if isinstance(metadata.get(key), int):
            ids[name] = metadata[key]
    ends = dict.fromkeys(metadata[key] for key in END_KEYS if isinstance(metadata.get(key), int))
    if ends:
        ids["eos_token_id"] = next(iter(ends)) if len(ends) == 1 else list(ends)
    try:
        generation = dict(json.loads(metadata.get(GENERATION_KEY, "{}")))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{GENERATION_KEY} is no JSON object: {error}") from None
    sampling = {name: metadata.get(key) for name, key in SAMPLING_KEYS.items()}
    return (
        ids
        | generation
        | {name: value for name, value in sampling.items() if isinstance(value, (int, float))}
    )
