"""Calls of operators with their results and gradients, as PyTorch computes them."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from spliteasy.graph.document import DTYPE_NAMES, Document, Graph, Node, Ref, ValueSpec
from spliteasy.graph.encoding import document_to_json, encode_argument
from spliteasy.graph.program import Program


def packed(tensor: Tensor) -> dict[str, Any]:
    """Dtype, shape and elements of a tensor, in row-major order."""
    flat = tensor.detach().contiguous().reshape(-1)
    raw = flat.as_strided((flat.numel(),), (1,)).view(torch.uint8).numpy().tobytes()
    return {
        "dtype": DTYPE_NAMES[tensor.dtype],
        "shape": list(tensor.shape),
        "data": base64.b64encode(raw).decode(),
    }


class Case:
    """One node over inputs: tensors among the arguments, and lists of them, become inputs."""

    def __init__(
        self,
        name: str,
        op: str,
        *args: Any,
        pick: int | None = None,
        fixed: Sequence[int] = (),
        **kwargs: Any,
    ) -> None:
        """`pick`: how many results a list of them has. `fixed`: inputs that take no gradient, by number."""
        self.name = name
        self._fixed = frozenset(fixed)
        self._inputs: list[Tensor] = []
        self._node = Node(
            op=op,
            args=tuple(self._encoded(arg) for arg in args),
            kwargs={key: self._encoded(arg) for key, arg in kwargs.items()},
        )
        self._pick = pick

    def _encoded(self, arg: Any) -> Any:
        if isinstance(arg, Tensor):
            self._inputs.append(arg)
            return encode_argument(Ref(len(self._inputs) - 1))
        if isinstance(arg, list | tuple):
            return [self._encoded(item) for item in arg]
        return encode_argument(arg)

    def vector(self) -> dict[str, Any]:
        """The graph, its inputs, and what PyTorch makes of them. The gradients are of a random weighting."""
        document = self._document([])
        leaves = [self._leaf(place, tensor) for place, tensor in enumerate(self._inputs)]
        outputs = Program(document).train([], leaves)
        document = self._document(outputs)
        weights = [torch.randn_like(out) if _differentiable(out) else None for out in outputs]
        total = sum(
            (
                (out * weight).sum()
                for out, weight in zip(outputs, weights, strict=True)
                if weight is not None
            ),
            start=torch.zeros(()),
        )
        if total.requires_grad:
            total.backward()
        return {
            "name": self.name,
            "graph": base64.b64encode(document_to_json(document)).decode(),
            "inputs": [packed(tensor) for tensor in self._inputs],
            "outputs": [packed(out) for out in outputs],
            "weights": [None if weight is None else packed(weight) for weight in weights],
            "gradients": [None if leaf.grad is None else packed(leaf.grad) for leaf in leaves],
        }

    def _leaf(self, place: int, tensor: Tensor) -> Tensor:
        return tensor.clone().requires_grad_(self._needs_grad(place, tensor))

    def _needs_grad(self, place: int, tensor: Tensor) -> bool:
        return tensor.is_floating_point() and place not in self._fixed

    def _document(self, outputs: Sequence[Tensor]) -> Document:
        nodes = [self._node]
        count = len(self._inputs)
        if self._pick is not None:
            nodes += [
                Node(op="getitem", args=(encode_argument(Ref(count)), place)) for place in range(self._pick)
            ]
        results = range(count, count + 1) if self._pick is None else range(count + 1, count + len(nodes))
        graph = Graph(
            inputs=tuple(
                _spec(f"x{place}", tensor, needs_grad=self._needs_grad(place, tensor))
                for place, tensor in enumerate(self._inputs)
            ),
            nodes=tuple(nodes),
            results=tuple(results),
            outputs=tuple(_spec(f"y{place}", out) for place, out in enumerate(outputs)),
            wire=len(outputs),
        )
        return Document(name=self.name, tensors=(), train=graph, eval=graph)


def _spec(name: str, tensor: Tensor, *, needs_grad: bool = False) -> ValueSpec:
    return ValueSpec(
        name=name, dtype=DTYPE_NAMES[tensor.dtype], shape=tuple(tensor.shape), needs_grad=needs_grad
    )


def _differentiable(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _whole(*shape: int, below: int = 5) -> Tensor:
    return torch.randint(0, below, shape)


def cases() -> Iterator[Case]:
    """Every operator that the engine has, in the ways in which models call it."""
    torch.manual_seed(20)
    yield from _convolutions()
    yield from _pooling()
    yield from _normalization()
    yield from _functions()
    yield from _arithmetic()
    yield from _matrices()
    yield from _views()
    yield from _reductions()
    yield from _choices()
    yield from _places()
    yield from _attention()
    yield from _losses()
    yield from _from_nothing()


def _convolutions() -> Iterator[Case]:
    def case(name: str, x: Sequence[int], w: Sequence[int], *rest: Any, bias: bool = True) -> Case:
        own = torch.randn(w[0]) if bias else None
        op = f"aten.conv{len(w) - 2}d.default"
        return Case(f"conv {name}", op, torch.randn(*x), torch.randn(*w), own, *rest)

    yield case("plain", (2, 3, 8, 8), (5, 3, 3, 3))
    yield case("padded", (2, 3, 7, 9), (4, 3, 3, 3), [1, 1], [1, 1])
    yield case("stem", (2, 3, 16, 16), (8, 3, 7, 7), [2, 2], [3, 3], bias=False)
    yield case("uneven", (1, 2, 9, 11), (3, 2, 3, 5), [2, 3], [1, 2], [2, 1])
    yield case("one by one", (2, 8, 5, 5), (6, 8, 1, 1), [1, 1], [0, 0], [1, 1], 1)
    yield case("one by one strided", (2, 4, 7, 7), (6, 4, 1, 1), [2, 2])
    yield case("groups", (2, 6, 6, 6), (4, 3, 3, 3), [1, 1], [1, 1], [1, 1], 2)
    yield case("depthwise", (2, 5, 9, 9), (5, 1, 3, 3), [1, 1], [1, 1], [1, 1], 5)
    yield case("depthwise strided", (2, 4, 10, 10), (8, 1, 5, 5), [2, 2], [2, 2], [1, 1], 4)
    yield case("whole picture", (3, 2, 4, 4), (5, 2, 4, 4))
    yield case("narrow", (2, 3, 5, 1), (2, 3, 3, 1), [1, 1], [1, 0])
    yield case("stride beyond kernel", (2, 2, 9, 9), (3, 2, 2, 2), [3, 3], [1, 1])
    yield case("in one dimension", (2, 3, 12), (4, 3, 5), [2], [2])
    yield case("in one dimension, dilated", (2, 4, 14), (4, 2, 3), [1], [2], [2], 2)


def _pooling() -> Iterator[Case]:
    x = torch.randn(2, 3, 9, 8)
    yield Case("max pool", "aten.max_pool2d.default", x, [3, 3], [2, 2], [1, 1])
    yield Case("max pool two", "aten.max_pool2d.default", x, [2, 2])
    yield Case("max pool ceil", "aten.max_pool2d.default", x, [3, 2], [2, 2], [1, 0], [1, 1], True)
    yield Case("max pool dilated", "aten.max_pool2d.default", x, [2, 2], [1, 1], [1, 1], [2, 2])
    yield Case("max pool 1d", "aten.max_pool1d.default", torch.randn(2, 3, 9), [3], [2], [1])
    yield Case("average pool", "aten.avg_pool2d.default", x, [3, 3], [2, 2], [1, 1])
    yield Case("average pool, no pad", "aten.avg_pool2d.default", x, [3, 3], [1, 1], [1, 1], False, False)
    yield Case("average pool ceil", "aten.avg_pool2d.default", x, [2, 3], [2, 2], [0, 1], True)
    yield Case("average pool divisor", "aten.avg_pool2d.default", x, [2, 2], [2, 2], [0, 0], False, True, 3)
    yield Case("average pool 1d", "aten.avg_pool1d.default", torch.randn(2, 3, 9), [3], [2], [1])
    yield Case("adaptive one", "aten.adaptive_avg_pool2d.default", x, [1, 1])
    yield Case("adaptive uneven", "aten.adaptive_avg_pool2d.default", x, [4, 3])
    yield Case("adaptive 1d", "aten.adaptive_avg_pool1d.default", torch.randn(2, 3, 9), [4])


def _normalization() -> Iterator[Case]:
    x = torch.randn(3, 4, 5, 3)
    w, b = torch.rand(4) + 0.5, torch.randn(4)
    batch, layer = "aten.batch_norm.default", "aten.layer_norm.default"
    seen, own = (torch.zeros(4), torch.ones(4) * 2), (None, None)
    yield Case("batch norm", batch, x, w, b, *own, True, 0.1, 1e-5, False)
    yield Case("batch norm fixed", batch, x, w, b, *seen, False, 0.1, 1e-3, False, fixed=(3, 4))
    yield Case("batch norm rows", batch, torch.randn(6, 4), w, b, *own, True, 0.1, 1e-5, False)
    yield Case("batch norm bare", batch, x, None, None, *own, True, 0.1, 1e-5, False)
    yield Case("layer norm", layer, torch.randn(2, 5, 7), [7], torch.randn(7), torch.randn(7))
    yield Case("layer norm of two", layer, x, [5, 3], torch.randn(5, 3), torch.randn(5, 3), 1e-6)
    yield Case("layer norm bare", "aten.layer_norm.default", torch.randn(3, 6), [6])
    yield Case("rms norm", "aten.rms_norm.default", torch.randn(3, 6), [6], torch.randn(6), 1e-6)
    yield Case("group norm", "aten.group_norm.default", x, 2, w, b)


ANYWHERE = """
    relu relu6 hardtanh silu sigmoid tanh gelu hardswish hardsigmoid softplus leaky_relu elu mish log_sigmoid
    exp sin cos erf erfc neg abs sign floor ceil round trunc square expm1 tan sinh cosh atan exp2 reciprocal
