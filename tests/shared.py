"""A store that several `Bgx` of one test share, as processes share a database."""

import threading
from typing import Any

import pytest

from fastapi_bgx import Bgx, Settings
from fastapi_bgx.records import Answer, Command
from fastapi_bgx.stores import MemoryStore


class SharedStore(MemoryStore):
    """In memory, but for what it is asked and answered."""

    shared = True

    def __init__(self) -> None:
        super().__init__()
        self.commands: dict[str, Command] = {}
        self.answers: dict[str, Answer] = {}
        self.looks: list[str] = []
        self.when_looked: dict[int, Any] = {}
        self.hangs = threading.Event()
        self.hangs.set()

    def get(self, task_id: str) -> Any:
        """Counts how often it is asked, and does not answer while it hangs."""
        self.looks.append(task_id)
        self.when_looked.pop(len(self.looks), lambda: None)()
        self.hangs.wait(10)
        return super().get(task_id)

    def ask(self, command: Command) -> None:
        """Leave a command."""
        self.commands[command.id] = command

    def asked_of(self, process: str) -> tuple[Command, ...]:
        """The commands without an answer."""
        return tuple(
            command
            for command in self.commands.values()
            if command.process == process and command.id not in self.answers
        )

    def answer(self, command: str, answer: Answer) -> None:
        """Answer one."""
        self.answers[command] = answer

    def answer_to(self, command: str) -> Answer | None:
        """The answer, if there is one."""
        return self.answers.get(command)


def recording(store: MemoryStore, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Bgx:
    """A `Bgx` that records in `store`: one process of those that share it."""
    with monkeypatch.context() as patch:
        patch.setattr("fastapi_bgx.recording.open_store", lambda _: store)
        return Bgx(Settings(store="memory", **settings))
