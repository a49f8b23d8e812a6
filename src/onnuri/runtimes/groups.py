"""Graphs whose products hold their weights in codes of 4 or 8 bits with a scale for each group, as ONNX Runtime's MatMulNBits.

Codes that `quantize` made go in as they are. Every other matrix is rounded to the nearest code in groups of 32 columns, with the
scale of least error in each; at 4 bits a table of which rows are looked up, and the product that gives the outputs, have 8.
"""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import Refusal
from ..graph import numbers_of
from ..weights.packed import FORMATS, Packed, fitted_scales, spread
from .integers import looks_up_rows, replace, tables_in_bytes

GROUP = 32
DOMAIN = "com.microsoft"
ROUNDED = (
    4  # its accuracy_level that rounds what is multiplied to int8 in each group: twice as fast as products of floats
)
PASSING = ("Identity", "Cast", "Add", "Mul", "Div", "Tanh", "Reshape", "Squeeze", "Unsqueeze")
"""Operators that change a product's numbers one by one, or none."""


@dataclass(frozen=True)
class Product:
    """A node that multiplies with a matrix which lies in the file: (rows, columns) where `turned`, else (columns, rows)."""

    node: Any
    matrix: str
    turned: bool
    bias: str = ""


def in_groups(graph: Any, bits: int, packed: Collection[Packed]) -> dict[str, int]:
    """Replace the matrices that the graph multiplies with by codes; {tensor of floats that is left, as of experts: its bytes}.
    Refusal where it multiplies with none."""
    from onnx import TensorProto, helper, numpy_helper

    products = list(products_of(graph.graph))
    if not products:
        raise Refusal(
            f"this net multiplies with no matrix that could be kept in {bits} bits",
            "export --precision int8 computes convolutions in 8 bits",
        )
    held = {each.name: each for each in graph.graph.initializer}
    readers = [node for node in graph.graph.node if looks_up_rows(node, 0) and node.input[0] in held]
    made: dict[str, tuple[str, str, int]] = {}
    last = last_products(graph.graph)
    across = {product.matrix for product in products if not product.turned}

    def keep(name: str, rows: Tensor, bits: int) -> None:
        codes, scale, width = grouped_codes(rows, bits, packed)
        made[name] = (f"{name}.groups.codes", f"{name}.groups.scale", width)
        for part, values in zip(made[name][:2], (codes, scale.contiguous())):
            graph.graph.initializer.append(numpy_helper.from_array(values.numpy(), part))

    for product in products:
        name = product.matrix
        if name not in made:
            numbers = numbers_of(held[name])
            wide = product.node.output[0] in last or any(node.input[0] == name for node in readers)
            keep(name, numbers if product.turned else numbers.T.contiguous(), 8 if wide else bits)
        replace(graph.graph, product.node, multiplied(product, *made[name], held[name].dims))
    for node in readers:
        name = node.input[0]
        if name in across:  # its codes lie along the other axis
            continue
        if name not in made and any(fits(base, numbers_of(held[name])) for base in packed):
            keep(name, numbers_of(held[name]), 8)
        if name in made:
            replace(graph.graph, node, looked_up(graph.graph, node, *made[name], held[name].dims[1]))
    drop_unused(graph.graph)
    tables_in_bytes(graph)
    graph.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    floats = [each for each in graph.graph.initializer if each.data_type == TensorProto.FLOAT and len(each.dims) > 1]
    return {each.name: 4 * math.prod(each.dims) for each in floats if not each.name.endswith(".scale")}


def last_products(graph: Any) -> set[str]:
    """What is put out by those products behind which nothing but single numbers are changed, up to the outputs."""
    makers, found = {name: node for node in graph.node for name in node.output}, set[str]()
    pending = ["values"]
    while pending:
        node = makers.get(pending.pop())
        if node is not None and node.op_type in ("MatMul", "Gemm"):
            found.add(node.output[0])
        elif node is not None and node.op_type in PASSING:
            pending += node.input
    return found


def products_of(graph: Any) -> Iterator[Product]:
    """Those with a matrix of floats in the file, one way of lying each: the first that is found."""
    from onnx import TensorProto, helper

    floats = {each.name for each in graph.initializer if each.data_type == TensorProto.FLOAT and len(each.dims) == 2}
    transposed = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Transpose" and n.input[0] in floats}
    lies: dict[str, bool] = {}
    for node in graph.node:
        options = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        plain = options.get("alpha", 1.0) == options.get("beta", 1.0) == 1.0 and not options.get("transA", 0)
        if node.op_type not in ("MatMul", "Gemm") or not plain:
            continue
        name = transposed.get(node.input[1], node.input[1])
        turned = (name != node.input[1]) != bool(options.get("transB", 0))
        if name in floats and lies.setdefault(name, turned) == turned:
            yield Product(node, name, turned, node.input[2] if len(node.input) > 2 else "")


