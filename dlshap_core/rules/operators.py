"""Fused rules as operators of torch: a gradient taken back through an operation in one pass over memory.

Each has one name, `torch.ops.dlshap...`, and a form for each kind of device: on a CPU compiled kernels, or torch's own
operations where there is none; on a GPU Triton, which comes with torch's builds for GPUs, and torch's operations where
it does not. They run late, when gradients go back: until then nothing is kept but the activations.

Shape legend: activations x of the sequences and r of the references are views that broadcast, (..., S, 1, ...) and
(..., S, R, ...), as `RowPairing.paired` gives them; a gradient and what is made of it have the shape of r.
"""

import functools
import importlib.util
import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dlshap_core.errors import is_out_of_memory
from dlshap_core.kernels import fused
from dlshap_core.rules import secants
from dlshap_core.rules.names import words

_LIBRARY = torch.library.Library("dlshap", "DEF")
_Rule = tuple[str, tuple[float, ...]]
_IS_FOR_GPUS = bool(torch.version.cuda or torch.version.hip)


def define(
    schema: str, by_torch: Callable[..., Any], by_triton: Callable[..., Any], on_cpu: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """The operator with this schema, of torch's operations unless there is something better for the device."""
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, on_cpu or by_torch, "CPU")

    def on_gpu(*args: Any) -> Any:
        device = next(arg.device for arg in args if isinstance(arg, Tensor))
        with torch.cuda.device(device):
            return (by_triton if has_triton(device) else by_torch)(*args)

    if _IS_FOR_GPUS:
        _LIBRARY.impl(name, on_gpu, "CUDA")
    operator: Callable[..., Any] = getattr(torch.ops.dlshap, name).default
    return operator


@functools.cache
def has_triton(device: torch.device) -> bool:
    """Whether Triton runs on a GPU: it is installed, knows the GPU, and finds the C compiler that its launching
    needs."""
    if not _IS_FOR_GPUS or importlib.util.find_spec("triton") is None:
        return False
    x = torch.zeros(1, 1, device=device)
    try:
        with torch.cuda.device(device):  # Triton launches on the current one
            _secant_by_triton(None, x, x, "ramp", [])
    except Exception as error:
        if is_out_of_memory(error):
            raise
        warnings.warn(
            f"Triton cannot be used here, so rules take more passes over memory: {type(error).__name__}: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


def as_rows(n_axes: int, x: Tensor, r: Tensor, *others: Tensor) -> tuple[int, list[Tensor]]:
    """The rows of one sequence, and x, r and the others as rows of the elements in their last axes."""
    n_elements = r.shape[-n_axes:].numel()
    axis = next((d for d in range(r.ndim - n_axes) if x.shape[d] != r.shape[d]), r.ndim)
    n_inner = r.shape[axis + 1 : -n_axes].numel()
    shaped = (z.reshape(z.numel() // max(1, n_elements), n_elements) for z in (x, r, *others))
    return n_inner, [z.contiguous() for z in shaped]


def is_for(x: Tensor) -> bool:
    """Whether gradients of an activation are taken back by these operators: on a GPU. On a CPU the rules make most
    multipliers while they have the values of the function at hand."""
    return x.is_cuda


# --- elementwise functions ---------------------------------------------------------------------------------------

# Secants of `rules.secants` by name, which take numbers alone; others are one of these.
SECANTS = words(
    "ramp leaky_relu absolute clamp hardsigmoid hardswish softshrink elu exp log log1p square cube sqrt rsqrt "
    "reciprocal tanh sigmoid silu softplus log_sigmoid mish erf gelu gelu_tanh jump"
)
_AS: dict[str, Callable[..., tuple[Any, ...]]] = {
    "clamp": lambda low, high: ("clamp", -math.inf if low is None else low, math.inf if high is None else high),
    "clamp_max": lambda high: ("clamp", -math.inf, high),
    "hardtanh": lambda low, high: ("clamp", low, high),
    "relu6": lambda: ("clamp", 0.0, 6.0),
    "rrelu": lambda lower, upper, _: ("leaky_relu", (lower + upper) / 2),
    "celu": lambda alpha: ("elu", alpha, 1.0, 1 / alpha),
    "selu": lambda: ("elu", *secants.SELU),
    "expm1": lambda: ("exp",),
    "gelu": lambda approximate: ("gelu_tanh" if approximate == "tanh" else "gelu",),
    "power": lambda exponent: ({2.0: "square", 3.0: "cube", 0.5: "sqrt", -1.0: "reciprocal"}.get(float(exponent)),),
}
_COMPILED = {"ramp": fused.relu, "leaky_relu": fused.leaky_relu}  # on a CPU


def of_secant(function: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Rule | None:
    """Which of `SECANTS`, and with which numbers, is a secant with these arguments behind the two activations."""
    if any(isinstance(x, Tensor) for x in (*args, *kwargs.values())):
        return None
    return _of_secant(function, args, tuple(kwargs.items()))


@functools.lru_cache(maxsize=1024)
def _of_secant(
    function: Callable[..., Tensor], args: tuple[Any, ...], kwargs: tuple[tuple[str, Any], ...]
) -> _Rule | None:
    name = function.__name__
    if name not in SECANTS | _AS.keys() or getattr(secants, name) is not function:
        return None
    bound = inspect.signature(function).bind(None, None, *args, **dict(kwargs))
    bound.apply_defaults()
    values = bound.args[2:]
    rule, *numbers = _AS[name](*values) if name in _AS else (name, *values)
    return None if rule is None else (rule, tuple(map(float, numbers)))


def _secant_by_torch(gradient: Tensor | None, x: Tensor, r: Tensor, rule: str, numbers: list[float]) -> Tensor:
    multiplier = getattr(secants, rule)(at_least_float32(x), at_least_float32(r), *numbers)
    return multiplier if gradient is None else (gradient * multiplier).to(gradient.dtype)


def _secant_on_cpu(gradient: Tensor | None, x: Tensor, r: Tensor, rule: str, numbers: list[float]) -> Tensor:
    if gradient is not None and rule in _COMPILED and fused.fits(x, r):
        return fused.pull_back(_COMPILED[rule], gradient, x, r, tuple(numbers))
    return _secant_by_torch(gradient, x, r, rule, numbers)


def _secant_by_triton(gradient: Tensor | None, x: Tensor, r: Tensor, rule: str, numbers: list[float]) -> Tensor:
    from dlshap_core.kernels import triton_secants

    flat = fused.Flat(x, r)
    found = triton_secants.secant(None if gradient is None else flat.of(gradient), flat.x, flat.r, rule, numbers)
    return flat.back(found)


def at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


secant = define(
    "secant(Tensor? gradient, Tensor x, Tensor r, str rule, float[] numbers) -> Tensor",
    _secant_by_torch,
    _secant_by_triton,
    _secant_on_cpu,
)
