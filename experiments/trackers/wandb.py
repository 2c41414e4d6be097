"""Weights & Biases: offline without a login, and never a reason for a run to stop or to wait."""

import logging
import netrc
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlparse

from experiments.tracker import RunInfo, to_json

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".bmp")
DEFAULT_HOST = "https://api.wandb.ai"

log = logging.getLogger(__name__)


class WandbTracker:
    """Sends a run to Weights & Biases, or writes it to `wandb/` in the run folder where there is no login.

    Whatever W&B does, the run goes on: its first failure is a warning and ends the tracking; `metrics.jsonl` stays the
    truth. An offline run is sent later with `wandb sync`. A resumed run continues under the same id.

    Args:
        run: what is tracked.
        project: name of the W&B project.
        entity: team or user; None for the login's default.
        init_timeout_s: seconds to wait for the server before going offline.
        finish_timeout_s: seconds to wait for uploads at the end; the rest stays on disk for `wandb sync`.
    """

    def __init__(
        self,
        run: RunInfo,
        project: str = "autolabel-compress",
        entity: str | None = None,
        init_timeout_s: float = 20.0,
        finish_timeout_s: float = 120.0,
    ) -> None:
        self.run = run
        self._run: Any = None
        self._step_metrics: set[str] = set()
        # These must stand before wandb is imported: it reads one of them while it is imported.
        self._environment = _Environment(WANDB_ERROR_REPORTING="false", WANDB_DATA_DIR=str(Path(run.folder) / "wandb"))
        try:
            import wandb
        except ImportError as error:
            log.warning("W&B is not installed (%s). The run is recorded in metrics.jsonl only.", error)
            self._environment.restore()
            return
        self._wandb = wandb
        settings = {"init_timeout": init_timeout_s, "finish_timeout": finish_timeout_s}
        mode = _choose_mode()
        with self._guard("start"):
            self._run = self._start(mode, project, entity, settings)
        if self._run is None and mode == "online":
            with self._guard("start offline"):
                # Its service still holds the id for the start that failed.
                wandb.teardown(exit_code=1)
                self._run = self._start("offline", project, entity, settings)
                log.warning("W&B writes to %s instead; send it later with wandb sync.", Path(run.folder) / "wandb")
        if self._run is None:
            self._environment.restore()

    def begin_stage(self, name: str, key: str) -> None:
        """Nothing: W&B keeps what it was told."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """One history row. The step counts within the part of the name before the slash (W&B's own only ever grows)."""
        with self._guard("log metrics"):
            by_part: dict[str, dict[str, Any]] = {}
            for name, value in metrics.items():
                by_part.setdefault(name.rpartition("/")[0], {})[name] = value
            for part, values in by_part.items():
                step_name = f"{part}/step" if part else "step"
                self._define_step(part, step_name, values)
                self._run.log({**to_json(values), step_name: int(step)})

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A W&B table."""
        with self._guard("log a table"):
            data = [to_json(list(row)) for row in rows]
            self._run.log({name: self._wandb.Table(columns=list(columns), data=data, allow_mixed_types=True)})

    def log_figure(self, name: str, path: str | Path) -> None:
        """A W&B image, or a page where the file is HTML."""
        with self._guard("log a figure"):
            path = Path(path)
            if path.suffix.lower() in IMAGE_SUFFIXES:
                self._run.log({name: self._wandb.Image(str(path))})
            elif path.suffix.lower() in (".html", ".svg"):
                self._run.log({name: self._wandb.Html(path.read_text(encoding="utf-8"), inject=False)})
            else:
                log.warning("W&B cannot show %s; it takes %s, .html and .svg.", path, ", ".join(IMAGE_SUFFIXES))

    def log_artifact(self, path: str | Path) -> None:
        """A W&B artifact of type `model`, named after the run."""
        with self._guard("log an artifact"):
            path = Path(path)
            artifact = self._wandb.Artifact(f"{self._run.id}-{path.stem}", type="model")
            # The files stay where they are: a copy would double the run folder.
            if path.is_dir():
                artifact.add_dir(str(path), skip_cache=True, policy="immutable")
            else:
                artifact.add_file(str(path), skip_cache=True, policy="immutable")
            self._run.log_artifact(artifact)

    def summary(self, metrics: Mapping[str, Any]) -> None:
        """The run's summary."""
        with self._guard("write the summary"):
            self._run.summary.update(to_json(metrics))

    def finish(self) -> None:
        """End the run, waiting for uploads no longer than `finish_timeout_s`."""
        with self._guard("finish"):
            folder = self._run.settings.sync_dir
            offline = self._run.settings.mode == "offline"
            self._run.finish()
            if offline:
                log.info("W&B ran offline. Send it with: wandb sync %s", folder)
        self._run = None
        self._environment.restore()

    def _start(self, mode: str, project: str, entity: str | None, settings: Mapping[str, float]) -> Any:
        resume = {"resume": "allow"} if mode == "online" else {}
        return self._wandb.init(
            project=project, entity=entity, dir=str(self.run.folder), id=_run_id(Path(self.run.folder)), mode=mode,
            name=self.run.name, group=self.run.group or None, job_type=self.run.job_type, tags=self.run.tags,
            config=to_json(self.run.config), reinit="finish_previous", **resume,
            settings=self._wandb.Settings(console="off", silent=True, disable_git=True, **settings),
        )  # fmt: skip

    def _define_step(self, part: str, step_name: str, values: Mapping[str, Any]) -> None:
        for pattern in [f"{part}/*"] if part else values:
            if pattern not in self._step_metrics:
                self._step_metrics.add(pattern)
                self._run.define_metric(pattern, step_metric=step_name)

    def _guard(self, action: str) -> "_Guard":
        return _Guard(self, action)

    def _give_up(self, action: str, error: BaseException) -> None:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        log.warning("W&B could not %s (%s). The run goes on without it.", action, reason)
        self._run = None


class _Guard:
    """Turns whatever W&B raises into a warning. Its errors have no common class, and none of them is worth a run."""

    def __init__(self, tracker: WandbTracker, action: str) -> None:
        self._tracker = tracker
        self._action = action
        self._was_off = False

    def __enter__(self) -> None:
        # The body of a tracker that gave up fails on its missing run; that is not told again.
        self._was_off = self._tracker._run is None and not self._action.startswith("start")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        if error is None or not isinstance(error, Exception):
            return False
        if not self._was_off:
            self._tracker._give_up(self._action, error)
        return True


class _Environment:
    """Sets environment variables that are not set yet; `restore` takes them away again."""

    def __init__(self, **values: str) -> None:
        self._own = {name: value for name, value in values.items() if name not in os.environ}
        os.environ.update(self._own)

    def restore(self) -> None:
        for name, value in self._own.items():
            if os.environ.get(name) == value:
                del os.environ[name]
        self._own = {}


def _choose_mode() -> str:
    """`WANDB_MODE` where it is set, else online with a login and offline without; never one that would ask."""
    mode = os.environ.get("WANDB_MODE", "")
    if mode and mode != "online":
        return mode
    if _is_logged_in():
        return "online"
    if mode == "online":
        log.warning("WANDB_MODE is online, but there is no login (wandb login, or WANDB_API_KEY). Going offline.")
    return "offline"


def _is_logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", DEFAULT_HOST)).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _run_id(folder: Path) -> str:
    """The id of the W&B run of this folder, made at its first start and kept for resuming."""
    path = folder / "wandb" / "run_id"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_text(uuid.uuid4().hex[:12])
    return path.read_text().strip()
