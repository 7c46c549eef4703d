#!/usr/bin/env bash
# Fine-tune a model on your own images, and export it to one file:
#
#   bash examples/own_images.sh BASE FOLDER OUTPUT [options of `ait train`]
#
# BASE is a run of cifar10-ait-image-tiny, or the folder of its model. FOLDER contains train/CLASS/
# and test/CLASS/. In the new folder OUTPUT, the script
#   1. trains the model on the images, starting from the weights of BASE,
#   2. saves it as it would be pushed to the Hugging Face Hub (model/),
#   3. loads that folder in a fresh environment, where only this package is installed,
#   4. exports the model to ONNX (model.onnx),
#   5. runs the file in another fresh environment, with onnxruntime, numpy and pillow alone.
#
# It needs the package with its extra `onnx`, and a network for the packages of steps 3 and 5.
set -euo pipefail
base=$1 folder=$2 output=$3
shift 3
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
classes=$(find "$folder/train" -mindepth 1 -maxdepth 1 -type d | wc -l)
image=$(find "$folder/test" -type f | sort | head -n 1)
mkdir "$output"

echo "1. training on $classes classes"
"$python" -m associative_transformer train cifar10-ait-image-tiny --data.source "$folder" \
  --model.num-classes "$classes" --init "$base" --name own --runs "$output/runs" "$@"

echo "2. saving the model"
"$python" - "$output" <<'END'
import sys
from associative_transformer import load_model

load_model(f"{sys.argv[1]}/runs/own/0").save_pretrained(f"{sys.argv[1]}/model")
END

echo "3. loading it in a fresh environment"
"$python" -m venv "$output/package"
"$output/package/bin/pip" install --quiet "${PACKAGE:-$here/..}"
"$output/package/bin/ait" predict "$output/model" "$image"

echo "4. exporting it"
"$python" -m associative_transformer export "$output/model" --output "$output/model.onnx" --no-speed

echo "5. running the file without this package"
"$python" -m venv "$output/onnx"
"$output/onnx/bin/pip" install --quiet onnxruntime numpy pillow
"$output/onnx/bin/python" "$here/classify_onnx.py" "$output/model.onnx" "$image"
