"""Check an installed package: from a folder of images to a report and an exported model.

Run it in an empty folder, with the Python of the environment (`make package` does this). It needs
nothing but the package and what it depends on, and refuses to check a checkout. It prints one line
for each step, and a step that fails ends it with exit code 1.
"""

import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

from PIL import Image

import associative_transformer
from associative_transformer.cli import COMMANDS

SOURCE = Path(__file__).resolve().parents[2] / "src" / "associative_transformer"
INSTALLED = Path(associative_transformer.__file__).resolve().parent
RUN = "runs/fit-pictures/0"
STEPS = (
    "--version",
    "list cifar10-ait-small",
    "doctor --format json --output doctor.json",
    "check-data pictures",
    "show triangle",
    "fit pictures --time 10s",
    f"eval {RUN}",
    f"predict {RUN} pictures/red/0.png --format jsonl --output predictions.jsonl",
    f"analyze {RUN}",
    f"report {RUN}",
    f"export {RUN} --output model.safetensors",
    "table classification",
)
"""Commands of `ait`."""
WRITTEN = {
    "doctor.json": '"self-test"',
    f"{RUN}/report.html": "</html>",
    f"{RUN}/README.md": "# ",
    "predictions.jsonl": '"red"',
    "model.safetensors": None,
}
"""What the commands write, with text that is in it."""


def main() -> None:
    """Run all checks."""
    if INSTALLED == SOURCE:
        sys.exit(f"{INSTALLED} is a checkout: run this with the Python of another environment")
    _check_files()
    write_images(Path("pictures"))
    for step in (*STEPS, *(f"{command} --help" for command in COMMANDS)):
        run_command(step)
    for name, text in WRITTEN.items():
        content = Path(name).read_bytes()
        if not content or (text and text.encode() not in content):
            sys.exit(f"{name} is empty, or does not contain {text}")
    _check_model()
    print(f"associative-transformer {version('associative-transformer')} works in {INSTALLED}")


def _check_files() -> None:
    """Compare the installed files with those of the checkout that this script is in."""
    names = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    missing = sorted(name for name in names if not (INSTALLED / name).is_file())
    if missing or "py.typed" not in names:
        sys.exit(f"not installed: {', '.join(missing) or 'py.typed'}")
    print(f"installed: {len(names)} files")


def write_images(folder: Path) -> None:
    """Write small images of two colors to a folder for each color."""
    for color in ("red", "blue"):
        (folder / color).mkdir(parents=True)
        for i in range(20):
            picture = Image.new("RGB", (24, 24), color)
            picture.putpixel((i, i), (255, 255, 255))  # no two are the same
            picture.save(folder / color / f"{i}.png")


def run_command(arguments: str) -> None:
    """Run a command of `ait` as installed, and stop if it fails."""
    program = shutil.which("ait", path=sysconfig.get_path("scripts"))
    if program is None:
        sys.exit(f"the command ait is not in {sysconfig.get_path('scripts')}")
    done = subprocess.run(
        [program, *arguments.split()], capture_output=True, encoding="utf-8", check=False
    )
    if done.returncode:
        sys.exit(f"ait {arguments}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    print(f"ait {arguments}", flush=True)


def _check_model() -> None:
    """Load the trained model in Python and use it."""
    model = associative_transformer.load_model(RUN)
    logits, _ = model(model.preprocess(["pictures/red/0.png", "pictures/blue/0.png"]))
    if logits.shape != (2, 2) or not logits.isfinite().all():
        sys.exit(f"the model returns {logits}")


if __name__ == "__main__":
    main()
