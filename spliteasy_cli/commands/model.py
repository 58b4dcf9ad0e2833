"""`spliteasy merge` and `spliteasy predict`: use what was trained, on the device that trained it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spliteasy.errors import DataError, SplitEasyError, StateError, UserError
from spliteasy_cli.options.threads import DEFAULT_THREADS, ThreadsOption, torch_threads
from spliteasy_cli.support.endpoints import BrokerOption
from spliteasy_cli.support.log_setup import set_up_logging

if TYPE_CHECKING:
    from torch import Tensor

    from spliteasy.job import Job

StateOption = Annotated[
    Path, typer.Option("--state", help="The state folder of the device's agent.", show_default=False)
]
SHOWN_ROWS = 10


def merge(
    context: typer.Context,
    state: StateOption,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The file for the weights (safetensors).")
    ] = Path("model.safetensors"),
    broker: BrokerOption = None,
) -> None:
    """Put the trained model together on the device, under the original names.

    Fetches the body, where the job says `share_body = true`. Load the file into your model with
    `model.load_state_dict(safetensors.torch.load_file("model.safetensors"))`.
    """
    import asyncio

    set_up_logging(context, "warning")
    step, count = asyncio.run(_merge(_existing(state), output, broker))
    typer.echo(f"{output}: {count} tensors of step {step}")


async def _merge(folder: Path, output: Path, broker: str | None) -> tuple[int, int]:
    from safetensors.torch import save
    from torch import Tensor

    from broker.protocol import messages as m
    from device_agent.state_folder import StateFolder
    from spliteasy.runtime.durable_files import write_file
    from spliteasy_cli.support.trained_device import other_half, read_half

    with StateFolder(folder) as state:
        half = read_half(state)
        async with other_half(half, folder, broker) as caller:
            request = m.GetBody(session=half.session, attempt=half.attempt, step=half.step)
            body = await caller.ask(request, m.Body)
    weights = half.weights()
    weights.update({n: v for n, v in zip(body.names, body.values, strict=True) if isinstance(v, Tensor)})
    about = {"job": half.job.name, "digest": half.job.digest, "step": str(half.step)}
    # Cloned: tied weights are one tensor under two names, which the format does not take.
    write_file(output, save({name: t.contiguous().clone() for name, t in weights.items()}, about))
    return half.step, len(weights)


def predict(
    context: typer.Context,
    state: StateOption,
    inputs: Annotated[
        Path,
        typer.Option(
            help="The inputs, batch first: .npy for one input, .safetensors for several.", show_default=False
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Write all outputs there (.npy or .safetensors).", show_default=False
        ),
    ] = None,
    broker: BrokerOption = None,
    threads: ThreadsOption = DEFAULT_THREADS,
) -> None:
    """Run inputs through the trained split: head and tail here, the body on a worker."""
    import asyncio

    set_up_logging(context, "warning")
    if output is not None and output.suffix not in (".npy", ".safetensors"):
        raise UserError(f"{output} can't be written", hint="name it .npy or .safetensors")
    with torch_threads(threads):
        names, outputs, problem = asyncio.run(_predict(_existing(state), inputs, broker))
    if output is not None:
        write_tensors(output, dict(zip(names, outputs, strict=True)))
        typer.echo(f"{output}: {len(outputs[0])} rows")
    else:
        _show(outputs[0])
    if problem is not None:
        raise problem


def _show(outputs: Tensor) -> None:
    for row, values in enumerate(outputs[:SHOWN_ROWS]):
        if bool(values.isnan().any()):
            typer.echo(f"{row}  not finite")
            continue
        best = f"  class {int(values.argmax())}" if values.dim() == 1 and len(values) > 1 else ""
        typer.echo(f"{row}{best}  {[round(float(value), 4) for value in values.flatten()[:12]]}")
    if len(outputs) > SHOWN_ROWS:
        typer.echo(f"… {len(outputs)} rows in all; -o FILE writes them")


def not_a_prediction(
    given: tuple[Tensor, ...], outputs: tuple[Tensor, ...], weights: dict[str, Tensor], job: Job
) -> SplitEasyError | None:
    """Return what is wrong with predictions that hold NaN: the inputs, else the model. None where
    none does."""
    rows = {int(row) for tensor in outputs for row in nan_rows(tensor)}
    if not rows:
        return None
    first = min(rows)
    what = f"{len(rows)} of {len(outputs[0])} predictions are NaN, the first in row {first}"
    for spec, tensor in zip(job.signature.inputs, given, strict=True):
        if tensor.is_floating_point() and not bool(tensor[first].isfinite().all()):
            return DataError(f"{what}: input {spec.name!r} is not finite there", hint="mend these inputs")
    for name, tensor in weights.items():
        if tensor.is_floating_point() and bool(tensor.isnan().any()):
            return StateError(
                f"{what}: {name} of the trained model is NaN", hint="train again; on_non_finite stops in time"
            )
    return SplitEasyError(f"{what}: the inputs are finite, and so are head and tail", hint="train again")


def nan_rows(tensor: Tensor) -> Tensor:
    """The rows that hold a NaN."""
    if not tensor.is_floating_point():
        return tensor.new_empty(0)
    return tensor.isnan().flatten(1).any(dim=1).nonzero().flatten()


async def _predict(
    folder: Path, inputs: Path, broker: str | None
) -> tuple[list[str], tuple[Tensor, ...], SplitEasyError | None]:
    """The outputs by name, and what is wrong with them where they hold NaN."""
    import torch

    from device_agent.state_folder import StateFolder
    from spliteasy_cli.support.trained_device import other_half, read_half

    with StateFolder(folder) as state:
        half = read_half(state)
        given = read_inputs(inputs, half.job)
        size = half.job.spec.evaluation.batch_size
        async with other_half(half, folder, broker) as caller:
            batches = [
                await half.predict(batch, caller)
                for batch in zip(*(torch.split(tensor, size) for tensor in given), strict=True)
            ]
    names = [spec.name for spec in half.job.signature.outputs]
    outputs = tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
    return names, outputs, not_a_prediction(given, outputs, half.weights(), half.job)


def read_inputs(path: Path, job: Job) -> tuple[Tensor, ...]:
    """The job's inputs in order, batch first. Raises DataError where they don't fit.

    Samples that have lengths of their own are all padded to one, which may be any that the job takes.
    """
    from spliteasy.graph.checker import SHORTEST

    specs = job.signature.inputs
    found = read_tensors(path, only=specs[0].name if len(specs) == 1 else None)
    missing = [spec.name for spec in specs if spec.name not in found]
    if missing:
        raise DataError(
            f"{path} has {', '.join(sorted(found)) or 'nothing'}, the job needs {', '.join(missing)}"
        )
    tensors = tuple(found[spec.name] for spec in specs)
    for spec, tensor in zip(specs, tensors, strict=True):
        dtype = str(tensor.dtype).removeprefix("torch.")
        if tensor.dim() == 0 or len(tensor) == 0:
            raise DataError(
                f"{path}: input {spec.name!r} is empty", hint="the first dimension counts samples"
            )
        length = job.signature.length_of(tensors) or 0
        fits = not spec.length_dims or SHORTEST <= length <= (job.spec.model.max_length or 0)
        if not fits or (dtype, tuple(tensor.shape[1:])) != (spec.dtype, spec.shape_at(length)):
            raise DataError(
                f"{path}: a sample of {spec.name!r} is {dtype}{list(tensor.shape[1:])}, the job takes {spec}"
            )
    if len({len(tensor) for tensor in tensors}) > 1:
        raise DataError(f"{path}: the inputs differ in their number of samples")
    return tensors


def read_tensors(path: Path, only: str | None) -> dict[str, Tensor]:
    """Tensors by name; those of a .npy file, or a single one where the job has one input, as `only`."""
    import numpy as np
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        if path.suffix == ".npy":
            if only is None:
                raise DataError(f"{path}: the job has several inputs", hint="give a .safetensors file")
            return {only: torch.from_numpy(np.load(path, allow_pickle=False))}
        tensors = load(path.read_bytes())
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path} can't be read: {reason}", hint="give a .npy or .safetensors file") from error
    return {only: next(iter(tensors.values()))} if only and len(tensors) == 1 else tensors


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write them whole or not at all; .npy takes the first."""
    import io

    import numpy as np
    from safetensors.torch import save

    from spliteasy.runtime.durable_files import write_file

    if path.suffix == ".npy":
        buffer = io.BytesIO()
        np.save(buffer, next(iter(tensors.values())).numpy(), allow_pickle=False)
        write_file(path, buffer.getvalue())
    else:
        write_file(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}))


def _existing(state: Path) -> Path:
    if not state.is_dir():
        raise UserError(f"there is no state folder {state}", hint="name the agent's --state folder")
    return state
