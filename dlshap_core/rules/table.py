"""The table of rules: how every torch operation is treated, by its name.

Names are those of the torch function or method without the trailing underscore of its in-place form. Python functions
of torch (most of torch.nn.functional) are traced, so that only the operations beneath them are listed. What is not
listed is integrated along its own path, or refused where that does not converge.

Adding a rule is one function in this package and one line here.
"""

import types
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F

from dlshap_core.kernels import fused
from dlshap_core.kernels.memory_format import CONVERSIONS, SHARES_OR_COPIES
from dlshap_core.rules import (
    arithmetic,
    attention,
    complex_numbers,
    maxima,
    names,
    normalization,
    recurrent,
    secants,
    softmaxes,
)
from dlshap_core.rules.call import Call, is_varying
from dlshap_core.rules.convolutions import Convolution, TransposedConvolution
from dlshap_core.rules.elementwise import Elementwise, Power, Prelu, prelu
from dlshap_core.rules.integrated import INTEGRATED
from dlshap_core.rules.kinds import (
    Branch,
    Composite,
    Constant,
    Detached,
    Index,
    Kind,
    Linear,
    LinearBy,
    MaxOf,
    OnlyIf,
    Packing,
    PairRule,
    Refused,
    Split,
    Traced,
)
from dlshap_core.rules.layouts import Joining, Reducing, Reshaping
from dlshap_core.rules.masks import Combination, Comparison, Negation, Select, SelectOrAssign
from dlshap_core.rules.products import Multilinear, Product, Quotient
from dlshap_core.torch_private import traceable

# On a CPU those with a kernel, or whose plain function is given, have one pass over memory: in the backward pass, or
# when the multiplier is made. Not sigmoid and tanh: where they are flat, the ratio of differences has few digits, and
# the closed forms have them.
_ELEMENTWISE = {
    **{name: Elementwise(getattr(secants, name)) for name in names.CLOSED_SECANTS},
    "relu": Elementwise(secants.ramp, kernel=fused.relu),
    "relu6": Elementwise(secants.relu6, kernel=fused.relu6),
    "leaky_relu": Elementwise(secants.leaky_relu, kernel=fused.leaky_relu),
    "abs": Elementwise(secants.absolute, kinked=torch.abs),
    "absolute": Elementwise(secants.absolute, kinked=torch.abs),
    "clamp": Elementwise(secants.clamp, kernel=fused.clamp),
    "clip": Elementwise(secants.clamp, kernel=fused.clamp),
    "clamp_min": Elementwise(secants.clamp, kernel=fused.clamp),
    "clamp_max": Elementwise(secants.clamp_max, kernel=fused.clamp_max),
    "hardtanh": Elementwise(secants.hardtanh, kernel=fused.hardtanh),
    "hardsigmoid": Elementwise(secants.hardsigmoid, kinked=F.hardsigmoid),
    "hardswish": Elementwise(secants.hardswish, kernel=fused.hardswish),
    "softshrink": Elementwise(secants.softshrink, kinked=F.softshrink),
    "elu": Elementwise(secants.elu, kinked=torch.ops.aten.elu),
    "celu": Elementwise(secants.celu, kinked=torch.celu),
    "selu": Elementwise(secants.selu, kinked=torch.selu),
    "sigmoid": Elementwise(secants.sigmoid, in_single=fused.SIGMOID),
    "special_expit": Elementwise(secants.sigmoid, in_single=fused.SIGMOID),
    "tanh": Elementwise(secants.tanh, in_single=fused.TANH),
    "silu": Elementwise(secants.silu, in_single=fused.SILU, smooth=F.silu),
    "softplus": Elementwise(secants.softplus, smooth=F.softplus),
    "log_sigmoid": Elementwise(secants.log_sigmoid, smooth=F.logsigmoid),
    "mish": Elementwise(secants.mish, smooth=F.mish),
    "erf": Elementwise(secants.erf, smooth=torch.erf),
    "gelu": Elementwise(secants.gelu, in_single=fused.GELU, smooth=F.gelu),
}


def _smooth(function: Callable[..., torch.Tensor], is_singular: bool = False) -> Callable[..., torch.Tensor]:
    return lambda x, r: secants.smooth(function, x, r, is_singular=is_singular)


