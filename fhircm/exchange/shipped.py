"""Where the files that fhircm ships lie: inside the installed package, or beside it in a source tree.

https://packaging.python.org/en/latest/discussions/src-layout-vs-flat-layout/
"""

from __future__ import annotations

from pathlib import Path

import fhircm


def shipped(*parts: str) -> Path:
    """The path of a shipped file or folder, for example shipped("mappings", "identity.yaml"). Raises FileNotFoundError."""
    package = Path(fhircm.__file__).parent
    for root in (package, package.parent):
        path = root.joinpath(*parts)
        if path.exists():
            return path
    raise FileNotFoundError(f"fhircm was installed without {'/'.join(parts)}")
