"""The table of rules: how every torch operation is treated, by its name.

Names are those of the torch function or method without the trailing underscore of its in-place form. Python functions
of torch (most of torch.nn.functional) are opened, so that only the operations beneath them are listed. What is not
listed is integrated along its own path, or refused where that does not converge.

Adding a rule is one function in this package and one line here.
"""

import types
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F

from dlshap_core.memory_format import CONVERSIONS, SHARES_OR_COPIES
from dlshap_core.rules import arithmetic, attention, fused, maxima, normalization, recurrent, secants, softmaxes
from dlshap_core.rules.convolutions import Convolution
from dlshap_core.rules.elementwise import Elementwise, Power
from dlshap_core.rules.integrated import INTEGRATED
from dlshap_core.rules.kinds import (
    Beside,
    Branch,
    Call,
    Constant,
    Detached,
    FromFirst,
    Kind,
    Linear,
    LinearBy,
    MaxOf,
    OnlyIf,
    Opened,
    Picks,
    Pieces,
    Refused,
    Spelled,
    is_varying,
)
from dlshap_core.rules.layouts import Joining, Reshaping
from dlshap_core.rules.masks import Combination, Comparison, Negation, Select, SelectOrAssign
from dlshap_core.rules.products import Multilinear, Product, Quotient


def _names(text: str) -> list[str]:
    return text.split()


# What is asked of a tensor without reading its values.
READS_NO_VALUES = frozenset(
    _names(
        """
        size dim numel nelement ndimension stride storage_offset is_contiguous is_floating_point is_complex
        is_signed __len__ __repr__ __format__ __hash__ __dir__ data_ptr get_device element_size has_names
        is_same_size result_type can_cast is_tensor storage untyped_storage is_inference is_shared is_pinned
        is_set_to _is_view retain_grad register_hook requires_grad_ requires_grad promote_types is_same_shape
        property:shape property:dtype property:device property:ndim property:layout property:requires_grad
        property:grad_fn property:grad property:is_cuda property:is_cpu property:is_mps property:is_leaf
        property:is_sparse property:is_quantized property:is_meta property:is_nested property:itemsize
        property:nbytes property:names property:_version property:output_nr property:is_mkldnn property:is_xpu
        property:_base property:is_xla property:is_vulkan property:is_ipu property:is_maia
        property:_backward_hooks property:is_sparse_csr
        """
    )
)

# Masks and indices stay what they are here; elsewhere a mask is replaced by its number.
KEEPS_MASKS = READS_NO_VALUES | frozenset(
    _names("any all __bool__ isnan isinf isfinite _nested_tensor_from_mask_left_aligned")
)

# What only moves indices around; they stay derived from the input.
MOVES_INDICES = frozenset(
    _names(
        """
        narrow squeeze unsqueeze view reshape flatten movedim transpose permute flip clone contiguous detach
        expand __getitem__ unbind split chunk
        """
    )
)

# What takes only the shape or dtype of its second argument.
LIKE_SECOND = frozenset(_names("type_as to expand_as view_as reshape_as"))

# Conversions of a mask to numbers; its number serves whatever the dtype, so that no digits are lost on the way back.
CONVERTS_MASKS = frozenset(_names("to type type_as float double half bfloat16 long int"))

RANDOM = frozenset(
    _names(
        """
        bernoulli multinomial normal poisson rand randn randint randperm rand_like randn_like randint_like uniform
        exponential cauchy geometric log_normal random binomial fractional_max_pool2d fractional_max_pool3d
        fractional_max_pool2d_with_indices fractional_max_pool3d_with_indices
        """
    )
)

_CONSTANT = _names(
    """
    zeros_like ones_like empty_like full_like new_zeros new_ones new_empty new_full new_tensor broadcast_shapes
    """
)

