"""The two sides of split training without any of our machinery: plain modules, one request after another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness.workloads import Workload
from spliteasy.job.micro_batches import share_of, split_batch
from spliteasy.training.segment_trainer import backward_from

Kind = Literal["forward", "backward"]


class Exchange(Protocol):
    """A way to the other side. The reply to `a` is `b`, the reply to `gb` is `ga`."""

    def __call__(self, kind: Kind, tensor: Tensor) -> Tensor: ...


class Body:
    """The server's side."""

    def __init__(self, workload: Workload) -> None:
        self._body = workload.parts(workload.model())[1]
        self._optimizer = workload.optimizer(self._body.parameters())
        self._a = self._b = torch.empty(0)

    def __call__(self, kind: Kind, tensor: Tensor) -> Tensor:
        if kind == "forward":
            self._a = tensor.requires_grad_()
            self._b = self._body(self._a)
            return self._b.detach()
        self._b.backward(tensor)
        self._optimizer.step()
        self._optimizer.zero_grad()
        assert self._a.grad is not None
        return self._a.grad


class Device:
    """The device's side: `step` takes one."""

    def __init__(self, workload: Workload, exchange: Exchange) -> None:
        self._head, _, self._tail = workload.parts(workload.model())
        parameters = [*self._head.parameters(), *self._tail.parameters()]
        self._optimizer = workload.optimizer(iter(parameters))
        self._batches = workload.batches()
        self._exchange = exchange

    def step(self) -> None:
        images, labels = next(self._batches)
        a = self._head(images)
        b = self._exchange("forward", a.detach()).requires_grad_()
        F.cross_entropy(self._tail(b), labels).backward()
        assert b.grad is not None
        a.backward(self._exchange("backward", b.grad))
        self._optimizer.step()
        self._optimizer.zero_grad()


class Plain:
    """The same model in one process: what all others are compared with. In `micro_batches` parts it adds up
    their gradients."""

    def __init__(self, workload: Workload, micro_batches: int = 1) -> None:
        self._micro_batches = micro_batches
        self._model = workload.model()
        self._optimizer = workload.optimizer(self._model.parameters())
        self._batches: Iterator[tuple[Tensor, Tensor]] = workload.batches()

    def step(self) -> None:
        whole = next(self._batches)
        for images, labels in split_batch(whole, self._micro_batches):
            loss = F.cross_entropy(self._model(images), labels)
            backward_from(loss, share_of(len(labels), len(whole[1])))
        self._optimizer.step()
        self._optimizer.zero_grad()
