"""The operators that a portable graph may call, and what we need to know about each.

The list is the whole of what a graph can do: arithmetic on tensors that it was given. Nothing here
reads files, runs code, talks to a device, or has an output whose shape depends on the data.
Names are ATen's with their overload (`aten.add.Tensor`), and a few `int.*` for arithmetic on sizes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NoReturn

import torch

from spliteasy.errors import PortableError
from spliteasy.graph.guarded import guarded
from spliteasy.graph.refusals import reason_of


def _names(text: str) -> frozenset[str]:
    """`"add.Tensor Scalar; relu"` → `aten.add.Tensor`, `aten.add.Scalar`, `aten.relu.default`."""
    found = set()
    for entry in text.split(";"):
        words = entry.split()
        if not words:
            continue
        base, _, overload = words[0].partition(".")
        found.add(f"aten.{base}.{overload or 'default'}")
        found.update(f"aten.{base}.{more}" for more in words[1:])
    return frozenset(found)


ARITHMETIC = _names("""
    add.Tensor Scalar; sub.Tensor Scalar; rsub.Tensor Scalar; mul.Tensor Scalar; div.Tensor Scalar
    Tensor_mode Scalar_mode; true_divide.Tensor; floor_divide.default Scalar; remainder.Tensor Scalar;
    fmod.Tensor Scalar; pow.Tensor_Scalar Tensor_Tensor Scalar; neg; abs; sign; sqrt; rsqrt; square;
    reciprocal; exp; exp2; expm1; log; log1p; log2; log10; sin; cos; tan; asin; acos; atan; atan2; sinh;
    cosh; floor; ceil; round; trunc; frac; erf; erfc; maximum; minimum; clamp.default Tensor;
    clamp_min.default Tensor; clamp_max.default Tensor; clip; addcmul; addcdiv; lerp.Tensor Scalar;
    nan_to_num; logaddexp; xlogy.Tensor; hypot; lgamma; digamma; divide.Tensor Scalar Tensor_mode
    Scalar_mode; multiply.Tensor Scalar; subtract.Tensor Scalar; true_divide.Scalar;
    remainder.Scalar_Tensor; float_power.Tensor_Tensor Scalar; negative; absolute; positive; sgn;
    signbit; arcsin; arccos; arctan; arctan2; asinh; acosh; atanh; arcsinh; arccosh; arctanh; sinc;
    erfinv; fix; round.decimals; fmax; fmin; clip.Tensor; copysign.Tensor Scalar; heaviside;
    ldexp.Tensor; logaddexp2; xlogy.Scalar_Other Scalar_Self; deg2rad; rad2deg; gcd; lcm; i0; igamma;
    igammac; polygamma; special_entr; special_erf; special_erfc; special_erfcx; special_erfinv;
    special_exp2; special_expm1; special_expit; special_logit; special_log1p; special_ndtr;
    special_ndtri; special_log_ndtr; special_i0; special_i0e; special_i1; special_i1e; special_sinc;
    special_digamma; special_psi; special_gammaln; special_polygamma; special_gammainc;
    special_gammaincc; special_round; special_softmax; special_log_softmax; special_logsumexp;
    special_xlogy.default other_scalar self_scalar; special_xlog1py.default other_scalar self_scalar;
    special_zeta.default other_scalar self_scalar; mvlgamma; special_multigammaln; frexp.Tensor
""")
LOGIC = _names("""
    eq.Tensor Scalar; ne.Tensor Scalar; lt.Tensor Scalar; le.Tensor Scalar; gt.Tensor Scalar; ge.Tensor
    Scalar; logical_and; logical_or; logical_not; logical_xor; bitwise_and.Tensor Scalar;
    bitwise_or.Tensor Scalar; bitwise_not; bitwise_xor.Tensor Scalar; bitwise_left_shift.Tensor_Scalar;
    bitwise_right_shift.Tensor_Scalar; isnan; isinf; isfinite; where.self ScalarOther ScalarSelf Scalar;
    masked_fill.Scalar Tensor; __and__.Tensor Scalar; __or__.Tensor Scalar; __xor__.Tensor Scalar;
    __lshift__.Tensor Scalar; __rshift__.Tensor Scalar; bitwise_and.Scalar_Tensor;
    bitwise_or.Scalar_Tensor; bitwise_xor.Scalar_Tensor; bitwise_left_shift.Tensor Scalar_Tensor;
    bitwise_right_shift.Tensor Scalar_Tensor; not_equal.Tensor Scalar; less.Tensor Scalar;
    less_equal.Tensor Scalar; greater.Tensor Scalar; greater_equal.Tensor Scalar; isposinf; isneginf;
    isreal; isclose; isin.Tensor_Tensor Tensor_Scalar Scalar_Tensor; bucketize.Tensor Scalar;
    searchsorted.Tensor Scalar; nonzero_static
