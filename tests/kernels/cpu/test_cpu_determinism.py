"""The same bits for a token whatever is computed beside it, however its prompt is cut, on any threads."""

import functools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from one_call import own_copy
from searching import times
from tiny_steps import Steps, tiny

from lathe.kernels.cpu.library import open_library

THREADS = (1, 2, 3, 5)
MODELS = [(shape, kind) for shape in ("qwen3", "moe") for kind in ("f32", "q4_0", "q8_0")]


@functools.cache
def steps_of(shape: str, kind: str) -> Steps:
    return Steps(tiny(shape, kind), with_threads(1), capacity=512, num_pages=64)


def with_threads(num_threads: int):
    """The pool of this library ends and starts anew; what was recorded for it runs on the new one."""
    return open_library(own_copy("determinism"), None, num_threads)


@functools.cache
def alone(shape: str, kind: str, prompt: tuple[int, ...]) -> torch.Tensor:
    """Its logits when it is all that is read, at once, by one thread."""
    with_threads(1)
    (logits,) = steps_of(shape, kind).read([prompt])
    return logits


@st.composite
def readings(draw):
    """Some prompts, each with how it is cut and the step in which it begins."""
    prompts, cuts, begins = [], [], []
    for _ in range(draw(st.integers(1, 4))):
        length = draw(st.one_of(st.integers(1, 20), st.integers(60, 130)))
        start = draw(st.integers(0, 299))
        prompts.append(tuple((start + 7 * i * i) % 300 for i in range(length)))
        ends = sorted(draw(st.sets(st.integers(1, length - 1), max_size=5)) if length > 1 else ())
        cuts.append([b - a for a, b in zip([0, *ends], [*ends, length], strict=True)])
        begins.append(draw(st.integers(0, 3)))
    return prompts, cuts, begins, draw(st.integers(0, 1000))


@pytest.mark.parametrize(("shape", "kind"), MODELS)
@times(0.2)
@given(reading=readings(), threads=st.sampled_from(THREADS[:3]))
def test_a_token_has_the_same_bits_in_any_company(shape, kind, reading, threads):
    prompts, cuts, begins, seed = reading
    with_threads(threads)
    together = steps_of(shape, kind).read(prompts, cuts, begins, seed)
    for prompt, logits in zip(prompts, together, strict=True):
        assert logits.isfinite().all()
        assert torch.equal(logits, alone(shape, kind, prompt))


@pytest.mark.parametrize(("shape", "kind"), [*MODELS, ("moe", "bf16"), ("moe", "fp8"), ("moe", "q4_1")])
def test_every_number_of_threads_and_one_token_at_a_time(shape, kind):
    prompt = [(11 * i * i) % 300 for i in range(140)]
    steps = steps_of(shape, kind)
    seen = [alone(shape, kind, tuple(prompt))]
    for threads in THREADS:
        with_threads(threads)
        seen += steps.read([prompt]) + steps.read([prompt])  # twice in a row
    with_threads(2)
    seen += steps.read([prompt], [[60, *[1] * 12, 68]])
    seen += steps.read([prompt, *[prompt[:n] for n in (1, 30, 100)]])[:1]  # beside its own beginnings
    assert all(torch.equal(each, seen[0]) for each in seen)


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "kind"), MODELS)
def test_a_long_prompt_in_any_cut(shape, kind):
    prompt = [(13 * i * i) % 300 for i in range(900)]
    steps = steps_of(shape, kind)
    with_threads(3)
    (whole,) = steps.read([prompt], [[512, 388]])
    for cut in (17, 64, 100, 256):
        cuts = [cut] * (900 // cut) + ([900 % cut] if 900 % cut else [])
        assert torch.equal(steps.read([prompt], [cuts])[0], whole)
