"""Static files of the dashboard: a hash of the content in each URL, so that browsers keep them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
FOREVER = "private, max-age=31536000, immutable"
ASK_FIRST = "private, no-cache"
"""For a URL without the hash of what is there now."""
HASH = 12


@dataclass(frozen=True, slots=True)
class Asset:
    """One file."""

    name: str
    content: bytes
    media_type: str
    digest: str

    @property
    def url(self) -> str:
        """Its name with its hash: `app.0f3c….css`."""
        stem, _, suffix = self.name.rpartition(".")
        return f"{stem}.{self.digest}.{suffix}"


class Assets:
    """All files under `static/`, in memory."""

    def __init__(self) -> None:
        root = files("fastapi_bgx.dashboard").joinpath("static")
        self._by_name: Mapping[str, Asset] = {asset.name: asset for asset in _assets(root)}
        self._by_url = {asset.url: asset for asset in self._by_name.values()}

    def url(self, name: str) -> str:
        """Where a file is, relative to the dashboard."""
        return f"static/{self._by_name[name].url}"

    async def serve(self, request: Request) -> Response:
        """Answer a request for `static/{name}`.

        A hash that is not (any more) that of the file gets the file, too, but is not kept: pages
        of the version before stay whole while a new one is rolled out.
        """
        name = request.path_params["name"]
        asset = self._by_url.get(name) or self._by_name.get(_without_hash(name))
        if asset is None:
            return PlainTextResponse("There is no such file.", 404)
        headers = {
            "Cache-Control": FOREVER if name == asset.url else ASK_FIRST,
            "ETag": f'"{asset.digest}"',
        }
        if asset.digest in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(asset.content, headers=headers, media_type=asset.media_type)


def _without_hash(name: str) -> str:
    stem, _, suffix = name.rpartition(".")
    before, _, digest = stem.rpartition(".")
    hashed = len(digest) == HASH and all(letter in "0123456789abcdef" for letter in digest)
    return f"{before}.{suffix}" if hashed else name


def _assets(folder: Traversable) -> list[Asset]:
    found: list[Asset] = []
    for entry in folder.iterdir():
        suffix = entry.name.rpartition(".")[2]
        if entry.is_dir():
            found += _assets(entry)
        elif suffix in TYPES:
            content = entry.read_bytes()
            digest = hashlib.sha256(content).hexdigest()[:HASH]
            found.append(Asset(entry.name, content, TYPES[suffix], digest))
    return found
