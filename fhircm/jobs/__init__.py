"""Long work in the background: THE list of jobs. Each is a Task, and a file here.

To add one: its code in profiles/code-system/job.json, a file with a function that does one slice, and a line in JOBS.
https://hl7.org/fhir/R4/task.html
"""

from __future__ import annotations

from fhircm.jobs import reindex
from fhircm.jobs.job import Kind

# code: what does a slice of it, and what clears up after one that ended early
JOBS: dict[str, Kind] = {
    "reindex": Kind(reindex.reindex),
}
