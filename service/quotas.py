"""How much host memory each tenant's adapters may take, as the engine process knows it."""

import logging

from sqlalchemy import select

from adapters.adapter import Adapter
from adapters.database.database import Database
from adapters.database.schema import tenants
from adapters.errors import AdapterError
from service.errors import RateLimitedError

logger = logging.getLogger(__name__)


class Quotas:
    """The tenants' limits on resident bytes, as of the last refresh; any thread may ask.

    Args:
        database: Where they are.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._bytes: dict[str, int] = {}

    def refresh(self) -> None:
        """Read them anew; where that fails, what was known holds on."""
        wanted = select(tenants.c.name, tenants.c.resident_bytes).where(tenants.c.resident_bytes.is_not(None))
        try:
            with self._database.reading() as connection:
                self._bytes = {row.name: row.resident_bytes for row in connection.execute(wanted)}
        except AdapterError as error:
            logger.warning("the tenants' limits cannot be read; the last ones hold on: %s", error)

    def of(self, tenant: str) -> int | None:
        """A tenant's limit in bytes; None if it has none."""
        return self._bytes.get(tenant)

    def check(self, adapter: Adapter) -> None:
        """Refuse an adapter that is too large for its tenant by itself.

        Raises:
            RateLimitedError: It is.
        """
        most = self.of(adapter.ref.partition("/")[0])
        if most is not None and adapter.nbytes > most:
            raise RateLimitedError(
                f"Limit of this tenant's adapters in memory: {most} bytes; {adapter.ref} alone takes {adapter.nbytes}."
            )
