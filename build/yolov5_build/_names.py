"""What the served network's files and tensors are called; `yolov5/config.pbtxt` is made of it."""

MODEL = "yolov5"
INPUT = "images"
OUTPUT = "output0"
LABELS_FILE = "labels.txt"
WEIGHTS_FILE = "model.onnx"
LETTERBOX_MODES = ("square", "stretch")  # those that preprocess has
