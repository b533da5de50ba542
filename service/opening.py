"""Opens what the settings name: the store, and the database that its names are kept in."""

from typing import TYPE_CHECKING

from adapters.database.database import Database
from service.settings import StoreSettings

if TYPE_CHECKING:
    from adapters.store import Store


def open_database(settings: StoreSettings) -> Database:
    """The database of a store; nothing is connected yet."""
    return Database(settings.database) if settings.database is not None else Database.beside(settings.store)


def open_store(settings: StoreSettings) -> "Store":
    """The store with its database; nothing is read yet."""
    from adapters.store import Store

    return Store(settings.store, open_database(settings) if settings.database is not None else None)
