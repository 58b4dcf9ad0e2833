"""Why an operator of torch has no place in a portable graph, from its own schema.

Each of torch's operators is on the list of `operators.py`, or one of the kinds here says why it is not.
`python -m benchmarks.harness.operators` prints them as the table of docs/models.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Overload = Any
"""torch's `OpOverload`, whose parts have no types of their own."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A kind of operators, why graphs do not call it, and what to write instead."""

    kind: str
    why: str
    instead: str
    belongs: Callable[[str, Overload], bool]
    """Whether an operator, by its name without overload and as torch has it, is of the kind."""


def reason_of(name: str, overload: Overload) -> Refusal | None:
    """The first kind that the operator `aten.base.overload` is of."""
    base = name.split(".")[1]
    return next((kind for kind in KINDS if kind.belongs(base, overload)), None)


def _named(*patterns: str) -> Callable[[str, Overload], bool]:
    matching = re.compile("|".join(patterns))
    return lambda base, _: matching.fullmatch(base) is not None


def _tagged(*tags: torch.Tag) -> Callable[[str, Overload], bool]:
    return lambda _, overload: any(tag in overload.tags for tag in tags)


def _writes_into_out(_: str, overload: Overload) -> bool:
    return any(argument.is_out for argument in overload._schema.arguments)


def _takes_objects(_: str, overload: Overload) -> bool:
    kinds = [str(argument.type) for argument in overload._schema.arguments]
    return any(kind in text for kind in ("Storage", "Generator", "Stream") for text in kinds)


def _gives_no_tensor(_: str, overload: Overload) -> bool:
    given = [str(value.type) for value in overload._schema.returns]
    return not given or any("Tensor" not in kind for kind in given)


KINDS = (
    Refusal(
        "writes into a result that it is given",
        "the form without `out` computes the same",
        "leave `out=` away",
        _writes_into_out,
    ),
    Refusal(
        "takes a generator, a storage or a stream",
        "such objects do not travel",
        "torch's default generator, which follows the step's seed",
        _takes_objects,
    ),
    Refusal(
        "has a shape or a result that depends on values",
        "the size of what crosses must be known before the step",
        "`torch.where`, a product with the mask, `nonzero_static`",
        _tagged(torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output),
    ),
    Refusal(
        "gives no tensor",
        "a number in Python leaves the graph, and would be frozen as it was in the trace",
        "tensor operators",
        _gives_no_tensor,
    ),
    Refusal(
        "is a step of the backward pass",
        "autograd calls it; a graph holds the forward alone",
        "the operator whose derivative it is",
        _named(r".*_backward(_.*|\..*)?", r".*backward", r".*_(jvp|grad|input_mask)", r"_?grad_.*"),
    ),
    Refusal(
        "works on sparse, quantised or nested tensors, or for one device",
        "they have no form on the wire",
        "dense tensors",
        _named(
            r".*(quanti[sz]|qparams|sparse|nested|jagged|to_padded_tensor|_dense|cudnn|miopen|mkldnn|fbgemm"
            r"|cuda|cufft|vulkan|mps|xnnpack|nnpack|int4|int8|wrapped|_foreach|fused|coalesce).*",
            r"q_.*|qscheme|int_repr|dense_dim|_?values|_?indices|(c?col|c?row|crow)_indices(_copy)?|_spsolve",
            r"hspmm|smm|sspaddmm|to_dense|_coo.*|.*(csr|csc|bsr|bsc|coo).*|_cslt.*",
        ),
    ),
    Refusal(
        "reads memory at places that are among its values",
        "pivots, lengths and offsets that nothing checks could show other memory",
        "`linalg.solve`, `linalg.pinv`, `linalg.qr`, `scatter_reduce`, the modules of `torch.nn`",
        _named(
            r"lu_solve|lu_unpack|linalg_lu_solve|linalg_lu_factor_ex|linalg_ldl_.*|ormqr|segment_reduce"
            r"|embedding_bag|native_group_norm|native_batch_norm|lstm|gru|rnn_tanh|rnn_relu|ctc_loss"
        ),
    ),
    Refusal(
        "gives a tensor other memory",
        "a graph's values own what they show",
        "new tensors: `reshape`, `torch.cat`, `torch.empty`",
        _named(
            r"set_?|resize_?|resize_as_?|as_strided_|as_strided_scatter|(new_)?empty_(strided|permuted)|data"
            r"|from_file|lift|lift_fresh|copy|zero|pin_memory|to|requires_grad_|slice_inverse|get_gradients"
        ),
    ),
    Refusal(
        "changes the shape of a tensor in place",
        "one name would have two shapes",
        "the form without the underscore",
        _tagged(torch.Tag.inplace_view),
    ),
    Refusal(
        "has no derivative",
        "the model in front of it could not learn",
        "an operator that has one; `tanh`, `erf`, `i0e`",
        _named(
            r"special_.*(bessel|airy|polynomial).*", r"nextafter_?|histogram(dd)?|hash_tensor",
        ),
    ),
    Refusal(
        "draws random numbers in place of an activation",
        "the trace holds the form that gives a new tensor",
        "the form without the underscore",
        _named(r"(alpha_|feature_|feature_alpha_)?dropout_|embedding_renorm_?"),
    ),
    Refusal(
        "is the kernel behind an operator with a name of its own",
        "one form of each is enough",
        "the public operator",
        _named(
            r"_.*|.*_copy|.*_forward|slow_conv.*|conv_depthwise3d|thnn_conv2d|convolution_overrideable"
            r"|batch_norm_.*|native_norm|chalf|addmm|baddbmm|bmm|mm|combinations|nonzero_numpy|where|narrow"
            r"|linalg_(_powsum|matrix_rank|pinv)|repeat_interleave|tensor_split|xlogy_"
        ),
    ),
)  # fmt: skip
"""The first that fits counts."""
