"""Triggers that refuse UPDATE and DELETE on frozen tables, in both dialects.

SQLite drops a table's triggers when a migration recreates the table, so migrations call `freeze` again afterwards.
"""

from sqlalchemy import Connection

_POSTGRES_FUNCTION = """
create or replace function gradus_refuse_change() returns trigger language plpgsql as $$
begin raise exception 'rows of %% are frozen: %%', tg_table_name,
    coalesce(tg_argv[0], 'retire the release and create a new one'); end $$
"""


def freeze(connection: Connection, table: str, remedy: str = "retire the release and create a new one") -> None:
    """Make every UPDATE and DELETE on the table fail from now on, with what to do instead."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(_POSTGRES_FUNCTION)
        connection.exec_driver_sql(
            f"create or replace trigger {table}_is_frozen before update or delete on {table} "
            f"for each row execute function gradus_refuse_change('{remedy}')"
        )
        return
    for change in ("update", "delete"):
        connection.exec_driver_sql(
            f"create trigger if not exists {table}_refuses_{change} before {change} on {table} begin "
            f"select raise(abort, 'rows of {table} are frozen: {remedy}'); end"
        )
