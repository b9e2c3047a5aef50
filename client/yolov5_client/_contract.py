"""The endpoint's names, as the server publishes them."""

MODEL = "yolov5_ensemble"

IMAGE = "image"  # BYTES [B, 1]

NUM_DETS = "num_dets"  # INT32 [B, 1]
DET_BOXES = "det_boxes"  # FP32 [B, K, 4]
DET_SCORES = "det_scores"  # FP32 [B, K]
DET_CLASSES = "det_classes"  # INT32 [B, K]
DET_LABELS = "det_labels"  # BYTES [B, K]
IMAGE_SIZE = "image_size"  # INT32 [B, 2]

OUTPUTS = (NUM_DETS, DET_BOXES, DET_SCORES, DET_CLASSES, DET_LABELS, IMAGE_SIZE)
