"""The viewer: which address shows what, the door in front, and threads for what waits for the disk."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from typing import Any

from episodes.errors import QueryError, StoreError, UnknownEpisodeError
from episodes.store import EpisodeStore
from tools.viewer.door import Door
from tools.viewer.http import HttpServer, Request, Response, problem
from tools.viewer.library import Library

_log = logging.getLogger(__name__)

_KINDS = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_THREADS = 4
_QUERIES = 2  # at a time; a slow one must not hold up the pictures


class Viewer:
    """Life cycle: ``start`` → ``stop``. ``announce`` is called with each link that can be opened."""

    def __init__(self, store: EpisodeStore, announce: Callable[[str], None], port: int = 0) -> None:
        self._library = Library(store)
        self._door = Door(announce)
        self._server = HttpServer(self._answer, port)
        self._static = _static_files()
        self._pool = ThreadPoolExecutor(_THREADS, "viewer")
        self._sql = ThreadPoolExecutor(_QUERIES, "viewer-sql")

    @property
    def port(self) -> int:
        """The port it listens on, once started."""
        return self._server.port

    async def start(self) -> None:
        """Listen and announce the first link. Raises UsageError when the port is taken."""
        await self._server.start()
        self._door.open(self._server.port)

    async def stop(self) -> None:
        """Hang up; what is being read ends by itself."""
        await self._server.stop()
        self._pool.shutdown(cancel_futures=True)
        self._sql.shutdown(cancel_futures=True)

    async def _answer(self, request: Request) -> Response:
        refusal = self._door.admit(request)
        if refusal is not None:
            return refusal
        name = request.path.removeprefix("/") or "index.html"
        if name in self._static:
            return Response(self._static[name], _KINDS[name.rsplit(".", 1)[1]])
        parts = name.split("/")
        if parts[0] != "api":
            return problem(404, "no such page")
        sql = parts[1:2] in (["store"], ["episodes"])
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(
                self._sql if sql else self._pool, self._api, parts[1:], request.query
            )
        except (UnknownEpisodeError, KeyError, IndexError) as error:
            return problem(404, str(error.args[0]) if error.args else "not found")
        except (QueryError, ValueError) as error:
            return problem(400, str(error))
        except StoreError as error:
            _log.warning("viewer.read path=%s error=%s", request.path, error)
            return problem(500, str(error))

    def _api(self, parts: list[str], query: Any) -> Response:
        library = self._library
        match parts:
            case ["store"]:
                return _json(library.about())
            case ["episodes"]:
                limit, offset = int(query.get("limit", 200)), int(query.get("offset", 0))
                return _json(library.episodes(query.get("where", ""), limit, offset))
            case ["episode", name]:
                return _json(library.episode(name))
            case ["episode", name, "frames", camera]:
                return _json(library.frames(name, camera))
            case ["episode", name, "frame", camera, index]:
                run = library.jpegs(name, camera, int(index), int(query.get("count", 1)))
                return Response(run, "application/octet-stream", cache=True)
            case ["episode", name, "traces"]:
                names = [n for n in query.get("names", "").split(",") if n]
                begin, end = float(query.get("from", "-inf")), float(query.get("to", "inf"))
                if math.isnan(begin) or math.isnan(end) or len(names) > 64:
                    raise ValueError("from and to are numbers, names at most 64 streams")
                return _json(library.traces(name, names, begin, end, int(query.get("points", 600))))
        return problem(404, "no such question")


def _static_files() -> dict[str, bytes]:
    """The page's files by name: read once, so that no path of a request ever reaches the disk."""
    folder = files("tools.viewer") / "static"
    return {f.name: f.read_bytes() for f in folder.iterdir() if f.name.rsplit(".", 1)[-1] in _KINDS}


def _json(value: Any) -> Response:
    return Response(json.dumps(value, allow_nan=False, separators=(",", ":"), default=str).encode())
