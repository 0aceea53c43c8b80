"""Names of torch operations, by what is to be known of them before any rule; in-place forms without the underscore."""


def words(text: str) -> list[str]:
    return text.split()


# What is asked of a tensor without reading its values.
READS_NO_VALUES = frozenset(
    words(
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
    words("any all _is_any_true _is_all_true __bool__ isnan isinf isfinite _nested_tensor_from_mask_left_aligned")
)

# What returns as many places as there are values of some kind: a shape that tells of values.
SIZED_BY_VALUES = frozenset(words("nonzero argwhere unique unique_consecutive masked_select bincount"))

# What only moves indices around; they stay derived from the input.
MOVES_INDICES = frozenset(
    words(
        """
        narrow squeeze unsqueeze view reshape flatten movedim transpose permute flip clone contiguous detach
        expand __getitem__ unbind split chunk
        """
    )
)

# What takes only the shape or dtype of its second argument.
LIKE_SECOND = frozenset(words("type_as to expand_as view_as reshape_as"))

# Conversions of a mask to numbers; its number serves whatever the dtype, so that no digits are lost on the way back.
CONVERTS_MASKS = frozenset(words("to type type_as float double half bfloat16 long int"))

RANDOM = frozenset(
    words(
        """
        bernoulli multinomial normal poisson rand randn randint randperm rand_like randn_like randint_like uniform
        exponential cauchy geometric log_normal random binomial fractional_max_pool2d fractional_max_pool3d
        fractional_max_pool2d_with_indices fractional_max_pool3d_with_indices
        """
    )
)

CONSTANT = words(
    """
    zeros_like ones_like empty_like full_like new_zeros new_ones new_empty new_full broadcast_shapes
    """
)

LINEAR = words(
    """
    add sub subtract rsub neg negative positive nansum cumsum diff trace conj real stack hstack vstack
    dstack column_stack row_stack unsafe_split unsafe_chunk hsplit vsplit dsplit unflatten squeeze unsqueeze expand
    expand_as repeat tile repeat_interleave broadcast_to broadcast_tensors permute transpose swapaxes swapdims
    movedim moveaxis t property:T property:mT property:H property:mH property:real adjoint numpy_T flip fliplr
    flipud roll rot90 narrow select slice diagonal diag diag_embed tril triu as_strided unfold atleast_1d
    atleast_2d atleast_3d index_add index_copy index_fill scatter_add select_scatter slice_scatter
    diagonal_scatter meshgrid clone type type_as alias copy fill zero resolve_conj resolve_neg pad
    constant_pad_nd pad_sequence reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d
    replication_pad3d im2col col2im pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle
    avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    fft_fft fft_ifft fft_rfft fft_irfft fft_hfft fft_ihfft fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 fft_hfft2
    fft_ihfft2 fft_fftn fft_ifftn fft_rfftn fft_irfftn fft_hfftn fft_ihfftn fft_fftshift fft_ifftshift stft istft
    view_as_complex view_as_real complex imag property:imag conj_physical
    upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d
    _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d
    nan_to_num
    """
)

MULTILINEAR = words(
    """
    mv dot vdot vecdot linalg_vecdot inner outer ger einsum tensordot linear bilinear kron cross linalg_cross
    conv3d conv_transpose2d conv_transpose3d convolution _convolution baddbmm addmm addmv
    addbmm addr addcmul chain_matmul linalg_multi_dot
    """
)

# Depend on the input without a gradient: refused where they are used, unless only to choose a Python branch.
DERIVED = words(
    """
    argmax argmin argsort isclose isnan isinf isfinite isreal nonzero argwhere count_nonzero signbit searchsorted
    bucketize unique any all _is_any_true _is_all_true long int short byte char bool
    """
)

LEAVES_TORCH = words(
    """
    tensor asarray __deepcopy__ item tolist numpy __array__ __float__ __int__ __index__ __complex__ __dlpack__ map
    apply
    """
)

ZEROS = words("zeros zeros_like new_zeros")

SORTS = words("sort argsort")

# Elementwise functions with derivatives of all orders, whose secant is taken by `secants.smooth`.
SMOOTH = words(
    """
    sin cos tan asin acos atan sinh cosh asinh acosh atanh erfc sinc arcsin arccos arctan arcsinh arctanh
    """
)

# Elementwise functions whose secant is called like them.
CLOSED_SECANTS = words("exp exp2 expm1 log log1p log2 log10 square sqrt rsqrt reciprocal")

STEPS = words("sign sgn round floor ceil trunc fix")
