"""Classify an image with an exported model: python classify_onnx.py MODEL.onnx IMAGE

Needs only onnxruntime, numpy and pillow.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1])
facts = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
p, (height, width) = facts["preprocessing"], facts["preprocessing"]["image_size"]
image = ImageOps.exif_transpose(Image.open(sys.argv[2])).convert(p["mode"])
image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
x = (np.array(image).reshape(height, width, -1) / 255 - p["mean"]) / p["std"]
batch = x.transpose(2, 0, 1)[None].astype(np.float32)  # (1, channels, height, width)
logits = session.run(["logits"], {"images": batch})[0][0]
print(facts["class_names"][logits.argmax()])
