"""The settings that YOLOv5 validates with."""

CONF_THRES = 0.001
IOU_THRES = 0.6
MAX_DET = 300
