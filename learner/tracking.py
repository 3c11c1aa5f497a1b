"""MLflow on a local SQLite file: runs, metrics by step, and the registry's aliases.

Only a mirror, for people to look at: the ledger decides who is champion. Nothing is sent anywhere:
MLflow's own usage reporting is switched off before it is imported.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from learner.errors import TrackingError

log = logging.getLogger(__name__)

Alias = Literal["champion", "candidate"]

_BATCH = 500


def _import_mlflow() -> Any:
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    import mlflow.entities
    import mlflow.exceptions
    import mlflow.tracking

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return mlflow


@contextmanager
def _errors(what: str) -> Iterator[None]:
    import mlflow.exceptions

    try:
        yield
    except mlflow.exceptions.MlflowException as error:
        line = str(error).splitlines()[0]
        raise TrackingError(f"cannot {what}: {line}", "check the disk and the database file") from error


class Run:
    """One MLflow run: log numbers by step, parameters, tags. Each raises TrackingError."""

    def __init__(self, client: Any, entities: Any, run_id: str) -> None:
        self.id = run_id
        self._client = client
        self._entities = entities

    def metrics(self, name: str, points: Sequence[tuple[int, float]]) -> None:
        """Log (step, value) pairs of one metric."""
        now = int(time.time() * 1000)
        rows = [self._entities.Metric(name, float(v), now, int(s)) for s, v in points]
        with _errors("log to a run"):
            for at in range(0, len(rows), _BATCH):
                self._client.log_batch(self.id, metrics=rows[at : at + _BATCH])

    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters; nested tables become dotted names."""
        rows = [self._entities.Param(k, str(v)[:500]) for k, v in _flatten(values)]
        with _errors("log to a run"):
            self._client.log_batch(self.id, params=rows[:100])

    def tags(self, values: Mapping[str, Any]) -> None:
        """Set tags."""
        rows = [self._entities.RunTag(k, str(v)[:5000]) for k, v in values.items()]
        with _errors("log to a run"):
            self._client.log_batch(self.id, tags=rows)


class Tracker:
    """The tracking database in folder ``root``, made when it is not there (some seconds, once)."""

    def __init__(self, root: Path, experiment: str) -> None:
        """Raises TrackingError when the database cannot be opened."""
        root.mkdir(parents=True, exist_ok=True)
        self._mlflow = _import_mlflow()
        uri = f"sqlite:///{(root / 'mlflow.db').absolute()}"
        with _errors("open the tracking database"):
            self.client = self._mlflow.tracking.MlflowClient(tracking_uri=uri, registry_uri=uri)
            found = self.client.get_experiment_by_name(experiment)
            artifacts = (root / "artifacts").absolute().as_uri()
            self.experiment_id: str = (
                found.experiment_id if found else self.client.create_experiment(experiment, artifacts)
            )

    @contextmanager
    def run(
        self, name: str, params: Mapping[str, Any], tags: Mapping[str, Any] | None = None
    ) -> Iterator[Run]:
        """A run that is marked FINISHED, or FAILED when the block raises."""
        with _errors("start a run"):
            made = self.client.create_run(self.experiment_id, run_name=name)
        run = Run(self.client, self._mlflow.entities, made.info.run_id)
        status = "FAILED"
        try:
            run.params(params)
            run.tags(tags or {})
            yield run
            status = "FINISHED"
        finally:
            with _errors("end a run"):
                self.client.set_terminated(run.id, status=status)

    def register(self, model: str, bundle: Path, version: str, run_id: str | None = None) -> str:
        """Add a bundle to the registry under ``model``; returns MLflow's version number as text."""
        with _errors("register a bundle"):
            if not self.client.search_registered_models(f"name = '{model}'"):
                self.client.create_registered_model(model)
            made = self.client.create_model_version(
                model, bundle.absolute().as_uri(), run_id, tags={"bundle": version}
            )
        return str(made.version)

    def known(self, model: str, version: str) -> bool:
        """Whether the bundle ``version`` is registered under ``model``."""
        return bool(self._versions(model, version))

    def set_alias(self, model: str, alias: Alias, version: str) -> None:
        """Point ``alias`` at the registered bundle ``version`` (content id). Raises TrackingError."""
        with _errors("set an alias"):
            found = self._versions(model, version)
            if not found:
                raise TrackingError(f"bundle {version} is not registered as {model}", "register it first")
            newest = max(found, key=lambda v: int(v.version))
            self.client.set_registered_model_alias(model, alias, newest.version)

    def alias(self, model: str, alias: Alias) -> tuple[str, Path] | None:
        """(bundle version, bundle folder) that ``alias`` points at; None when it points nowhere."""
        try:
            found = self.client.get_model_version_by_alias(model, alias)
        except self._mlflow.exceptions.MlflowException:
            return None
        return found.tags["bundle"], Path(found.source.removeprefix("file://"))

    def _versions(self, model: str, version: str) -> list[Any]:
        known = self.client.search_model_versions(f"name = '{model}'")
        return [v for v in known if v.tags.get("bundle") == version]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
