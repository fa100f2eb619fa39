"""Where the artefacts that are data live: beside the package when it is installed, at the top of the source tree otherwise.

https://yaml.org/spec/1.1/
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import yaml

import fhircm

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C, where there is one: ten times as fast


class _File(Protocol):
    """A file of a folder, or of a package."""

    def read_bytes(self) -> bytes: ...


def read_yaml(file: _File) -> Any:
    """What a YAML file says. Raises OSError, yaml.YAMLError."""
    return yaml.load(file.read_bytes(), Loader=_Loader)  # noqa: S506 a SafeLoader


def folder(name: str) -> Path:
    """The folder `profiles` or `mappings`. Raises FileNotFoundError when the installation is not whole."""
    package = Path(fhircm.__file__).parent
    for place in (package / name, package.parent / name):
        if place.is_dir():
            return place
    raise FileNotFoundError(f"the folder '{name}' is missing from this installation of fhircm; install it again")
