"""Export: what the exporter's rules would silently change."""

import numpy as np
import pytest
import torch

from onnuri.graph import optimize, rename

ort = pytest.importorskip("onnxruntime")


class Scaled(torch.nn.Module):
    """Root-mean-square scaling: only the small term keeps a row of zeros from being divided by zero."""

    def __init__(self, small: float):
        super().__init__()
        self.small = small

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.small)


@pytest.mark.parametrize("small", [1e-8, 1e-10, 1e-5])
def test_a_small_term_stays(small):
    program = torch.onnx.export(Scaled(small).eval(), (torch.ones(2, 3),), dynamo=True, optimize=False, verbose=False)
    optimize(program)
    rename(program.model.graph, ["x"], ["values"])
    session = ort.InferenceSession(program.model_proto.SerializeToString())
    x = np.array([[0, 0, 0], [1, 2, 3]], dtype=np.float32)
    [found] = session.run(["values"], {"x": x})
    assert np.isfinite(found).all() and np.allclose(found[1], [0.4629, 0.9258, 1.3887], atol=1e-3)
