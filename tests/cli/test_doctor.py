"""`ait doctor`: what it finds, and what it keeps to itself."""

from collections import namedtuple
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import CacheNotFound

import associative_transformer
from associative_transformer.cli import doctor
from associative_transformer.cli.doctor import LAUNCHER, PACKAGES, examine, to_markdown
from making.commands import Ait, assert_refused

Repo = namedtuple("Repo", ["repo_id", "repo_type"])
Cache = namedtuple("Cache", ["repos"])


def lines(part: str, runs: Path = Path("runs")) -> dict[str, str]:
    return {found.name: found.value for found in examine(runs) if found.part == part}


def test_the_command_writes_markdown_with_every_part(ait: Ait) -> None:
    said = ait("doctor")
    assert said.code == 0 and said.err == ""
    headings = [line for line in said.out.splitlines() if line.startswith("#")]
    assert headings == ["## ait doctor"] + [
        f"### {part}"
        for part in ("versions", "devices", "kernels", "data sets", "disk", "launcher")
    ]


def test_it_writes_to_a_file_and_refuses_a_folder_that_is_not_there(
    ait: Ait, tmp_path: Path
) -> None:
    assert ait("doctor", "--output", str(tmp_path / "bug.md")).out == ""
    assert "## ait doctor" in (tmp_path / "bug.md").read_text()
    assert_refused(ait("doctor", "--output", str(tmp_path / "no" / "bug.md")), "no folder")


def test_versions_are_those_that_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", (*PACKAGES, "no-such-package"))
    found = lines("versions")
    assert found["associative-transformer"] == associative_transformer.__version__
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["no-such-package"] == "not installed"


def test_gpus_are_told_with_memory_and_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = namedtuple("Gpu", ["name", "total_memory", "major", "minor"])
    gpus = [properties("Old", 8 * 2**30, 7, 5), properties("New", 80 * 2**30, 9, 0)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: gpus[i])
    found = lines("devices")
    assert found["GPU 0"] == "Old, 8.0 GiB, 7.5, no bfloat16"
    assert found["GPU 1"] == "New, 80.0 GiB, 9.0, bfloat16"
    assert "GPU" not in found
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert lines("devices")["GPU"] == "none that this torch can use"


def test_data_sets_are_found_in_either_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor.datasets_config, "HF_DATASETS_CACHE", tmp_path)
    (tmp_path / "uoft-cs___cifar10").mkdir()
    repos = [Repo("timm/oxford-iiit-pet", "dataset"), Repo("uoft-cs/cifar100", "model")]
    monkeypatch.setattr(doctor, "scan_cache_dir", lambda: Cache(repos))
    found = {name.split()[0]: value for name, value in lines("data sets").items()}
    assert found["cifar10"] == found["pets"] == "in the cache"
    assert found["cifar100"] == found["imagenet100"] == "not in the cache"


def test_no_cache_at_all_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail() -> Cache:
        raise CacheNotFound("none", tmp_path)

    monkeypatch.setattr(doctor, "scan_cache_dir", fail)
    monkeypatch.setattr(doctor.datasets_config, "HF_DATASETS_CACHE", tmp_path / "none")
    found = {name.split()[0]: value for name, value in lines("data sets").items()}
    assert found["cifar10"] == "not in the cache"
    assert any(name.startswith("data cache") for name in lines("disk"))


def test_free_disk_is_that_of_the_folder_in_which_runs_will_lie(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Path] = []
    usage = namedtuple("Usage", ["free"])
    monkeypatch.setattr(
        doctor.shutil, "disk_usage", lambda path: asked.append(path) or usage(3 * 2**30)
    )
    found = lines("disk", tmp_path / "not" / "yet")
    assert asked[0] == tmp_path
    assert next(iter(found.values())).startswith("3.0 GiB free")


def test_the_launcher_is_told_and_nothing_else_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)
    assert lines("launcher") == {"processes": "one, without a launcher"}
    monkeypatch.setenv("WORLD_SIZE", "4")
    secrets = {
        "HF_TOKEN": "hf_secret",
        "WANDB_API_KEY": "key_secret",
        "AWS_SECRET_ACCESS_KEY": "aws_secret",
        "HTTPS_PROXY": "http://user:proxy_secret@proxy",
        "MASTER_ADDR": "host_secret",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    text = to_markdown(examine(Path("runs")))
    assert "- WORLD_SIZE: 4" in text
    assert "secret" not in text


def test_the_home_folder_and_its_owner_stay_private(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home = tmp_path / "somebody"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(doctor.datasets_config, "HF_DATASETS_CACHE", home / "cache")
    text = to_markdown(examine(home / "runs"))
    assert "~/cache" in text and "~/runs" in text
    assert "somebody" not in text