def _step(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda x, r, *rest, **options: secants.step(lambda z: function(z, *rest, **options), x, r)


def _shrink(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda x, r, *rest, **options: secants.shrink(lambda z: function(z, *rest, **options), x, r)


def _is_not_training(position: int, name: str) -> Callable[[Call], bool]:
    def check(call: Call) -> bool:
        training = call.args[position] if len(call.args) > position else call.kwargs.get(name, False)
        return not training

    return check


_DROPOUT = OnlyIf(
    Linear(), _is_not_training(2, "train"), "it drops at random; call it with training=self.training, or use a module"
)


def _composites(label: str, module: types.ModuleType, functions: str) -> dict[str, Composite]:
    """Those that are called like the torch functions that they stand for."""
    return {name: Composite(getattr(module, name), label) for name in names.words(functions)}


_COMPOSITES = {
    **_composites("spelled out", arithmetic, "lerp addcdiv logit hypot cosine_similarity pairwise_distance cdist"),
    **_composites("product: midpoint", arithmetic, "glu"),
    **_composites("logsumexp", arithmetic, "logaddexp logaddexp2"),
    **_composites("order statistics", arithmetic, "kthvalue median"),
    **_composites("maximum", arithmetic, "aminmax"),
    **_composites(
        "normalisation: spelled out",
        normalization,
        "layer_norm rms_norm group_norm instance_norm var std var_mean std_mean norm linalg_norm",
    ),
    "linalg_vector_norm": Composite(normalization.vector_norm, "normalisation: spelled out"),
    "linalg_matrix_norm": Composite(normalization.matrix_norm, "normalisation: spelled out"),
    **_composites("attention: spelled out", attention, "scaled_dot_product_attention"),
    "polar": Composite(complex_numbers.polar, complex_numbers.LABEL),
    **_composites("recurrent: unrolled", recurrent, "lstm gru rnn_tanh rnn_relu"),
    **_composites("recurrent: unrolled", recurrent, "lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell"),
    "maximum": Composite(arithmetic.maximum, "maximum: ramp"),
    "fmax": Composite(arithmetic.maximum, "maximum: ramp"),
    "minimum": Composite(arithmetic.minimum, "minimum: ramp"),
    "fmin": Composite(arithmetic.minimum, "minimum: ramp"),
}

_MAXIMA: dict[str, Callable[..., Any]] = {
    **{f"max_pool{d}d": maxima.max_pool(d) for d in (1, 2, 3)},
    **{f"max_pool{d}d_with_indices": maxima.max_pool(d, True) for d in (1, 2, 3)},
    **{f"adaptive_max_pool{d}d": maxima.adaptive_max_pool(d) for d in (1, 2, 3)},
    **{f"adaptive_max_pool{d}d_with_indices": maxima.adaptive_max_pool(d, True) for d in (1, 2, 3)},
    "amax": maxima.amax,
    "amin": maxima.amin,
    "cummax": maxima.cummax,
    "cummin": maxima.cummin,
}


def _joined(*parts: Mapping[str, Kind]) -> dict[str, Kind]:
    """Names and treatments; a name has one."""
    table: dict[str, Kind] = {}
    for part in parts:
        assert not (twice := table.keys() & part.keys()), f"{twice} have a treatment already"
        table |= part
    return table


def _each(names_of: str, kind: Kind) -> dict[str, Kind]:
    return dict.fromkeys(names.words(names_of), kind)


TABLE = _joined(
    dict.fromkeys(names.CONSTANT, Constant()),
    dict.fromkeys(names.LINEAR, Linear()),
    dict.fromkeys(names.MULTILINEAR, Multilinear()),
    dict.fromkeys(SHARES_OR_COPIES | CONVERSIONS, Reshaping()),
    _each("cat concat concatenate", Joining()),
    _each("sum", Reducing(is_mean=False)),
    _each("mean", Reducing(is_mean=True)),
    _each("conv1d conv2d", Convolution()),
    _each("conv_transpose1d", TransposedConvolution()),
    _each("mul multiply", Product()),
    _each("matmul mm bmm", Product(is_of_matrices=True)),
    _each("__getitem__ index_select gather take take_along_dim masked_select embedding", Index()),
    _each("_pack_padded_sequence _pad_packed_sequence", Packing()),
    _each("split split_with_sizes chunk tensor_split unbind", Split()),
    dict.fromkeys(names.DERIVED, Linear("no gradient")),
    dict.fromkeys(names.LEAVES_TORCH, Refused("the value leaves torch, so nothing can be followed through it")),
    _ELEMENTWISE,
    {name: Elementwise(_smooth(getattr(torch, name))) for name in names.SMOOTH},
    _each("lgamma special_gammaln", Elementwise(_smooth(torch.lgamma, is_singular=True))),
    {name: Elementwise(_step(getattr(torch, name)), "step: secant") for name in names.STEPS},
    {name: Elementwise(_shrink(getattr(torch, name))) for name in ("threshold", "hardshrink")},
    _COMPOSITES,
    {name: PairRule(rule, "maximum", breaks_ties=True) for name, rule in _MAXIMA.items()},
    {name: PairRule(getattr(maxima, name), "order statistics", breaks_ties=True) for name in ("sort", "topk")},
    _each(
        "softmax special_softmax",
        PairRule(softmaxes.softmax, "softmax", observes=softmaxes.softmax_value, in_own_format=torch.Tensor.contiguous),
    ),
    _each("log_softmax special_log_softmax", PairRule(softmaxes.log_softmax, "softmax")),
    _each("logsumexp", PairRule(softmaxes.logsumexp, "softmax")),
    _each("logcumsumexp", PairRule(softmaxes.logcumsumexp, "softmax")),
    _each("div divide true_divide", Quotient()),
    _each("dropout feature_dropout alpha_dropout feature_alpha_dropout", _DROPOUT),
    _each("gt greater __gt__", Comparison(0, 0, 1)),
    _each("ge greater_equal __ge__", Comparison(0, 1, 1)),
    _each("lt less __lt__", Comparison(1, 0, 0)),
    _each("le less_equal __le__", Comparison(1, 1, 0)),
    _each("eq __eq__", Comparison(0, 1, 0)),
    _each("ne not_equal __ne__", Comparison(1, 0, 1)),
    _each("logical_not bitwise_not __invert__", Negation()),
    _each("logical_and bitwise_and __and__ __iand__", Combination("and")),
    _each("logical_or bitwise_or __or__ __ior__", Combination("or")),
    _each("logical_xor bitwise_xor __xor__ __ixor__", Combination("xor")),
    _each("where Tensor.where masked_fill", Select()),
    _each("detach property:data", Detached()),
    _each("__bool__ __contains__ equal allclose is_nonzero _nested_tensor_from_mask_left_aligned", Branch()),
    _each("pow float_power", Power(Elementwise(secants.power), Composite(arithmetic.power_of_base, "power"))),
    {
        "prelu": Prelu(prelu, "elementwise: secant"),
        "__setitem__": SelectOrAssign(),
        "rrelu": OnlyIf(Elementwise(secants.rrelu), _is_not_training(3, "training"), "it is random while training"),
        "batch_norm": OnlyIf(
            LinearBy(function=normalization.batch_norm),
            _is_not_training(5, "training"),
            "batch statistics mix the sequences of a batch; use running statistics",
        ),
        "max": MaxOf(PairRule(maxima.max_over_axis, "maximum", breaks_ties=True), _COMPOSITES["maximum"]),
        "min": MaxOf(PairRule(maxima.min_over_axis, "maximum", breaks_ties=True), _COMPOSITES["minimum"]),
        "new_tensor": OnlyIf(
            Constant(),
            lambda call: not is_varying(call.args[1]),
            "it copies the value without its history; use clone()",
        ),
        "backward": Refused("forward computes gradients of its own"),
    },
)

# Of complex numbers that vary; what is linear, or a product, is treated as of real ones.
_COMPLEX = _joined(
    _composites(complex_numbers.LABEL, complex_numbers, "angle exp square reciprocal"),
    _each("abs absolute", Composite(complex_numbers.absolute, complex_numbers.LABEL)),
    _each("pow float_power", Composite(complex_numbers.power, complex_numbers.LABEL)),
    _each("div divide true_divide", complex_numbers.ComplexQuotient()),
    _each("linalg_vector_norm", Composite(complex_numbers.vector_norm, complex_numbers.LABEL)),
)
_LIKE_REAL = (Linear, Constant, Branch, Detached, OnlyIf, Refused, Select, SelectOrAssign, Traced)
_OF_REAL_ALONE = Refused("no rule is known for it of complex numbers; write it with .real and .imag")

# These call the method of the same name, and would be traced for ever; or read values.
_NEVER_TRACED = {name for name, kind in TABLE.items() if kind.is_linear} - {*names.DERIVED, "embedding"}
_NEVER_TRACED |= {"__contains__", "__deepcopy__", "unique"}


def of_complex(name: str, kind: Kind) -> Kind:
    """The treatment where what varies is complex, of an operation that has `kind` where it is real."""
    if isinstance(kind, Multilinear):
        return Multilinear()
    return _COMPLEX.get(name, kind if isinstance(kind, _LIKE_REAL) else _OF_REAL_ALONE)


@lru_cache(maxsize=4096)
def look_up(function: Callable[..., Any]) -> tuple[str, bool, Kind]:
    """(name, whether in place, treatment) of a torch function.

    A function that hands itself to torch's overrides may bring its own treatment as the attribute `dlshap_kind`.
    """
    name = getattr(function, "__name__", str(function))
    if (own_kind := getattr(function, "dlshap_kind", None)) is not None:
        return name, False, own_kind
    if name in ("__get__", "__set__"):
        attribute = function.__self__.__name__  # type: ignore[attr-defined]
        if name == "__set__":
            return f"set {attribute}", False, Refused("forward overwrites a tensor's attribute")
        return f"property:{attribute}", False, TABLE.get(f"property:{attribute}", INTEGRATED)
    in_place = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
    if in_place and name != "__setitem__":
        name = name.rstrip("_")
    if name not in _NEVER_TRACED and (body := traceable(function)) is not None:
        return name, False, Traced(body)
    if isinstance(function, types.BuiltinFunctionType) and name.startswith("adaptive_max_pool"):
        name += "_with_indices"  # the torch-level function always returns both
    if isinstance(function, types.MethodDescriptorType) and name == "where":
        name = "Tensor.where"
    return name, in_place, TABLE.get(name, INTEGRATED)
