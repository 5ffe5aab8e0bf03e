"""An application with a stream of its tasks, for clients on real sockets."""

from fastapi import FastAPI

from fastapi_bgx import Bgx, Tasks

app = FastAPI()
bgx = Bgx()
bgx.install(app)
app.include_router(bgx.router(public=True, dashboard=False), prefix="/bgx")


async def welcome() -> None: ...


@app.get("/up")
async def up() -> int:
    return 1


@app.post("/add")
async def add(tasks: Tasks) -> str:
    return tasks.add_task(welcome).id
