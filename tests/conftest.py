"""One thread per test process: several torch processes on few cores otherwise slow each other twenty-fold."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# read when transformers is imported, which a test may do before ours does
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)

# the same examples in every run, and no judgement by the clock; HYPOTHESIS_PROFILE=dice looks for new ones
settings.register_profile("same", derandomize=True, deadline=None, database=None)
settings.register_profile("dice", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; the test is skipped, with the reason, where there is none."""
    folder = Path(os.environ.get("ONNURI_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("real data not present; set ONNURI_DATA")
    return folder


@pytest.fixture(scope="session")
def table(tmp_path_factory) -> Path:
    """The folder of a small model of the bundled wines, trained for twenty steps."""
    from onnuri.run import execute

    folder = tmp_path_factory.mktemp("table") / "m"
    execute("train", {"family": "tabular", "steps": 20}, {"data": "builtin:wine"}, folder, quiet=True)
    return folder
