"""Tasks, the number of their last change, processes, and what these were asked to do."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
BAD = sa.text("status IN ('failed', 'timed_out')")
OVERRUNNING = sa.text("overrunning")


def upgrade() -> None:
    """Make all of them, empty."""
    _tasks()
    _indexes()
    counter = op.create_table(
        "bgx_counter",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("last", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(counter, [{"id": 1, "last": 0}])
    _processes()
    _commands()


def _tasks() -> None:
    op.create_table(
        "bgx_tasks",
        sa.Column("id", TEXT, primary_key=True),
        sa.Column("change", sa.BigInteger, nullable=False),
        sa.Column("status", TEXT, nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("added_at", sa.BigInteger, nullable=False),
        sa.Column("due_at", sa.BigInteger),
        sa.Column("started_at", sa.BigInteger),
        sa.Column("ended_at", sa.BigInteger),
        sa.Column("overrunning", sa.Boolean, nullable=False),
        sa.Column("fingerprint", TEXT),
        sa.Column("searched", TEXT, nullable=False),
        sa.Column("end_class", sa.SmallInteger),
        sa.Column("wait_class", sa.SmallInteger),
        sa.Column("function", TEXT, nullable=False),
        sa.Column("executor", TEXT, nullable=False),
        sa.Column("process", TEXT, nullable=False),
        sa.Column("detached", sa.Boolean, nullable=False),
        sa.Column("limit", TEXT),
        sa.Column("priority", sa.BigInteger, nullable=False),
        sa.Column("attempt", sa.BigInteger, nullable=False),
        sa.Column("attempts", sa.BigInteger, nullable=False),
        sa.Column("queued_s", sa.Double),
        sa.Column("duration_s", sa.Double),
        sa.Column("timeout_s", sa.Double),
        sa.Column("progress", sa.Double),
        sa.Column("note", TEXT, nullable=False),
        sa.Column("error_type", TEXT),
        sa.Column("error_message", TEXT, nullable=False),
        sa.Column("error_place", TEXT, nullable=False),
        sa.Column("reason", TEXT, nullable=False),
        sa.Column("retry_of", TEXT),
        sa.Column("retryable", sa.Boolean, nullable=False),
        sa.Column("details", TEXT, nullable=False),
    )


def _indexes() -> None:
    op.create_index("bgx_tasks_change", "bgx_tasks", ["change"], unique=True)
    op.create_index("bgx_tasks_added", "bgx_tasks", ["added_at", "id"])
    for name in ("status", "name", "fingerprint"):
        op.create_index(f"bgx_tasks_{name}", "bgx_tasks", [name, "added_at", "id"])
    op.create_index("bgx_tasks_ended", "bgx_tasks", ["ended_at", "end_class", "name", "wait_class"])
    op.create_index(
        "bgx_tasks_bad",
        "bgx_tasks",
        ["ended_at", "fingerprint", "name"],
        sqlite_where=BAD,
        postgresql_where=BAD,
    )
    op.create_index(
        "bgx_tasks_overrunning",
        "bgx_tasks",
        ["added_at", "id"],
        sqlite_where=OVERRUNNING,
        postgresql_where=OVERRUNNING,
    )


def _processes() -> None:
    op.create_table(
        "bgx_processes",
        sa.Column("id", TEXT, primary_key=True),
        sa.Column("started_at", sa.BigInteger, nullable=False),
        sa.Column("seen_at", sa.BigInteger, nullable=False),
        sa.Column("reading", TEXT, nullable=False),
    )


def _commands() -> None:
    op.create_table(
        "bgx_commands",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", TEXT, nullable=False, unique=True),
        sa.Column("process", TEXT, nullable=False),
        sa.Column("task_id", TEXT, nullable=False),
        sa.Column("action", TEXT, nullable=False),
        sa.Column("asked_at", sa.BigInteger, nullable=False),
        sa.Column("answer", TEXT),
    )
    op.create_index("bgx_commands_process", "bgx_commands", ["process", "number"])
