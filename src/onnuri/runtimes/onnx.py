"""ONNX Runtime: executes `model.onnx` of a model folder on the CPU."""

from dataclasses import dataclass