""")
REDUCTIONS = _names("""
    sum.default dim_IntList; mean.default dim; prod.default dim_int; amax; amin; aminmax; max.default
    dim other; min.default dim other; var.default dim correction; var_mean.correction dim; std.default
    dim correction; std_mean.correction; norm.Scalar ScalarOpt_dim; linalg_vector_norm; linalg_norm;
    logsumexp; all.default dim; any.default dim; argmax; argmin; cumsum; cumprod; topk; sort.default
    stable; argsort.default stable; frobenius_norm.dim; all.dims; any.dims; norm.ScalarOpt_dim_dtype
    ScalarOpt_dtype; count_nonzero.default dim_IntList; median.default dim; nanmedian.default dim; mode;
    nansum; nanmean; quantile.default scalar; nanquantile.default scalar; kthvalue; msort; cummax;
    cummin; logcumsumexp; diff; trapezoid.x dx; trapz.x dx; cumulative_trapezoid.x dx;
    gradient.scalarint scalararray array scalarrayint scalarrayarray tensorarrayint tensorarray; cov;
    corrcoef; dist; renorm; var_mean.default; std_mean.default dim; histc; linalg_matrix_norm.default;
    linalg_vecdot; sum_to_size
""")
LINEAR_ALGEBRA = _names("""
    linear; matmul; mm; bmm; mv; dot; addmm; addmv; baddbmm; addbmm; einsum; outer; bilinear; tensordot;
    cosine_similarity; cdist; pairwise_distance; addr; inner; trace; chain_matmul; linalg_multi_dot;
    linalg_matmul; linalg_cross; cross; pdist; vdot; ger; matrix_power; linalg_matrix_power;
    linalg_diagonal; conv_tbc; vander; linalg_vander; norm_except_dim
""")
FACTORISATIONS = _names("""
    inverse; linalg_inv; linalg_inv_ex; det; linalg_det; slogdet; linalg_slogdet; logdet; linalg_solve;
    linalg_solve_ex; linalg_solve_triangular; triangular_solve; linalg_cholesky; linalg_cholesky_ex;
    cholesky; cholesky_solve; cholesky_inverse; linalg_qr; qr; linalg_svd; svd; linalg_svdvals;
    linalg_eigh; linalg_eigvalsh; linalg_eig; linalg_eigvals; linalg_lu; linalg_lu_factor;
    linalg_pinv.default atol_rtol_tensor atol_rtol_float; pinverse; matrix_exp; linalg_matrix_exp;
    linalg_matrix_norm.str_ord; linalg_norm.ord_str; nuclear_norm.default dim; linalg_cond.default p_str;
    linalg_matrix_rank.atol_rtol_tensor atol_rtol_float; linalg_tensorinv; linalg_tensorsolve;
    linalg_householder_product; orgqr; geqrf
