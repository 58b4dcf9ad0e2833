"""Check that a job's recipe for data (`[data]`) fits the inputs and outputs of its model."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from spliteasy.errors import JobError
from spliteasy.job.io_schema import Signature
from spliteasy.job.spec import DataSpec

OWN_FUNCTION = "write a function that returns a data set, and give it as --data module:function"


def check_recipe(recipe: DataSpec, signature: Signature) -> None:
    """Raises JobError where pictures made by the recipe are not the model's inputs and targets."""
    problem = not_pictures(signature)
    if problem is not None:
        raise JobError(f"data.kind: {problem}", hint=f"leave [data] out, and {OWN_FUNCTION}")
    classes = classes_of(signature)
    if len(recipe.classes) != classes:
        raise JobError(
            f"data.classes names {len(recipe.classes)} classes, and the model tells {classes} apart",
            hint="name every class once, in the order of the model's outputs",
        )
    (picture,) = signature.inputs
    for name, values in (("mean", recipe.mean), ("std", recipe.std)):
        if values and picture.dtype == "uint8":
            raise JobError(f"data.{name}: the model's input is uint8, which is not scaled", hint="remove it")
        if len(values) not in (0, 1, picture.shape[0]):
            raise JobError(
                f"data.{name} has {len(values)} numbers, and a picture {picture.shape[0]} channels",
                hint="give one number a channel, or one for all",
            )


def not_pictures(signature: Signature) -> str | None:
    """Why the job's input or target can't come from a folder of pictures; None where it can."""
    if len(signature.inputs) != 1 or len(signature.targets) != 1:
        return "a folder of pictures gives one input and one target"
    picture = signature.inputs[0]
    if len(picture.shape) != 3 or picture.shape[0] not in (1, 3) or picture.dtype not in ("float32", "uint8"):
        return f"the job's input is {picture}, which images don't fit"
    if classes_of(signature) is None:
        return f"the job's target is {signature.targets[0]}, which is no class"
    return None


def classes_of(signature: Signature) -> int | None:
    """Return how many classes the targets number, or None where they are no classes.

    A class number is int64[] beside scores of each class; a yes or no is float32[] or float32[1] beside one
    score.
    """
    target, output = signature.targets[0], signature.outputs[0]
    if target.dtype == "int64" and target.shape == () and output.shape:
        return output.shape[0]
    if target.dtype == "float32" and target.shape in ((), (1,)) and output.shape == target.shape:
        return 2
    return None


def near(name: str, known: Iterable[str]) -> str:
    """A hint that names the known names which are like `name`, or all of them."""
    names = list(known)
    found = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(map(repr, found))}?" if found else f"known are {', '.join(names[:20])}"
