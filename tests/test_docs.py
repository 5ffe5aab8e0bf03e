"""The examples of README.md and docs/ run, in order, one test per document.

- A fence whose language is `python` is executed. All fences of a document share one module, so
  that a later example goes on where an earlier one stopped. `<!--- invisible-code-block: python`
  is executed and not shown.
- A fence whose language is `output` must equal what the example before it printed.
- `<!--- skip: next -->` leaves one example out. Any other language is only shown.

Each document starts in an empty directory, with no `BGX_*` variables and a fresh structlog.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType

import pytest
import structlog
from sybil import Document, Example
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.abstract import AbstractCodeBlockParser
from sybil.parsers.markdown import SkipParser
from sybil.parsers.markdown.lexers import DirectiveInHTMLCommentLexer, RawFencedCodeBlockLexer
from sybil.typing import Evaluator, Lexer, Parser

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# The language, alone or followed by what MkDocs reads there: ```python title="main.py"
INFO = re.compile(r"[ {.]*(?P<language>\w+)[^\n]*$\n", re.MULTILINE)


class Examples:
    """Runs the examples of one document."""

    def __init__(self) -> None:
        self.printed = ""
        self.run_python = PythonEvaluator()

    def run(self, example: Example) -> None:
        with redirect_stdout(StringIO()) as stdout:
            self.run_python(example)
        self.printed = stdout.getvalue()

    def compare(self, example: Example) -> str | None:
        if self.printed.strip() == example.parsed.strip():
            return None
        return f"Expected:\n{example.parsed}\nGot:\n{self.printed}"


def fences(language: str, evaluator: Evaluator) -> AbstractCodeBlockParser:
    mapping = {"language": "arguments", "source": "source"}
    lexers: list[Lexer] = [
        RawFencedCodeBlockLexer(INFO, mapping),
        DirectiveInHTMLCommentLexer("invisible-code-block", ".+"),
    ]
    return AbstractCodeBlockParser(lexers, language, evaluator)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A module for the examples of one document: type hints and pickling need a real one."""
    module = ModuleType("example")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.chdir(tmp_path)
    yield module
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples(path: Path, module: ModuleType) -> None:
    examples = Examples()
    parsers: list[Parser] = [
        SkipParser(),
        fences("python", examples.run),
        fences("output", examples.compare),
    ]
    document = Document.parse(str(path), *parsers)
    document.namespace = vars(module)
    for example in document:
        example.evaluate()
