"""The transforms at the cuts, in the user's model as it runs whole: by hooks, as a PyTorch user would."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from spliteasy.errors import JobError
from spliteasy.graph.document import ValueSpec
from spliteasy.job import Job
from spliteasy.privacy.defences.transforms import CutTransforms
from spliteasy.runtime.randomness import Key
from spliteasy.training.cut_calls import AfterCall


class PlainTransforms:
    """The changes that a device makes to the first cut's output, and to the gradient of the second one's."""

    def __init__(self, transforms: CutTransforms) -> None:
        self._transforms = transforms

    @classmethod
    def of(cls, job: Job, key: Key) -> PlainTransforms | None:
        """None where nothing that crosses is changed. Raises JobError where hooks can't do it."""
        settings = job.spec.privacy
        changed = settings.clip_activations is not None or settings.noisy_gradients
        if not (changed or settings.nopeek or settings.shuffle_tokens):
            return None
        graph = job.body.program.document.train
        for values in (graph.inputs, graph.outputs[: graph.wire]):
            if len(values) != 1 or not _is_floating(values[0]):
                raise JobError(
                    f"job {job}: {len(values)} values cross a cut, and plain PyTorch can be given the job's "
                    "defences only where one tensor does, the output of the module that the cut names",
                    hint="cut where no skip connection crosses, or compare without these defences",
                )
        return cls(CutTransforms(settings, key, head=job.head, tail=job.tail))

    def at(self, step: int, inputs: Sequence[Tensor], targets: Sequence[Tensor], share: float) -> AfterCall:
        """Return the function that runs after the calls that are cuts, in the forward of `step`.

        `inputs` and `targets`: the micro-batch's, which counts for `share` of the batch.
        """

        order: Tensor | None = None

        def noisy(gradient: Tensor) -> Tensor | None:
            return self._transforms.gradients((gradient,), targets, step=step)[0]

        def transform(place: int, output: Any) -> Any:
            if not isinstance(output, Tensor):
                raise JobError(
                    "the module that a cut names returns no tensor: its defences can't be compared"
                )
            nonlocal order
            if place == 0:
                order = self._transforms.order((output,), purpose="activations", step=step)
                sent = self._transforms.activations((output,), purpose="activations", step=step, order=order)[
                    0
                ]
                if isinstance(sent, Tensor) and sent.requires_grad:
                    returned = partial(self._returned, inputs, sent.detach(), share)
                    sent.register_hook(returned)  # type: ignore[no-untyped-call]
                return sent
            if output.requires_grad:
                output.register_hook(noisy)  # type: ignore[no-untyped-call]
            return self._transforms.in_order((output,), order)[0]

        return transform

    def _returned(self, inputs: Sequence[Tensor], sent: Tensor, share: float, gradient: Tensor) -> Tensor:
        (changed,) = self._transforms.returned(inputs, (sent,), (gradient,), share=share)
        assert changed is not None
        return changed


def _is_floating(spec: ValueSpec) -> bool:
    return not spec.is_int and spec.torch_dtype.is_floating_point
