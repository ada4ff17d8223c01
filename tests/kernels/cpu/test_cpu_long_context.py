"""A long prompt through attention of SmolLM2's shape: right at its end, in memory that does not grow."""

import subprocess
import sys
from pathlib import Path

import pytest
from one_call import assert_within, kernels
from test_cpu_attention import Attention

HERE = Path(__file__).parent
SMOLLM2 = dict(group=3, d=64, num_kv_heads=3)


@pytest.mark.parametrize("shares", [[(1, 8_000)], [(3, 5_001)]], ids=["a token", "a few"])
def test_the_end_of_a_long_sequence(shares):
    made = Attention(shares, **SMOLLM2)
    assert_within(made.run(kernels()), *made.exact())


@pytest.mark.slow
def test_the_end_of_32k_tokens():
    for shares in ([(1, 32_768)], [(20, 32_768)]):
        made = Attention(shares, **SMOLLM2)
        assert_within(made.run(kernels()), *made.exact())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory as Linux counts it")
def test_a_prompt_of_32k_tokens_takes_the_memory_of_its_cache():
    """Two layers of SmolLM2's shape, in chunks of 512 as the engine reads them, measured in a process of its
    own. One head's scores of one chunk and all keys would be 64 MB, of the whole prompt 4 GB."""
    program = f"""
import resource, sys
sys.path[:0] = [{str(HERE)!r}, {str(HERE.parents[1])!r}]
import torch
from one_call import kernels
from tiny_models import random_model, tiny_config
from tiny_steps import Steps

config = tiny_config(
    architecture="llama", qk_norm=False, hidden_size=576, num_heads=9, num_kv_heads=3, head_dim=64,
    intermediate_size=1536, vocab_size=300, max_position_embeddings=65536,
)
length = 32768
steps = Steps(random_model(config), kernels(), capacity=512, num_pages=length // 16)
prompt = [(7 * i * i) % 300 for i in range(length)]

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

steps.read([prompt[:512]])  # fills the whole cache with NaN: all its memory is there
before = peak()
(logits,) = steps.read([prompt], [[512] * (length // 512)])
assert logits.isfinite().all()
print(peak() - before - logits.nbytes * 2)  # each step's, and all of them put together
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 32e6
