"""Alembic's entry point: migrate the connection that `db.upgrade` hands over."""

from alembic import context

from db.tables.schema import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA, render_as_batch=True)
context.run_migrations()
