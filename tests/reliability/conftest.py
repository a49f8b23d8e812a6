"""What the system must allow for a test of this folder."""

import pytest
from children import can_mount, inside


@pytest.fixture(scope="session")
def disks() -> None:
    """Skips where the system lets a process have no disks of its own."""
    if not inside(can_mount):
        pytest.skip("this system lets a process have no mounts of its own")
