"""The rules of the house, read from the source: who imports whom, how long, under what name."""

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

FLOORS = {  # a file imports from lower floors only; a folder is one floor
    0: {"functional", "interface", "tabular", "charts", "rank", "rendezvous"},
    0.5: {"kernels"},  # the workspace takes the fastest form by itself
    0.75: {"distributed"},
    1: {"layers", "pretrained", "workspace", "questions", "lock", "anomaly"},
    2: {"models", "data"},
    3: {"experiment"},
    4: {
        "recipes",
        "checkpoint",
        "evaluate",
        "predict",
        "run_folder",  # this one and the next three are what `train` is made of
        "step",
        "progress",
        "interruption",
        "command_line",
        "trace",
        "results",
    },
    5: {"train", "analysis", "runs"},
    6: {"tables", "sweep", "figures", "bench", "doctor"},
    7: {"report"},
    8: {"commands"},
    9: {"cli"},
    10: {"__main__"},
}
FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names}
PUBLIC_NAMES = "__init__.py"  # loads every public name on first use: above all floors
MAY_IMPORT_INSIDE_FUNCTIONS = {"cli.py", "models/__init__.py"}
FORBIDDEN_NAMES = {"utils", "common", "misc", "helpers"}
MAX_LINES, MAX_FUNCTION_LINES, MAX_ARGUMENTS, MAX_FIELDS = 300, 45, 12, 15

Function = ast.FunctionDef | ast.AsyncFunctionDef
every_file = pytest.mark.parametrize("file", FILES)


@cache
def tree(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text())


def functions(file: str) -> Iterator[Function]:
    return (node for node in ast.walk(tree(file)) if isinstance(node, Function))


def dotted(path: str) -> str:
    """Turn models/ait.py into models.ait, and models/__init__.py into models."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports(file: str) -> Iterator[tuple[str, ast.stmt]]:
    """Give the full name of all that a file imports, `package.module.name` for a from-import."""
    package = [PACKAGE, *file.split("/")[:-1]]  # where relative imports start
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((f"{module}.{alias.name}", node) for alias in node.names)


def own_imports(file: str) -> Iterator[str]:
    """Give the modules of this package that a file imports, as models.ait; "" for the package."""
    modules = {dotted(other) for other in FILES}
    for name, _ in imports(file):
        if name.split(".")[0] != PACKAGE or name == f"{PACKAGE}.__version__":
            continue
        parts = name.split(".")[1:]
        while parts and ".".join(parts) not in modules:
            parts.pop()
        yield ".".join(parts)


def breaches(file: str) -> list[str]:
    """Name the imports that go sideways or upwards."""
    if file == PUBLIC_NAMES:
        return []
    home, found = dotted(file).split(".")[0], []
    for module in own_imports(file):
        target = module.split(".")[0]
        if not target:  # the public names are for users
            found.append(PACKAGE)
        elif target == home:  # inside a folder only __init__.py imports its siblings
            if not file.endswith("/__init__.py"):
                found.append(module)
        elif FLOOR_OF[target] >= FLOOR_OF[home]:
            found.append(module)
    return found


@every_file
def test_every_file_has_its_floor(file: str) -> None:
    assert file == PUBLIC_NAMES or dotted(file).split(".")[0] in FLOOR_OF, (
        f"give {file} a floor: here, and in section 1 of the style guide"
    )


@every_file
def test_a_file_imports_from_lower_floors_only(file: str) -> None:
    assert not breaches(file)


@every_file
def test_imports_stand_at_the_top(file: str) -> None:
    inside = {
        f"{file}:{node.lineno}"
        for function in functions(file)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert file in MAY_IMPORT_INSIDE_FUNCTIONS or not inside


@every_file
def test_no_star_is_imported(file: str) -> None:
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
            if fields > MAX_FIELDS:
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
    """Say whether a shape is missing: Tensor, Tensor | None, tuple[Tensor, Tensor]."""
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
def test_public_functions_and_forwards_say_the_shapes_of_their_tensors(file: str) -> None:
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
    """Name the files that import a library or reach it as an attribute, like torch.distributed."""
    users = set()
    for file in FILES:
        named = {name for name, _ in imports(file)}
        named |= {ast.unparse(n) for n in ast.walk(tree(file)) if isinstance(n, ast.Attribute)}
        if any(f"{name}.".startswith(f"{library}.") for name in named):
            users.add(file)
    return users


def test_torch_distributed_stays_in_two_files() -> None:
    assert users_of("torch.distributed") <= {"distributed.py", "rendezvous.py"}


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
    "functional.py": "from associative_transformer.layers import FlattenHead",
    "layers.py": "import associative_transformer.workspace",
    "models/ait.py": "from associative_transformer.models.vit import ViT",
    "models/vit.py": "from .ait import AiT",
    "models/__init__.py": "from associative_transformer.experiment import Experiment",
    "workspace.py": "from associative_transformer import AiT",
    "interface.py": "if True:\n    from . import train",
}


@pytest.mark.parametrize("file", PLANTED)
def test_a_planted_breach_is_found(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.tree", lambda _: ast.parse(PLANTED[file]))
    assert breaches(file)
