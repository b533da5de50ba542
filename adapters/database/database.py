"""Connections to the relational state: SQLite in a file by default, PostgreSQL by URL.

SQLite runs in WAL mode, so readers never wait, and syncs every commit. Its writers take turns; PostgreSQL's lock the
rows that they change. The first connection brings the schema up to date.
"""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from sqlalchemy import Connection, Engine, Insert, Table, create_engine, event, make_url, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    DataError,
    DisconnectionError,
    IntegrityError,
    InterfaceError,
    NoSuchModuleError,
    ProgrammingError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from adapters.database.schema import HEAD
from adapters.disk import make_folder
from adapters.errors import StateError

SQLITE_FILE = "tenora.db"
BUSY_S = 30.0
"""How long a writer waits for its turn, and a statement may take."""
CONNECT_S = 10
"""How long a server may take to answer."""
MIGRATING, ADOPTING = 0x74656E6F7261, 0x74656E6F7262
"""Keys of what one process does at a time."""
_KINDS = ("sqlite", "postgresql")


class _Engines(NamedTuple):
    """Two ways to the same connections; made once, as the first takes as long to make as a short query."""

    reading: Engine
    writing: Engine


class Database:
    """The state of one store. Connections are made when they are needed, so it can be made before a fork.

    Args:
        url: `sqlite:///FILE` or `postgresql://USER:PASSWORD@HOST/NAME`.
    """

    def __init__(self, url: str) -> None:
        self._url = _checked(url)
        self._engines: _Engines | None = None
        self._opening = threading.Lock()

    @classmethod
    def beside(cls, root: Path) -> "Database":
        """The embedded database of a store's folder."""
        return cls(f"sqlite:///{root / SQLITE_FILE}")

    @property
    def url(self) -> str:
        """Where it is, password and all."""
        shown: str = self._url.render_as_string(hide_password=False)
        return shown

    def __str__(self) -> str:
        shown: str = self._url.render_as_string(hide_password=True)
        return shown

    def prepare(self) -> None:
        """Connect and bring the schema up to date.

        Raises:
            StateError: The database cannot be reached, or is of a newer program.
        """
        with self._opening:
            if self._engines is not None:
                return
            engine = self._connected()
            try:
                with _told(self):
                    _migrate(engine)
            except BaseException:
                engine.dispose()
                raise
            self._engines = _Engines(engine.execution_options(isolation_level="AUTOCOMMIT"), engine)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection in which every statement sees what is committed."""
        with _told(self), self._ready().reading.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction: what is done in it happens at its end, whole, or not at all."""
        with _told(self), self._ready().writing.begin() as connection:
            yield connection

    def close(self) -> None:
        """Give back all connections; the next use opens others."""
        with self._opening:
            if self._engines is not None:
                self._engines.writing.dispose()
                self._engines = None

    def _ready(self) -> _Engines:
        if self._engines is None:
            self.prepare()
        assert self._engines is not None
        return self._engines

    def _connected(self) -> Engine:
        if self._url.get_backend_name() == "postgresql":
            bounds = {
                "connect_timeout": CONNECT_S,
                "options": f"-c statement_timeout={int(BUSY_S * 1000)}",
                # A network that is cut says nothing: without these, a wait would last for as long as TCP's.
                "keepalives_idle": 5,
                "keepalives_interval": 2,
                "keepalives_count": 3,
                "tcp_user_timeout": CONNECT_S * 1000,
            }
            return create_engine(self._url, pool_pre_ping=True, connect_args=bounds)
        assert self._url.database is not None
        file = Path(self._url.database).absolute()
        make_folder(file.parent)
        file.touch()
        # From now on nothing is made where a file is missing: an empty database would answer for the one that is gone.
        url = self._url.set(database=f"file:{quote(str(file))}", query={"mode": "rw", "uri": "true"})
        engine = create_engine(url, connect_args={"timeout": BUSY_S})
        event.listen(engine, "connect", partial(_configure_sqlite, file))
        event.listen(engine, "checkout", partial(_check_file, file))
        event.listen(engine, "begin", _begin_sqlite)
        return engine


def now() -> datetime:
    """This moment, in UTC."""
    return datetime.now(UTC)


def lock_out(connection: Connection, key: int) -> None:
    """Let nobody else do what this key is for before this transaction is over. SQLite's writers take turns anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})


def insert(connection: Connection, table: Table) -> "sqlite.Insert | postgresql.Insert":
    """An insertion that can say what to do on a conflict; both kinds of database spell it alike."""
    made = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    return made(table)


def insert_missing(connection: Connection, table: Table, **values: Any) -> None:
    """Insert a row unless its key is there."""
    statement: Insert = insert(connection, table).values(**values).on_conflict_do_nothing()
    connection.execute(statement)


def _checked(url: str) -> Any:
    try:
        made = make_url(url)
        kind = made.get_backend_name()
    except ArgumentError as error:
        raise StateError(f"the database's URL cannot be read: write {_examples()}", key="database") from error
    if kind not in _KINDS:
        raise StateError(f"a database of the kind {kind!r} is not supported: write {_examples()}", key="database")
    if kind == "postgresql":
        return made.set(drivername="postgresql+psycopg")
    if made.database in (None, "", ":memory:"):
        raise StateError(f"SQLite needs a file: write {_examples()}", key="database")
    return made


def _examples() -> str:
    return "sqlite:///FOLDER/tenora.db or postgresql://USER:PASSWORD@HOST/NAME"


def _check_file(file: Path, _connection: sqlite3.Connection, record: Any, _proxy: Any) -> None:
    """Let go of a connection whose file was removed or replaced: what it writes nobody would find."""
    try:
        same = record.info["file"] == file.stat().st_ino
    except FileNotFoundError:
        same = False
    if not same:
        raise DisconnectionError("the file was removed or replaced")


def _configure_sqlite(file: Path, connection: sqlite3.Connection, record: Any) -> None:
    record.info["file"] = file.stat().st_ino
    connection.isolation_level = None  # transactions are begun by us, where they begin
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    """Every transaction of ours writes: one that began as a reader could not become a writer while others write."""
    if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":  # asked there too
        connection.exec_driver_sql("BEGIN IMMEDIATE")


@contextmanager
def _told(database: Database) -> Iterator[None]:
    """Say which database it is that does not answer."""
    try:
        yield
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        raise StateError("PostgreSQL needs its driver: pip install 'tenora[postgres]'", key="database") from error
    except (DatabaseError, DisconnectionError, InterfaceError, PoolTimeoutError) as error:
        # What we ask wrongly is a defect; what the database cannot do now is told.
        if isinstance(error, ProgrammingError | IntegrityError | DataError):
            raise
        reason = str(getattr(error, "orig", error)).strip().splitlines()[0]
        raise StateError(f"the database {database} cannot be used: {reason}", key="database") from error


def _migrate(engine: Engine) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if _revision(connection) == HEAD:
            return
    with engine.begin() as connection:
        lock_out(connection, MIGRATING)
        _upgrade(connection)


def _revision(connection: Connection) -> str | None:
    """The migration that a database is at; None if it is empty."""
    if not connection.dialect.has_table(connection, "alembic_version"):
        return None
    try:
        found: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    except ProgrammingError:
        return None
    return found


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        message = f"the database is of another Tenora than this one ({error}): upgrade the program"
        raise StateError(message, key="database") from error
