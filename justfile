# The tests; `just test tests/test_docs.py -k README` runs some of them.
test *arguments:
    uv run --group dev pytest {{arguments}}

# Everything that CI runs beside the tests of other versions: lint, format and types.
check:
    uv run --group dev ruff check
    uv run --group dev ruff format --check
    uv run --group dev mypy
    uv run --group dev pyright

# The docs, served on this machine and rebuilt on every change.
docs:
    uv run --group docs mkdocs serve --strict