def grouped_codes(rows: Tensor, bits: int, packed: Collection[Packed]) -> tuple[Tensor, Tensor, int]:
    """(codes (rows, groups, bytes of GROUP columns) from 0 up, scales (rows, groups), bits) of a matrix (rows, columns): those of
    a `packed` one that holds the same numbers, or new ones."""
    known, short = next((base for base in packed if fits(base, rows)), None), -rows.shape[1] % GROUP
    if known is not None:
        codes, scale, bits = F.pad(known.form.codes(known.codes)[0], (0, short)), known.scale[0], known.form.bits
        scale = scale.repeat_interleave(rows.shape[1] // scale.shape[1] // GROUP, 1) if scale.shape[1] > 1 else scale
    else:
        form, matrix = FORMATS[f"int{bits}"], F.pad(rows, (0, short))[None]
        scale = fitted_scales(matrix, form, GROUP, torch.ones(matrix.shape[2]))
        codes, scale = form.nearest(matrix / spread(scale, matrix.shape[2]))[0], scale[0]
    codes = codes.unflatten(1, (-1, GROUP))
    codes = FORMATS["int4"].stored(codes) if bits == 4 else (codes + 128).to(torch.uint8)
    return codes, scale.expand(*codes.shape[:2]), bits


def fits(base: Packed, rows: Tensor) -> bool:
    """Whether a packed matrix holds these very numbers, in codes and groups that can be taken over."""
    form, groups = base.form, base.scale.shape[2]
    alike = base.codes.shape[0] == 1 and form.digits is None and form.bits in (4, 8)
    whole = groups == 1 or (rows.shape[1] // groups) % GROUP == 0
    return alike and whole and base.scale.shape[1] == len(rows) and torch.equal(base.matrix[0], rows)


# --------------------------------------------------------------------------------------------------------------- the nodes


def multiplied(product: Product, codes: str, scale: str, bits: int, shape: Any) -> list[Any]:
    from onnx import helper

    node, (rows, columns) = product.node, shape if product.turned else reversed(shape)
    target = f"{node.output[0]}.product" if product.bias else node.output[0]
    found = helper.make_node(
        "MatMulNBits", [node.input[0], codes, scale], [target], f"{target}.node", domain=DOMAIN,
        K=columns, N=rows, bits=bits, block_size=GROUP, accuracy_level=ROUNDED,
    )  # fmt: skip
    return [found, helper.make_node("Add", [target, product.bias], list(node.output))] if product.bias else [found]


def looked_up(graph: Any, node: Any, codes: str, scale: str, bits: int, columns: int) -> list[Any]:
    """Rows of a table in codes, as floats."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    values, places = node.output[0], node.input[1]
    made: list[Any] = []

    def constant(value: Any, kind: Any) -> str:
        name = f"{values}.constant.{len(graph.initializer)}"
        graph.initializer.append(numpy_helper.from_array(np.array(value, kind), name))
        return name

    def step(kind: str, *inputs: str, **options: Any) -> str:
        name = f"{values}.step.{len(made)}"
        made.append(helper.make_node(kind, list(inputs), [name], name, **options))
        return name

    found = step("Gather", codes, places, axis=0)
    if bits == 4:
        last = constant([-1], np.int64)
        low = step("BitwiseAnd", found, constant(15, np.uint8))
        high = step("BitShift", found, constant(4, np.uint8), direction="RIGHT")
        pairs = step("Concat", step("Unsqueeze", low, last), step("Unsqueeze", high, last), axis=-1)
        shape = step("Concat", step("Shape", places), constant([-1, GROUP], np.int64), axis=0)
        found = step("Reshape", pairs, shape)
    found = step("Sub", step("Cast", found, to=TensorProto.FLOAT), constant(2.0 ** (bits - 1), np.float32))
    factor = step("Unsqueeze", step("Gather", scale, places, axis=0), constant([-1], np.int64))
    shape = step("Concat", step("Shape", places), constant([-1], np.int64), axis=0)
    found = step("Reshape", step("Mul", found, factor), shape)
    bounds = [constant([bound], np.int64) for bound in (0, columns, -1)]
    made.append(helper.make_node("Slice", [found, *bounds], [values], f"{values}.rows"))
    return made


def drop_unused(graph: Any) -> None:
    """Matrices that nothing reads any more, and what only turned them."""
    outputs = {each.name for each in graph.output}
    while True:
        used = outputs | {name for node in graph.node for name in node.input}
        gone = [node for node in graph.node if not used & set(node.output)]
        for node in gone:
            graph.node.remove(node)
        if not gone:
            break
    for each in [one for one in graph.initializer if one.name not in used]:
        graph.initializer.remove(each)
