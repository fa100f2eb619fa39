"""Where the artefacts that are data live: beside the package when it is installed, at the top of the source tree otherwise."""

from __future__ import annotations

from pathlib import Path

import fhircm


def folder(name: str) -> Path:
    """The folder `profiles` or `mappings`. Raises FileNotFoundError when the installation is not whole."""
    package = Path(fhircm.__file__).parent
    for place in (package / name, package.parent / name):
        if place.is_dir():
            return place
    raise FileNotFoundError(f"the folder '{name}' is missing from this installation of fhircm; install it again")
