"""`ait doctor`: what it reports, and what it keeps private."""

import json
import tomllib
from collections import namedtuple
from pathlib import Path

import huggingface_hub
import pytest
import torch
from datasets import config as datasets_config
from huggingface_hub.errors import CacheNotFound

import associative_transformer
from associative_transformer import compute, functional
from associative_transformer.cli import doctor, self_test
from associative_transformer.cli.doctor import EXTRAS, LAUNCHER, PACKAGES, examine, format_report
from associative_transformer.cli.self_test import find_problems
from associative_transformer.functional import Selection
from associative_transformer.workspace import GlobalWorkspace
from making.commands import Ait, assert_refused

ROOT = Path(__file__).parents[2]
Repo = namedtuple("Repo", ["repo_id", "repo_type"])
Cache = namedtuple("Cache", ["repos"])
SECTIONS = (
    *("versions", "extras", "devices", "kernels", "data sets", "disk", "launcher"),
    "self-test",
)
CPU = torch.device("cpu")


def lines(section: str, runs: Path = Path("runs")) -> dict[str, str]:
    return dict(examine(runs)[section])


def test_the_command_writes_every_section_as_markdown(ait: Ait) -> None:
    done = ait("doctor")
    assert done.code == 0 and done.err == ""
    headings = [line for line in done.out.splitlines() if line.startswith("#")]
    assert headings == ["## ait doctor"] + [f"### {section}" for section in SECTIONS]


def test_the_command_writes_the_same_as_json(ait: Ait) -> None:
    done = ait("doctor", "--format", "json")
    assert done.code == 0
    content = json.loads(done.out)
    assert tuple(content) == SECTIONS
    assert content["versions"] == lines("versions")
    assert content["self-test"]["cpu"] == "passed"


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


def test_the_extras_are_those_of_the_package_with_their_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    names = {extra: tuple(each.partition(">")[0] for each in extras[extra]) for extra in EXTRAS}
    assert names == EXTRAS
    assert {*extras} - {*EXTRAS} == {"interop", "dev", "docs", "release"}


def test_extras_show_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "EXTRAS", {"some": ("pytest", "no-such-package")})
    assert lines("extras") == {
        "some": f"pytest {pytest.__version__}, no-such-package not installed"
    }


@pytest.mark.parametrize("instructions", [None, "AMX-BF16"])
def test_the_precision_of_auto_on_a_cpu_follows_its_instructions(
    monkeypatch: pytest.MonkeyPatch, instructions: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    monkeypatch.setattr(compute, "CPU_BFLOAT16", ("amx_bf16",) if instructions else ())
    values = lines("devices")
    assert values["precision auto"] == ("bfloat16" if instructions else "float32")
    assert (instructions or "no instructions for bfloat16") in values["CPU"]


def test_the_self_test_finds_no_problem_and_leaves_the_random_numbers_alone() -> None:
    before = torch.random.get_rng_state()
    assert find_problems(CPU) == []
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_failed_self_test_ends_the_command_with_an_error_after_the_report(
    ait: Ait, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_test, "find_problems", lambda device: ["RuntimeError: no driver"])
    done = ait("doctor")
    assert done.code == 2
    assert "- cpu: RuntimeError: no driver" in done.out
    assert "does not work on cpu" in done.err


def test_the_self_test_finds_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*args: object, **rules: object) -> Selection:
        selection = functional.pooled_attention(*args, **rules)
        return selection._replace(value=selection.value + 0.1)

    monkeypatch.setattr(self_test.FASTEST["cpu"], "pooled_attention", wrong)
    assert "the fast write" in "".join(find_problems(CPU))


def test_the_self_test_finds_a_memory_that_does_not_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(GlobalWorkspace, "remember", lambda self, *_: self.priors)
    assert "does not change the memory" in "".join(find_problems(CPU))


def test_the_self_test_reports_an_error_of_torch_as_a_problem() -> None:
    (problem,) = find_problems(torch.device("meta"))
    assert "Error: " in problem


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
