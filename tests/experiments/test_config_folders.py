"""Configurations from elsewhere say what is run, and never have Hydra run code of theirs."""

import pytest

from experiments.config import ConfigError
from experiments.config_folders import check_config_folders


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("config.yaml", "hydra: {callbacks: {x: {_target_: os.system}}}", "'hydra.callbacks'"),
        ("config.yaml", "hydra: {job: {env_set: {AUTOLABEL_PACKAGES: os}}}", "'hydra.job.env_set'"),
        ("config.yaml", "hydra: {searchpath: [file:///tmp]}", "'hydra.searchpath'"),
        ("config.yaml", "hydra: {job_logging: {formatters: {x: {(): os.system}}}}", "'hydra.job_logging'"),
        ("config.yaml", "hydra: ${x}", "sets 'hydra'"),
        ("config.yaml", "hydra: {job: '${x}'}", "'hydra.job'"),
        ("hydra/callbacks/x.yaml", "_target_: os.system", "a group of 'hydra'"),
        ("experiment/x.yaml", "# @package hydra.callbacks\nx: {_target_: os.system}", "the package 'hydra'"),
        ("experiment/x.yaml", "defaults: ['/other@hydra.callbacks: x']", "a default in the package 'hydra'"),
        ("experiment/x.yaml", "a: [", r"x\.yaml cannot be read"),
    ],
)
@pytest.mark.parametrize("option", ["-cp", "--config-path", "-cd", "--config-dir", "--config-di"])
def test_what_would_run_code_is_refused_before_hydra_starts(tmp_path, name, text, match, option):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    with pytest.raises(ConfigError, match=match):
        check_config_folders([option, str(tmp_path)])
    with pytest.raises(ConfigError, match=match):
        check_config_folders([f"{option}={tmp_path}"])


def test_what_hydra_saved_is_refused_only_where_it_is_read(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 1\nhydra: {run: {dir: out}, job: {name: x}}")
    (tmp_path / "hydra.yaml").write_text("hydra: {callbacks: {x: {_target_: os.system}}}")
    check_config_folders(["-cp", str(tmp_path), "-cn", "config"])
    (tmp_path / "config.yaml").write_text("defaults: [hydra]")
    with pytest.raises(ConfigError, match=r"hydra\.yaml sets 'hydra.callbacks'"):
        check_config_folders(["-cp", str(tmp_path), "-cn", "config"])
