"""The tables as this version needs them. `migrations/` makes them; a test compares the two.

Times are whole microseconds since 1970, which both databases compare alike. Text is compared by its
bytes, as Python does, whatever the database was told of languages.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    Table,
    Text,
    text,
)

VERSION_TABLE = "bgx_version"
TEXT = Text().with_variant(Text(collation="C"), "postgresql")

# Written out: a database uses an index of some rows only where it reads the same words.
BAD = text("status IN ('failed', 'timed_out')")
OVERRUNNING = text("overrunning")
UNFINISHED = text("status IN ('queued', 'running', 'retrying')")

metadata: MetaData = MetaData()

tasks: Table = Table(
    "bgx_tasks",
    metadata,
    Column("id", TEXT, primary_key=True),
    Column("change", BigInteger, nullable=False),
    Column("status", TEXT, nullable=False),
    Column("name", TEXT, nullable=False),
    Column("added_at", BigInteger, nullable=False),
    Column("due_at", BigInteger),
    Column("started_at", BigInteger),
    Column("ended_at", BigInteger),
    Column("overrunning", Boolean, nullable=False),
    Column("fingerprint", TEXT),
    # What is searched, in one text without upper case.
    Column("searched", TEXT, nullable=False),
    # How it ended, how long it ran and how long it waited, in the numbers of `histograms`.
    Column("end_class", SmallInteger),
    Column("wait_class", SmallInteger),
    Column("function", TEXT, nullable=False),
    Column("executor", TEXT, nullable=False),
    Column("process", TEXT, nullable=False),
    Column("detached", Boolean, nullable=False),
    Column("limit", TEXT),
    Column("priority", BigInteger, nullable=False),
    Column("attempt", BigInteger, nullable=False),
    Column("attempts", BigInteger, nullable=False),
    Column("queued_s", Double),
    Column("duration_s", Double),
    Column("timeout_s", Double),
    Column("progress", Double),
    Column("note", TEXT, nullable=False),
    Column("error_type", TEXT),
    Column("error_message", TEXT, nullable=False),
    Column("error_place", TEXT, nullable=False),
    Column("reason", TEXT, nullable=False),
    Column("retry_of", TEXT),
    Column("retryable", Boolean, nullable=False),
    # JSON that only one task's page reads; the last column, so that a list never gets that far.
    Column("details", TEXT, nullable=False),
    Index("bgx_tasks_change", "change", unique=True),
    Index("bgx_tasks_added", "added_at", "id"),
    Index("bgx_tasks_status", "status", "added_at", "id"),
    Index("bgx_tasks_name", "name", "added_at", "id"),
    Index("bgx_tasks_fingerprint", "fingerprint", "added_at", "id"),
    Index("bgx_tasks_ended", "ended_at", "end_class", "name", "wait_class"),
    Index(
        "bgx_tasks_bad",
        "ended_at",
        "fingerprint",
        "name",
        sqlite_where=BAD,
        postgresql_where=BAD,
    ),
    Index(
        "bgx_tasks_overrunning",
        "added_at",
        "id",
        sqlite_where=OVERRUNNING,
        postgresql_where=OVERRUNNING,
    ),
)

# One row. Who writes changes it first, and so holds it until the end of the transaction: numbers
# become visible in their order, which those of a sequence do not.
counter: Table = Table(
    "bgx_counter",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("last", BigInteger, nullable=False),
)

processes: Table = Table(
    "bgx_processes",
    metadata,
    Column("id", TEXT, primary_key=True),
    Column("started_at", BigInteger, nullable=False),
    Column("seen_at", BigInteger, nullable=False),
    Column("reading", TEXT, nullable=False),
)

commands: Table = Table(
    "bgx_commands",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("id", TEXT, nullable=False, unique=True),
    Column("process", TEXT, nullable=False),
    Column("task_id", TEXT, nullable=False),
    Column("action", TEXT, nullable=False),
    Column("asked_at", BigInteger, nullable=False),
    Column("answer", TEXT),
    Index("bgx_commands_process", "process", "number"),
)
