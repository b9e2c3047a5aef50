"""The default settings of YOLOv5's `val.py`."""

CONF_THRES = 0.001
IOU_THRES = 0.6
MAX_DET = 300
