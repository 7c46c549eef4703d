"""Rules for the source of the package: order of imports, lengths and names."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import associative_transformer

PACKAGE = "associative_transformer"
ROOT = Path(associative_transformer.__file__).parent
FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))

ORDER = {  # from the ground up: a file imports only from what comes before it
    "functional": "the paper's equations as pure functions",
    "interface": "Batch, ModelOutput, UserError: what passes between the parts",
    "files": "atomic writes, new folders, the first validation error",
    "webpage": "the frame and the style that all HTML pages share",
    "tabular": "tables for a terminal, in Markdown and in HTML",
    "progress": "how far long work has come: a bar on a terminal, plain lines elsewhere",
    "rendezvous": "how the processes of a launcher find each other",
    "distributed": "process groups, and collectives over their processes",
    "arguments": "checks of the sizes and shapes that callers pass",
    "float32": "layers that compute in at least float32",
    "compute": "how models run on this machine: precision and threads",
    "kernels": "faster and distributed versions of functional.py; chooses one",
    "recomputation": "forward passes that activation checkpointing repeats",
    "balance": "balance losses in code that only computes loss(model(x), y)",
    "workspace_config": "the configuration of a workspace",
    "workspace_outputs": "what a workspace returns",
    "workspace": "GlobalWorkspace, the core of AiT: write, remember, read",
    "health": "what state a memory is in: rank, distinct priors, overlap of winners",
    "encoder_layer": "a layer for nn.TransformerEncoder with a memory for each sequence",
    "associative_mlp": "a feed-forward with a workspace, for models of other libraries",
    "decoding": "image files of many kinds to 8-bit images of one size",
    "models": "one file per model, its configuration above it; build_model",
    "data": "one file per data set, including the code that loads it",
    "optimization": "how a model is optimized: batches, learning rate, what is not trained",
    "experiment": "Experiment and TrainConfig: what is trained, on what, and how",
    "recipes": "named experiments, one file per table of the paper",
    "scores": "accuracy, precision and recall with their intervals",
    "calibration": "how far confidence is from accuracy, and the temperature that helps",
    "evaluate": "accuracy on a split, and on each kind of question",
    "predict": "predictions for image files, and answers to questions about them",
    "integrations": "timm and transformers, one file each; only users import them",
    "runs": "run folders, written and read back",
    "export": "a trained model as one file for ONNX, torch.export or safetensors",
    "training": "the loop, one optimizer step, progress, signals; trains missing runs",
    "sweeps": "grids and searches over fields of a recipe, scored on validation images",
    "analysis": "what a model has learned, in numbers",
    "tables": "the paper's tables from finished runs",
    "figures": "numbers as pictures; the only user of matplotlib",
    "report": "one run, or two, as a web page",
    "bench": "speed and memory, compared with a rival in the same run",
    "cli": "the command `ait`, one file per subcommand",
    "__main__": "the entry point of `python -m associative_transformer`",
}
"""The parts of the package; CONTRIBUTING.md shows this list."""

INSIDE = {  # inside a folder: files that are not named come next, and __init__ comes last
    "kernels": (
        "largest",
        "attention",
        "competition",
        "sparse",
        "over_ranks",
        "plain_linear",
        "per_image",
    ),
    "models": (
        "stem",
        "layers",
        "regularization",
        "heads",
        "initialize",
        "preprocessing",
        "saved_config",
        "weight_count",
        "model_card",
        "pretrained",
        "transformer",
        "ait",
    ),
    "data": (
        "known",
        "augmentation",
        "operations",
        "augment",
        "mixing",
        "batches",
        "loaders",
        "questions",
        "scenes",
        "config",
        "split_names",
        "listing",
        "parquet",
        "folders",
        "csv_files",
        "sources",
        "columns",
        "image_table",
        "stored",
        "summary",
        "copies",
        "inspection",
        "contents",
    ),
    "runs": (
        "reading",
        "data_summary",
        "lock",
        "environment",
        "folder",
        "result",
        "spread",
        "defaults",
        "overrides",
        "plan",
        "training_command",
        "card",
        "checkpoint",
        "saved",
        "source",
    ),
    "training": (
        "schedule",
        "variables",
        "duration",
        "signals",
        "progress",
        "launch",
        "anomaly",
        "parameters",
        "optimizers",
        "averaging",
        "loss",
        "step",
        "computing",
        "meter",
        "memories",
        "checks",
        "peak",
        "selection",
        "loop",
        "dry_run",
        "throughput",
    ),
    "analysis": ("storage", "trace", "networks", "information", "clusters"),
    "sweeps": ("space", "scores"),
    "tables": ("collect",),
    "figures": ("context",),
    "report": ("charts", "descriptions", "facts", "gallery"),
    "bench": ("timing", "variants", "pool", "loading"),
    "recipes": ("classification", "ablations", "relational"),
    "cli": ("mistakes", "options", "self_test", "check_data", "eval"),
}
PUBLIC_NAMES = "__init__.py"  # loads every public name on first use, so it may import all parts
MAY_IMPORT_INSIDE_FUNCTIONS = {
    "cli/": "a command and its --help wait only for what they need",
    "training/optimizers.py": "timm is an extra, and only one optimizer needs it",
    "sweeps/search.py": "only a search needs optuna, which is optional",
    "evaluate.py": "accelerate is slow to import, and only a GPU needs it",
    "models/__init__.py": "the counter of operations imports Triton, and few commands need it",
    "data/sources.py": "datasets is slow to import, and generated data does not need it",
    "data/parquet.py": "the same",
    "data/folders.py": "the same",
    "data/csv_files.py": "the same",
    "data/columns.py": "the same",
    "data/image_table.py": "the same",
    "data/images.py": "torchvision is slow to import, and only random crops need it",
    "data/operations.py": "the same, for two operations",
}
"""Files and folders, each with the reason."""
FORBIDDEN_NAMES = {"utils", "common", "misc", "helpers"}
FLAT = {"AiTForImageClassificationConfig": "has the fields of AiTConfig and of its base class"}
"""Configurations that may have more fields, each with the reason."""
MAX_LINES, MAX_FUNCTION_LINES, MAX_ARGUMENTS, MAX_FIELDS = 300, 45, 12, 15

Function = ast.FunctionDef | ast.AsyncFunctionDef
every_file = pytest.mark.parametrize("file", FILES)


@cache
def tree(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text())


def functions(file: str) -> Iterator[Function]:
    return (node for node in ast.walk(tree(file)) if isinstance(node, Function))


def dotted(path: str) -> str:
    """Return models.ait for models/ait.py, and models for models/__init__.py."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports(file: str) -> Iterator[tuple[str, ast.stmt]]:
    """Yield the full name of each import of a file: `package.module.name` for a from-import."""
    package = [PACKAGE, *file.split("/")[:-1]]  # where relative imports start
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((f"{module}.{alias.name}", node) for alias in node.names)


