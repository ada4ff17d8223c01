"""A fleet over a real Ray cluster of several machines' worth of processes on this one."""

import asyncio

import pytest

from lathe.errors import InfrastructureError, SandboxGone, UserError
from lathe.sandbox.fleet.fleet import Fleet, Node, open_fleet
from lathe.sandbox.fleet.node import NodeStats
from lathe.sandbox.images import ImageStore
from lathe.sandbox.spec import Bind, SandboxSpec
from lathe.tasks.patch import Patch
from lathe.tasks.verify import verify
from lathe.types import HiddenTests, Task

NUM_NODES = 3


def node(name, *, cpus=2, load=0.0, images=(), lost=None):
    return Node(name, None, NodeStats(name, cpus, load, 0, 0, frozenset(images)), lost=lost)


def test_where_the_image_lies_then_where_most_is_idle(tmp_path):
    nodes = [
        node("a", load=0.1),
        node("b", load=3.0, images=["i"]),
        node("c", cpus=8, load=0.2),
        node("d", lost="x"),
    ]
    fleet = Fleet(nodes, ImageStore(tmp_path), ())
    assert fleet.choose("i").id == "b", "bringing layers costs more than waiting"
    assert fleet.choose(None).id == "c"
    nodes[2].num_placed = 40
    assert fleet.choose(None).id == "a"
    for each in nodes:
        each.lost = "gone"
    with pytest.raises(InfrastructureError, match=r"no machine left .*b: gone"):
        fleet.choose("i")


async def test_without_a_cluster_the_error_says_what_to_do():
    pytest.importorskip("ray")
    with pytest.raises(UserError, match="ray start"):
        async with open_fleet("127.0.0.1:1"):
            pass


@pytest.fixture(scope="module")
def cluster():
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(NUM_NODES - 1):
        made.add_node(num_cpus=1)
    yield made
    made.shutdown()


@pytest.mark.slow
async def test_a_sandbox_of_a_fleet_is_a_sandbox(cluster, tmp_path):
    async with open_fleet(cluster.address, num_shards=1) as fleet:
        assert len(fleet.nodes) == NUM_NODES
        box = await fleet.create()
        await box.write("a/b.txt", "text")
        assert await box.read("a/b.txt") == b"text"
        assert (await box.exec("cat a/b.txt; exit 3")).exit_code == 3
        assert (await box.exec("sleep 60", timeout_s=0.3)).timed_out
        assert (await box.python("print(6 * 7)")).stdout == "42\n"
        with pytest.raises(FileNotFoundError):
            await box.read("nowhere")
        process = await box.start("sleep 0.2; echo done")
        assert (await process.wait(20.0)).stdout == "done\n"
        shell = await box.shell()
        await shell.run("x=5")
        assert (await shell.run("echo $x")).stdout == "5\n"
        fork = await box.fork()
        await fork.write("a/b.txt", "other")
        assert await box.read("a/b.txt") == b"text"
        (tmp_path / "tree").mkdir()
        (tmp_path / "tree" / "f").write_text("up")
        await box.upload(tmp_path / "tree", "tree")
        await box.download("tree", tmp_path / "back")
        assert (tmp_path / "back" / "f").read_text() == "up"
        await box.hibernate()
        assert await box.read("a/b.txt") == b"text"
        await box.close()
        with pytest.raises(SandboxGone):
            await box.exec("true")
        with pytest.raises(UserError, match="image"):
            await fleet.create(SandboxSpec(binds=(Bind(str(tmp_path), "/x"),)))


@pytest.mark.slow
async def test_images_go_where_they_are_wanted(cluster):
    async with open_fleet(cluster.address, num_shards=1) as fleet:
        box = await fleet.create()
        await box.exec("rm -f /etc/profile; echo kept > kept")
        image = await box.snapshot()
        here = next(each for each in fleet.nodes if image in each.stats.images)
        near = await fleet.create(SandboxSpec(image=image))
        assert near._node is here
        others = [each for each in fleet.nodes if each is not here]
        here.lost = "pretended"  # so that another must be chosen
        with pytest.raises(InfrastructureError, match="no machine of the fleet has the image"):
            await fleet.create(SandboxSpec(image=image))
        here.lost = None
        await fleet._bring(image, others[0])
        far = await fleet._create_on(others[0], SandboxSpec(image=image), True)
        assert (await far.exec("cat kept; ls /etc/profile")).stdout == "kept\n"


@pytest.mark.slow
async def test_verdicts_on_a_fleet(cluster):
    tests = HiddenTests(
        report="python", files={"test_a.py": "from a import f\ndef test_f():\n    assert f(2) == 4\n"}
    )
    task = Task("t", "", tests)
    async with open_fleet(cluster.address, num_shards=1) as fleet:
        found = await asyncio.gather(
            *(
                verify(task, Patch.of({"a.py": f"def f(x):\n    return x * {k}\n"}), fleet)
                for k in (2, 3, 2, 5)
            )
        )
        assert [verdict.reward for verdict in found] == [1.0, 0.0, 1.0, 0.0]
        assert sum(each.num_placed or each.stats.num_boxes for each in fleet.nodes) >= 0


@pytest.mark.slow
async def test_leases_end_what_nobody_holds(cluster):
    async with open_fleet(cluster.address, num_shards=1, lease_s=2.0) as fleet:
        box = await fleet.create()
        await asyncio.sleep(4.0)
        assert (await box.exec("true")).exit_code == 0, "its lease is renewed as long as this process lives"
        owner, fleet._owner = fleet._owner, "somebody else"
        async with asyncio.timeout(30):
            while (await fleet.ask(box._node, "stats")).num_boxes:  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        fleet._owner = owner
        with pytest.raises(SandboxGone, match="lease"):
            await box.exec("true")


@pytest.mark.slow
async def test_a_machine_that_is_lost_in_mid_run(cluster):
    """What it held are infrastructure failures; what was not begun is made elsewhere; the rest goes on."""
    doomed = cluster.add_node(num_cpus=1)
    async with open_fleet(cluster.address, num_shards=1) as fleet:
        (victim,) = [each for each in fleet.nodes if each.id == doomed.node_id]
        others = [each for each in fleet.nodes if each is not victim]
        running = [await fleet._create_on(each, SandboxSpec(), True) for each in (victim, *others)]
        fresh = await fleet._create_on(victim, SandboxSpec(), True)
        await running[0].write("begun", "yes")
        work = [asyncio.create_task(box.exec("sleep 4; echo done")) for box in running]
        await asyncio.sleep(1.0)
        await asyncio.to_thread(cluster.remove_node, doomed, False)
        results = await asyncio.gather(*work, return_exceptions=True)
        assert isinstance(results[0], InfrastructureError), results[0]
        assert [each.stdout for each in results[1:]] == ["done\n"] * len(others)
        assert victim.lost
        with pytest.raises(InfrastructureError):
            await running[0].read("begun")
        assert (await fresh.exec("echo anew")).stdout == "anew\n"
        assert fresh._node is not victim
        assert (await (await fleet.create()).exec("echo more")).stdout == "more\n"
        verdict = await verify(
            Task("t", "", HiddenTests(report="stdio", command=("cat",), cases=(("a", "a"),))), Patch(), fleet
        )
        assert verdict.reward == 1.0
