"""The command line: one run, or a multirun over many, of an experiment.

    python -m experiments.run experiment=quickstart budget.macs=0.4
    autolabel -m experiment=quickstart seed=0,1 labeler=gbdt,ridge

Exit status: 0 done, 1 failed, 2 a configuration or a budget that cannot be run, 130 interrupted.
"""

import errno
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from compress.errors import BudgetError, CompressError, suggestion
from compress.files import write_atomic
from experiments.config import ConfigError, build, explain_composition, load_config, plain_config
from experiments.config_folders import check_config_folders
from experiments.manifest import typed_command
from experiments.run_dir import RunDir
from experiments.seeding import seed_run, set_threads
from experiments.settings import Config
from experiments.tracker import RunInfo, Tracker, TrackerGroup, flatten, to_json
from experiments.trackers.jsonl import JSONLTracker

FULL_ERROR = "HYDRA_FULL_ERROR"
FAILED, WRONG_CONFIG, INTERRUPTED = 1, 2, 130
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)

log = logging.getLogger(__name__)

# Hydra would write `.hydra/` before it is known whether the run goes on, over that of the run that is there: see
# `_save_config`. Here and not in conf/, because a run folder's own configuration brings no settings of Hydra's.
ConfigStore.instance().store(group="hydra", name="config", node=HydraConf(output_subdir=None), provider="hydra")


class RunFailed(Exception):  # noqa: N818 - the end of a run, told in one line
    """The one line that the command line shows, and its exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message, status)
        self.message = message
        self.status = status


def main() -> None:
    """Run the command line in `sys.argv` and exit; an error the user can mend is one line on stderr."""
    try:
        with _own_error_report():
            _check_arguments(sys.argv)
            sys.argv = [_quote_null(argument) for argument in _absolute_config_path(sys.argv)]
            _job()
    except RunFailed as error:
        _exit(error.message, error.status)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        # Hydra raises a plain ValueError for some overrides; one that comes from the run itself is another matter.
        if _is_from_job(error):
            raise
        refused = _refused_writing(error)
        if refused is not None:
            _exit_unwritable(refused)
        _exit(explain_composition(error, sys.argv), WRONG_CONFIG)
    except OSError as error:
        if _is_from_job(error) or (error.filename is None and error.errno not in _UNWRITABLE):
            raise
        _exit_unwritable(error)
    except KeyboardInterrupt:
        _exit("Interrupted. The same command with the same hydra.run.dir goes on from here.", INTERRUPTED)


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")
def _job(node: DictConfig) -> float | tuple[float, ...] | None:
    try:
        return run(node, Path(HydraConfig.get().runtime.output_dir))
    except CompressError as error:
        if node.get("traceback"):
            raise
        status = WRONG_CONFIG if isinstance(error, (ConfigError, BudgetError)) else FAILED
        failed = RunFailed(_in_keys(" ".join(str(error).split())), status)
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise failed from None
        # Hydra would put a line of its own before an exception; an exit it lets through.
        _exit(failed.message, status)


def run(node: DictConfig, folder: Path) -> float | tuple[float, ...] | None:
    """Do one run in `folder` and return its objective: a number, or one for each of several objectives.

    Raises:
        CompressError: for whatever the user can mend.
    """
    config = load_config(node)
    # Its module is imported here, so that --help does not wait for torch's exporters.
    job = build(config.job, "job", within="experiments.jobs")
    check_objective(config.objective, job.reports)
    job.check(config)
    plain = plain_config(node)
    info = _describe(config, plain, folder)
    record = {
        "name": config.name, "command": typed_command(),
        "overrides": _overrides(), "config": to_json(plain), "seeds": {"seed": config.seed, "seeds": config.seeds},
        "threads": set_threads(config.threads), "device": config.device,
    }  # fmt: skip
    with RunDir(folder, record) as run_dir:
        _save_config(node, run_dir)
        seed_run(config.seed, config.device)
        tracker = open_tracker(config.tracker, info)
        try:
            metrics = job.run(config, run_dir, tracker)
            tracker.summary(metrics)
        finally:
            tracker.finish()
        run_dir.set_metrics(to_json(metrics))
    log.info("Run folder: %s", folder)
    return read_objective(metrics, config.objective)


def open_tracker(node: Mapping[str, Any], info: RunInfo) -> Tracker:
    """The tracker that `node` names, beside the run's own `metrics.jsonl`, which is always written."""
    tracker = build(node, "tracker", within="experiments.trackers", run=info)
    if isinstance(tracker, JSONLTracker):
        return tracker
    return TrackerGroup([JSONLTracker(info), tracker])


def check_objective(names: Sequence[str], known: Sequence[str]) -> None:
    """Refuse a name that is none of the `known` ones, which may hold wildcards. Raises ConfigError."""
    for name in names:
        if not any(fnmatchcase(name, pattern) for pattern in known):
            raise ConfigError(f"objective: a run of this job reports no number {name!r}. {suggestion(name, known)}")


