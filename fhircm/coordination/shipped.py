"""Where the FHIR artefacts lie that coordination reads: inside the installed package, or beside it in a source tree.

https://hl7.org/fhir/R4/profiling.html
"""

from __future__ import annotations

from pathlib import Path

import fhircm


def profiles(*parts: str) -> Path:
    """The path of a file or folder of `profiles/`. Raises FileNotFoundError."""
    package = Path(fhircm.__file__).parent
    for root in (package, package.parent):
        path = root.joinpath("profiles", *parts)
        if path.exists():
            return path
    raise FileNotFoundError(f"fhircm was installed without profiles/{'/'.join(parts)}")
