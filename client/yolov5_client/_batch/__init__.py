"""The offline job `yolov5-client batch`, on Ray Data. Needs the extra `batch`.

A job is planned once (`sources.py`, `plan.py`): the photos are divided into parts, which lie beside
the results. Ray gives each part to a worker (`job.py`), which fetches its photos, asks the server
(`worker.py`) and writes one Parquet file under the part's own name (`rows.py`). A part that is done
twice, because something died, is the same file again: hence exactly one row for each photo.
"""
