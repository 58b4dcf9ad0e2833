"""A job package: everything that workers and agents need of a job, as named parts under one digest.

The manifest lists each part's SHA-256 and size; the digest is the SHA-256 of the manifest. Parts:

    spec.json, signature.json                  what to do, and what goes in and out
    head.json, head.safetensors                a segment's graph and initial weights; body and tail too
    ends.json                                  the law by which devices draw initial weights of head and tail:
                                               of these the package has no values
    loss.json, loss.safetensors                a traced loss; none where the loss is a name
    metric0.json, metric0.safetensors, …       traced metrics, in the order of the job file

A device gets all parts but the body's. Loading runs no code of the user's.

**Versions.** What a package has that an older version would misread stands in its manifest under `needs`,
by name. Who does not know all of these says so (`NeedsNewer`) before looking at anything else; who does
reads strictly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from spliteasy.errors import JobError, NeedsNewer, PortableError
from spliteasy.graph.encoding import document_from_json
from spliteasy.graph.program import Batches, Costs
from spliteasy.graph.segment import Segment, Taken, load_segment, load_segment_tensors
from spliteasy.job.io_schema import Signature
from spliteasy.job.measure import measure_of
from spliteasy.job.micro_batches import micro_sizes
from spliteasy.job.spec import Identifier, JobSpec
from spliteasy.privacy.ends import Ends, ends_from_json, placeholders
from spliteasy.runtime.durable_files import write_folder
from spliteasy.training.losses import LOSSES, LossFunction
from spliteasy.training.measures import Measure
from spliteasy.training.metrics import Metric, make_metric

if TYPE_CHECKING:
    from spliteasy.job.source import Source

MAX_MANIFEST_BYTES = 1 << 16
MAX_PARTS = 32
MANIFEST = "manifest.json"
BODY = "body."

LEAST_SAMPLES, LABELLED_SHARES, DATA_RECIPE = "least-samples", "labelled-shares", "data-recipe"
DRAWN_ENDS, DEFENCES, ROUNDS = "secret-ends", "defences", "rounds"
ACCUMULATION, AVERAGED_WEIGHTS, MORE_OPTIMIZERS = "accumulation", "averaged-weights", "more-optimizers"
METRICS, EARLY_STOPPING, KEEP_BEST = "metrics", "early-stopping", "keep-best"
BF16, LENGTHS = "bf16", "lengths"
FEATURES: frozenset[str] = frozenset(
    {
        *(LEAST_SAMPLES, LABELLED_SHARES, DATA_RECIPE, DRAWN_ENDS, DEFENCES, ROUNDS),
        *(ACCUMULATION, AVERAGED_WEIGHTS, MORE_OPTIMIZERS, METRICS, EARLY_STOPPING, KEEP_BEST),
        *(BF16, LENGTHS),
    }
)
"""The features that this version knows and that a package may need, beyond what version 1 always had: batches
of one sample are refused; micro-batches count for their labelled elements; the job says how data is read;
devices draw the first weights of head and tail; devices change what crosses the cuts, or the labels they
train on; devices go on from the mean of all after each round; gradients of several batches are added up; a
moving average of the weights is evaluated; the optimizer is neither SGD nor Adam nor AdamW; the job
names metrics; devices end a training that no longer improves; workers keep the state of the best evaluation;
the graphs have autocast's casts to bfloat16 in them; samples have lengths of their own."""

_Parsed = TypeVar("_Parsed", JobSpec, Signature)
PartName = Annotated[
    str,
    StringConstraints(
        pattern=r"^((spec|signature|head|body|tail|loss|metric[0-3])\.(json|safetensors)|ends\.json)$"
    ),
]


Feature = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,63}$")]
Features = Annotated[tuple[Feature, ...], Field(max_length=32, strict=False)]


class PartEntry(BaseModel):
    """A line of the manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=0, le=1 << 40)]


class Manifest(BaseModel):
    """The table of contents of a package."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    format: Literal["spliteasy-job"] = "spliteasy-job"
    version: Literal[1] = 1
    name: Identifier
    needs: Features = ()
    parts: Annotated[dict[PartName, PartEntry], Field(max_length=MAX_PARTS)]


