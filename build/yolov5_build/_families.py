"""Kinds of networks that a checkpoint may hold and that are not supported, by the names in it."""

from __future__ import annotations

from .layers import Head

_PACKAGE = "ultralytics."

_TASKS = {
    "a classifier": "ClassificationModel Classify",
    "a model of oriented boxes": "OBBModel OBB OBB26",
    "a pose model": "PoseModel Pose Pose26",
    "a segmentation model": "SegmentationModel Segment Segment26 YOLOESegModel YOLOESegment",
}
_FAMILIES = {
    "an RT-DETR": "AIFI HGBlock HGStem RTDETRDecoder RTDETRDetectionModel",
    "a YOLO-World": "C2fAttn ImagePoolingAttn WorldDetect WorldModel",
    "a YOLOE": "YOLOEDetect YOLOEModel",
    "a YOLOv9": "AConv ADown CBFuse CBLinear ELAN1 RepNCSPELAN4 SPPELAN",
    "a YOLOv10": "C2fCIB CIB PSA SCDown YOLOv10DetectionModel v10Detect",
    "a YOLO12": "A2C2f AAttn ABlock",
}
# Those of YOLOv5 itself.
_KINDS = {
    "models.common.Classify": "a classifier",
    "models.yolo.ClassificationModel": "a classifier",
    "models.yolo.Segment": "a segmentation model",
    "models.yolo.SegmentationModel": "a segmentation model",
}


def refusal(file: str, name: str) -> str:
    """The rest of a sentence about a file that names something unknown."""
    if kind := _KINDS.get(name.removeprefix("yolov5.")):
        return f"is {kind}, not a detection network"
    unknown = f"names '{name}', which is not among the layers that are supported"
    if not name.startswith(_PACKAGE):
        return unknown
    plain = name.rpartition(".")[2]
    for task, names in _TASKS.items():
        if plain in names.split():
            return f"is {task}, not a detection network"
    for family, names in _FAMILIES.items():
        if plain in names.split():
            return f"is {family} checkpoint; {_instead(file)}"
    return f"{unknown}; {_instead(file)}"


def head_refusal(file: str, head: Head) -> str | None:
    """The same about a file with a head that has no name of its own; None if it is supported."""
    if "one2one_cv2" in head._modules or getattr(head, "reg_max", 16) == 1:
        return f"is a YOLO26 checkpoint, or another end-to-end network; {_instead(file)}"
    return None


def _instead(file: str) -> str:
    return (
        "of the ultralytics package's checkpoints, those of YOLOv5u, YOLOv8 and YOLO11 are "
        f"supported; give others as ONNX, which `yolo export model={file} format=onnx` writes"
    )
