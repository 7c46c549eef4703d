"""The environment of a run: versions, device and commit."""

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from associative_transformer.interface import UserError
from associative_transformer.runs import environment
from associative_transformer.runs.environment import (
    Environment,
    describe_environment,
    read_environment,
    write_environment,
)

CPU = torch.device("cpu")


def test_the_environment_names_versions_device_and_commit() -> None:
    described = describe_environment(CPU)
    assert str(torch.__version__).startswith(str(described.packages["torch"]))
    assert all(described.packages.values())
    assert described.threads == torch.get_num_threads()
    assert described.cuda is None


@pytest.mark.parametrize("variables", [{}, {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}], ids=str)
def test_an_environment_is_the_same_after_writing_and_reading(
    variables: dict[str, str], tmp_path: Path
) -> None:
    described = replace(describe_environment(CPU), variables=variables)
    write_environment(tmp_path, described)
    assert read_environment(tmp_path) == described
    keys = ["python", "platform", "packages", "device", "bfloat16", "cuda", "threads", "commit"]
    keys += ["variables"] * bool(variables)
    assert list(json.loads((tmp_path / "environment.json").read_text())) == keys


def test_variables_that_may_change_a_run_are_recorded_without_paths_and_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        environment.os,
        "environ",
        {
            "WORLD_SIZE": "2",
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
            "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "64",
            "TORCH_HOME": "/home/user/torch",
            "WANDB_API_KEY": "secret",
            "PATH": "bin",
        },
    )
    names = ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "CUBLAS_WORKSPACE_CONFIG", "WORLD_SIZE"]
    assert list(environment.find_variables()) == names


def test_values_that_an_older_version_did_not_write_are_none(tmp_path: Path) -> None:
    assert read_environment(tmp_path) is None
    (tmp_path / "environment.json").write_text('{"device": "NVIDIA H100", "later": 1}')
    assert read_environment(tmp_path) == Environment(device="NVIDIA H100")


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"device": 3}', b'{"threads": "1"}'])
def test_the_error_for_a_damaged_environment_says_how_to_fix_it(
    content: bytes, tmp_path: Path
) -> None:
    (tmp_path / "environment.json").write_bytes(content)
    with pytest.raises(UserError, match=r"environment\.json is damaged \(.+\): copy it again"):
        read_environment(tmp_path)


def test_a_package_that_is_not_installed_has_no_version() -> None:
    assert environment.find_version("a-package-that-nobody-has") is None


def make_repository(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commit a file in a new repository and make the module use it as its own file."""
    file = root / "environment.py"
    file.write_text("committed")
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "Add a file"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(environment, "__file__", str(file))
    return file


def test_the_commit_is_marked_if_files_were_edited_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = make_repository(tmp_path, monkeypatch)
    clean = describe_environment(CPU).commit
    assert re.fullmatch("[0-9a-f]{40}", str(clean))
    file.write_text("edited")
    assert describe_environment(CPU).commit == f"{clean}+changes"


def test_an_installed_copy_inside_another_repository_has_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_repository(tmp_path, monkeypatch)
    (tmp_path / ".gitignore").write_text("site-packages")
    installed = tmp_path / "site-packages" / "environment.py"
    installed.parent.mkdir()
    installed.touch()
    monkeypatch.setattr(environment, "__file__", str(installed))
    assert describe_environment(CPU).commit is None


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert describe_environment(CPU).commit is None