"""
"""Functions of any number."""


def _functions() -> Iterator[Case]:
    x, above = torch.randn(3, 7) * 2, torch.rand(3, 7) + 0.2
    for name in ANYWHERE.split():
        yield Case(name, f"aten.{name}.default", x)
    for name in ("sqrt", "rsqrt", "log", "log1p", "log2", "log10"):
        yield Case(name, f"aten.{name}.default", above)
    inside = torch.rand(3, 5) * 1.6 - 0.8
    yield Case("asin", "aten.asin.default", inside)
    yield Case("acos", "aten.acos.default", inside)
    yield Case("gelu tanh", "aten.gelu.default", x, approximate="tanh")
    yield Case("gelu far", "aten.gelu.default", torch.linspace(-7, 7, 41))
    yield Case("hardtanh bounds", "aten.hardtanh.default", x, -0.5, 2.0)
    yield Case("leaky slope", "aten.leaky_relu.default", x, 0.3)
    yield Case("elu alpha", "aten.elu.default", x, 0.7)
    yield Case("softplus steep", "aten.softplus.default", x, 3.0, 2.0)
    yield Case("clamp", "aten.clamp.default", x, -1, 0.5)
    yield Case("clamp least", "aten.clamp_min.default", x, 0.1)
    yield Case("pow square", "aten.pow.Tensor_Scalar", x, 2)
    yield Case("pow cube", "aten.pow.Tensor_Scalar", x, 3)
    yield Case("pow root", "aten.pow.Tensor_Scalar", above, -0.5)
    yield Case("glu", "aten.glu.default", torch.randn(2, 6, 3), 1)
    yield Case("whole negative", "aten.neg.default", _whole(4))


def _arithmetic() -> Iterator[Case]:
    x, y = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    row, column = torch.randn(4), torch.randn(3, 1)
    for name in ("add", "sub", "mul", "div"):
        for other, what in (
            (y, "same"),
            (row, "row"),
            (column, "column"),
            (1.5, "number"),
            (torch.randn(()), "scalar"),
        ):
            yield Case(f"{name} {what}", f"aten.{name}.Tensor", x, other)
    yield Case("add alpha", "aten.add.Tensor", x, row, alpha=0.5)
    yield Case("sub alpha", "aten.sub.Tensor", x, y, alpha=2)
    yield Case("rsub", "aten.rsub.Scalar", x, 1.0)
    yield Case("rsub tensors", "aten.rsub.Tensor", x, row, alpha=3)
    yield Case("stretched left", "aten.add.Tensor", row, x)
    yield Case("maximum", "aten.maximum.default", x, row)
    yield Case("minimum same", "aten.minimum.default", x, x.clone())
    yield Case("pow of tensors", "aten.pow.Tensor_Tensor", x.abs() + 0.1, y)
    yield Case("pow of number", "aten.pow.Scalar", 2.0, y)
    yield Case("floor divide", "aten.floor_divide.default", x, 0.3, fixed=(0,))
    yield Case("div floor", "aten.div.Tensor_mode", x, 0.3, rounding_mode="floor", fixed=(0,))
    yield Case("remainder", "aten.remainder.Scalar", x, 0.7)
    yield Case("addcmul", "aten.addcmul.default", x, y, row, value=0.5)
    yield Case("addcdiv", "aten.addcdiv.default", x, y, row)
    yield Case("lerp", "aten.lerp.Scalar", x, y, 0.3)
    yield Case("whole add", "aten.add.Tensor", _whole(3, 2), 1)
    yield Case("whole add real", "aten.add.Tensor", _whole(3, 2), 1.0)
    yield Case("whole times float", "aten.mul.Tensor", _whole(3, 4), torch.randn(4))
    yield Case("whole divided", "aten.div.Tensor", _whole(3, 4), 3)
    yield Case("whole remainder", "aten.remainder.Scalar", _whole(6) - 3, 3)
    yield Case("mask times", "aten.mul.Tensor", x, x > 0)


def _matrices() -> Iterator[Case]:
    r = torch.randn
    yield Case("linear", "aten.linear.default", r(5, 7), r(3, 7), r(3))
    yield Case("linear deep", "aten.linear.default", r(2, 3, 9), r(10, 9), None)
    yield Case("linear long", "aten.linear.default", r(3, 500), r(9, 500), r(9))
    yield Case("linear vector", "aten.linear.default", r(6), r(4, 6), r(4))
    yield Case("matmul", "aten.matmul.default", r(5, 7), r(7, 6))
    yield Case("matmul batches", "aten.matmul.default", r(2, 3, 5, 4), r(2, 3, 4, 9))
    yield Case("matmul stretched", "aten.matmul.default", r(2, 3, 5, 4), r(4, 6))
    yield Case("matmul stretched left", "aten.matmul.default", r(5, 4), r(3, 4, 2))
    yield Case("matmul vectors", "aten.matmul.default", r(8), r(8))
    yield Case("matmul of vector", "aten.matmul.default", r(3, 8), r(8))
    yield Case("mm", "aten.mm.default", r(3, 4), r(4, 5))
    yield Case("bmm", "aten.bmm.default", r(3, 4, 5), r(3, 5, 2))
    yield Case("addmm", "aten.addmm.default", r(5), r(3, 4), r(4, 5))
    yield Case("baddbmm", "aten.baddbmm.default", r(2, 3, 5), r(2, 3, 4), r(2, 4, 5))


def _views() -> Iterator[Case]:
    x = torch.randn(2, 3, 4)
    yield Case("view", "aten.view.default", x, [2, -1])
    yield Case("reshape", "aten.reshape.default", x, [4, 6])
    yield Case("flatten", "aten.flatten.using_ints", x, 1)
    yield Case("unflatten", "aten.unflatten.int", x, 2, [2, -1])
    yield Case("squeeze", "aten.squeeze.dim", torch.randn(2, 1, 3), 1)
    yield Case("unsqueeze", "aten.unsqueeze.default", x, -1)
    yield Case("permute", "aten.permute.default", x, [2, 0, 1])
    yield Case("transpose", "aten.transpose.int", x, -1, 1)
    yield Case("t", "aten.t.default", torch.randn(3, 5))
    yield Case("movedim", "aten.movedim.int", x, 0, -1)
    yield Case("expand", "aten.expand.default", torch.randn(3, 1), [2, -1, 4])
    yield Case("repeat", "aten.repeat.default", torch.randn(3, 2), [2, 1, 3])
    yield Case("slice", "aten.slice.Tensor", x, 2, 1, 4, 2)
    yield Case("slice end", "aten.slice.Tensor", x, 1, -2)
    yield Case("slice whole", "aten.slice.Tensor", _whole(3, 5), 1, 0, 3)
    yield Case("select", "aten.select.int", x, 1, -1)
    yield Case("narrow", "aten.narrow.default", x, 2, 1, 2)
    yield Case("split", "aten.split.Tensor", torch.randn(5, 2), 2, pick=3)
    yield Case("split sizes", "aten.split_with_sizes.default", x, [1, 2], 1, pick=2)
    yield Case("chunk", "aten.chunk.default", x, 2, 2, pick=2)
    yield Case("unbind", "aten.unbind.int", x, 0, pick=2)
    yield Case("cat", "aten.cat.default", [x, torch.randn(2, 5, 4)], 1)
    yield Case("stack", "aten.stack.default", [x, torch.randn(2, 3, 4)], 1)
    yield Case("flip", "aten.flip.default", x, [0, 2])
    yield Case("roll", "aten.roll.default", x, [1, -1], [1, 2])
    yield Case("pad", "aten.constant_pad_nd.default", x, [1, 2, 0, 1], 0.5)
    yield Case("pad by name", "aten.pad.default", x, [1, 1])
    yield Case("slice scatter", "aten.slice_scatter.default", x, torch.randn(2, 2, 4), 1, 1, 3)
    yield Case("select scatter", "aten.select_scatter.default", x, torch.randn(2, 4), 1, -1)
    yield Case("upsample", "aten.upsample_nearest2d.vec", torch.randn(2, 2, 3, 4), None, [2.0, 3.0])
    yield Case("upsample to size", "aten.upsample_nearest2d.vec", torch.randn(2, 2, 3, 4), [6, 4], None)
    yield Case("clone", "aten.clone.default", x)
    yield Case("to float", "aten._to_copy.default", _whole(3), dtype=torch.float32)
    yield Case("to whole", "aten.to.dtype", torch.tensor([1.7, -1.7]), torch.int64)
    yield Case("tril", "aten.tril.default", torch.randn(2, 4, 4))
    yield Case("triu", "aten.triu.default", torch.randn(4, 4), 1)


def _reductions() -> Iterator[Case]:
    x = torch.randn(3, 4, 5)
    yield Case("sum", "aten.sum.default", x)
    yield Case("sum dims", "aten.sum.dim_IntList", x, [0, 2], True)
    yield Case("sum whole", "aten.sum.dim_IntList", _whole(3, 4), [1])
    yield Case("mean", "aten.mean.default", x)
    yield Case("mean dims", "aten.mean.dim", x, [-1, 1])
    yield Case("mean middle", "aten.mean.dim", x, [1], True)
    yield Case("var", "aten.var.correction", x, [2], correction=1)
    yield Case("var all", "aten.var.correction", x, None, correction=0)
    yield Case("std", "aten.std.correction", x, [0, 1], correction=1, keepdim=True)
    yield Case("amax", "aten.amax.default", x, [1, 2])
    yield Case("amin kept", "aten.amin.default", x, [0], True)
    yield Case("max", "aten.max.default", x)
    yield Case("max of dim", "aten.max.dim", x, 1, pick=2)
    yield Case("min of dim", "aten.min.dim", x, 2, True, pick=2)
    yield Case("argmax", "aten.argmax.default", x, 1)
    yield Case("argmin all", "aten.argmin.default", x)
    yield Case("cumsum", "aten.cumsum.default", x, 1)
    yield Case("cumsum whole", "aten.cumsum.default", _whole(3, 4), 1)
    yield Case("any", "aten.any.dim", x > 1, 2)
    yield Case("all", "aten.all.default", x > -9)
    yield Case("norm", "aten.linalg_vector_norm.default", x, 2.0, [2], True)


def _choices() -> Iterator[Case]:
    x, y = torch.randn(3, 4), torch.randn(3, 4)
    for name in ("eq", "ne", "lt", "le", "gt", "ge"):
        yield Case(f"{name} number", f"aten.{name}.Scalar", _whole(3, 4), 2)
        yield Case(f"{name} tensor", f"aten.{name}.Tensor", x, y[0])
    yield Case("and", "aten.bitwise_and.Tensor", x > 0, y > 0)
    yield Case("or", "aten.logical_or.default", x > 0, y > 0)
    yield Case("not", "aten.logical_not.default", x > 0)
    yield Case("isnan", "aten.isnan.default", torch.tensor([1.0, float("nan")]))
    yield Case("where", "aten.where.self", x > 0, x, y[0])
    yield Case("where numbers", "aten.where.ScalarOther", x > 0, x, 0.5)
    yield Case("masked fill", "aten.masked_fill.Scalar", x, y > 0, -5.0)


def _places() -> Iterator[Case]:
    x = torch.randn(3, 4, 5)
    yield Case("embedding", "aten.embedding.default", torch.randn(7, 3), _whole(2, 5, below=7))
    yield Case("embedding padded", "aten.embedding.default", torch.randn(5, 3), _whole(4, 4), 1)
    yield Case("index select", "aten.index_select.default", x, 1, torch.tensor([3, 0, 3]))
    yield Case("index first", "aten.index.Tensor", x, [torch.tensor([2, 0, 2])])
    yield Case("index pair", "aten.index.Tensor", x, [torch.tensor([2, 0]), torch.tensor([[1], [3]])])
    yield Case("index middle", "aten.index.Tensor", x, [None, torch.tensor([[0, 3], [-1, 1]])])
    yield Case("index apart", "aten.index.Tensor", x, [torch.tensor([1, 2]), None, torch.tensor([4, 0])])
    yield Case("gather", "aten.gather.default", x, 2, _whole(3, 4, 2))
    yield Case("one hot", "aten.one_hot.default", _whole(4), 5)


def _attention() -> Iterator[Case]:
    r = torch.randn
    attend = "aten.scaled_dot_product_attention.default"
    q, k, v = r(2, 3, 5, 4), r(2, 3, 6, 4), r(2, 3, 6, 7)
    yield Case("softmax", "aten.softmax.int", r(2, 3, 5), -1)
    yield Case("softmax middle", "aten.softmax.int", r(2, 3, 5), 1)
    yield Case("log softmax", "aten.log_softmax.int", r(3, 6), 1)
    yield Case("attention", attend, q, k, v)
    yield Case("attention causal", attend, r(2, 5, 4), r(2, 5, 4), r(2, 5, 4), None, 0.0, True)
    yield Case("attention mask", attend, q, k, v, (r(5, 6) > -0.5) | (torch.arange(6) == 0))
    yield Case("attention added", attend, q, k, v, r(5, 6), scale=0.3)


def _losses() -> Iterator[Case]:
    x, y = torch.randn(5, 4), torch.randn(5, 4)
    labels = torch.tensor([0, 3, -100, 2, 1])
    entropy, logits = "aten.cross_entropy_loss.default", "aten.binary_cross_entropy_with_logits.default"
    for reduction in (0, 1, 2):
        yield Case(
            f"cross entropy {reduction}", "aten.cross_entropy_loss.default", x, labels, None, reduction
        )
        yield Case(f"mse {reduction}", "aten.mse_loss.default", x, y, reduction, fixed=(1,))
    weights, yes = torch.tensor([0.5, 1.0, 2.0, 0.3]), (y > 0).float()
    yield Case("cross entropy weighted", entropy, x, labels, weights, fixed=(2,))
    yield Case("cross entropy of pictures", entropy, torch.randn(2, 3, 2, 4), _whole(2, 2, 4, below=3))
    yield Case("cross entropy smoothed", entropy, x, labels, None, 1, -100, 0.1)
    yield Case("cross entropy of shares", entropy, x, torch.rand(5, 4), fixed=(1,))
    yield Case("nll", "aten.nll_loss_nd.default", x, labels)
    yield Case("logits", logits, x * 3, yes, fixed=(1,))
    yield Case("logits weighted", logits, x, yes, torch.rand(5, 4), None, 2, fixed=(1, 2))
    yield Case("probabilities", "aten.binary_cross_entropy.default", torch.rand(5, 4), yes, fixed=(1,))
    yield Case("l1", "aten.l1_loss.default", x, y, fixed=(1,))
    yield Case("smooth l1", "aten.smooth_l1_loss.default", x * 2, y, 1, 0.7, fixed=(1,))
    yield Case("huber", "aten.huber_loss.default", x * 2, y, 1, 0.7, fixed=(1,))
    yield Case("kl", "aten.kl_div.default", x, torch.rand(5, 4), 2, fixed=(1,))


def _from_nothing() -> Iterator[Case]:
    yield Case("zeros", "aten.zeros.default", [2, 3])
    yield Case("full", "aten.full.default", [2], 1.5)
    yield Case("full whole", "aten.full.default", [2], 3)
    yield Case("ones like", "aten.ones_like.default", torch.randn(2, 3))
    yield Case("arange", "aten.arange.default", 5)
    yield Case("arange step", "aten.arange.start_step", 1.0, 3.0, 0.5)
    yield Case("eye", "aten.eye.default", 3)
    yield Case("linspace", "aten.linspace.default", 0.0, 1.0, 5)
