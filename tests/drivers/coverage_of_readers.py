"""Print the line coverage of each reader of outside data by the cases of tests/test_fuzz.py.

The functions of a reader are those of the package that its cases call, and those that these name,
called or not. A line counts as reached if the cases of any reader reach it: the cases of a PNG
file need not reach the lines that read a TIFF file. Each reader runs in its own process, so that
it finds no cache that another one has filled.
"""

import argparse
import ast
import inspect
import io
import multiprocessing
import shutil
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import CodeType, ModuleType
from typing import NamedTuple

import coverage
import datasets

import associative_transformer
from associative_transformer.interface import UserError
from making.readers import READERS, make_case

PACKAGE = Path(associative_transformer.__file__).parent


class Function(NamedTuple):
    """A function or method of the package, with the functions inside it."""

    file: str
    first: int  # line of its body
    last: int
    names: frozenset[str]  # in its body: `name`, `module.name`, `self.name`
    owner: str | None  # its class

    def holds(self, line: int) -> bool:
        return self.first <= line <= self.last


class Reached(NamedTuple):
    """What reading the cases of a reader has reached."""

    functions: set[Function]  # of the reader
    lines: dict[str, set[int]]  # by file


@cache
def functions_of(file: str) -> list[Function]:
    """Return the functions and methods of a file."""
    tree = ast.parse(Path(file).read_text())
    scopes = [(None, tree.body)]
    scopes += [(node.name, node.body) for node in tree.body if isinstance(node, ast.ClassDef)]
    return [
        Function(file, node.body[0].lineno, node.end_lineno or 0, names_in(node), owner)
        for owner, body in scopes
        for node in body
        if isinstance(node, ast.FunctionDef)
    ]


def names_in(node: ast.FunctionDef) -> frozenset[str]:
    """Return the names and dotted names in the body of a function."""
    inside = [child for line in node.body for child in ast.walk(line)]
    return frozenset(
        ast.unparse(child) for child in inside if isinstance(child, ast.Name | ast.Attribute)
    )


def named_by(function: Function) -> Iterator[Function]:
    """Yield the functions of the package that a function names."""
    modules = {getattr(m, "__file__", None): m for m in list(sys.modules.values())}
    module = modules[function.file]
    for name in function.names:
        first, _, second = name.partition(".")
        if first in ("self", "cls") and function.owner:
            target = inspect.getattr_static(getattr(module, function.owner), second, None)
        else:
            target = getattr(module, first, None)
            if second and isinstance(target, ModuleType):
                target = getattr(target, second, None)
        target = getattr(target, "fget", getattr(target, "__func__", target))  # of a property
        code = getattr(inspect.unwrap(target) if callable(target) else None, "__code__", None)
        if isinstance(code, CodeType) and code.co_filename.startswith(str(PACKAGE)):
            yield from find(code)


def find(code: CodeType) -> Iterator[Function]:
    """Yield the function with this code."""
    lines = [line for *_, line in code.co_lines() if line]
    for function in functions_of(code.co_filename):
        if function.holds(max(lines)) and code.co_firstlineno <= function.first:
            yield function


def reach(name: str, num_cases: int) -> Reached:
    """Read the valid inputs of a reader and its first cases."""
    reader = READERS[name]
    inputs = [*reader.seeds(), *(make_case(name, number) for number in range(num_cases))]
    tracer = make_tracer()
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # which would use the network
    silent = io.StringIO()
    with TemporaryDirectory() as folder, redirect_stderr(silent), redirect_stdout(silent):
        datasets.config.HF_DATASETS_CACHE = Path(folder) / "cache"
        for content in inputs:
            (Path(folder) / "case").mkdir()
            with suppress(UserError, SystemExit), tracer.collect():
                reader.read(content, Path(folder) / "case")
            for path in Path(folder).iterdir():
                shutil.rmtree(path)
    data = tracer.get_data()
    lines = {file: set(data.lines(file) or ()) for file in data.measured_files()}
    lines = {file: numbers for file, numbers in lines.items() if file.endswith(".py")}
    return Reached(functions_reached(lines), lines)


def make_tracer() -> coverage.Coverage:
    return coverage.Coverage(data_file=None, config_file=False, include=[f"{PACKAGE}/*"])


def functions_reached(lines: dict[str, set[int]]) -> set[Function]:
    """Return the functions with these lines, and those that they name, and so on."""
    found = {f for file in lines for f in functions_of(file) if any(map(f.holds, lines[file]))}
    new = found
    while new:
        new = {other for function in new for other in named_by(function)} - found
        found |= new
    return found


def missed_lines(
    functions: set[Function], reached: dict[str, set[int]]
) -> tuple[int, dict[str, list[int]]]:
    """Return the number of lines of these functions, and those not reached, by file."""
    count, missed = 0, {}
    for file in sorted({function.file for function in functions}):
        _, statements, *_ = make_tracer().analysis2(file)
        inside = [n for n in statements if any(f.holds(n) for f in functions if f.file == file)]
        count += len(inside)
        missed[file] = [n for n in inside if n not in reached.get(file, ())]
    return count, missed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=200, help="cases of each reader")
    parser.add_argument("--missed", action="store_true", help="print the lines not reached")
    options = parser.parse_args()
    results, reached = {}, {}
    for name in READERS:
        with multiprocessing.get_context("fork").Pool(1) as pool:
            results[name] = pool.apply(reach, (name, options.cases))
        for file, lines in results[name].lines.items():
            reached[file] = reached.get(file, set()) | lines
    print("| reader | lines | coverage |\n| --- | --- | --- |")
    for name, result in results.items():
        count, missed = missed_lines(result.functions, reached)
        share = 1 - sum(map(len, missed.values())) / count
        print(f"| {name} | {count:,} | {share:.0%} |")
        for file, lines in missed.items() if options.missed else ():
            if lines:
                print(f"  {Path(file).relative_to(PACKAGE)}: {', '.join(map(str, lines))}")


if __name__ == "__main__":
    main()
