"""fastapi-bgx, configured as its own documentation recommends."""

from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request

from fastapi_bgx import Bgx, Retry, Settings, task_options
from tests.benchmarks.compare.kit import DATABASE, THREADS, USER, F, Kit


class OurKit(Kit):
    """`bgx.install(app)`, and settings."""

    def make_app(self) -> FastAPI:
        wants = self.wants
        app = FastAPI(lifespan=self._lifespan)
        self.bgx: Any = Bgx(Settings(**self._settings()))
        if wants.by_dependency:
            self.dependency = Annotated[Any, Depends(self.bgx)]
        else:
            self.bgx.install(app)
        if wants.dashboard:
            who: dict[str, Any] = {"public": True}
            if wants.guarded:
                who = {"dependencies": [Depends(signed_in)]}
            self._mount(app, **who)
        return app

    def _settings(self) -> dict[str, Any]:
        wants = self.wants
        settings: dict[str, Any] = {"max_threads": THREADS, "drain_timeout": wants.grace_s}
        if wants.detached:
            settings["mode"] = "detached"
        if wants.limits:
            settings["limits"] = wants.limits
        if wants.most_waiting is not None:
            settings |= {"max_backlog": wants.most_waiting, "max_concurrency": 1}
        if wants.store and "store" in Settings.model_fields:
            settings["store"] = f"sqlite:///{self.folder / DATABASE}"
        return settings

    def task(self, func: F, **options: Any) -> F:
        given: dict[str, Any] = {}
        if options.get("timeout") is not None:
            given["timeout"] = options["timeout"]
        if options.get("limit") is not None:
            given["limit"] = options["limit"]
        if options.get("retries"):
            policy = {"attempts": options["retries"] + 1, "wait_initial": options.get("pause", 0.0)}
            given["retry"] = Retry(on=options.get("retry_on", Exception), **policy)
        return task_options(**given)(func) if given else func

    def id_of(self, added: Any) -> str | None:
        return str(added.id)

    def once(self, tasks: Any, key: str, func: F, *arguments: Any) -> Any:
        return tasks.using(unique=key).add_task(func, *arguments)

    def mount_unguarded(self) -> None:
        self._mount(self.app)

    def _mount(self, app: FastAPI, **who: Any) -> None:
        app.include_router(self.bgx.router(**who), prefix="/bgx")

    async def resize(self, limit: str, slots: int) -> str:
        await self.bgx.resize(limit, slots)
        return "changed"


async def signed_in(request: Request) -> None:
    """The guard of a dashboard, as an application might have it."""
    if request.cookies.get("user") != USER:
        raise HTTPException(401)