_LINEAR = _names(
    """
    add sub subtract rsub neg negative positive sum mean nansum cumsum diff trace conj real cat concat concatenate
    stack hstack vstack dstack column_stack row_stack split split_with_sizes chunk tensor_split unsafe_split
    unsafe_chunk hsplit vsplit unbind view view_as reshape reshape_as flatten unflatten ravel squeeze unsqueeze
    expand expand_as repeat tile repeat_interleave broadcast_to broadcast_tensors permute transpose swapaxes
    swapdims movedim moveaxis t property:T property:mT property:H property:mH property:real adjoint numpy_T flip
    fliplr flipud roll rot90 narrow select slice diagonal diag diag_embed tril triu as_strided unfold atleast_1d
    atleast_2d atleast_3d __getitem__ index_select gather take take_along_dim index_add index_copy index_fill
    scatter_add select_scatter slice_scatter diagonal_scatter masked_select meshgrid clone contiguous to type
    type_as float double half bfloat16 cpu cuda alias copy fill zero resolve_conj resolve_neg pad constant_pad_nd
    reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d
    im2col col2im pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle avg_pool1d avg_pool2d
    avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d upsample_nearest1d upsample_nearest2d
    upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
    upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d nan_to_num
    """
)

_MULTILINEAR = _names(
    """
    mul multiply matmul mm bmm mv dot vdot vecdot linalg_vecdot inner outer ger einsum tensordot linear bilinear
    kron cross linalg_cross conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution
    _convolution baddbmm addmm addmv addbmm addr addcmul chain_matmul linalg_multi_dot
    """
)

# Depend on the input without a gradient: refused where they are used, unless only to choose a Python branch.
_DERIVED = _names(
    """
    argmax argmin argsort isclose isnan isinf isfinite isreal nonzero argwhere count_nonzero signbit searchsorted
    bucketize unique any all long int short byte char bool
    """
)

_COMPARISONS = _names(
    """
    gt ge lt le eq ne __gt__ __ge__ __lt__ __le__ __eq__ __ne__ greater greater_equal less less_equal not_equal
    """
)

_LEAVES_TORCH = _names(
    """
    tensor asarray __deepcopy__ item tolist numpy __array__ __float__ __int__ __index__ __complex__ __dlpack__ map
    apply
    """
)

_ELEMENTWISE: dict[str, Callable[..., torch.Tensor]] = {
    "relu": secants.relu,
    "relu6": secants.relu6,
    "leaky_relu": secants.leaky_relu,
    "prelu": secants.prelu,
    "abs": secants.absolute,
    "absolute": secants.absolute,
    "clamp": secants.clamp,
    "clip": secants.clamp,
    "clamp_min": secants.clamp_min,
    "clamp_max": secants.clamp_max,
    "hardtanh": secants.hardtanh,
    "hardsigmoid": secants.hardsigmoid,
    "hardswish": secants.hardswish,
    "softshrink": secants.softshrink,
    "elu": secants.elu,
    "celu": secants.celu,
    "selu": secants.selu,
    "exp": secants.exp,
    "exp2": secants.exp2,
    "expm1": secants.expm1,
    "log": secants.log,
    "log1p": secants.log1p,
    "log2": secants.log2,
    "log10": secants.log10,
    "square": secants.square,
    "sqrt": secants.sqrt,
    "rsqrt": secants.rsqrt,
    "reciprocal": secants.reciprocal,
    "tanh": secants.tanh,
    "sigmoid": secants.sigmoid,
    "special_expit": secants.sigmoid,
    "silu": secants.silu,
    "softplus": secants.softplus,
    "log_sigmoid": secants.log_sigmoid,
    "mish": secants.mish,
    "erf": secants.erf,
    "gelu": secants.gelu,
}


