"""What selects episodes: an SQL condition over the catalogue, or a whole SELECT with a column of ids."""

from __future__ import annotations

import re

from episodes.catalogue import Catalogue
from episodes.errors import QueryError
from episodes.query import query

_STATEMENT = re.compile(r"\s*(SELECT|WITH|FROM)\b", re.IGNORECASE)


def select(catalogue: Catalogue, text: str) -> list[str]:
    """Ids of the episodes that ``text`` selects, each once.

    ``text`` is a condition over table ``episodes`` (oldest first then), or a statement that begins with
    SELECT, WITH or FROM and has a column ``id`` or ``episode_id`` (in its own order). Raises QueryError.
    """
    if text.strip().lower() == "true":  # the default in many places; no statement of anybody's
        return list(catalogue.ids())
    if not _STATEMENT.match(text):
        text = f"SELECT id FROM episodes WHERE {text} ORDER BY started_wall, id"
    rows = query(catalogue, text)
    if not rows:
        return []
    column = next((name for name in ("id", "episode_id") if name in rows[0]), None)
    if column is None:
        raise QueryError(
            f"the statement selects {', '.join(rows[0])}, none of which is an episode's id",
            "select id, or episode_id of the tables flags and interventions",
        )
    known = catalogue.ids()
    return [name for name in dict.fromkeys(row[column] for row in rows) if name in known]
