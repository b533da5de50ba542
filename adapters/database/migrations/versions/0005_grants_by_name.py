"""Grants to names that no tenant has yet."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Let go of what ties a grant to a tenant."""
    with op.batch_alter_table("grants") as grants:
        grants.drop_constraint("fk_grants_grantee", type_="foreignkey")
