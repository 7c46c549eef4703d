"""`ait doctor`: what it reports, and what it keeps private."""

from collections import namedtuple
from pathlib import Path

import huggingface_hub
import pytest
import torch
from datasets import config as datasets_config
from huggingface_hub.errors import CacheNotFound

import associative_transformer
from associative_transformer.cli import doctor
from associative_transformer.cli.doctor import LAUNCHER, PACKAGES, examine, format_report
from making.commands import Ait, assert_refused

Repo = namedtuple("Repo", ["repo_id", "repo_type"])
Cache = namedtuple("Cache", ["repos"])


def lines(section: str, runs: Path = Path("runs")) -> dict[str, str]:
    return dict(examine(runs)[section])


def test_the_command_writes_every_section_as_markdown(ait: Ait) -> None:
    done = ait("doctor")
    assert done.code == 0 and done.err == ""
    headings = [line for line in done.out.splitlines() if line.startswith("#")]
    assert headings == ["## ait doctor"] + [
        f"### {section}"
        for section in ("versions", "devices", "kernels", "data sets", "disk", "launcher")
    ]


def test_the_report_is_written_to_a_file_whose_folder_must_exist(ait: Ait, tmp_path: Path) -> None:
    assert ait("doctor", "--output", str(tmp_path / "bug.md")).out == ""
    assert "## ait doctor" in (tmp_path / "bug.md").read_text()
    assert_refused(ait("doctor", "--output", str(tmp_path / "no" / "bug.md")), "no folder")


def test_the_versions_of_the_installed_packages_are_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", (*PACKAGES, "no-such-package"))
    values = lines("versions")
    assert values["associative-transformer"] == associative_transformer.__version__
    assert values["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert values["no-such-package"] == "not installed"


def test_gpus_are_listed_with_memory_and_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = namedtuple("Gpu", ["name", "total_memory", "major", "minor"])
    gpus = [properties("Old", 8 * 2**30, 7, 5), properties("New", 80 * 2**30, 9, 0)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: gpus[i])
    values = lines("devices")
    assert values["GPU 0"] == "Old, 8.0 GiB, 7.5, no bfloat16"
    assert values["GPU 1"] == "New, 80.0 GiB, 9.0, bfloat16"
    assert "GPU" not in values
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert lines("devices")["GPU"] == "none that torch can use"


def test_data_sets_are_found_in_either_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", tmp_path)
    (tmp_path / "uoft-cs___cifar10").mkdir()
    repos = [Repo("timm/oxford-iiit-pet", "dataset"), Repo("uoft-cs/cifar100", "model")]
    monkeypatch.setattr(huggingface_hub, "scan_cache_dir", lambda: Cache(repos))
    values = {name.split()[0]: value for name, value in lines("data sets").items()}
    assert values["cifar10"] == values["pets"] == "in the cache"
    assert values["cifar100"] == values["imagenet100"] == "not in the cache"


def test_a_missing_cache_is_not_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail() -> Cache:
        raise CacheNotFound("none", tmp_path)

    monkeypatch.setattr(huggingface_hub, "scan_cache_dir", fail)
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", tmp_path / "none")
    values = {name.split()[0]: value for name, value in lines("data sets").items()}
    assert values["cifar10"] == "not in the cache"
    assert any(name.startswith("data cache") for name in lines("disk"))


def test_free_space_is_measured_on_the_disk_that_the_runs_will_be_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measured: list[Path] = []
    usage = namedtuple("Usage", ["free"])
    monkeypatch.setattr(
        doctor.shutil, "disk_usage", lambda path: measured.append(path) or usage(3 * 2**30)
    )
    values = lines("disk", tmp_path / "not" / "yet")
    assert measured[0] == tmp_path
    assert next(iter(values.values())).startswith("3.0 GiB free")


def test_only_the_variables_of_the_launcher_are_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)
    assert lines("launcher") == {"processes": "one, started without a launcher"}
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
    text = format_report(examine(Path("runs")))
    assert "- WORLD_SIZE: 4" in text
    assert "secret" not in text


def test_the_home_folder_and_its_owner_stay_private(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home = tmp_path / "somebody"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", home / "cache")
    text = format_report(examine(home / "runs"))
    assert "~/cache" in text and "~/runs" in text
    assert "somebody" not in text
