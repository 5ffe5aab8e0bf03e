"""What mypy and pyright say of the calls in `tests/typing/`, both in their strict mode.

A line that must be an error carries `# type: ignore[code]` for mypy and `# pyright: ignore[rule]`
for pyright. Both are told to refuse such a comment where there is nothing to ignore, so a mistake
that a checker no longer sees fails here as surely as a right call that it refuses.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "tests" / "typing").glob("*.py"))


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a checker on the files, without measuring the coverage of the checker itself."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")}
    return subprocess.run(
        [sys.executable, "-m", *command, *map(str, FILES)],
        cwd=ROOT,
        env=environment | {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_mypy_strict() -> None:
    result = run("mypy")
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"no issues found in {len(FILES)} source file" in result.stdout


def test_pyright_strict() -> None:
    result = run("pyright", "--outputjson", "--pythonpath", sys.executable)
    report = json.loads(result.stdout or "{}")
    found = [
        f"{Path(d['file']).name}:{d['range']['start']['line'] + 1}: {d['message']}"
        for d in report.get("generalDiagnostics", [])
    ]
    assert result.returncode == 0, "\n".join(found) or result.stdout + result.stderr
    assert not found
    assert report["summary"]["filesAnalyzed"] == len(FILES)