def own_imports(file: str) -> Iterator[str]:
    """Yield the modules of this package that a file imports: models.ait; "" for the package."""
    modules = {dotted(other) for other in FILES}
    for name, _ in imports(file):
        if name.split(".")[0] != PACKAGE or name == f"{PACKAGE}.__version__":
            continue
        parts = name.split(".")[1:]
        while parts and ".".join(parts) not in modules:
            parts.pop()
        yield ".".join(parts)


def position(module: str) -> tuple[int, int]:
    """Return the position of a module in the written order."""
    part, _, inner = module.partition(".")
    parts, siblings = list(ORDER), INSIDE.get(part, ())
    if not inner:
        return parts.index(part), len(siblings) + 1  # __init__.py may import all its siblings
    if inner in siblings:
        return parts.index(part), siblings.index(inner)
    return parts.index(part), len(siblings)


def breaches(file: str) -> list[str]:
    """Return the imports of a file that do not come before it in the written order."""
    if file == PUBLIC_NAMES:
        return []
    home = position(dotted(file))
    return [
        module or PACKAGE
        for module in own_imports(file)
        if not module or position(module) >= home  # the package itself is for users only
    ]


def test_every_part_is_in_the_written_order() -> None:
    parts = {dotted(file).split(".")[0] for file in FILES if file != PUBLIC_NAMES}
    assert parts == set(ORDER)


def test_the_order_inside_a_folder_names_files_that_exist() -> None:
    for folder, names in INSIDE.items():
        assert {f"{folder}/{name}.py" for name in names} <= set(FILES)


def test_the_page_for_contributors_shows_the_parts_in_the_written_order() -> None:
    page = (ROOT.parents[1] / "CONTRIBUTING.md").read_text()
    tree = page.partition("```\nsrc/associative_transformer/\n")[2].partition("\ntests/")[0]
    rows = [tuple(line.split(maxsplit=1)) for line in tree.splitlines()]
    names = {name: f"{name}/" if (ROOT / name).is_dir() else f"{name}.py" for name in ORDER}
    assert rows == [(names[name], description) for name, description in ORDER.items()]


@every_file
def test_a_file_imports_only_from_what_comes_before_it(file: str) -> None:
    assert not breaches(file)


@every_file
def test_imports_are_at_the_top(file: str) -> None:
    inside = {
        f"{file}:{node.lineno}"
        for function in functions(file)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert file.startswith(tuple(MAY_IMPORT_INSIDE_FUNCTIONS)) or not inside


@every_file
def test_there_are_no_star_imports(file: str) -> None:
    assert not [name for name, _ in imports(file) if name.endswith(".*")]


@every_file
def test_a_file_has_at_most_300_lines_and_one_folder_above_it(file: str) -> None:
    assert len((ROOT / file).read_text().splitlines()) <= MAX_LINES
    assert file.count("/") <= 1


@every_file
def test_a_file_is_named_after_what_it_does(file: str) -> None:
    assert not FORBIDDEN_NAMES & set(file.removesuffix(".py").split("/"))


@every_file
def test_a_function_has_at_most_45_lines(file: str) -> None:
    long = {}
    for function in functions(file):
        lines = (function.end_lineno or 0) - function.lineno + 1
        if lines > MAX_FUNCTION_LINES:
            long[function.name] = lines
    assert not long


def arguments(function: Function) -> list[ast.arg]:
    a = function.args
    everything = [*a.posonlyargs, *a.args, *a.kwonlyargs]
    everything += [star for star in (a.vararg, a.kwarg) if star]
    return [arg for arg in everything if arg.arg not in ("self", "cls")]


@every_file
def test_a_function_or_module_takes_at_most_12_arguments(file: str) -> None:
    assert not [f.name for f in functions(file) if len(arguments(f)) > MAX_ARGUMENTS]


@every_file
def test_a_configuration_has_at_most_15_fields(file: str) -> None:
    large = {}
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.ClassDef) and node.name.endswith(("Config", "Experiment")):
            fields = sum(isinstance(line, ast.AnnAssign) for line in node.body)
            if fields > MAX_FIELDS and node.name not in FLAT:
                large[node.name] = fields
    assert not large


