"""An attempt that is cut again and again ends as one that is not: same tokens, same files, same verdict."""

import asyncio
import dataclasses
import json

import pytest
from rollout_tasks import Watched, call, plain, solver, word_task

from lathe.agent.events import ToolEnded, ToolStarted, TurnEnded, TurnStarted
from lathe.rollout import rollout
from lathe.rollout.kept import Keeping, Kept, read_kept, write_kept
from lathe.testing import ScriptedModel

TASK = word_task("apple", setup=("echo hello > made.txt", "mkdir sub && ln -s made.txt sub/link"))


def forgetful(prompt: str) -> str:
    """A `solver` that also changes folders, plans, and changes what the setup made."""
    lines = (
        "mkdir -p deep/er && cd deep/er && pwd",
        "pwd; echo here >> here.txt; cat here.txt; rm ../../notes.txt",
        "echo world >> ../../made.txt; chmod 700 here.txt; cat ../../made.txt; cd ../..",
    )
    done = prompt.count("</tool_response>")
    if done < len(lines):
        return "On it.\n" + call("bash", command=lines[done])
    if done == len(lines):
        return call("todo", todos=[{"content": "write it", "status": "pending"}])
    return solver(turns=len(lines) + 3)(prompt)


async def cut_again_and_again(task, model, pool, path, freeze_share, every) -> tuple[list, int]:
    """Goes on with an attempt until it is through; each time, it is cancelled after `every` more events."""
    for num_cuts in range(100):
        seen, enough = 0, asyncio.Event()

        def hear(event):
            nonlocal seen
            seen += isinstance(event, TurnStarted | TurnEnded | ToolStarted | ToolEnded)
            if seen >= every:
                enough.set()  # noqa: B023

        keeping = Keeping(path, pool.images, freeze_share=freeze_share)
        work = asyncio.ensure_future(rollout(task, model, pool, on_event=hear, keeping=keeping))
        cutting = asyncio.ensure_future(enough.wait())
        await asyncio.wait({work, cutting}, return_when=asyncio.FIRST_COMPLETED)
        cutting.cancel()
        if work.done():
            return work.result(), num_cuts
        work.cancel()
        await asyncio.wait({work})
    raise AssertionError("it never ends")


@pytest.mark.parametrize(
    ("freeze_share", "every"),
    [
        pytest.param(1.0, 7, id="frozen"),
        pytest.param(0.0, 7, id="done again"),
        pytest.param(0.5, 5, id="both"),
        pytest.param(1.0, 5, id="frozen, often", marks=pytest.mark.slow),
        pytest.param(0.0, 5, id="done again, often", marks=pytest.mark.slow),
        pytest.param(0.5, 7, id="both, seldom", marks=pytest.mark.slow),
    ],
)
async def test_an_attempt_that_is_cut_again_and_again(pool, tmp_path, freeze_share, every):
    model = ScriptedModel(answer=forgetful)
    whole = await rollout(TASK, model, pool)
    assert whole.verdict.reward == 1.0, whole.verdict
    patch = whole.info["patch"]
    assert patch["deep/er/here.txt"] == {"text": "here\n", "mode": 0o700}
    assert patch["made.txt"] == {"text": "hello\nworld\n"} and patch["notes.txt"] is None
    watched, path = Watched(pool), tmp_path / "state.json"
    done, num_cuts = await cut_again_and_again(TASK, model, watched, path, freeze_share, every)
    assert num_cuts >= 3
    assert plain(done) == plain(whole)
    assert await watched.num_open() == 0
    Keeping(path, pool.images).discard()
    assert not path.exists()
    assert not list((pool.images.root / "layers").iterdir())


async def test_a_state_that_is_damaged_begins_anew(pool, tmp_path):
    path, model = tmp_path / "state.json", ScriptedModel(answer=solver())
    for text in (b"", b"{", b'{"attempt": {"trajectories": [], "stop_reason": "magic"}}', b"\xff\xfe"):
        path.write_bytes(text)
        done = await rollout(word_task("apple"), model, pool, keeping=Keeping(path, pool.images))
        assert done.verdict.reward == 1.0
        Keeping(path, pool.images).discard()


async def test_a_layer_that_is_gone_begins_anew(pool, tmp_path):
    path, model = tmp_path / "state.json", ScriptedModel(answer=solver())
    await rollout(word_task("apple"), model, pool, keeping=Keeping(path, pool.images, freeze_share=1.0))
    kept = read_kept(path)
    assert kept is not None and kept.patch is not None
    write_kept(path, dataclasses.replace(kept, image="gone", patch=None))
    done = await rollout(word_task("apple"), model, pool, keeping=Keeping(path, pool.images))
    assert done.verdict.reward == 1.0


async def test_what_is_kept_is_read_again(pool, tmp_path):
    path = tmp_path / "state.json"
    await rollout(
        word_task("apple"), ScriptedModel(answer=solver()), pool, keeping=Keeping(path, pool.images)
    )
    kept = read_kept(path)
    assert isinstance(kept, Kept)
    write_kept(path, kept)
    assert read_kept(path) == kept
    assert json.loads(path.read_bytes())["patch"]