class _Needs(BaseModel):
    """The part of any version's manifest that must be read first."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)
    name: Identifier
    needs: Features = ()


def device_parts(names: Iterable[str]) -> tuple[str, ...]:
    """The parts that a device gets, in order: all but the body's."""
    return tuple(sorted(name for name in names if not name.startswith(BODY)))


def manifest_of(name: str, parts: Mapping[str, bytes], *, needs: Iterable[str] = ()) -> bytes:
    """The canonical manifest of the parts."""
    entries = {
        part: PartEntry(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
        for part, data in parts.items()
    }
    manifest = Manifest(name=name, needs=tuple(sorted(needs)), parts=entries)
    left_out = set() if manifest.needs else {"needs"}
    return orjson.dumps(manifest.model_dump(mode="json", exclude=left_out), option=orjson.OPT_SORT_KEYS)


def job_digest(manifest: bytes) -> str:
    """The digest of the job that the manifest is of: 64 hexadecimal digits."""
    return _sha256(manifest)


def read_package(folder: Path) -> tuple[bytes, dict[str, bytes]]:
    """Manifest and parts in the folder, each checked against the manifest.

    Raises JobError if there is nothing to read, PortableError if something is damaged.
    """
    try:
        manifest = (folder / MANIFEST).read_bytes()
        names = _parse_manifest(manifest, None).parts
        parts = {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}
    except OSError as error:
        raise JobError(f"{folder} is no job package: {error.strerror}") from error
    return manifest, _checked_parts(_parse_manifest(manifest, None), parts)


def write_package(folder: Path, manifest: bytes, parts: Mapping[str, bytes]) -> None:
    """Write manifest and parts into a new folder, all or nothing. Raises JobError."""
    try:
        write_folder(folder, {**parts, MANIFEST: manifest})
    except FileExistsError:
        raise JobError(f"{folder} exists already", hint="name a folder that does not") from None
    except OSError as error:
        raise JobError(f"{folder}: the job can't be written: {error.strerror}") from error


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Job:
    """One version of a job, `name@digest`. Its segments are templates: sessions `spawn` their own."""

    spec: JobSpec
    signature: Signature
    manifest: bytes
    parts: Mapping[str, bytes]
    digest: str
    head: Segment
    tail: Segment | None
    """None for one cut."""
    ends: Ends
    """This says which tensors of head and tail have no values until a device draws them."""
    loss: LossFunction
    """(outputs, targets) -> scalar, tuples of tensors in."""
    loss_costs: Costs
    """The costs of a loss of the user's own. A named one takes little, and counts for nothing."""
    measure: Measure
    """This says what the loss's mean is over, and which predictions are right."""
    metric_functions: Mapping[str, LossFunction]
    """The metrics that are functions of the user's, by their references."""
    body_or_none: Segment | None
    """None in a device's copy."""

    @classmethod
    def create(cls, spec: JobSpec, root: Path | None = None, source: Source | None = None) -> Job:
        """Build the user's model, cut it and pack it; `root` is where `module:function` counts from.

        `source`: that model, where it was traced already.

        Imports and runs the user's code. Raises JobError.
        """
        from spliteasy.job.create import create_parts  # brings in torch.export, which loading never needs

        parts = create_parts(spec, root, source)
        job = cls.from_parts(manifest_of(spec.name, parts), parts)
        return cls.from_parts(manifest_of(spec.name, parts, needs=job.needs()), parts)

    @classmethod
    def from_parts(cls, manifest: bytes, parts: Mapping[str, bytes], *, digest: str | None = None) -> Job:
        """Check every part against the manifest, and the manifest against `digest`; build the segments.

        The body's parts may be missing. Raises NeedsNewer where it needs more than `FEATURES`,
        and PortableError for anything that does not fit.
        """
        _check_needs(manifest)
        listed = _parse_manifest(manifest, digest)
        found = _checked_parts(listed, parts)
        spec = _parse(found, "spec.json", JobSpec.model_validate_json)
        signature = _parse(found, "signature.json", Signature.model_validate_json)
        if spec.name != listed.name:
            raise PortableError(f"the manifest is of job {listed.name}, its spec of job {spec.name}")
        batches = batches_of(spec)
        ends = ends_from_json(found["ends.json"]) if "ends.json" in found else Ends()
        head, tail = (_segment(found, role, batches, ends) for role in ("head", "tail"))
        loss, loss_costs = _loss(spec, found, batches)
        functions = _metric_functions(spec, found, batches)
        if head is None or (tail is None) != spec.single:
            raise PortableError(f"job {spec.name}: the package lacks a segment, or has one too many")
        return cls(
            spec=spec,
            signature=signature,
            manifest=manifest,
            parts=found,
            digest=job_digest(manifest),
            head=head,
            tail=tail,
            ends=ends,
            loss=loss,
            loss_costs=loss_costs,
            measure=measure_of(spec, loss),
            metric_functions=functions,
            body_or_none=_segment(found, "body", batches, Ends()),
        )

    @classmethod
    def load(cls, folder: Path, *, digest: str | None = None) -> Job:
        """Read what `save` wrote. Raises JobError if there is nothing to read, PortableError if damaged."""
        return cls.from_parts(*read_package(folder), digest=digest)

    def save(self, folder: Path) -> None:
        """Write manifest and parts into a new folder, all or nothing. Raises JobError."""
        write_package(folder, self.manifest, self.parts)

    @property
    def name(self) -> str:
        return self.spec.name

    def metrics(self) -> dict[str, Metric]:
        """The metrics that the job names, before the first test batch."""
        functions = self.metric_functions
        names = self.spec.evaluation.metrics
        return {name: make_metric(name, self.loss, self.measure, functions) for name in names}

    @property
    def body(self) -> Segment:
        """The body. Raises JobError in a device's copy, which has none."""
        if self.body_or_none is None:
            raise JobError(f"this copy of job {self} has no body")
        return self.body_or_none

    def needs(self) -> set[str]:
        """Return the features that a version must know to load the package."""
        found = set()
        if self.signature.least_samples > 1:
            found.add(LEAST_SAMPLES)
        if self.spec.micro_batches > 1 and self.measure.means:
            found.add(LABELLED_SHARES)
        if self.spec.data is not None:
            found.add(DATA_RECIPE)
        if "ends.json" in self.parts:
            found.add(DRAWN_ENDS)
        if self.spec.defended:
            found.add(DEFENCES)
        if self.spec.fleet.has_rounds:
            found.add(ROUNDS)
        if self.spec.precision == "bf16":
            found.add(BF16)
        if self.spec.model.max_length is not None:
            found.add(LENGTHS)
        if self.spec.accumulate > 1:
            found.add(ACCUMULATION)
        if self.spec.optimizer.ema is not None:
            found.add(AVERAGED_WEIGHTS)
        if self.spec.optimizer.name not in ("sgd", "adam", "adamw"):
            found.add(MORE_OPTIMIZERS)
        if self.spec.evaluation.metrics:
            found.add(METRICS)
        if self.spec.evaluation.patience is not None:
            found.add(EARLY_STOPPING)
        if self.spec.evaluation.keep_best:
            found.add(KEEP_BEST)
        return found

    def device_parts(self) -> dict[str, bytes]:
        """The parts that a device gets."""
        return {name: self.parts[name] for name in device_parts(self.parts)}

    def __str__(self) -> str:
        return f"{self.name}@{self.digest[:12]}"

    def __repr__(self) -> str:
        return f"<Job {self}>"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _parse_manifest(manifest: bytes, digest: str | None) -> Manifest:
    if len(manifest) > MAX_MANIFEST_BYTES:
        raise PortableError(f"a job manifest of {len(manifest)} bytes is too large")
    found = job_digest(manifest)
    if digest is not None and found != digest:
        raise PortableError(f"the job manifest has digest {found}, not {digest}")
    try:
        return Manifest.model_validate_json(manifest)
    except ValidationError as error:
        raise PortableError(f"the job manifest is malformed: {error.errors()[0]['msg']}") from None


def _check_needs(manifest: bytes) -> None:
    """Check the package's needs before anything else is read: what is unknown here may be of a
    newer version."""
    try:
        said = _Needs.model_validate_json(manifest[:MAX_MANIFEST_BYTES])
    except ValidationError:
        return  # it is malformed, which is found next
    unknown = tuple(sorted(set(said.needs) - FEATURES))
    if unknown:
        raise NeedsNewer(said.name, unknown)


def _checked_parts(manifest: Manifest, parts: Mapping[str, bytes]) -> dict[str, bytes]:
    extra = sorted(set(parts) - set(manifest.parts))
    missing = sorted(n for n in set(manifest.parts) - set(parts) if not n.startswith(BODY))
    if extra or missing:
        what = f"has no part {missing[0]}" if missing else f"has an unlisted part {extra[0]!r:.60}"
        raise PortableError(f"the package of job {manifest.name} {what}")
    for name, data in parts.items():
        entry = manifest.parts[name]
        if len(data) != entry.size or _sha256(data) != entry.sha256:
            raise PortableError(
                f"part {name} of job {manifest.name} is damaged: its SHA-256 is not the listed one"
            )
    return {name: bytes(parts[name]) for name in sorted(parts)}


def _parse(parts: Mapping[str, bytes], name: str, validate: Callable[[bytes], _Parsed]) -> _Parsed:
    if name not in parts:
        raise PortableError(f"the package has no {name}")
    try:
        return validate(parts[name])
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise PortableError(f"{name}: {where}: {error.errors()[0]['msg']}") from None


def batches_of(spec: JobSpec) -> Batches:
    """The most samples that a segment of the job is ever given at a time, what else a full batch has, and how
    long they are."""
    return Batches(
        train=micro_sizes(spec.batch_size, spec.micro_batches),
        eval=(spec.evaluation.batch_size,),
        length=spec.model.max_length or 0,
    )


def _segment(parts: Mapping[str, bytes], role: str, batches: Batches, ends: Ends) -> Segment | None:
    graph, tensors = parts.get(f"{role}.json"), parts.get(f"{role}.safetensors")
    if graph is None and tensors is None:
        return None
    if graph is None or tensors is None:
        raise PortableError(f"the package has half a {role}: graph and tensors belong together")
    values = Taken(load_segment_tensors(tensors))
    if ends.of(role):
        values |= placeholders(ends, role, document_from_json(graph).tensors)
    return load_segment(graph, values, batches=batches)


def _loss(spec: JobSpec, parts: Mapping[str, bytes], batches: Batches) -> tuple[LossFunction, Costs]:
    graph, tensors = parts.get("loss.json"), parts.get("loss.safetensors")
    if spec.loss.name is not None and graph is None and tensors is None:
        return LOSSES[spec.loss.name], Costs()
    if spec.loss.name is not None or graph is None or tensors is None:
        raise PortableError(f"job {spec.name}: the package's loss is not what its spec says")
    from spliteasy.splitting.losses import load_function  # a named loss needs nothing of it

    loss = load_function(graph, load_segment_tensors(tensors), batches=batches)
    return loss, loss.costs


def _metric_functions(spec: JobSpec, parts: Mapping[str, bytes], batches: Batches) -> dict[str, LossFunction]:
    references = spec.evaluation.functions
    names = {f"metric{place}.{kind}" for place in range(len(references)) for kind in ("json", "safetensors")}
    if {name for name in parts if name.startswith("metric")} != names:
        raise PortableError(f"job {spec.name}: the package's metrics are not what its spec says")
    if not references:
        return {}
    from spliteasy.splitting.losses import load_function  # metrics by name need nothing of it

    sizes = Batches(train=batches.eval, eval=batches.eval, length=batches.length)

    def loaded(part: str) -> LossFunction:
        tensors = load_segment_tensors(parts[f"{part}.safetensors"])
        return load_function(parts[f"{part}.json"], tensors, batches=sizes)

    return {reference: loaded(f"metric{place}") for place, reference in enumerate(references)}
