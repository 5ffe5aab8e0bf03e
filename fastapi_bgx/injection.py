"""Reaching into the routes of an application: what `install` adds, and what it can check.

FastAPI works a route's dependencies out when the route is defined, so those defined before
`install` get the dependency added to what was worked out. Only what belongs to the application's
own routes is changed; no code of FastAPI is replaced.
"""

import inspect
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Annotated, Any, get_args, get_origin

from fastapi import BackgroundTasks as StockBackgroundTasks
from fastapi import FastAPI, params
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import get_parameterless_sub_dependant
from starlette.applications import Starlette
from starlette.routing import BaseRoute, Host, Mount

from fastapi_bgx.background import BackgroundTasks
from fastapi_bgx.runners import serving


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


class Shortcuts:
    """Spares the routes of an application a dependency that they can do without.

    For FastAPI to solve it takes a fifth of a small request (9 of 41 µs). It is not needed where
    nobody asks for background tasks, or nobody but the function of the route: that one can have its
    list supervised as it is called, in 0.3 µs. What an override asks for is not known before, so
    while there are `dependency_overrides` the dependency is back. Routes that are added once
    requests are served keep it.
    """

    def __init__(
        self,
        app: FastAPI,
        dependency: Callable[..., Any],
        injects: Callable[[Any], bool],
        elsewhere: Callable[[StockBackgroundTasks], None],
    ) -> None:
        self._app = app
        self._dependency = dependency
        self._injects = injects
        self._elsewhere = elsewhere
        self._taken = False
        self._spared: list[tuple[Dependant, list[Dependant]]] = []

    def keep_up(self) -> None:
        """Take the shortcuts, or give them up. To be called before each request."""
        if self._app.dependency_overrides:
            if self._taken:
                self._give_up()
        elif not self._taken:
            self._take()

    def _take(self) -> None:
        self._taken = True
        for route in _resolved(self._app.routes):
            dependant = getattr(route, "dependant", None)
            if isinstance(dependant, Dependant) and getattr(route, "methods", None):
                self._spare(dependant)

    def _spare(self, dependant: Dependant) -> None:
        ours: list[Dependant] = []
        rest: list[Dependant] = []
        for each in dependant.dependencies:
            injected = each.call is self._dependency and each.name is None
            (ours if injected else rest).append(each)
        if ours and self._can_do_without(dependant, rest):
            self._spared.append((dependant, ours))
            dependant.dependencies = rest  # not in place: a request may be going through the list

    def _can_do_without(self, dependant: Dependant, rest: list[Dependant]) -> bool:
        asking = [each.call for sub in rest for each in _flatten(sub) if _asks(each)]
        if not all(map(self._injects, asking)):
            return False
        if _asks(dependant) and not asking:
            return self._supervise_when_called(dependant)
        return True

    def _supervise_when_called(self, dependant: Dependant) -> bool:
        call: Any = dependant.call
        name = dependant.background_tasks_param_name
        if name is not None and type(call) is FunctionType:
            dependant.call = SupervisingCall(call, name, self._dependency, self._elsewhere)
        return type(dependant.call) is SupervisingCall

    def _give_up(self) -> None:
        """The calls stay as they are: requests may be under way that count on them."""
        self._taken = False
        for dependant, ours in self._spared:
            dependant.dependencies = [*ours, *dependant.dependencies]
        self._spared.clear()


class SupervisingCall:
    """The function of a route, which has its background tasks supervised as it is called.

    It passes itself off as that function, so that FastAPI and others who look at it find the file,
    the name and the kind that they expect.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        name: str,
        dependency: Callable[..., Any],
        elsewhere: Callable[[StockBackgroundTasks], None],
    ) -> None:
        self.__wrapped__ = function
        self.__module__ = function.__module__
        self.__doc__ = function.__doc__
        self._parts = function, name, dependency, elsewhere

    def __call__(self, /, **values: Any) -> Any:
        """Call the function, once its list is supervised."""
        function, name, dependency, elsewhere = self._parts  # attributes are slow: `__getattr__`
        visit = serving.get(None)
        if visit is not None and visit.bgx is dependency:
            visit.supervise(values[name], visit.runner)
        else:
            elsewhere(values[name])
        return function(**values)

    @property  # type: ignore[misc]  # what `isinstance` looks at
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]
        return type(self.__wrapped__)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__wrapped__, name)

    def __deepcopy__(self, memo: Any) -> "SupervisingCall":
        """The same: as a function, it has no copies."""
        return self


def _asks(dependant: Dependant) -> bool:
    return dependant.background_tasks_param_name is not None


def uninjected_routes(app: Starlette, injects: Callable[[Any], bool]) -> list[str]:
    """The functions that ask for our class by annotation and get FastAPI's own, silently.

    Those of applications mounted in `app`, too. `injects` tells which dependencies inject ours: a
    route that solves one of them is in order.
    """
    found: list[str] = []
    for path, dependant in _dependants(app.routes):
        tree = list(_flatten(dependant))
        if not any(injects(each.call) or type(each.call) is SupervisingCall for each in tree):
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
