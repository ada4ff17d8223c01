"""Training in two processes is training in one: the same losses, gradients and weights, up to rounding."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_config
from two_processes import MOE, SAMPLES, VARIANTS, run

from lathe.kernels.cpu.library import load
from lathe.log import read_metrics
from lathe.testing import tiny_tokenizer
from lathe.train.batch import Sample
from lathe.train.parallel import ALONE, World, share
from lathe.train.parts import export, load_parts, new_parts

HERE = Path(__file__).parent


def in_two_processes(folder: Path, *variants: str) -> None:
    path = os.pathsep.join([str(HERE), str(HERE.parent), *sys.path])
    ran = subprocess.run(
        [sys.executable, HERE / "two_processes.py", folder, *variants],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        timeout=100,
    )
    assert ran.returncode == 0, ran.stderr


def assert_same_run(found: dict, wanted: dict, tolerance: float = 1e-4) -> None:
    for mine, right in zip(found["stats"], wanted["stats"], strict=True):
        for name in ("loss", "nll", "entropy", "grad_norm", "num_tokens", "num_trained"):
            assert mine[name] == pytest.approx(right[name], rel=tolerance), name
    torch.testing.assert_close(found["logprobs"], wanted["logprobs"], rtol=tolerance, atol=tolerance * 10)
    for name, weight in wanted["weights"].items():
        difference = (found["weights"][name].float() - weight.float()).abs().mean()
        assert difference < tolerance * weight.float().abs().mean(), name


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    in_two_processes(tmp_path, "plain")
    found, wanted = torch.load(tmp_path / "plain.pt"), run("plain", ALONE)
    assert_same_run(found, wanted)
    assert found["export"].keys() == wanted["export"].keys()
    assert all(torch.equal(weight, found["weights"][name]) for name, weight in found["export"].items())
    # and each holds half of every weight
    assert all(2 * half <= rows + 1 for half, rows in zip(found["rows"], wanted["rows"], strict=True))


@pytest.mark.slow
def test_every_way_to_train_is_the_same_in_two_processes(tmp_path):
    variants = [variant for variant in VARIANTS if variant != "plain"]
    in_two_processes(tmp_path, *variants)
    for variant in variants:
        tolerance = 2e-2 if variant == "bf16" else 1e-3
        assert_same_run(torch.load(tmp_path / f"{variant}.pt"), run(variant, ALONE), tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["plain", "muon", "lora"])
def test_a_run_goes_on_in_another_number_of_processes(tmp_path, variant):
    state = run(variant, ALONE)["state"]
    torch.save(state, tmp_path / f"{variant}.from")
    wanted = run(variant, ALONE, torch.load(tmp_path / f"{variant}.from"))
    in_two_processes(tmp_path, variant)
    found = torch.load(tmp_path / f"{variant}.pt")
    assert_same_run(found, wanted, 1e-3)
    assert_same_run(run(variant, ALONE, state), wanted)  # and their state is as good as this process's
    again = run(variant, ALONE, found["state"])
    assert again["stats"][0]["loss"] == pytest.approx(found["stats"][2]["loss"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(load() is None, reason="no compiled kernels here")
def test_an_engine_in_another_process_serves_what_it_is_sent_bit_for_bit(tmp_path):
    in_two_processes(tmp_path, "weights")
    assert torch.load(tmp_path / "weights.pt")["same"] == [(True, True), (True, True)]


def test_every_process_gets_as_many_micro_batches_and_every_sample_is_trained_once():
    for size in (1, 2, 3, 8):
        worlds = [World(rank, size) for rank in range(size)]
        for max_tokens in (20, 40, 70, 1000):
            shares = [list(share(SAMPLES, max_tokens, world)) for world in worlds]
            assert len({len(each) for each in shares}) == 1
            trained = [sample for each in shares for group, counts in each if counts for sample in group]
            assert sorted(map(len_of, trained)) == sorted(map(len_of, SAMPLES))
            for each in shares:
                for group, _ in each:
                    assert len(group) == 1 or sum(map(len_of, group)) <= max_tokens
    assert not list(share([Sample((1, 2), (False, False))], 10, World(0, 2)))
    assert not list(share([], 10, World(1, 2)))


def test_work_is_spread_evenly():
    samples = [Sample((1,) * 10, (False, *[True] * 9)) for _ in range(16)]
    for rank in range(4):
        assert [len(group) for group, _ in share(samples, 10_000, World(rank, 4))] == [4]


def len_of(sample: Sample) -> int:
    return len(sample.token_ids)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("verb", ["sft", "pretrain"])
def test_torchrun_trains_by_a_recipe_as_one_process_does(tmp_path, verb):
    base = export(new_parts(tiny_config(**MOE), tiny_tokenizer()), tmp_path / "base")
    if verb == "sft":
        talks = [{"prompt": f"{n}+{n}", "completion": str(2 * n)} for n in range(20)]
        lines = [
            {
                "messages": [
                    dict(role="user", content=row["prompt"]),
                    dict(role="assistant", content=row["completion"]),
                ]
            }
            for row in talks
        ]
    else:
        lines = [{"text": f"def double_{n}():\n    return {2 * n}\n" * (n % 3 + 1)} for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'model = "{base}"\ndata = ["{tmp_path / "rows.jsonl"}"]\nbatch_size = 7\neval_share = 0.2\n'
        f"eval_every = 2\n[train]\nlr = 1e-3\nmax_tokens = 100\n"
    )

    def command(run: str, *more: str) -> list[str]:
        return ["-m", "lathe.cli", verb, str(recipe), "--set", f"run={tmp_path / run}", *more]

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run_command([*torchrun, *command("two")])
    run_command([sys.executable, *command("one")])
    two, one = read_metrics(tmp_path / "two"), read_metrics(tmp_path / "one")
    assert [each["step"] for each in two] == [each["step"] for each in one]
    for mine, right in zip(two, one, strict=True):
        for name in right.keys() - {"seconds", "tokens_per_s"}:
            assert mine[name] == pytest.approx(right[name], rel=1e-3, abs=1e-6), name
    weights = [load_parts(str(tmp_path / run / "model")).model.state_dict() for run in ("two", "one")]
    for name, weight in weights[1].items():
        assert float((weights[0][name] - weight).abs().mean()) < 1e-3 * float(weight.abs().mean()), name
    # two processes go on where one ended, and one where two did
    for name, launcher in (("one", torchrun), ("two", [sys.executable])):
        run_command([*launcher, *command(name, "--resume", "--set", "epochs=2")])
    two, one = read_metrics(tmp_path / "two"), read_metrics(tmp_path / "one")
    assert two[-1]["loss"] == pytest.approx(one[-1]["loss"], rel=1e-3)
    assert two[-1]["step"] == one[-1]["step"] > 2


def run_command(command: list[str]) -> None:
    path = os.pathsep.join(sys.path)
    ran = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