# On a CPU these have one pass over memory: in the backward pass, or when the multiplier is made. Not sigmoid and tanh:
# where they are flat, the ratio of differences has few digits, and the closed forms have them.
_KERNELS = {"relu": fused.relu, "leaky_relu": fused.leaky_relu}
_SMOOTH_ACTIVATIONS: dict[str, Callable[..., torch.Tensor]] = {
    "gelu": F.gelu,
    "silu": F.silu,
    "softplus": F.softplus,
    "log_sigmoid": F.logsigmoid,
    "mish": F.mish,
    "erf": torch.erf,
}
_KINKED_ACTIVATIONS: dict[str, Callable[..., torch.Tensor]] = {
    "elu": torch.ops.aten.elu,
    "celu": torch.celu,
    "selu": torch.selu,
    "abs": torch.abs,
    "absolute": torch.abs,
    "clamp": torch.clamp,
    "clip": torch.clamp,
    "clamp_min": torch.clamp_min,
    "clamp_max": torch.clamp_max,
    "relu6": F.relu6,
    "hardtanh": F.hardtanh,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "softshrink": F.softshrink,
}


def _smooth(function: Callable[..., torch.Tensor], is_singular: bool = False) -> Callable[..., torch.Tensor]:
    return lambda x, r: secants.smooth(function, x, r, is_singular=is_singular)


