"""What a release needs agrees: metadata, changelog, workflows, hooks, forms and the container."""

import importlib.util
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
CHANGES = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
"""The sections that Keep a Changelog has."""
OLDEST = (3, 11)
"""The lowest version of Python."""

NOTES = """# Changelog

## [Unreleased]

## [0.2.0] - 2027-01-02

### Added

- More.

## [0.1.0] - 2026-12-01

### Added

- All.
"""


def load(path: Path) -> Any:  # noqa: ANN401  (the content of a YAML file)
    return yaml.safe_load(path.read_text())


def python_versions() -> list[str]:
    """Return the versions of Python that the metadata name: 3.11, 3.12, ..."""
    prefix = "Programming Language :: Python :: 3."
    return [
        f"3.{line.removeprefix(prefix)}"
        for line in PROJECT["classifiers"]
        if line.startswith(prefix)
    ]


def steps(workflow: Path) -> list[dict[str, Any]]:
    return [step for job in load(workflow)["jobs"].values() for step in job["steps"]]


@pytest.fixture(scope="module")
def release_notes() -> ModuleType:
    """Return the script that prints the notes of a release."""
    path = ROOT / "docs" / "release_notes.py"
    spec = importlib.util.spec_from_file_location("release_notes", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """Return a repository that is ready for the release 0.2.0."""
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "0.2.0"\n')
    citation = "cff-version: 1.2.0\nversion: 0.2.0\ndate-released: 2027-01-02\n"
    (tmp_path / "CITATION.cff").write_text(citation)
    (tmp_path / "CHANGELOG.md").write_text(NOTES)
    return tmp_path


def test_the_notes_of_a_release_are_those_below_its_heading(
    release_notes: ModuleType, released: Path
) -> None:
    assert release_notes.find_notes(released, "v0.2.0") == "### Added\n\n- More.\n"


@pytest.mark.parametrize(
    ("file", "before", "after", "word"),
    [
        ("pyproject.toml", "0.2.0", "0.3.0", "the tag is v0.2.0"),
        ("CITATION.cff", "\nversion: 0.2.0", "\nversion: 0.1.0", "CITATION.cff"),
        ("CITATION.cff", "date-released", "date", "date-released"),
        ("CHANGELOG.md", " - 2027-01-02", "", "no heading"),
    ],
)
def test_a_repository_that_is_not_ready_is_named(
    release_notes: ModuleType, released: Path, file: str, before: str, after: str, word: str
) -> None:
    path = released / file
    path.write_text(path.read_text().replace(before, after))
    with pytest.raises(ValueError, match=word):
        release_notes.find_notes(released, "v0.2.0")


def test_the_version_is_semantic_and_the_citation_has_it() -> None:
    assert re.fullmatch(r"(0|[1-9]\d*)(\.(0|[1-9]\d*)){2}", PROJECT["version"])
    assert str(load(ROOT / "CITATION.cff")["version"]) == PROJECT["version"]


def test_the_changelog_has_the_headings_of_keep_a_changelog(release_notes: ModuleType) -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = list(release_notes.HEADING.finditer(text))
    assert len(versions) == len(re.findall(r"^## ", text, re.MULTILINE))
    assert versions[0]["version"] == "Unreleased"
    assert all(each["date"] for each in versions[1:])
    numbers = [tuple(map(int, each["version"].split("."))) for each in versions[1:]]
    assert numbers == sorted(numbers, reverse=True)
    sections = re.findall(r"^### (.*)", text, re.MULTILINE)
    assert set(sections) <= set(CHANGES)


def test_the_versions_of_python_are_the_same_everywhere() -> None:
    versions = python_versions()
    first = ".".join(map(str, OLDEST))
    assert versions == [f"3.{OLDEST[1] + i}" for i in range(len(versions))]
    assert PROJECT["requires-python"] == f">={first}"
    jobs = load(ROOT / ".github/workflows/tests.yml")["jobs"]
    assert jobs["linux"]["strategy"]["matrix"]["python"] == versions
    assert jobs["smoke"]["strategy"]["matrix"]["python"] == [versions[0], versions[-1]]
    assert first in str(jobs["lowest"])
    images = re.findall(r"^FROM python:([\d.]+)-slim", (ROOT / "Dockerfile").read_text(), re.M)
    assert set(images) <= set(versions) and images


def test_no_address_of_a_repository_is_invented() -> None:
    """Until there is a public repository, the metadata name only the paper."""
    assert list(PROJECT["urls"]) == ["Paper"]


def test_all_files_of_the_package_get_into_the_wheel() -> None:
    """The build leaves out what git ignores."""
    files = [path for path in (ROOT / "src").rglob("*") if path.is_file()]
    names = [str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts]
    assert "src/associative_transformer/py.typed" in names
    done = subprocess.run(
        ["git", "check-ignore", "--no-index", "--stdin"],
        cwd=ROOT,
        input="\n".join(names),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 128:
        pytest.skip("not a git repository")
    assert done.stdout == ""


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_write_only_where_a_job_needs_it(path: Path) -> None:
    workflow = load(path)
    assert workflow["permissions"] == {"contents": "read"}
    writing = {
        name for name, job in workflow["jobs"].items() if "write" in str(job.get("permissions"))
    }
    assert writing <= {"publish", "rehearse", "announce"}
    assert all(job["timeout-minutes"] for job in workflow["jobs"].values())
    assert "secrets." not in path.read_text()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_what_a_workflow_runs_exists(path: Path) -> None:
    for step in steps(path):
        line = step.get("run", "")
        if line.startswith("make "):
            targets = [word for word in line.split()[1:] if "=" not in word]
            assert set(targets) <= set(re.findall(r"^([a-z]+):", MAKEFILE, re.M))
        for name in re.findall(r"(?:tests|docs)/\S+\.py", line):
            assert (ROOT / name).is_file()


def test_only_trusted_publishing_uploads_and_only_what_was_tested() -> None:
    jobs = load(ROOT / ".github/workflows/release.yml")["jobs"]
    assert "make test package PYTHON=python" in [
        step.get("run") for step in jobs["build"]["steps"]
    ]
    for name, environment in (("publish", "pypi"), ("rehearse", "testpypi")):
        job = jobs[name]
        assert job["needs"] == "build" and job["environment"] == environment
        assert job["permissions"] == {"id-token": "write"}
        assert not [step for step in job["steps"] if "password" in step.get("with", {})]


def test_the_hooks_do_what_make_lint_does() -> None:
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert lint is not None
    checked = [line.strip().replace("$(BIN)", ".venv/bin") for line in lint[1].splitlines()]
    (repository,) = load(ROOT / ".pre-commit-config.yaml")["repos"]
    hooks = repository["hooks"]
    fixed = [
        line.replace(" --check", "").replace("ruff check", "ruff check --fix") for line in checked
    ]
    assert [hook["entry"] for hook in hooks] == fixed
    assert all(hook["pass_filenames"] is False for hook in hooks)


def test_the_bug_form_asks_for_the_output_of_doctor() -> None:
    fields = {field.get("id"): field for field in load(FORMS[0].with_name("bug.yml"))["body"]}
    assert "ait doctor" in fields["doctor"]["attributes"]["label"]
    assert fields["doctor"]["validations"] == {"required": True}


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_the_fields_of_a_form_have_labels_and_names(path: Path) -> None:
    form = load(path)
    if path.stem == "config":
        return
    assert form["name"] and form["description"]
    asked = [field for field in form["body"] if field["type"] != "markdown"]
    assert all(field["attributes"]["label"] for field in asked)
    names = [field["id"] for field in asked]
    assert len(set(names)) == len(names)


def test_the_container_runs_without_privileges_and_copies_what_the_build_needs() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users == ["1000:1000"]
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"]
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY") and "--" not in line]
    assert {name for names in copied for name in names} == set(kept)
    assert all((ROOT / name).exists() for name in kept)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("target", ["lowest", "package"])
def test_the_targets_of_a_release_can_be_made(target: str) -> None:
    done = subprocess.run(
        ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    if target == "lowest":
        assert (
            "lowest-direct" in done.stdout and "build/lowest/bin/python -m pytest" in done.stdout
        )
