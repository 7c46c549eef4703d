"""The scripts in `benchmarks/`: they can be imported, and variants compute the same results."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from associative_transformer.models.brims import BRIMsConfig

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path.name for path in (ROOT / "benchmarks").glob("*.py"))


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        name.removesuffix(".py"), ROOT / "benchmarks" / name
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_can_be_imported_and_its_docstring_and_docs_quote_its_command(
    name: str,
) -> None:
    module = load(name)
    command = f"python benchmarks/{name}"
    assert callable(module.main)
    assert command in (module.__doc__ or "")
    pages = [page.read_text() for page in (ROOT / "docs").glob("*.md")]
    assert any(command in page for page in pages)


@torch.no_grad()
def test_the_variants_of_brims_that_are_compared_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    script = load("brims.py")
    monkeypatch.setattr(script.BRIMs, "compile", lambda model: None)  # takes minutes
    plain, *others = script.build_variants(BRIMsConfig(resolution=3)).values()
    images = torch.rand(2, 3, 32, 32)
    logits = plain.eval()(images)[0]
    assert len(others) == 4
    assert all(torch.allclose(other.eval()(images)[0], logits, atol=1e-5) for other in others)


@torch.no_grad()
def test_the_variants_of_the_relation_network_that_are_compared_agree(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = load("relation_network.py")
    monkeypatch.setattr(script, "BATCH", 2)
    answers = []
    for variant in script.build_variants().values():
        torch.manual_seed(0)  # the same dropout
        answers.append(variant())
    assert all(torch.allclose(other, answers[0], atol=1e-5) for other in answers[1:])
