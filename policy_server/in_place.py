"""A run of one observation whose pictures stay where the client put them, begun and ended by the event loop.

Nobody copies them: the engine reads them in the client's lane. A picture is looked at before and after, and
what came of one that changed meanwhile is thrown away.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from policies.errors import PolicyError
from policies.session import ChunkResult
from policy_server.batch import Answer, Outcome, bug, failure, outcomes
from policy_server.engine_asked import Asked
from policy_server.errors import LaneError
from policy_server.lanes import SharedPicture
from policy_server.process_session import InLane, ProcessSession
from policy_server.schedule import Job
from policy_server.slots import Serving

#: What came of it; None: it has to be run another way.
Ended = Callable[[Outcome | None], None]


@dataclass(frozen=True, slots=True)
class Begun:
    """A run under way."""

    session: ProcessSession
    asked: Asked

    def stop(self) -> None:
        """Hear no more of it, and end the engine, whose answer would be taken for another's."""
        self.asked.cancel()
        self.session.abandon()


def begin(job: Job[Answer], serving: Serving, ended: Ended) -> Begun | None:
    """Run one job so; None when it can't be, and has to be run another way.

    Raises LaneError when a picture is not there, PolicyError when the engine is gone.
    """
    session = serving.slot.session
    if not isinstance(session, ProcessSession):
        return None
    pictures = _shared(job, session)
    if not pictures:
        return None
    begin_ns = time.monotonic_ns()
    for picture in pictures:
        picture.begin()

    def ran(result: ChunkResult | PolicyError | None) -> None:
        try:
            outcome = None if result is None else _outcome(job, pictures, result, serving, begin_ns)
        except Exception as error:  # noqa: BLE001 (whatever it is, the next request must have its turn)
            outcome = bug(error)
        ended(outcome)

    where = InLane(pictures[0].lane, [picture.slot for picture in pictures])
    asked = session.begin_in_place(job.inputs.state, where, serving.slot.costs.expected_ns(1) / 1e9, ran)
    return None if asked is None else Begun(session, asked)


def _shared(job: Job[Answer], session: ProcessSession) -> Sequence[SharedPicture]:
    """Its pictures in the order of the cameras; none unless all of them are in shared memory."""
    pictures = [job.inputs.images[camera.name] for camera in session.manifest.cameras]
    shared = [picture for picture in pictures if isinstance(picture, SharedPicture)]
    return shared if len(shared) == len(pictures) else []


def _outcome(
    job: Job[Answer],
    pictures: Sequence[SharedPicture],
    result: ChunkResult | PolicyError,
    serving: Serving,
    begin_ns: int,
) -> Outcome:
    if isinstance(result, PolicyError):
        return failure(serving, result)
    try:
        for picture in pictures:
            picture.end()
    except LaneError as error:
        return error
    return outcomes([job], result, serving, begin_ns, {})[0]
