"""The messages of a recorded training, decoded into what adversaries look at."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from broker.protocol import messages as m
from spliteasy.codecs.packer import expected_of, unpack
from spliteasy.job import Job
from spliteasy.job.micro_batches import share_of
from spliteasy.privacy.record import Evaluated, Exchange, Purpose, Step
from spliteasy.training.segment_trainer import Values


def steps_of(job: Job, messages: Sequence[m.AnyMessage]) -> tuple[Step, ...]:
    """The whole steps among the messages, in order; of what was sent twice the newest counts."""
    forwards = {(x.step, x.micro): x for x in messages if isinstance(x, m.Forward)}
    backwards = {(x.step, x.micro): x for x in messages if isinstance(x, m.Backward)}
    replies = {x.answers: x for x in messages if isinstance(x, m.Forwarded | m.Gradient)}
    steps: dict[int, list[Exchange]] = {}
    for (step, micro), forward in sorted(forwards.items()):
        backward = backwards.get((step, micro))
        closing = replies.get((backward or forward).request)
        if isinstance(closing, m.Gradient):
            opening = replies.get(forward.request)
            exchange = exchange_of(job, forward, opening if backward else None, backward, closing)
            steps.setdefault(step, []).append(exchange)
    return tuple(tuple(steps[step]) for step in range(1, len(steps) + 1) if step in steps)


def exchange_of(
    job: Job, forward: m.Forward, forwarded: m.Reply | None, backward: m.Backward | None, gradient: m.Gradient
) -> Exchange:
    """Return the tensors of one micro-batch, decoded; `forwarded` and `backward` are None with one cut."""
    codecs = job.spec.link.codecs
    up = expected_of(job.body.input_values, forward.samples, forward.length or 0)
    first_target = len(forward.values) - forward.targets
    outputs: Values = ()
    output_gradients: tuple[Tensor | None, ...] = ()
    if isinstance(forwarded, m.Forwarded) and backward is not None:
        down = expected_of(job.body.output_values, forward.samples, forward.length or 0)
        outputs = _present(unpack(m.packed_in(forwarded), down, codecs=codecs["activations"]))
        back = unpack(m.packed_in(backward), down, codecs=codecs["gradients"])
        output_gradients = tuple(v if isinstance(v, Tensor) else None for v in back)
    arrived = unpack(m.packed_in(forward, last=first_target), up, codecs=codecs["activations"])
    returned = unpack(m.packed_in(gradient), up, codecs=codecs["gradients"])
    return Exchange(
        samples=forward.samples,
        share=share_of(forward.samples, forward.batch or forward.samples),
        activations=_present(arrived),
        outputs=outputs,
        output_gradients=output_gradients,
        gradients=tuple(v if isinstance(v, Tensor) else None for v in returned),
    )


def evaluations_of(job: Job, messages: Sequence[m.AnyMessage], purpose: Purpose) -> tuple[Evaluated, ...]:
    """Return the batches that were evaluated or predicted, in order."""
    codecs = job.spec.link.codecs["activations"]
    graph = job.body.program.document.eval
    replies = {x.answers: x for x in messages if isinstance(x, m.Evaluated)}
    return tuple(
        Evaluated(
            step=asked.step,
            purpose=purpose,
            activations=_present(
                unpack(
                    m.packed_in(asked),
                    expected_of(graph.inputs, asked.samples, asked.length or 0),
                    codecs=codecs,
                )
            ),
            outputs=_present(
                unpack(
                    m.packed_in(replies[asked.request]),
                    expected_of(graph.outputs, asked.samples, asked.length or 0),
                    codecs=codecs,
                )
            ),
        )
        for asked in messages
        if isinstance(asked, m.Eval) and asked.request in replies
    )


def _present(values: Sequence[Tensor | int | None]) -> Values:
    return tuple(value for value in values if value is not None)
