"""One thread per test process: several torch processes on few cores otherwise slow each other twenty-fold."""

import logging
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

from onnuri import measure
from onnuri.costs import peaks

torch.set_num_threads(1)

# pytest listens to every logger, and torch tells of each step of its tracing
for name in ("torch.__trace", "torch.fx", "torch._dynamo", "torch._inductor", "onnxscript", "onnx_ir"):
    logging.getLogger(name).setLevel(logging.ERROR)

BRIEF = {
    measure: {"RESAMPLES": 10, "LATENCY_RUNS": 3, "PROPORTION_PROBES": 10},
    peaks: {"BUDGET": 0.01, "SECONDS": 0.01, "SIDES": (256,), "ARRAY": 2**22},
}
JUDGED = {"test_measure", "test_peaks", "test_efficiency", "test_estimate", "test_costs"}
"""Modules that are about measuring itself."""

# the same examples in every run, and no judgement by the clock; HYPOTHESIS_PROFILE=dice looks for new ones
settings.register_profile("same", derandomize=True, deadline=None, database=None)
settings.register_profile("dice", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@pytest.fixture(autouse=True, scope="module")
def briefly(request):
    """Fewer resamples and timings, where these are not what is tested."""
    with pytest.MonkeyPatch.context() as patch:
        if request.module.__name__.rpartition(".")[2] not in JUDGED:
            for module, values in BRIEF.items():
                for name, value in values.items():
                    patch.setattr(module, name, value)
        yield


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