""")
"""The operators of linear algebra whose work grows with the cube of a matrix's side."""
COMPLEX = _names("""
    complex; polar; angle; conj_physical; fft_fft; fft_ifft; fft_rfft; fft_irfft; fft_hfft; fft_ihfft;
    fft_fft2; fft_ifft2; fft_rfft2; fft_irfft2; fft_hfft2; fft_ihfft2; fft_fftn; fft_ifftn; fft_rfftn;
    fft_irfftn; fft_hfftn; fft_ihfftn; fft_fftshift; fft_ifftshift;
    stft.default center; istft; resolve_conj; resolve_neg
""")
"""Spectra and complex numbers: they live within a segment, and do not cross a cut."""
CONVOLUTIONS = _names("""
    conv1d.default padding; conv2d.default padding; conv3d.default padding; convolution; conv_transpose1d;
    conv_transpose2d.input; conv_transpose3d.input
""")
POOLING = _names("""
    max_pool1d; max_pool2d; max_pool3d; max_pool2d_with_indices; avg_pool1d; avg_pool2d; avg_pool3d;
    adaptive_avg_pool1d; adaptive_avg_pool2d; adaptive_avg_pool3d; adaptive_max_pool1d;
    adaptive_max_pool2d; upsample_nearest1d.default vec; upsample_nearest2d.default vec;
    upsample_nearest3d.default vec; upsample_bilinear2d.default vec; upsample_bicubic2d.default vec;
    upsample_linear1d.default vec; upsample_trilinear3d.default vec; _upsample_nearest_exact1d.vec;
    _upsample_nearest_exact2d.vec; _upsample_nearest_exact3d.vec; grid_sampler; grid_sampler_2d;
    affine_grid_generator; im2col; col2im; adaptive_max_pool3d; max_pool1d_with_indices;
    max_pool3d_with_indices; max_unpool2d; max_unpool3d; grid_sampler_3d;
    _upsample_nearest_exact1d.default; _upsample_nearest_exact2d.default;
    _upsample_nearest_exact3d.default; _upsample_bilinear2d_aa.default vec;
    _upsample_bicubic2d_aa.default vec; fractional_max_pool2d; fractional_max_pool3d
""")
NORMALISATION = _names("""
    batch_norm; layer_norm; group_norm; instance_norm; rms_norm;
    _weight_norm; native_layer_norm
""")
ACTIVATIONS = _names("""
    relu; relu6; leaky_relu; elu; celu; selu; gelu; silu; mish; sigmoid; tanh; hardtanh; hardsigmoid;
    hardswish; softplus; log_sigmoid; threshold; hardshrink; softshrink; prelu; glu; softmax.int;
    log_softmax.int; _softmax; _log_softmax; logit; rrelu
""")
ATTENTION_AND_RECURRENCE = _names("""
    scaled_dot_product_attention; lstm.input; gru.input; rnn_tanh.input; rnn_relu.input; lstm_cell;
    gru_cell; rnn_tanh_cell; rnn_relu_cell; embedding;
    embedding_bag.padding_idx; one_hot; _safe_softmax
""")
RANDOM = _names("""
    dropout; feature_dropout; alpha_dropout; feature_alpha_dropout; native_dropout; bernoulli.default p;
    rand; randn; rand_like; randn_like; randint.default low; randint_like.default low_dtype; randperm;
    normal_functional; bernoulli_.float; uniform_; normal_; exponential_; bernoulli.Tensor;
    bernoulli_.Tensor; normal.Tensor_Tensor Tensor_float float_Tensor float_float; multinomial; poisson;
      cauchy_; log_normal_; geometric_; random_.default from to;
    randint_like.Tensor; _standard_gamma
""")
VIEWS = _names("""
    view.default dtype; reshape; view_as; reshape_as; _unsafe_view; flatten.using_ints; unflatten.int;
    squeeze.default dim dims; unsqueeze; permute; transpose.int; t; movedim.int intlist; swapaxes;
    swapdims; numpy_T; mT; expand; expand_as; broadcast_to; slice.Tensor; select.int; narrow; chunk;
    split.Tensor sizes; split_with_sizes; tensor_split.sections; unbind.int; diagonal; unfold; detach;
    alias; contiguous; ravel; adjoint; atleast_1d; atleast_2d; atleast_3d; broadcast_tensors;
    meshgrid.default indexing; moveaxis.int intlist; tensor_split.indices; hsplit.int array; vsplit.int
    array; dsplit.int array; unsafe_chunk; unsafe_split.Tensor; unsafe_split_with_sizes; matrix_H;
    atleast_1d.Sequence; atleast_2d.Sequence; atleast_3d.Sequence; view_as_complex; view_as_real; real;
    imag; conj; _conj; mH
""")
COPIES = _names("""
    clone; cat; concat; stack; hstack; vstack; dstack; repeat; repeat_interleave.self_int; tile; flip;
    roll; rot90; pad; constant_pad_nd; reflection_pad1d; reflection_pad2d; reflection_pad3d;
    replication_pad1d; replication_pad2d; replication_pad3d; pixel_shuffle; pixel_unshuffle;
    channel_shuffle; index_select; index.Tensor; gather; take; take_along_dim; _to_copy; to.dtype
    dtype_layout other; type_as; tril; triu; diag_embed; slice_scatter; select_scatter;
    diagonal_scatter; scatter.src value; scatter_add; scatter_reduce.two; index_add; index_copy;
    index_fill.int_Scalar int_Tensor; index_put; masked_scatter; fill.Scalar Tensor; kron; block_diag;
    float_power.Tensor_Scalar; concatenate; column_stack; row_stack; fliplr; flipud; diag; diagflat;
    scatter.reduce value_reduce; index_reduce; put; cartesian_prod; pad_sequence; _pad_circular;
    _pad_enum; _unsafe_index.Tensor; _unsafe_index_put; native_channel_shuffle; as_strided
""")
FACTORIES = _names("""
    zeros; ones; full; empty.memory_format; arange.default start start_step; linspace; eye.default m;
    scalar_tensor; zeros_like; ones_like; full_like; empty_like; new_zeros; new_ones; new_full;
    new_empty; tril_indices; triu_indices; logspace; range.default step; hann_window.default periodic;
    hamming_window.default periodic periodic_alpha periodic_alpha_beta; blackman_window.default
    periodic; bartlett_window.default periodic; kaiser_window.default periodic beta;
    linspace.Tensor_Tensor Tensor_Scalar Scalar_Tensor; logspace.Tensor_Tensor Tensor_Scalar
    Scalar_Tensor; fft_fftfreq; fft_rfftfreq
""")
MULTIVARIATE = _names("mvlgamma; mvlgamma_; special_multigammaln")
"""Functions that add up as many terms as an argument says."""
UNINITIALISED = _names("empty.memory_format; empty_like; new_empty")
LOSSES = _names("""
    cross_entropy_loss; nll_loss; nll_loss_nd; nll_loss2d; binary_cross_entropy;
    binary_cross_entropy_with_logits; mse_loss; l1_loss; smooth_l1_loss; huber_loss; kl_div;
    soft_margin_loss; margin_ranking_loss; hinge_embedding_loss; cosine_embedding_loss;
    triplet_margin_loss; multi_margin_loss; multilabel_margin_loss; poisson_nll_loss; ctc_loss.Tensor
""")
IN_PLACE = _names("""
    add_.Tensor Scalar; sub_.Tensor Scalar; mul_.Tensor Scalar; div_.Tensor Scalar; copy_; fill_.Scalar
    Tensor; zero_; lerp_.Scalar Tensor; clamp_; clamp_min_; clamp_max_; addcmul_; addcdiv_; index_put_;
    index_add_; index_copy_; masked_fill_.Scalar Tensor; scatter_.src value; scatter_add_; sqrt_;
    rsqrt_; pow_.Scalar; neg_; exp_; relu_; relu6_; hardtanh_; leaky_relu_; silu_; hardswish_;
    hardsigmoid_; sigmoid_; tanh_; elu_; mish_; celu_; selu_; bitwise_and_.Tensor; bitwise_or_.Tensor;
    logical_and_; logical_or_; abs_; floor_; ceil_; round_; threshold_; masked_scatter_;
    index_fill_.int_Scalar; remainder_.Scalar; sub_.Scalar; reciprocal_; square_; erf_; log_; sin_;
    cos_; absolute_; arcsin_; arctan_; asin_; acos_; atan_; asinh_; acosh_; atanh_; bitwise_and_.Scalar;
    bitwise_or_.Scalar; bitwise_xor_.Tensor Scalar; bitwise_not_; logical_not_; logical_xor_;
    clamp_.Tensor; clip_; copysign_.Tensor Scalar; cosh_; sinh_; tan_; cumsum_; cumprod_; exp2_; expm1_;
    log1p_; log2_; log10_; sign_; trunc_; frac_; fmod_.Tensor Scalar; remainder_.Tensor; pow_.Tensor;
    floor_divide_.Tensor Scalar; multiply_.Tensor Scalar; divide_.Tensor Scalar; subtract_.Tensor
    Scalar; negative_; nan_to_num_; index_fill_.int_Tensor; index_reduce_; put_; renorm_;
    scatter_.reduce value_reduce; scatter_reduce_.two; tril_; triu_; gelu_; logit_; digamma_; lgamma_;
    erfc_; erfinv_; fill_diagonal_; eq_.Tensor Scalar; ne_.Tensor Scalar; lt_.Tensor Scalar; le_.Tensor
    Scalar; gt_.Tensor Scalar; ge_.Tensor Scalar; __iand__.Tensor Scalar; __ior__.Tensor Scalar;
    __ixor__.Tensor Scalar; baddbmm_; addmm_; addmv_; addr_; float_power_.Tensor Scalar; hypot_;
    xlogy_.Tensor; sinc_; sgn_; deg2rad_; rad2deg_; fix_; arccos_; arccosh_; arcsinh_; arctanh_; arctan2_;
    atan2_; heaviside_; i0_; ldexp_; gcd_; lcm_; igamma_; igammac_; polygamma_; mvlgamma_; round_.decimals;
    clamp_max_.Tensor; clamp_min_.Tensor; clip_.Tensor; div_.Scalar_mode Tensor_mode; divide_.Scalar_mode
    Tensor_mode; true_divide_.Scalar Tensor; addbmm_; bitwise_left_shift_.Tensor Tensor_Scalar;
    bitwise_right_shift_.Tensor Tensor_Scalar; __ilshift__.Tensor Scalar; __irshift__.Tensor Scalar;
    greater_.Tensor Scalar; greater_equal_.Tensor Scalar; less_.Tensor Scalar; less_equal_.Tensor Scalar;
    not_equal_.Tensor Scalar; conj_physical_
""")
SIZES = frozenset({"aten.sym_size.int", "aten.sym_numel.default"})