@every_file
def test_every_signature_is_annotated(file: str) -> None:
    bare = [
        function.name
        for function in functions(file)
        if function.returns is None or any(arg.annotation is None for arg in arguments(function))
    ]
    assert not bare


def is_bare_tensor(annotation: ast.expr | None) -> bool:
    """Return whether a shape is missing: Tensor, Tensor | None, tuple[Tensor, Tensor]."""
    match annotation:
        case ast.Name(id="Tensor") | ast.Attribute(attr="Tensor"):
            return True
        case ast.BinOp(left=left, right=right):
            return is_bare_tensor(left) or is_bare_tensor(right)
        case ast.Subscript(value=ast.Name(id="tuple"), slice=inner):
            parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            return any(is_bare_tensor(part) for part in parts)
    return False


@every_file
def test_public_functions_and_forwards_annotate_the_shapes_of_their_tensors(file: str) -> None:
    shapeless = [
        function.name
        for function in functions(file)
        if not function.name.startswith("_")
        and any(
            map(is_bare_tensor, [function.returns, *(a.annotation for a in arguments(function))])
        )
    ]
    assert not shapeless


def users_of(library: str) -> set[str]:
    """Return the files that import a library or access it as an attribute: torch.distributed."""
    users = set()
    for file in FILES:
        named = {name for name, _ in imports(file)}
        named |= {ast.unparse(n) for n in ast.walk(tree(file)) if isinstance(n, ast.Attribute)}
        if any(f"{name}.".startswith(f"{library}.") for name in named):
            users.add(file)
    return users


def test_torch_distributed_stays_in_two_files() -> None:
    assert users_of("torch.distributed") <= {"rendezvous.py", "distributed.py"}


def test_only_figures_imports_matplotlib() -> None:
    assert {file.split("/")[0] for file in users_of("matplotlib")} <= {"figures"}


def test_triton_stays_in_the_kernels() -> None:
    assert {file.split("/")[0] for file in users_of("triton")} <= {"kernels"}


def run(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_the_package_imports_no_torch_until_a_name_is_used() -> None:
    code = """
import sys
import associative_transformer as package
seen = package.__all__, package.__version__, dir(package)
print(sorted({"torch", "numpy", "einops", "huggingface_hub"} & set(sys.modules)))
package.AiT
print("torch" in sys.modules)
"""
    assert run(code).split("\n")[:2] == ["[]", "True"]


def test_every_public_name_resolves() -> None:
    assert len(set(associative_transformer.__all__)) == len(associative_transformer.__all__)
    for name in associative_transformer.__all__:
        assert getattr(associative_transformer, name) is not None
    assert set(dir(associative_transformer)) == set(associative_transformer.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        associative_transformer.no_such_name  # noqa: B018


def test_type_checkers_see_the_names_that_are_loaded_on_first_use() -> None:
    seen = {name.split(".")[-1] for name, _ in imports(PUBLIC_NAMES)}
    seen -= {"importlib", "version", "TYPE_CHECKING"}
    assert seen | {"__version__"} == set(associative_transformer.__all__)


@every_file
def test_every_name_that_a_module_exports_exists(file: str) -> None:
    if not any(
        isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        for node in tree(file).body
    ):
        return
    module = importlib.import_module(f"{PACKAGE}.{dotted(file)}" if "/" in file else PACKAGE)
    assert not [name for name in module.__all__ if not hasattr(module, name)]


PLANTED = {
    "functional.py": "from associative_transformer.models.layers import FeedForward",
    "models/layers.py": "import associative_transformer.models",
    "kernels/sparse.py": "import associative_transformer.workspace",
    "models/ait.py": "from associative_transformer.models.vit import ViT",
    "models/vit.py": "from .dense import Dense",
    "models/__init__.py": "from associative_transformer.experiment import Experiment",
    "workspace.py": "from associative_transformer import AiT",
    "data/batches.py": "from associative_transformer.data.loaders import ResidentLoader",
    "interface.py": "if True:\n    from . import workspace",
}


@pytest.mark.parametrize("file", PLANTED)
def test_a_planted_breach_is_found(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.tree", lambda _: ast.parse(PLANTED[file]))
    assert breaches(file)
