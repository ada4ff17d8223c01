"""Images: from folders, repositories, packages and container tars; the same content is the same image."""

import os
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest
from oci_tars import docker_save, entry, oci_layout, tar

from lathe.errors import UserError
from lathe.sandbox.images import ImageStore
from lathe.sandbox.spec import SandboxSpec


@pytest.fixture
def store(tmp_path) -> ImageStore:
    return ImageStore(tmp_path / "store")


def sh(line: str, cwd: Path) -> str:
    env = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull}
    done = subprocess.run(["sh", "-ec", line], cwd=cwd, env=env, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def waits_for_trash(store: ImageStore) -> bool:
    deadline = time.monotonic() + 30
    while list((store.root / "trash").iterdir()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not list((store.root / "trash").iterdir())


@pytest.fixture
def repo(tmp_path) -> Path:
    """Three commits: the middle one has the bug, the last its fix."""
    folder = tmp_path / "repo"
    folder.mkdir()
    who = "-c user.name=a -c user.email=a@b"
    sh(
        "git init -q -b main; echo old > a; git add a; git "
        f"{who} commit -qm first; echo buggy > a; ln -s a l; git add .; git {who} commit -qm second; "
        f"echo THE-FIX > a; git add a; git {who} commit -qm third; git tag v3",
        folder,
    )
    return folder


def test_the_same_folder_is_the_same_image(store, tmp_path):
    for name in ("one", "two"):
        folder = tmp_path / name / "sub"
        folder.mkdir(parents=True)
        (folder / "f").write_text("text")
        (folder / "f").chmod(0o4755)
        (folder / "l").symlink_to("f")
    first = store.from_directory(tmp_path / "one")
    assert store.from_directory(str(tmp_path / "two")) == first and store.ids() == [first]
    [layer] = store.layers(first)
    assert (layer / "work/sub/f").stat().st_mode & 0o7777 == 0o755  # no setuid
    assert (layer / "work/sub/l").readlink() == Path("f")
    (tmp_path / "two/sub/f").chmod(0o644)
    assert store.from_directory(tmp_path / "two") != first
    assert store.from_directory(tmp_path / "one", at="/srv") != first
    for bad in ("work", "/a/../b"):
        with pytest.raises(UserError, match="absolute path"):
            store.from_directory(tmp_path / "one", at=bad)
    with pytest.raises(UserError, match="no folder"):
        store.from_directory(tmp_path / "missing")


def test_a_commit_holds_nothing_later_and_nothing_of_where_it_came_from(store, repo):
    bug = sh("git rev-parse HEAD~1", repo)
    image = store.from_git(repo, "HEAD~1")
    assert store.from_git(repo, bug) == image  # whatever git packs, and however often
    [layer] = store.layers(image)
    work = layer / "work"
    assert (work / "a").read_text() == "buggy\n" and (work / "l").is_symlink()
    git = f"git -c safe.directory='*' -C {work}"
    assert sh(f"{git} status --porcelain", repo) == "" and sh(f"{git} rev-list --all", repo) == bug
    assert sh(f"{git} remote", repo) == "" and sh(f"{git} tag", repo) == ""
    blobs = sh(f"{git} cat-file --batch-all-objects --batch-check='%(objectname)'", repo).split()
    contents = [sh(f"{git} cat-file -p {each}", repo) for each in blobs]
    assert "buggy" in contents and not any("THE-FIX" in each or "third" in each for each in contents)
    assert not any(str(repo).encode() in path.read_bytes() for path in work.rglob("*") if path.is_file())


def test_repositories_and_commits_that_are_not_there_are_named(store, repo, tmp_path):
    assert store.from_git(f"file://{repo}", "v3") == store.from_git(repo, "main")
    for args, message in (
        ((repo, "nope"), "has no commit 'nope'"),
        ((tmp_path / "missing", "HEAD"), "neither a folder"),
        ((f"file://{repo}", "abcdef"), "no branch or tag"),
        ((f"file://{repo}", "0" * 40), "can't be had"),
        ((repo, "--output=x"), "no name of a commit"),
        (("ext::sh -c true", "HEAD"), "neither a folder"),
    ):
        with pytest.raises(UserError, match=message):
            store.from_git(*args)
    assert not list((store.root / "building").iterdir())


def make_wheel(folder: Path) -> Path:
    """A wheel of one module and one script, made without an index."""
    import zipfile

    path = folder / "smallpack-1.0-py3-none-any.whl"
    meta = "smallpack-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("smallpack.py", "def main():\n    print('made', 40 + 2)\n")
        out.writestr(f"{meta}/METADATA", "Metadata-Version: 2.1\nName: smallpack\nVersion: 1.0\n")
        out.writestr(f"{meta}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        out.writestr(f"{meta}/entry_points.txt", "[console_scripts]\nsmallpack = smallpack:main\n")
        out.writestr(f"{meta}/RECORD", "")
    return path


async def test_packages_of_a_requirements_file_are_imported(pool, tmp_path):
    wheel = make_wheel(tmp_path)
    file = tmp_path / "requirements.txt"
    file.write_text(f"{wheel}\n")
    lines: list[str] = []
    image = pool.images.from_requirements(file, lines.append)
    assert any("smallpack" in line for line in lines)
    box = await pool.create(SandboxSpec(image=image))
    assert (await box.exec("python3 -c 'import smallpack; smallpack.main()'")).check().stdout == "made 42\n"
    assert (await box.exec("smallpack")).check().stdout == "made 42\n"


def test_packages_that_cant_be_had_are_named(store, tmp_path, monkeypatch):
    file = tmp_path / "r.txt"
    file.write_text("no-such-package-anywhere==9\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UserError, match=r"(?s)an index can be reached.*no-such-package-anywhere"):
        store.from_requirements(file)
    assert not list((store.root / "building").iterdir()) and not store.ids()
    with pytest.raises(UserError, match="no requirements file"):
        store.from_requirements(tmp_path / "missing.txt")


BASE = tar(
    entry("etc"),
    entry("etc/conf", b"base"),
    entry("gone", b"x"),
    entry("full/a", b"a"),
    entry("bin/tool", b"#!", mode=0o4755, uid=7),
    entry("dev/sda", type=tarfile.BLKTYPE),
    entry("hard", type=tarfile.LNKTYPE, linkname="etc/conf"),
)
ABOVE = tar(
    entry("etc/conf", b"above"),
    entry(".wh.gone", b""),
    entry("full/.wh..wh..opq", b""),
    entry("full/b", b"b"),
)


@pytest.mark.parametrize("writer", [docker_save, oci_layout])
def test_container_tars_become_layers(store, tmp_path, writer):
    image = store.from_oci(writer(tmp_path / "image.tar", BASE, ABOVE))
    assert not store.on_host(image) and store.from_oci(tmp_path / "image.tar") == image
    base, above = store.layers(image)
    tool = (base / "bin/tool").stat()
    assert tool.st_mode & 0o7777 == 0o755 and (os.getuid() != 0 or tool.st_uid == 7)
    assert (base / "hard").read_bytes() == b"base" and not (base / "dev/sda").exists()
    assert (above / "gone").is_char_device() and (above / "gone").stat().st_rdev == 0
    assert os.getxattr(above / "full", "user.overlay.opaque") == b"y"
    [flat] = store.layers(store.flatten(image))
    assert (flat / "etc/conf").read_bytes() == b"above" and sorted(os.listdir(flat / "full")) == ["b"]  # noqa: PTH208
    other = store.from_oci(writer(tmp_path / "other.tar", BASE))
    assert store.layers(other) == [base]  # shared


async def test_a_container_runs_with_its_own_programs_and_variables(pool, tmp_path):
    binary = next((path for path in (Path("/bin/busybox"), Path("/usr/bin/busybox")) if path.exists()), None)
    if binary is None:
        pytest.skip("needs a static busybox to make a container of")
    layer = tar(
        entry("bin/busybox", binary.read_bytes()),
        entry("bin/sh", b"", type=tarfile.SYMTYPE, linkname="busybox"),
    )
    image = pool.images.from_oci(oci_layout(tmp_path / "image.tar", layer))
    box = await pool.create(SandboxSpec(image=image))
    assert (await box.exec("echo $GREETING $PATH; ls /usr")).check().stdout == "hello /bin\n"


async def test_a_container_shows_what_its_upper_layers_leave(pool, tmp_path):
    """Read through the overlay by file operations, which need no program inside."""
    image = pool.images.from_oci(docker_save(tmp_path / "image.tar", BASE, ABOVE))
    box = await pool.create(SandboxSpec(image=image))
    assert await box.read("/etc/conf") == b"above"
    assert [each.path for each in await box.list("/full")] == ["/full/b"]
    with pytest.raises(FileNotFoundError):
        await box.read("/gone")
    await box.write("/etc/conf", "mine")
    assert await (await pool.create(SandboxSpec(image=image))).read("/etc/conf") == b"above"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([entry("../escaped", b"x")], "leads out"),
        ([entry("a/../../escaped", b"x")], "leads out"),
        ([entry("h", type=tarfile.LNKTYPE, linkname="../secret")], "leads out"),
        ([entry("h", type=tarfile.LNKTYPE, linkname="/etc/passwd")], "can't be unpacked|no folder"),
        ([entry("d", type=tarfile.SYMTYPE, linkname="/nowhere/x"), entry("d/f", b"x")], "leads to no folder"),
        ([entry(".wh...", b"")], "hides nothing"),
        ([entry("big", bytes(2 << 20))], "more bytes"),
        ([entry(f"f{n}", b"") for n in range(300)], "more files"),
    ],
)
def test_hostile_tars_are_refused(store, tmp_path, entries, message):
    path = docker_save(tmp_path / "image.tar", tar(*entries))
    with pytest.raises(UserError, match=message):
        store.from_oci(path, max_bytes=1 << 20, max_files=200)
    assert not list((store.root / "building").iterdir()) and not store.ids()
    assert not list((store.root / "layers").iterdir()) and not (tmp_path / "escaped").exists()


def test_links_lead_only_inside(store, tmp_path):
    """Absolute paths start at the layer's root, and a folder that is a link out is looked up inside."""
    outside = tmp_path / "outside"
    outside.mkdir()
    layer = tar(
        entry("/abs", b"x"),
        entry(str(outside).lstrip("/")),
        entry("door", type=tarfile.SYMTYPE, linkname=str(outside)),
        entry("door/f", b"x"),
        entry("up", type=tarfile.SYMTYPE, linkname="../../../../.."),
        entry("up/g", b"x"),
    )
    [folder] = store.layers(store.from_oci(docker_save(tmp_path / "image.tar", layer)))
    assert not list(outside.iterdir()) and (folder / "abs").is_file() and (folder / "g").is_file()
    assert (folder / str(outside).lstrip("/") / "f").is_file()


def test_damaged_and_foreign_tars_are_refused(store, tmp_path):
    path = tmp_path / "image.tar"
    other = "arm64" if os.uname().machine == "x86_64" else "amd64"
    cases = [
        (lambda: oci_layout(path, BASE, damage=True), "damaged"),
        (lambda: oci_layout(path, BASE, other=other), "0 images for"),
        (
            lambda: docker_save(path, BASE, config=b'{"rootfs": {"diff_ids": ["sha256:00"]}}'),
            "is not sha256:00",
        ),
        (lambda: path.write_bytes(tar(entry("etc/passwd", b""))), "neither index.json"),
        (lambda: path.write_bytes(tar(entry("manifest.json", b"[]"))), "not what an image"),
        (lambda: path.write_bytes(b"no tar"), "no tar"),
        (path.unlink, "no file"),
    ]
    for make, message in cases:
        make()
        with pytest.raises(UserError, match=message):
            store.from_oci(path)
    assert not store.ids()


def test_stacks_keep_order_and_variables(store, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_text(name)
    a, b = (store.from_directory(tmp_path / name) for name in ("a", "b"))
    both = store.stack(None, a, b)
    assert store.layers(both) == store.layers(a) + store.layers(b) == store.layers(store.stack(a, b))
    assert both == store.stack(a, b) != store.stack(b, a) and store.on_host(both)
    [flat] = store.layers(store.flatten(both))
    assert (flat / "work/f").read_text() == "b"
    whole = store.from_oci(docker_save(tmp_path / "i.tar", BASE, env=("PYTHONPATH=/x", "PATH=/bin")))
    assert store.env(store.stack(whole, a), "/host") == {"PYTHONPATH": "/x", "PATH": "/bin"}
    with pytest.raises(UserError, match="whole root"):
        store.stack(a, whole)
    with pytest.raises(UserError, match="no image 'nope'"):
        store.stack("nope", a)


def test_what_is_removed_goes_unless_another_image_has_it(store, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_text(name)
    a, b = (store.from_directory(tmp_path / name) for name in ("a", "b"))
    both = store.stack(a, b)
    info = store.info(both)
    assert info.num_bytes == 2 and len(info.layers) == 2 and info.on_host
    store.remove(b)
    store.remove(b)
    assert all(layer.is_dir() for layer in store.layers(both)) and not store.has(b)
    store.remove(both)
    assert waits_for_trash(store) and list((store.root / "layers").iterdir()) == store.layers(a)
    (store.root / "images" / f"{a}.json").unlink()
    assert store.gc() == 1 and not list((store.root / "layers").iterdir())


def test_a_killed_build_leaves_nothing_that_looks_whole(store, tmp_path):
    (tmp_path / "big").mkdir()
    program = (
        "import sys, os, signal; from pathlib import Path; from lathe.sandbox import images\n"
        "def fill(source, target):\n"
        "    (target / 'half').write_text('x'); os.kill(os.getpid(), signal.SIGKILL)\n"
        "images.copy_folder = fill\n"
        "images.ImageStore(Path(sys.argv[1])).from_directory(sys.argv[2])\n"
    )
    done = subprocess.run([sys.executable, "-c", program, store.root, tmp_path / "big"])
    assert done.returncode == -9
    assert not store.ids() and not list((store.root / "layers").iterdir())
    assert len(list((store.root / "building").iterdir())) == 2
    assert store.gc() == 1 and not list((store.root / "building").iterdir())


def test_two_that_build_the_same_both_get_it(store, tmp_path, repo):
    ids: list[str] = []
    threads = [threading.Thread(target=lambda: ids.append(store.from_git(repo, "HEAD~1"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 4 and len(set(ids)) == 1 and len(store.layers(ids[0])) == 1
    assert not list((store.root / "building").iterdir())


async def test_a_sandbox_owns_its_images_files(pool, repo):
    box = await pool.create(SandboxSpec(image=pool.images.from_git(repo, "HEAD~1")))
    line = "stat -c %U a .git; git status --porcelain; echo fixed > a; git -c user.name=a -c user.email=a@b "
    result = await box.exec(line + "commit -qam fix && git log --format=%s")
    assert result.check().stdout == "root\nroot\nfix\nsecond\n"
    frozen = await box.snapshot()
    deep = pool.images.flatten(frozen)
    again = await pool.create(SandboxSpec(image=deep))
    said = (await again.exec("cat a; git log --format=%s; stat -c %U a l; touch new")).check().stdout
    assert said == "fixed\nfix\nsecond\nroot\nroot\n" and len(pool.images.layers(deep)) == 1


async def test_a_long_line_of_snapshots_still_mounts(pool, tmp_path):
    (tmp_path / "a").mkdir()
    image = pool.images.from_directory(tmp_path / "a")
    for number in range(60):
        folder = tmp_path / f"layer{number}"
        (folder / "work").mkdir(parents=True)
        folder.chmod(0o755)
        (folder / "work" / f"f{number}").write_text("x")
        image = pool.images.adopt(folder, image)
    assert len(pool.images.layers(image)) <= 50
    box = await pool.create(SandboxSpec(image=image))
    assert len(await box.list()) == 60
