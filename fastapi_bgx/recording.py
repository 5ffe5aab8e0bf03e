"""What has the records of one `Bgx` kept, and answers about them: put together once it is wanted.

A `Bgx` without `Settings.store` pays nothing for records until somebody asks for them.
"""

import threading
from collections.abc import Callable

import anyio
import anyio.to_thread

from fastapi_bgx.console import Console
from fastapi_bgx.control import ProcessControl
from fastapi_bgx.errors import SecretNeeded, SettingsError
from fastapi_bgx.held import Held
from fastapi_bgx.listeners.recorder import Recorder
from fastapi_bgx.listeners.recorder.redaction import Redaction
from fastapi_bgx.runners import Runners
from fastapi_bgx.settings import Settings
from fastapi_bgx.stores import MEMORY, Store, open_store
from fastapi_bgx.tokens import Tokens

FLUSH_SECONDS = 2.0
"""How long a shutdown waits for the store."""
HEARD_SECONDS = 1.0
"""How long a start waits for it."""


class Recording:
    """The recorder and the console of one `Bgx`.

    Raises:
        SettingsError: there can be no store of that name.
        ImportError: it needs a package that is not installed.
    """

    def __init__(self, settings: Settings, runners: Runners, held: Held) -> None:
        self.redaction: Redaction = Redaction()
        """The hooks that say what may be kept."""
        self._settings = settings
        self._runners = runners
        self._held = held
        self._tokens = Tokens(settings.secret)
        self._lock = threading.Lock()
        self._begun: tuple[Recorder, Console] | None = None
        if settings.store is not None:
            self._begun = self._begin(settings.store)

    @property
    def recorder(self) -> Recorder:
        """What writes the records; the first time, it begins to do so."""
        return self._both()[0]

    @property
    def console(self) -> Console:
        """What answers about them; recording begins."""
        return self._both()[1]

    def tokens(self) -> Tokens:
        """What signs the ids of tasks, as all processes do that share the store.

        Raises:
            SecretNeeded: they would not agree.
        """
        if self._settings.secret is None and self.recorder.store.shared:
            raise SecretNeeded
        return self._tokens

    def start(self) -> None:
        """Be heard of before the first task, if there are records."""
        if self._begun is not None:
            self._begun[0].start()

    async def be_heard_of(self) -> None:
        """Wait until other processes know of this one, for `HEARD_SECONDS` at most.

        From its first request on, what it accepts is looked for by them.
        """
        if self._begun is not None and self._begun[0].store.shared:
            await _in_thread(self._begun[0].wait_until_heard_of, HEARD_SECONDS)

    async def leave(self) -> None:
        """Have everything written, for `FLUSH_SECONDS` at most, and say that this process ends."""
        if self._begun is not None:
            await _in_thread(self._begun[0].leave, FLUSH_SECONDS)

    def _both(self) -> tuple[Recorder, Console]:
        with self._lock:
            if self._begun is None:
                self._begun = self._begin(MEMORY)
            return self._begun

    def _begin(self, url: str) -> tuple[Recorder, Console]:
        settings = self._settings
        recorder = Recorder(
            self._runners,
            _opened(url),
            self.redaction,
            most=settings.store_most,
            max_age=settings.store_max_age,
            arguments=settings.store_arguments,
        )
        control = ProcessControl(self._runners, self._held, recorder)
        recorder.is_held = self._held.is_held
        recorder.on_commands = control.obey
        self._held.begin()  # before the recorder, which says what is held
        self._runners.join(recorder)
        self._runners.join(recorder.rejections)
        recorder.mark_all_live()
        return recorder, Console(recorder.store, control)


async def _in_thread(call: Callable[[float], object], seconds: float) -> None:
    """Have something done that blocks; not in a thread that serves requests."""
    limiter = anyio.CapacityLimiter(1)
    await anyio.to_thread.run_sync(call, seconds, limiter=limiter, abandon_on_cancel=True)


def _opened(url: str) -> Store:
    try:
        return open_store(url)
    except ValueError as error:
        raise SettingsError([f"store (BGX_STORE): {error}"]) from None
