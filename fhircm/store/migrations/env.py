"""Alembic's entry: runs on the connection that `migrate` opened, in its transaction."""

from alembic import context
from sqlmodel import SQLModel

from fhircm.store import tables

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=SQLModel.metadata,
    transactional_ddl=True,
    include_name=tables.declared,
)
context.run_migrations()