def _step(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda x, r, *rest, **options: secants.step(lambda z: function(z, *rest, **options), x, r)


def _shrink(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda x, r, *rest, **options: secants.shrink(lambda z: function(z, *rest, **options), x, r)


_SMOOTH = _names(
    """
    sin cos tan asin acos atan sinh cosh asinh acosh atanh erfc sinc arcsin arccos arctan arcsinh arctanh
    """
)
_STEPS = _names("sign sgn round floor ceil trunc fix")


def _is_not_training(position: int, name: str) -> Callable[[Call], bool]:
    def check(call: Call) -> bool:
        training = call.args[position] if len(call.args) > position else call.kwargs.get(name, False)
        return not training

    return check


_DROPOUT = OnlyIf(
    Linear(), _is_not_training(2, "train"), "it drops at random; call it with training=self.training, or use a module"
)

_SPELLED: dict[str, tuple[Callable[..., Any], str]] = {
    "glu": (arithmetic.glu, "product: midpoint"),
    "lerp": (arithmetic.lerp, "spelled out"),
    "addcdiv": (arithmetic.addcdiv, "spelled out"),
    "maximum": (arithmetic.maximum, "maximum: ramp"),
    "fmax": (arithmetic.maximum, "maximum: ramp"),
    "minimum": (arithmetic.minimum, "minimum: ramp"),
    "fmin": (arithmetic.minimum, "minimum: ramp"),
    "logit": (arithmetic.logit, "spelled out"),
    "logaddexp": (arithmetic.logaddexp, "logsumexp"),
    "hypot": (arithmetic.hypot, "spelled out"),
    "cosine_similarity": (arithmetic.cosine_similarity, "spelled out"),
    "pairwise_distance": (arithmetic.pairwise_distance, "spelled out"),
    "cdist": (arithmetic.cdist, "spelled out"),
    "topk": (arithmetic.topk, "order statistics"),
    "kthvalue": (arithmetic.kthvalue, "order statistics"),
    "median": (arithmetic.median, "order statistics"),
    "layer_norm": (normalization.layer_norm, "normalisation: spelled out"),
    "rms_norm": (normalization.rms_norm, "normalisation: spelled out"),
    "group_norm": (normalization.group_norm, "normalisation: spelled out"),
    "instance_norm": (normalization.instance_norm, "normalisation: spelled out"),
    "var": (normalization.var, "normalisation: spelled out"),
    "std": (normalization.std, "normalisation: spelled out"),
    "var_mean": (normalization.var_mean, "normalisation: spelled out"),
    "std_mean": (normalization.std_mean, "normalisation: spelled out"),
    "linalg_vector_norm": (normalization.vector_norm, "normalisation: spelled out"),
    "linalg_norm": (normalization.linalg_norm, "normalisation: spelled out"),
    "linalg_matrix_norm": (normalization.matrix_norm, "normalisation: spelled out"),
    "norm": (normalization.norm, "normalisation: spelled out"),
    "scaled_dot_product_attention": (attention.scaled_dot_product_attention, "attention: spelled out"),
    "lstm": (recurrent.lstm, "recurrent: unrolled"),
    "gru": (recurrent.gru, "recurrent: unrolled"),
    "rnn_tanh": (recurrent.rnn_tanh, "recurrent: unrolled"),
    "rnn_relu": (recurrent.rnn_relu, "recurrent: unrolled"),
    "lstm_cell": (recurrent.lstm_cell, "recurrent: unrolled"),
    "gru_cell": (recurrent.gru_cell, "recurrent: unrolled"),
    "rnn_tanh_cell": (recurrent.rnn_tanh_cell, "recurrent: unrolled"),
    "rnn_relu_cell": (recurrent.rnn_relu_cell, "recurrent: unrolled"),
}

_BESIDE: dict[str, tuple[Callable[..., Any], str]] = {
    **{f"max_pool{d}d": (maxima.max_pool(f"max_pool{d}d"), "maximum") for d in (1, 2, 3)},
    **{f"max_pool{d}d_with_indices": (maxima.max_pool(f"max_pool{d}d", True), "maximum") for d in (1, 2, 3)},
    **{f"adaptive_max_pool{d}d": (maxima.adaptive_max_pool(f"adaptive_max_pool{d}d"), "maximum") for d in (1, 2, 3)},
    **{
        f"adaptive_max_pool{d}d_with_indices": (maxima.adaptive_max_pool(f"adaptive_max_pool{d}d", True), "maximum")
        for d in (1, 2, 3)
    },
    "amax": (maxima.amax, "maximum"),
    "amin": (maxima.amin, "maximum"),
    "softmax": (softmaxes.softmax, "softmax"),
    "special_softmax": (softmaxes.softmax, "softmax"),
    "log_softmax": (softmaxes.log_softmax, "softmax"),
    "special_log_softmax": (softmaxes.log_softmax, "softmax"),
    "logsumexp": (softmaxes.logsumexp, "softmax"),
}


def _build_table() -> dict[str, Kind]:
    table: dict[str, Kind] = dict.fromkeys(_CONSTANT, Constant())
    table |= dict.fromkeys(_LINEAR, Linear())
    table |= dict.fromkeys(_MULTILINEAR, Multilinear())
    table |= dict.fromkeys(SHARES_OR_COPIES | CONVERSIONS, Reshaping())
    table |= dict.fromkeys(_names("cat concat concatenate"), Joining())
    table |= dict.fromkeys(_names("conv1d conv2d"), Convolution())
    table |= dict.fromkeys(_names("mul multiply"), Product())
    table |= dict.fromkeys(_names("matmul mm bmm"), Product(is_of_matrices=True))
    table |= dict.fromkeys(
        _names("__getitem__ index_select gather take take_along_dim masked_select embedding"), Picks()
    )
    table |= dict.fromkeys(_names("split split_with_sizes chunk tensor_split unbind"), Pieces())
    table |= dict.fromkeys(_DERIVED, Linear("no gradient"))
    table |= dict.fromkeys(_LEAVES_TORCH, Refused("the value leaves torch, so nothing can be followed through it"))
    table |= {
        name: Elementwise(
            secant,
            kernel=_KERNELS.get(name),
            smooth=_SMOOTH_ACTIVATIONS.get(name),
            kinked=_KINKED_ACTIVATIONS.get(name),
        )
        for name, secant in _ELEMENTWISE.items()
    }
    table |= {name: Elementwise(_smooth(getattr(torch, name))) for name in _SMOOTH}
    table |= {name: Elementwise(_smooth(torch.lgamma, is_singular=True)) for name in _names("lgamma special_gammaln")}
    table |= {name: Elementwise(_step(getattr(torch, name)), "step: secant") for name in _STEPS}
    table |= {name: Elementwise(_shrink(getattr(torch, name))) for name in ("threshold", "hardshrink")}
    table |= {name: Spelled(function, label) for name, (function, label) in _SPELLED.items()}
    table |= {name: Beside(rule, label) for name, (rule, label) in _BESIDE.items()}
    table |= dict.fromkeys(_names("div divide true_divide"), Quotient())
    table |= dict.fromkeys(_names("dropout feature_dropout alpha_dropout feature_alpha_dropout"), _DROPOUT)
    table |= dict.fromkeys(_COMPARISONS, Comparison())
    table |= dict.fromkeys(_names("logical_not bitwise_not __invert__"), Negation())
    for operation in ("and", "or", "xor"):
        table |= dict.fromkeys(
            (f"logical_{operation}", f"bitwise_{operation}", f"__{operation}__", f"__i{operation}__"),
            Combination(operation),
        )
    table |= dict.fromkeys(_names("where Tensor.where masked_fill"), Select())
    table |= dict.fromkeys(_names("detach property:data"), Detached())
    table |= dict.fromkeys(
        _names("__bool__ __contains__ equal allclose is_nonzero _nested_tensor_from_mask_left_aligned"), Branch()
    )
    table["sort"] = FromFirst(maxima.sort, "order statistics")
    table["__setitem__"] = SelectOrAssign()
    table["pow"] = table["float_power"] = Power(Elementwise(secants.power), Spelled(arithmetic.power_of_base, "power"))
    table["rrelu"] = OnlyIf(Elementwise(secants.rrelu), _is_not_training(3, "training"), "it is random while training")
    table["batch_norm"] = OnlyIf(
        LinearBy(function=normalization.batch_norm),
        _is_not_training(5, "training"),
        "batch statistics mix the sequences of a batch; use running statistics",
    )
    table["max"] = MaxOf(
        Beside(maxima.max_over_axis, "maximum"),
        Spelled(arithmetic.maximum, "maximum: ramp"),
    )
    table["min"] = MaxOf(
        Beside(maxima.min_over_axis, "maximum"),
        Spelled(arithmetic.minimum, "minimum: ramp"),
    )
    table["new_tensor"] = OnlyIf(
        Constant(), lambda call: not is_varying(call.args[1]), "it copies the value without its history; use clone()"
    )
    table["backward"] = Refused("forward computes gradients of its own")
    return table


TABLE = _build_table()

# These call the method of the same name, and would be opened for ever; or read values.
_NEVER_OPENED = {*_LINEAR, "__contains__", "__deepcopy__", "unique"}

# Which of several equal inputs wins depends on their last bits, so both passes must compute them alike.
BREAKS_TIES = frozenset(
    name
    for name, kind in TABLE.items()
    if kind.label in ("maximum", "order statistics") and isinstance(kind, FromFirst)
) | {"max", "min"}


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
    if isinstance(function, types.FunctionType) and _asks_for_overrides(function) and name not in _NEVER_OPENED:
        return name, False, Opened(_open(function))
    if isinstance(function, types.BuiltinFunctionType) and name.startswith("adaptive_max_pool"):
        name += "_with_indices"  # the torch-level function always returns both
    if isinstance(function, types.MethodDescriptorType) and name == "where":
        name = "Tensor.where"
    return name, in_place, TABLE.get(name, INTEGRATED)


_OVERRIDE_CHECKS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


def _asks_for_overrides(function: types.FunctionType) -> bool:
    return any(name in function.__code__.co_names for name in _OVERRIDE_CHECKS)


def _open(function: types.FunctionType) -> Callable[..., Any]:
    """A copy of a Python function of torch that does not hand itself over again, so that its body is run and seen."""
    scope = {**function.__globals__, **dict.fromkeys(_OVERRIDE_CHECKS, lambda *_: False)}
    opened = types.FunctionType(
        function.__code__, scope, function.__name__, function.__defaults__, function.__closure__
    )
    opened.__kwdefaults__ = function.__kwdefaults__
    return opened
