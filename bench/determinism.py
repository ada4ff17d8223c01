"""How often a deterministic reply differs: the same requests among many others, in several settings.

    python bench/determinism.py --requests 10

Each request of a fixed set is asked alone, and then in crowds of others with every setting below; ids and
log-probabilities are compared bit for bit. SmolLM2's real weights, and a Qwen3-MoE with random ones.
"""

import argparse
import random
import threading
from dataclasses import replace
from pathlib import Path

import torch

from lathe import LLM
from lathe.engine.engine import Engine, EngineConfig
from lathe.model.config import ModelConfig
from lathe.model.transformer import Transformer
from lathe.text.chat_template import ChatTemplate
from lathe.types import SamplingParams

SETTINGS = {
    "no cache, no guesses": dict(prefix_cache=False, max_drafts=0),
    "no cache, chunks of 61": dict(prefix_cache=False, prefill_chunk=61, prefill_chunk_when_busy=17),
    "cache and guesses": dict(),
    "little memory": dict(),
}


def requests(tokenizer, count: int) -> list[tuple[list[int], SamplingParams]]:
    """Prompts of 20 to 300 tokens of code, some of which share their beginning; greedy and seeded."""
    source = "\n".join(path.read_text() for path in sorted(Path("lathe/engine").glob("*.py")))
    ids = tokenizer.encode(source)
    rng, found = random.Random(0), []
    for number in range(count):
        start, length = rng.choice([0, 0, 1000, 5000]), rng.randint(20, 300)
        sampling = (
            SamplingParams(temperature=0.0) if number % 2 else SamplingParams(temperature=0.8, seed=number)
        )
        found.append((ids[start : start + length], sampling))
    return found


def ask(llm: LLM, prompt: list[int], sampling: SamplingParams) -> tuple:
    options = replace(sampling, max_tokens=16, deterministic=True, logprobs=0)
    reply = llm.generate(prompt, options)
    return reply.token_ids, tuple(entry.logprob for entry in reply.logprobs)


def crowd(llm: LLM, asked: list, seed: int) -> list[tuple]:
    """All requests in another order, eight at a time, among noise that is not deterministic."""
    order = list(range(len(asked)))
    random.Random(seed).shuffle(order)
    found: dict[int, tuple] = {}

    def work(mine: list[int]) -> None:
        for place in mine:
            found[place] = ask(llm, *asked[place])

    def noise(number: int) -> None:
        rng = random.Random(number)
        for _ in range(3):
            prompt = [rng.randrange(300) for _ in range(rng.randint(5, 200))]
            llm.generate(prompt, SamplingParams(max_tokens=rng.randint(1, 30), seed=number))

    threads = [threading.Thread(target=work, args=(order[i::6],)) for i in range(6)]
    threads += [threading.Thread(target=noise, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[place] for place in range(len(asked))]


def moe(tokenizer) -> Transformer:
    torch.manual_seed(0)
    return Transformer(
        ModelConfig(
            architecture="qwen3_moe",
            vocab_size=tokenizer.vocab_size,
            hidden_size=256,
            num_layers=4,
            num_heads=8,
            num_kv_heads=2,
            head_dim=64,
            intermediate_size=512,
            num_experts=16,
            num_experts_per_tok=4,
            moe_intermediate_size=192,
            max_position_embeddings=4096,
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10)
    options = parser.parse_args()
    smollm2 = LLM("smollm2", engine_config=EngineConfig(kv_memory_bytes=2**20 * 64, max_context=1024))
    tokenizer, weights = smollm2.tokenizer, smollm2.engine.runner.model
    smollm2.close()
    asked = requests(tokenizer, options.requests)
    num_compared = num_different = 0
    for name, model in (("SmolLM2-135M", weights), ("Qwen3-MoE", moe(tokenizer))):
        alone = None
        for setting, changes in SETTINGS.items():
            memory = 2**20 * (70 if "little" in setting else 400) if name == "SmolLM2-135M" else 2**20 * 40
            config = EngineConfig(**{**changes, "kv_memory_bytes": memory, "max_context": 1024})
            llm = LLM.from_parts(
                engine=Engine(model, config=config),
                tokenizer=tokenizer,
                template=ChatTemplate.builtin(),
                model_id=name,
            )
            if alone is None:
                alone = [ask(llm, *request) for request in asked]
            different = 0
            for seed in (1, 2):
                crowded = crowd(llm, asked, seed)
                different += sum(a != b for a, b in zip(alone, crowded, strict=True))
            num_compared += 2 * len(asked)
            num_different += different
            llm.close()
            print(
                f"{name:<14} {setting:<24} {2 * len(asked)} replies compared, {different} different",
                flush=True,
            )
    print(f"{num_compared} compared, {num_different} different")


if __name__ == "__main__":
    main()
