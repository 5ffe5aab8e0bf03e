"""What `Query.text` is looked for in: the same for every store."""

from fastapi_bgx.records import Record


def searched(record: Record) -> str:
    """The texts of a record that a search looks at, in one, without regard to case."""
    return "\n".join(
        (
            record.name,
            record.id,
            record.function,
            record.error_type or "",
            record.error_message,
            record.reason,
        )
    ).casefold()
