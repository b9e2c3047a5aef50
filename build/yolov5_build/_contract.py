"""What the served network's files, tensors and settings are called.

`yolov5/config.pbtxt` is made of these; `tests/unit/test_repository.py` holds them together with
the steps that read it.
"""

MODEL = "yolov5"
ENSEMBLE = "yolov5_ensemble"
INPUT = "images"
PIXELS = "pixels"  # the same as 0..255
NMS = "nms"  # conf_thres first
OUTPUT = "output0"
CONFIG_FILE = "config.pbtxt"
# In place of that one where the embedded server runs the network on a CPU; the second is there
# where BF16 was seen to keep the mAP.
EMBEDDED_CONFIG_FILE = "configs/embedded.pbtxt"
EMBEDDED_BF16_CONFIG_FILE = "configs/embedded-bf16.pbtxt"
LABELS_FILE = "labels.txt"
WEIGHTS_FILE = "model.onnx"
PREFILTERED_FILE = "prefiltered.onnx"  # see `_prefiltered`
LETTERBOX_MODES = ("square", "rect", "stretch")  # those that preprocess has
HEADS = ("full", "reduced")  # those that postprocess reads
# TensorRT takes INT8 only with signed numbers around zero.
PRECISIONS = ("fp32", "fp16", "int8", "int8-symmetric")
BF16 = "bf16"  # not of a file: computed in, from one in FP32

# What a network was made of: its precision can be chosen, or is that of the file.
SOURCES = ("checkpoint", "onnx")

# Keys of an ONNX file's metadata; the first two are those of YOLOv5's own exporter.
NAMES_KEY = "names"
STRIDE_KEY = "stride"
HEAD_KEY = "head"
PRECISION_KEY = "precision"
PROVENANCE_KEY = "provenance"
SOURCE_KEY = "source"
MAX_BATCH_KEY = "max_batch_size"  # only where it is less than the repository's usual one
FULL_KEY = "full_sha256"  # of a prefiltered variant: the file that it was made from
