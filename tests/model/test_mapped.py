import mmap
import sys
from pathlib import Path

import pytest

from lathe.model.mapped import give_back, map_file


def memory_bytes() -> int:
    """The machine's memory and swap."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return sum(int(fields[name].split()[0]) * 1024 for name in ("MemTotal", "SwapTotal"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_file_larger_than_the_memory_is_mapped(tmp_path):
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.write(b"GGUF")
        file.truncate(memory_bytes() + 2**30)  # a hole, which takes no room on the disk
    data = map_file(path)
    assert data[:4] == b"GGUF" and data[-1] == 0


def test_writing_to_the_memory_does_not_change_the_file(tmp_path):
    path = tmp_path / "small"
    path.write_bytes(b"1234")
    data = map_file(path)
    data[:2] = b"xx"
    assert data[:] == b"xx34"
    assert path.read_bytes() == b"1234"


def test_what_is_given_back_is_read_again(tmp_path):
    path = tmp_path / "pages"
    path.write_bytes(bytes([1]) * mmap.PAGESIZE + bytes([2]) * mmap.PAGESIZE + b"3")
    data = map_file(path)
    before = data[:]
    for start, end in ((0, len(data)), (5, 10), (mmap.PAGESIZE - 1, 2 * mmap.PAGESIZE + 1)):
        give_back(data, start, end)
        assert data[:] == before