ATEN = frozenset().union(
    ARITHMETIC, LOGIC, REDUCTIONS, LINEAR_ALGEBRA, FACTORISATIONS, COMPLEX, CONVOLUTIONS, POOLING,
    NORMALISATION, ACTIVATIONS,
    ATTENTION_AND_RECURRENCE, RANDOM, VIEWS, COPIES, FACTORIES, LOSSES, IN_PLACE, SIZES,
)  # fmt: skip


def _on_numbers(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` on plain numbers and symbolic ones only: never on lists, whose product could be endless."""

    def guarded(*numbers: Any) -> Any:
        for number in numbers:
            if not isinstance(number, int | float | torch.SymInt | torch.SymFloat):
                raise TypeError(f"{fn.__name__} of a {type(number).__name__}, not of a number")
        return fn(*numbers)

    return guarded


def _item(values: Any, index: Any) -> Any:
    """One of the tensors of an operator that gives several."""
    if not isinstance(values, tuple | list) or type(index) is not int:
        raise TypeError("getitem takes the outputs of an operator and a plain index")
    return values[index]


BUILTINS: Mapping[str, Callable[..., Any]] = {
    "int.add": _on_numbers(operator.add),
    "int.sub": _on_numbers(operator.sub),
    "int.mul": _on_numbers(operator.mul),
    "int.floordiv": _on_numbers(operator.floordiv),
    "int.truediv": _on_numbers(operator.truediv),
    "int.mod": _on_numbers(operator.mod),
    "int.neg": _on_numbers(operator.neg),
    "int.max": _on_numbers(torch.sym_max),
    "int.min": _on_numbers(torch.sym_min),
    "int.int": _on_numbers(torch.sym_int),
    "int.float": _on_numbers(torch.sym_float),
    "getitem": _item,
}
"""Arithmetic on sizes, and picking one of several outputs."""

_BUILTIN_NAMES: Mapping[Any, str] = {
    operator.add: "int.add",
    operator.sub: "int.sub",
    operator.mul: "int.mul",
    operator.floordiv: "int.floordiv",
    operator.truediv: "int.truediv",
    operator.mod: "int.mod",
    operator.neg: "int.neg",
    torch.sym_max: "int.max",
    torch.sym_min: "int.min",
    torch.sym_int: "int.int",
    torch.sym_float: "int.float",
    operator.getitem: "getitem",
}

PLACEMENT = frozenset({"device", "layout", "pin_memory"})
"""Arguments that say where a tensor lies: never in a graph, the program's device decides."""

_DROPOUT_FLAG: Mapping[str, tuple[int, int]] = {
    "aten.dropout.default": (1, 2),
    "aten.feature_dropout.default": (1, 2),
    "aten.alpha_dropout.default": (1, 2),
    "aten.feature_alpha_dropout.default": (1, 2),
    "aten.native_dropout.default": (1, 2),
    "aten.lstm.input": (5, 6),
    "aten.gru.input": (5, 6),
    "aten.rnn_tanh.input": (5, 6),
    "aten.rnn_relu.input": (5, 6),
}
"""Operators that are random if (probability > 0, training) at these places say so."""


def name_of(target: Any) -> str:
    """Return the portable name of an fx target. Raises `PortableError` if it is not on the list."""
    name = _BUILTIN_NAMES.get(target) if callable(target) else None
    if name is None and isinstance(target, torch._ops.OpOverload):
        name = str(target)
    if name is None or (name not in ATEN and name not in BUILTINS):
        _refuse(target)
    return name


def _refuse(target: Any) -> NoReturn:
    """Raises `PortableError` that says why torch's operator is not on the list."""
    aten = isinstance(target, torch._ops.OpOverload) and target.namespace == "aten"
    why = reason_of(str(target), target) if aten else None
    if why is None:
        raise PortableError(
            f"operator {target} is not on the list of portable operators",
            hint="express it with other operators; docs/models.md says which there are",
        )
    raise PortableError(
        f"operator {target} is not portable: it {why.kind}", hint=f"{why.why}: use {why.instead}"
    )


@cache
def operator_of(name: str) -> Callable[..., Any]:
    """Return what `name` calls. Raises `PortableError` for a name that is not on the list."""
    if name in BUILTINS:
        return BUILTINS[name]
    found = guarded(name, _overload(name))
    return _zeroed(found) if name in UNINITIALISED else found


@cache
def _overload(name: str) -> Any:
    if name not in ATEN:
        raise PortableError(f"operator {name[:80]!r} is not on the list of portable operators")
    _, base, overload = name.split(".")
    try:
        return getattr(getattr(torch.ops.aten, base), overload)
    except AttributeError:
        raise PortableError(f"operator {name} does not exist in torch {torch.__version__}") from None


def _zeroed(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Memory that others have used before is never shown to a graph."""

    def zeroed(*args: Any, **kwargs: Any) -> torch.Tensor:
        return make(*args, **kwargs).zero_()

    return zeroed


@cache
def makes_from_nothing(name: str) -> bool:
    """Return whether the operator creates a tensor without being given one, so that it needs the device."""
    if name not in FACTORIES and name not in RANDOM:
        return False
    arguments = _overload(name)._schema.arguments
    has_device = any(argument.name == "device" for argument in arguments)
    return has_device and not any("Tensor" in str(argument.type) for argument in arguments)


BATCH_NORM = "aten.batch_norm.default"
_STATISTICS_FLAG = {BATCH_NORM: 5, "aten.instance_norm.default": 5}
"""The place of the argument that says whether the batch's own statistics are used, and so kept."""


def is_random(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Return whether this call draws random numbers."""
    if name in _DROPOUT_FLAG:
        probability, training = (args[place] if place < len(args) else None for place in _DROPOUT_FLAG[name])
        return bool(probability) and bool(training)
    if name == "aten.scaled_dot_product_attention.default":
        return bool(args[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0))
    if name == "aten.rrelu.default":
        return bool(args[3] if len(args) > 3 else kwargs.get("training", False))
    return name in RANDOM


def uses_statistics(name: str, args: tuple[Any, ...]) -> bool:
    """Return whether this call normalises by the statistics of what it is given, and so keeps
    running ones."""
    place = _STATISTICS_FLAG.get(name)
    return place is not None and (place >= len(args) or args[place] is not False)


_STATISTICS = ((3, "running_mean"), (4, "running_var"))


def written_by(name: str, args: tuple[Any, ...]) -> tuple[tuple[int, str], ...]:
    """Return the arguments that this call writes into: the place and the name of each."""
    if uses_statistics(name, args):
        return _STATISTICS
    return ((0, _overload(name)._schema.arguments[0].name),) if is_in_place(name) else ()


def is_in_place(name: str) -> bool:
    """Return whether the operator writes into its first argument."""
    return name not in BUILTINS and bool(_overload(name)._schema.is_mutable)
