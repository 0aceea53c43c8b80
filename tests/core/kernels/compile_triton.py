"""Compile every kernel of a GPU with Triton's own compiler, which needs no GPU: `python compile_triton.py CAPABILITY`.

What the operators launch is compiled to machine code in the place of being run.
"""

import sys

import torch
from torch import Tensor
from triton import compile as compile_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from dlshap_core.rules import masks, maxima, normalization, operators, products, softmaxes

NAMES = {torch.float32: "*fp32", torch.float64: "*fp64", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
NAMES_OF_PLACES = {torch.int64: "*i64", torch.int8: "*i8"}
TARGET = GPUTarget("cuda", int(sys.argv[1]), 32)
compiled: set[str] = set()


def compile_launch(kernel: JITFunction, *values: object, **_: object) -> None:
    signature, constants = {}, {}
    for number, (parameter, value) in enumerate(zip(kernel.params, values, strict=True)):
        if parameter.is_constexpr:
            signature[parameter.name], constants[(number,)] = "constexpr", value
        else:
            signature[parameter.name] = (NAMES | NAMES_OF_PLACES)[value.dtype] if isinstance(value, Tensor) else "i32"
    made = compile_kernel(ASTSource(kernel, signature, constexprs=constants), target=TARGET)
    assert made.asm["cubin"]
    compiled.add(kernel.__name__)


JITFunction.run = compile_launch
for dtype in NAMES:
    gradient, x, r = (
        torch.ones(2, 3, 5, dtype=dtype),
        torch.ones(2, 1, 5, dtype=dtype),
        torch.ones(2, 3, 5, dtype=dtype),
    )
    for rule in operators.SECANTS:
        operators._secant_by_triton(gradient, x, r, rule, [0.5, 1.0, 1.0])
    for n_columns in (1, 64, 3000):
        rows = [z[..., :1].expand(*z.shape[:-1], n_columns).contiguous() for z in (gradient, x, r)]
        for kind in ("softmax", "log_softmax", "logsumexp"):
            softmaxes._softmax_by_triton(*rows, kind)
        for weight in (None, rows[0][0, 0]):
            normalization._norm_by_triton(*rows, weight, 1, 1e-5, weight is None)
    for size in (2, 3, 4):
        maxima._blocks_by_triton(
            torch.ones(6, 4, 12 // size, dtype=dtype), *(torch.ones(n, 4, 12, dtype=dtype) for n in (2, 6)), size
        )
    places = [torch.zeros(n, 4, 6, dtype=torch.int64) for n in (2, 6)]
    pooled = (torch.ones(n, 4, 12, dtype=dtype) for n in (2, 6))
    maxima._windows_by_triton(torch.ones(6, 4, 6, dtype=dtype), *pooled, *places, [3], [2], [1])
    products._mean_by_triton(x, r)
    products._product_by_triton(gradient, x, r, x, r)
    for observed in (None, x):
        products._quotient_by_triton(gradient, observed, r, x, r)
        for levels in ((), (0.0, 0.0, 1.0, 0.5)):
            masks._select_by_triton(gradient, x, r, observed, r if observed is x else r[0, 0, 0], x, r, levels)
            masks._select_by_triton(gradient, x, r, x, r, observed, r, levels)
            masks._select_by_triton(gradient, x, r, None, None, observed, r, levels)
sys.stdout.write(" ".join(sorted(compiled)))
