"""Jobs: the description of a training (`JobSpec`) and its portable package (`Job`)."""

from spliteasy.job.file import load_job_file, parse_job
from spliteasy.job.io_schema import SampleSpec, Signature
from spliteasy.job.package import Job, device_parts
from spliteasy.job.spec import JobSpec

__all__ = ["Job", "JobSpec", "SampleSpec", "Signature", "device_parts", "load_job_file", "parse_job"]
