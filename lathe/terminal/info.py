"""What a model is and what it needs, from its headers alone: no weight is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from rich.console import Console
from rich.table import Table

from lathe.engine.kv_cache import bytes_per_token
from lathe.engine.loading import default_sampling, load_template, load_tokenizer
from lathe.errors import ModelNotFound
from lathe.model import hub
from lathe.model.checkpoint import Checkpoint, open_checkpoint
from lathe.model.config import ModelConfig
from lathe.model.convert import Summary
from lathe.model.gguf import open_gguf
from lathe.model.packed_checkpoint import packed_sizes
from lathe.model.packing import MODES
from lathe.model.presets import PRESETS, count_parameters
from lathe.model.safetensors import CODES, read_safetensors
from lathe.model.weights import weight_files
from lathe.terminal.progress import gigabytes
from lathe.types import SamplingParams

Rows = list[tuple[str, str]]


@dataclass(frozen=True)
class Found:
    """A model by its name: its shape, and its checkpoint where there is one."""

    config: ModelConfig
    checkpoint: Checkpoint | None


def find(name: str) -> Found:
    """A checkpoint on this machine, else a published shape (its name's beginning will do), else the hub's."""
    try:
        path = hub.resolve(name, fetch=False)
    except ModelNotFound:
        key = name.lower().removeprefix("qwen/")
        shapes = [known for known in PRESETS if known.startswith(key)]
        if len(shapes) == 1 or key in shapes:
            return Found(PRESETS[shapes[0] if len(shapes) == 1 else key], None)
        path = hub.resolve(name)
    checkpoint = open_checkpoint(path)
    return Found(checkpoint.config, checkpoint)


def show_shape(config: ModelConfig, out: Console) -> None:
    total, read = count_parameters(config)
    rows: Rows = [
        ("architecture", config.architecture),
        ("parameters", f"{parameters(total)} in total, {parameters(read)} read per token"),
        ("layers", f"{config.num_layers} of width {config.hidden_size}"),
        (
            "attention",
            f"{config.num_heads} query heads on {config.num_kv_heads} KV heads of {config.head_dim}",
        ),
        ("MLP", f"width {config.intermediate_size}"),
        (
            "vocabulary",
            f"{config.vocab_size:,}{', embedding and head tied' if config.tie_word_embeddings else ''}",
        ),
        ("context", f"{config.max_position_embeddings:,} tokens{stretch(config)}"),
    ]
    if config.num_experts:
        experts = (
            f"{config.num_experts_per_tok} of {config.num_experts}, width {config.moe_intermediate_size}"
        )
        rows[4] = ("experts", experts)
    show(rows, "Shape", out)


def show_files(checkpoint: Checkpoint, out: Console) -> None:
    sizes = sizes_by_type(checkpoint)
    rows = [(name, gigabytes(size)) for name, size in sizes.most_common()]
    rows = [("path", str(checkpoint.path)), *rows, ("together", gigabytes(sum(sizes.values())))]
    show(rows, "Files", out)


def show_text(checkpoint: Checkpoint, out: Console) -> None:
    """The template's dialect of tool calls, and the sampling that the checkpoint recommends."""
    tokenizer = load_tokenizer(checkpoint)
    sampling = asdict(default_sampling(checkpoint.generation_config))
    plain = asdict(SamplingParams())
    changes = [f"{name} {value}" for name, value in sampling.items() if value != plain[name]]
    rows = [
        (
            "template",
            "from the checkpoint" if checkpoint.chat_template else "built in (the checkpoint has none)",
        ),
        ("tool calls", load_template(checkpoint, tokenizer).dialect),
        ("sampling", ", ".join(changes) or "unchanged"),
    ]
    show(rows, "Text", out)


def show_memory(config: ModelConfig, contexts: Sequence[int], out: Console) -> None:
    """Weights and cache in the types that they may run in. One sequence of each length."""
    total, _ = count_parameters(config)
    table = Table(title="Memory", title_justify="left", box=None, header_style="dim", pad_edge=False)
    types = (("bfloat16", torch.bfloat16), ("float32", torch.float32))
    for name in ("", *(name for name, _ in types)):
        table.add_column(name, justify="right" if name else "left")
    table.add_row("weights", *(gigabytes(total * dtype.itemsize) for _, dtype in types))
    table.add_row("KV cache per token", *(gigabytes(bytes_per_token(config, dtype)) for _, dtype in types))
    for context in contexts:
        sizes = (gigabytes(context * bytes_per_token(config, dtype)) for _, dtype in types)
        table.add_row(f"KV cache at {context:,}", *sizes)
    out.print(table)


def show_quantized(found: Found, out: Console) -> None:
    """What weights take on a CPU under each --quantize, by the type that they are stored in."""
    path = None if found.checkpoint is None else found.checkpoint.path
    rows: Rows = []
    for mode in MODES:
        sizes = packed_sizes(path, found.config, mode)
        types = ", ".join(f"{type} {gigabytes(size)}" for type, size in sizes.most_common())
        rows.append((mode, f"{gigabytes(sum(sizes.values()))}: {types}"))
    show(rows, "Quantized, on a CPU" if path else "Quantized, on a CPU, from bf16", out)


def show_conversion(summary: Summary, out: Console) -> None:
    """What a conversion made of the weights, and how far they moved."""
    rows = [("before", gigabytes(summary.source_bytes)), ("after", gigabytes(summary.target_bytes))]
    for name, count in summary.num_tensors.items():
        error = summary.relative_error.get(name, 0.0)
        tensors = "1 tensor" if count == 1 else f"{count} tensors"
        rows.append((name, f"{tensors}, relative error {error:.2e}"))
    show(rows, "Converted", out)


def show(rows: Rows, title: str, out: Console) -> None:
    table = Table(title=title, title_justify="left", box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    out.print(table, "", highlight=False)


def sizes_by_type(checkpoint: Checkpoint) -> Counter[str]:
    """Bytes of tensors in the checkpoint's files, by the type they are stored in."""
    sizes: Counter[str] = Counter()
    if checkpoint.format == "gguf":
        file = open_gguf(checkpoint.path)
        for name, container in file.containers.items():
            sizes[file.type_of(name).name] += container.tensors[name].num_bytes
    else:
        for path in weight_files(checkpoint.path):
            for tensor in read_safetensors(path).values():
                sizes[CODES[tensor.dtype].lower()] += tensor.num_bytes
    return sizes


def parameters(count: int) -> str:
    return f"{count / 1e9:.2f}B" if count >= 1e9 else f"{count / 1e6:.1f}M"


def stretch(config: ModelConfig) -> str:
    if config.yarn is None:
        return ""
    return f" (YaRN, {config.yarn.factor:g} times {config.yarn.original_max_position_embeddings:,})"


def contexts_of(config: ModelConfig) -> list[int]:
    """Lengths worth a line where none were asked for."""
    longest = config.max_position_embeddings
    return [length for length in (8_192, 32_768, 131_072) if length < longest] + [longest]
