"""Which task each row of an episode belongs to."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from episodes.errors import ImportRefusedError
from episodes.lerobot.layout import Dataset, SourceEpisode
from episodes.lerobot.tables import whole_numbers

UNNAMED = "unnamed task"


def row_tasks(
    dataset: Dataset, source: SourceEpisode, table: Any
) -> tuple[npt.NDArray[np.int64], list[str], list[str]]:
    """For each row of ``table`` a place in the list of texts that comes second; then what was repaired.

    Without a column ``task_index`` the episode's first task is that of all rows. A number that is in no task
    list is read as the one task of a set that has one task; raises ImportRefusedError where there are more.
    """
    nowhere = np.zeros(len(table), np.int64)
    listed = list(source.tasks)
    if "task_index" not in table.column_names:
        return nowhere, listed or [UNNAMED], []
    numbers = whole_numbers(table, "task_index")
    used = list(dict.fromkeys(numbers.tolist()))
    unknown = [i for i in used if i not in dataset.tasks]
    if not unknown:
        texts = list(dict.fromkeys(dataset.tasks[i] for i in used))
        for index in used:
            nowhere[numbers == index] = texts.index(dataset.tasks[index])
        return nowhere, list(dict.fromkeys([*texts, *listed])), []
    every = list(dict.fromkeys([*dataset.tasks.values(), *listed]))
    if len(every) > 1:
        raise ImportRefusedError(
            f"{source.data} has task_index {unknown[0]}, which is in no task list, and the set has "
            f"{len(every)} tasks",
            "complete meta/tasks, correct the column, or leave this episode out (--episodes)",
        )
    only = every or [UNNAMED]
    return nowhere, only, [f"task_index {unknown[0]} is in no task list; read as the only task: {only[0]}"]
