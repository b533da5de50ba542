"""The schema and its migrations, on both kinds of database; what is said when one cannot be used."""

import multiprocessing
import sqlite3
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, select, text

import adapters.database.schema as schema
from adapters.database.database import Database, insert_missing, now
from adapters.errors import StateError


def test_the_migrations_make_the_schema(database: Database) -> None:
    database.prepare()
    database.prepare()
    with database.reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, schema.metadata) == []
        assert set(inspect(connection).get_table_names()) == {*schema.metadata.tables, "alembic_version"}


def test_the_newest_migration_is_the_one_that_is_asked_for() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
    assert ScriptDirectory.from_config(config).get_heads() == [schema.HEAD]


def test_rows_from_before_are_kept(database: Database) -> None:
    """A grant keeps its row though its table is made anew, and is to a name from then on."""
    engine, config = database._connected(), Config()
    config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
    key = {"tenant": "acme", "name": "shared"}
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
        for name in ("acme", "zeta"):
            insert_missing(connection, schema.tenants, name=name, created_at=now())
        connection.execute(schema.adapters.insert().values(**key, created_at=now(), served=True))
        connection.execute(schema.grants.insert().values(**key, grantee="zeta", granted_at=now()))
    engine.dispose()
    with database.writing() as connection:
        connection.execute(schema.grants.insert().values(**key, grantee="nobody-yet", granted_at=now()))
    with database.reading() as connection:
        assert set(connection.execute(select(schema.grants.c.grantee)).scalars()) == {"zeta", "nobody-yet"}


def test_a_transaction_happens_whole_or_not_at_all(database: Database) -> None:
    def insert(name: str) -> None:
        with database.writing() as connection:
            insert_missing(connection, schema.tenants, name=name, created_at=now())
            if name == "bad":
                raise RuntimeError("stop")

    insert("good")
    insert("good")
    with pytest.raises(RuntimeError):
        insert("bad")
    with database.reading() as connection:
        assert list(connection.execute(select(schema.tenants.c.name)).scalars()) == ["good"]


def test_moments_come_back_in_utc(database: Database) -> None:
    moment = datetime(2030, 1, 31, 12, 30, 0, 250, timezone(timedelta(hours=5)))
    with database.writing() as connection:
        insert_missing(connection, schema.tenants, name="x", created_at=moment)
    with database.reading() as connection:
        found = connection.execute(select(schema.tenants.c.created_at)).scalar_one()
    assert (found, found.tzinfo) == (moment, UTC)


def _prepare(url: str) -> None:
    Database(url).prepare()


def test_many_processes_may_start_on_an_empty_database(database: Database, tmp_path: Path) -> None:
    url = database._url.render_as_string(hide_password=False)
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_prepare, args=(url,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    with database.reading() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one() == schema.HEAD


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("nonsense", "cannot be read"),
        ("mysql://x/y", "'mysql' is not supported"),
        ("sqlite://", "needs a file"),
        ("postgresql://nobody:s3cret@127.0.0.1:1/none", "cannot be used"),
    ],
)
def test_what_cannot_be_used_is_told_without_the_password(url: str, what: str) -> None:
    with pytest.raises(StateError, match=what) as caught:
        Database(url).prepare()
    assert "s3cret" not in caught.value.message
    assert "\n" not in caught.value.message


def test_a_database_of_a_newer_program_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "tenora.db"
    Database(f"sqlite:///{file}").prepare()
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StateError, match="upgrade the program"):
        Database(f"sqlite:///{file}").prepare()


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "tenora.db").write_text("hello, this is not a database at all, it is a text")
    with pytest.raises(StateError, match="cannot be used"):
        Database(f"sqlite:///{tmp_path / 'tenora.db'}").prepare()


def test_a_file_that_is_gone_is_told_and_no_other_is_made(tmp_path: Path) -> None:
    """A connection to a file that was removed would take writes that nobody ever finds."""
    file, aside = tmp_path / "tenora.db", tmp_path / "aside"
    database = Database(f"sqlite:///{file}")

    def write(name: str) -> None:
        with database.writing() as connection:
            insert_missing(connection, schema.tenants, name=name, created_at=now())

    def names() -> list[str]:
        with database.reading() as connection:
            return list(connection.execute(select(schema.tenants.c.name)).scalars())

    write("one")
    aside.mkdir()
    for path in tmp_path.glob("tenora.db*"):
        path.rename(aside / path.name)
    for ask in (names, lambda: write("lost")):
        with pytest.raises(StateError, match="cannot be used"):
            ask()
    assert not file.exists()
    for path in aside.iterdir():
        path.rename(tmp_path / path.name)
    write("two")
    assert names() == ["one", "two"]