def read_objective(metrics: Mapping[str, Any], names: list[str]) -> float | tuple[float, ...] | None:
    """The values of the dotted `names` in nested `metrics`: one number, a tuple of several, or None without names.

    Raises:
        ConfigError: for a name that the run did not report as a number.
    """
    flat = flatten(metrics)
    for name in names:
        if isinstance(flat.get(name), bool) or not isinstance(flat.get(name), (int, float)):
            numbers = [key for key, value in flat.items() if isinstance(value, (int, float))]
            raise ConfigError(f"objective: the run reported no number {name!r}. {suggestion(name, numbers)}")
    values = tuple(float(flat[name]) for name in names)
    return (values[0] if len(values) == 1 else values) if values else None


def _describe(config: Config, plain: Mapping[str, Any], folder: Path) -> RunInfo:
    sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    group = f"{config.name}/{folder.parent.name}" if sweep else config.name
    tags = [plain[key]["_target_"].split(".")[-2] for key in ("job", "labeler", "criterion", "allocator")]
    return RunInfo(
        name=f"{config.name}/{folder.name}", folder=folder, config=plain, group=group,
        job_type="sweep" if sweep else "run", tags=tuple(dict.fromkeys(tags)),
    )  # fmt: skip


def _overrides() -> list[str]:
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def _save_config(node: DictConfig, run_dir: RunDir) -> None:
    """What Hydra knows of the run, in `.hydra/`; the configuration resolved: it must mean the same on another day and
    machine."""
    texts = {"config": OmegaConf.to_yaml(node, resolve=True)}
    if HydraConfig.initialized():
        texts["hydra"] = OmegaConf.to_yaml(HydraConfig.instance().cfg)
        texts["overrides"] = OmegaConf.to_yaml(HydraConfig.get().overrides.task)
    for name, text in texts.items():
        write_atomic(run_dir.file(f".hydra/{name}.yaml"), lambda file, text=text: file.write(text.encode()))


@contextmanager
def _own_error_report() -> Iterator[None]:
    """Let errors through Hydra as they are, unless the user wants Hydra's own report."""
    given = os.environ.get(FULL_ERROR)
    os.environ[FULL_ERROR] = "1"
    try:
        yield
    finally:
        if given is None:
            del os.environ[FULL_ERROR]
        else:
            os.environ[FULL_ERROR] = given


def _check_arguments(arguments: list[str]) -> None:
    if any(argument.startswith("--experimental-rerun") for argument in arguments):
        raise RunFailed("--experimental-rerun unpickles a file. Use -cp RUN/.hydra -cn config instead.", WRONG_CONFIG)
    try:
        check_config_folders(arguments)
    except ConfigError as error:
        raise RunFailed(str(error), WRONG_CONFIG) from error
    for argument in arguments:
        # As from a variable of the shell that is not set: the files of the run would be strewn over the current folder.
        if empty := re.fullmatch(r"\+{0,2}(hydra\.(?:run|sweep)\.dir)=(?:''|\"\")?", argument.strip()):
            raise RunFailed(f"{empty[1]} is empty. Give a folder, or leave {empty[1]}= out.", WRONG_CONFIG)


def _absolute_config_path(arguments: list[str]) -> list[str]:
    """`arguments` with an existing folder after `-cp` made absolute; Hydra would look for it inside this package."""
    arguments = list(arguments)
    for i, argument in enumerate(arguments[:-1]):
        if argument in ("-cp", "--config-path") and Path(arguments[i + 1]).is_dir():
            arguments[i + 1] = str(Path(arguments[i + 1]).resolve())
    return arguments


def _quote_null(argument: str) -> str:
    """`tracker=null` means the tracker of that name; Hydra would take the word for no value, which it then refuses."""
    return re.sub(r"(?<=[=,])null(?=,|$)", "'null'", argument) if argument.startswith("tracker=") else argument


def _is_from_job(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code is run.__code__:
            return True
        trace = trace.tb_next
    return False


def _refused_writing(error: BaseException | None) -> OSError | None:
    """The operating system's refusal to write that an error came from: Hydra wraps that of its log file."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _UNWRITABLE:
            return error
        error = error.__cause__ or error.__context__
    return None


def _exit_unwritable(error: OSError) -> NoReturn:
    place = "" if error.filename is None else f" {error.filename}"
    reason = f"Cannot write into the run folder{place}: {error.strerror or error}."
    _exit(f"{reason} Free space, or choose another folder with hydra.run.dir=PATH.", FAILED)


def _in_keys(message: str) -> str:
    """The message with the keys of the configuration in the place of the libraries' parameters."""
    return re.sub(r"The '(\w+)' parameter of (Budget|Constraints)\b", lambda m: f"{m[2].lower()}.{m[1]}", message)


def _exit(message: str, status: int) -> NoReturn:
    sys.stderr.write(message + "\n")
    raise SystemExit(status)


if __name__ == "__main__":
    # Through the import, so that the job is the same function here, in the console script and in a worker process.
    from experiments.run import main as imported_main

    imported_main()
