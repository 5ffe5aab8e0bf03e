"""Reaching into the routes of an application: what `install` adds, and what it can check.

FastAPI works a route's dependencies out when the route is defined, so those defined before
`install` get the dependency added to what was worked out. Only lists of the application's own
routes are changed; no code of FastAPI is replaced.
"""

import inspect
from collections.abc import Callable, Iterator
from typing import Annotated, Any, get_args, get_origin

from fastapi import FastAPI, params
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import get_parameterless_sub_dependant
from starlette.applications import Starlette
from starlette.routing import BaseRoute, Host, Mount

from fastapi_bgx.background import BackgroundTasks


def inject_everywhere(app: FastAPI, depends: params.Depends) -> None:
    """Make every route of `app`, defined before or after, solve `depends` first."""
    if _depends_on(app.router.dependencies, depends):
        return
    app.router.dependencies.insert(0, depends)
    for route in [*app.router.routes, *getattr(app.router, "_low_priority_routes", [])]:
        _inject(route, depends)


def _inject(route: BaseRoute, depends: params.Depends) -> None:
    served: Any = route
    context = getattr(served, "include_context", None)
    dependant = getattr(served, "dependant", None)
    if context is not None:  # an included router, which newer FastAPI resolves lazily
        context.dependencies.insert(0, depends)
        served.original_router._mark_routes_changed()  # what was resolved is resolved anew
    elif isinstance(dependant, Dependant):
        served.dependencies.insert(0, depends)
        sub = get_parameterless_sub_dependant(depends=depends, path=str(dependant.path))
        dependant.dependencies.insert(0, sub)


def _depends_on(dependencies: list[params.Depends], depends: params.Depends) -> bool:
    return any(each.dependency is depends.dependency for each in dependencies)


def uninjected_routes(app: Starlette, injects: Callable[[Any], bool]) -> list[str]:
    """The functions that ask for our class by annotation and get FastAPI's own, silently.

    Those of applications mounted in `app`, too. `injects` tells which dependencies inject ours: a
    route that solves one of them is in order.
    """
    found: list[str] = []
    for path, dependant in _dependants(app.routes):
        tree = list(_flatten(dependant))
        if not any(injects(each.call) for each in tree):
            found += [
                f"{getattr(each.call, '__qualname__', each.call)} ({path})"
                for each in tree
                if _asks_for_ours(each)
            ]
    return found


def _dependants(routes: list[BaseRoute]) -> Iterator[tuple[str, Dependant]]:
    for route in _resolved(routes):
        dependant = getattr(route, "dependant", None)
        path = str(getattr(route, "path", ""))
        if isinstance(dependant, Dependant):
            yield path, dependant
        elif isinstance(route, Mount | Host):
            for below, dependant in _dependants(route.routes):
                yield path + below, dependant


def _resolved(routes: list[BaseRoute]) -> Iterator[Any]:
    """The routes, those of included routers as they are served."""
    for route in routes:
        contexts = getattr(route, "effective_route_contexts", None)
        if contexts is None:
            yield route
        else:
            for context in contexts():
                yield context.starlette_route or context


def _flatten(dependant: Dependant) -> Iterator[Dependant]:
    yield dependant
    for each in dependant.dependencies:
        yield from _flatten(each)


def _asks_for_ours(dependant: Dependant) -> bool:
    name = dependant.background_tasks_param_name
    if name is None or dependant.call is None:
        return False
    try:
        signature = inspect.signature(dependant.call, eval_str=True)
    except (NameError, TypeError, ValueError):
        return False
    annotation = signature.parameters[name].annotation
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return isinstance(annotation, type) and issubclass(annotation, BackgroundTasks)
