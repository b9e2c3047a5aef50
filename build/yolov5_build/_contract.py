"""Names and values that the served network's files share with the programs that read them.

The configurations of `yolov5/` are made of these. `tests/unit/test_repository.py` compares them
with those of the steps and of the ensemble.
"""

MODEL = "yolov5"
ENSEMBLE = "yolov5_ensemble"

# Tensors of the network in full.
INPUT = "images"  # [B,3,H,W] FP32, RGB 0..1
OUTPUT = "output0"  # [B,N,5+C] FP32; [B,N,6] with a reduced or end-to-end head
# Tensors of its prefiltered variant, which is served; the output has the same name.
PIXELS = "pixels"  # [B,3,H,W] UINT8, RGB 0..255
NMS = "nms"  # [B,5] FP32, conf_thres first

# Files of the network, in its folder or in that of its version.
CONFIG_FILE = "config.pbtxt"
# The embedded server reads this in its place on a CPU that has BF16. It exists only if BF16 was
# measured to keep the mAP.
BF16_CONFIG_FILE = "configs/bf16.pbtxt"
LABELS_FILE = "labels.txt"
WEIGHTS_FILE = "model.onnx"
SERVED_FILE = "served.onnx"  # its prefiltered variant, see `_prefiltered`
PLAN_FILE = "model.plan"

ONNX_RUNTIME_BACKEND = "onnxruntime"
OPENVINO_BACKEND = "openvino"

DEFAULT_SIZE = (640, 640)  # height and width of a network that leaves them open

# How preprocess fits a picture into the input.
SQUARE, RECT, STRETCH = "square", "rect", "stretch"
LETTERBOX_MODES = (SQUARE, RECT, STRETCH)

# What the rows hold: a score for each class, or only the best class, or boxes that the network
# itself has chosen.
FULL, REDUCED, END2END = "full", "reduced", "end2end"
HEADS = (FULL, REDUCED, END2END)

# How the padding of a centred picture is known to the boxes: YOLOv5 does not round it, although the
# picture is placed by whole pixels; networks without anchors come from a package that does.
EXACT, WHOLE = "exact", "whole"

# What a file computes in. TensorRT takes INT8 only as signed numbers around zero.
FP32, FP16, INT8, INT8_SYMMETRIC = "fp32", "fp16", "int8", "int8-symmetric"
PRECISIONS = (FP32, FP16, INT8, INT8_SYMMETRIC)
INT8_TARGETS = {"cpu": INT8, "tensorrt": INT8_SYMMETRIC}  # what runs an INT8 file -> its precision
BF16 = "bf16"  # chosen by the runtime, for a file in FP32

# What a network was made of: a checkpoint leaves the choice of precision, an ONNX file has its own.
FROM_CHECKPOINT, FROM_ONNX = "checkpoint", "onnx"
SOURCES = (FROM_CHECKPOINT, FROM_ONNX)

# Keys of an ONNX file's metadata; the first two are those of YOLOv5's own exporter. The
# configuration has parameters of the same names for stride, head, padding, precision and source.
NAMES_KEY = "names"
STRIDE_KEY = "stride"
HEAD_KEY = "head"
PADDING_KEY = "padding"  # only if it is `WHOLE`
PRECISION_KEY = "precision"
PROVENANCE_KEY = "provenance"
SOURCE_KEY = "source"
MAX_BATCH_KEY = "max_batch_size"  # only if it is less than the repository's usual one
FULL_KEY = "full_sha256"  # of a prefiltered variant: the file that it was made from

# Parameters of the configuration alone.
FULL_FILE_KEY = "full"
LETTERBOX_KEY = "letterbox"

# Parameter of the configuration: the largest height and width, if the network leaves them open. Key
# of an ONNX file's metadata: the height and width it was exported for, if it leaves them open.
IMGSZ_KEY = "imgsz"
