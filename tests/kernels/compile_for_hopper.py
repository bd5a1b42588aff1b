"""Compiles kernels as their trials launch them for compute capability 9.0, down to machine code.

Run by `test_compilation.py` in a process of its own, in which Triton does not interpret.
"""

import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

import zorn.kernels as kernels
from zorn.kernels.twins import Twins

TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int32: "*i32"}
OPTIONS = {"num_warps", "enable_fp_fusion"}
LARGEST_SHARED_MEMORY = 227 * 1024  # bytes a block can have on an H100


def type_of(value):
    if isinstance(value, torch.Tensor):
        return TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def compiled(kernel, *arguments, **named):
    options = {name: named.pop(name) for name in OPTIONS & named.keys()}
    values = dict(zip(kernel.arg_names, arguments, strict=False)) | named
    fixed = {p.name for p in kernel.params if p.is_constexpr}
    signature = {n: "constexpr" if n in fixed else type_of(values[n]) for n in kernel.arg_names}
    source = ASTSource(kernel, signature, {name: values[name] for name in fixed})
    found = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert found.asm["cubin"]
    assert found.metadata.shared <= LARGEST_SHARED_MEMORY
    print(kernel.fn.__name__, found.metadata.shared)


JITFunction.__getitem__ = lambda kernel, grid: lambda *a, **k: compiled(kernel, *a, **k)
for name in sys.argv[1:]:
    twins = getattr(kernels, name)
    assert isinstance(twins, Twins)
    twins._trial(twins.kernel, torch.device("cpu"), torch.bfloat16)
