import pytest
from host_box import HostBox


@pytest.fixture
async def box(tmp_path):
    return HostBox(tmp_path)
