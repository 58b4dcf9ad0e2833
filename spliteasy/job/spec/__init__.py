"""The job's description: everything that a training depends on but the model's weights and the data.

A job file (TOML) is validated into a `JobSpec`; its canonical JSON is part of the job's digest.
What is foreseen but not built is refused by name, never ignored.
"""

from spliteasy.job.spec.fleet import LEAST_SEALED, FleetSpec
from spliteasy.job.spec.job import JobSpec
from spliteasy.job.spec.model import LossSpec, ModelSpec
from spliteasy.job.spec.optimizer import (
    AdagradSpec,
    ClipSpec,
    ConstantSpec,
    CosineSpec,
    GroupSpec,
    LionSpec,
    OptimizerSpec,
    RmsPropSpec,
    ScheduleSpec,
    SgdSpec,
    StepSpec,
)
from spliteasy.job.spec.privacy import STRICT, DpSpec, LimitsSpec, PrivacySpec
from spliteasy.job.spec.running import LOSS, DataSpec, DurabilitySpec, EvaluationSpec, LinkSpec, PlanSpec
from spliteasy.job.spec.values import MAX_COUNT, Identifier, Name, Section

__all__ = [
    "LEAST_SEALED",
    "LOSS",
    "MAX_COUNT",
    "STRICT",
    "AdagradSpec",
    "ClipSpec",
    "ConstantSpec",
    "CosineSpec",
    "DataSpec",
    "DpSpec",
    "DurabilitySpec",
    "EvaluationSpec",
    "FleetSpec",
    "GroupSpec",
    "Identifier",
    "JobSpec",
    "LimitsSpec",
    "LinkSpec",
    "LionSpec",
    "LossSpec",
    "ModelSpec",
    "Name",
    "OptimizerSpec",
    "PlanSpec",
    "PrivacySpec",
    "RmsPropSpec",
    "ScheduleSpec",
    "Section",
    "SgdSpec",
    "StepSpec",
]
