"""What several rooms' tests need."""

import gc
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from adapters.database.database import Database
from tests.support.postgres import MISSING, binaries, postgres

_numbers = itertools.count()


def pytest_collection_finish() -> None:
    """Pass over what was imported by now in every collection to come: it stays, and it is most of all objects."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A running PostgreSQL."""
    if binaries() is None:
        pytest.skip(MISSING)
    with postgres() as url:
        yield url


@pytest.fixture
def new_postgres(postgres_url: str) -> Callable[[], str]:
    """Makes empty databases."""

    def make() -> str:
        name = f"test_{next(_numbers)}"
        engine = sa.create_engine(sa.make_url(postgres_url).set(drivername="postgresql+psycopg"))
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.text(f"CREATE DATABASE {name}"))
        engine.dispose()
        return sa.make_url(postgres_url).set(database=name).render_as_string(hide_password=False)

    return make


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """An empty database of each kind."""
    if request.param == "sqlite":
        made = Database(f"sqlite:///{tmp_path / 'state' / 'tenora.db'}")
    else:
        made = Database(request.getfixturevalue("new_postgres")())
    yield made
    made.close()


@pytest.fixture(scope="session")
def bf16_kernels() -> None:
    """The compiled kernels for bfloat16, or a reason why not."""
    import torch

    from adapters.native import library

    if not library.supports(torch.bfloat16):
        pytest.skip("there are no kernels for bfloat16: they need a C compiler and a CPU with AVX512-BF16")
