"""Write a new migration from the difference between the newest one and store/tables.py."""

import sys
import tempfile
from pathlib import Path

from alembic import command

from fhircm.store.migrations.upgrade import _config, _in_sqlite, _upgrade

with tempfile.TemporaryDirectory() as folder:

    def _write(connection: object) -> None:
        _upgrade(connection)  # type: ignore[arg-type]
        command.revision(_config(connection), sys.argv[1], autogenerate=True)  # type: ignore[arg-type]

    _in_sqlite(Path(folder) / "scratch.db", _write)
