"""Jobs: the description of a training (`JobSpec`)."""

from spliteasy.job.file import load_job_file, parse_job
from spliteasy.job.spec import JobSpec

__all__ = ["JobSpec", "load_job_file", "parse_job"]
