"""The results of a job as a COCO file of results."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from .plan import RESULTS, part_name
from .rows import read_table
from .storage import Folder


def write_coco(folder: Folder, parts: int) -> None:
    """Write `coco/part-000000.json` and so on: a list of results for each part.

    `image_id` is the photo's name without its suffix, as a number if it is one, as `detect
    --save-json` writes it; `key` is the whole. A file for each part, since one of ten million
    photos would be of no use.
    """
    for number in range(parts):
        name = part_name(number)
        table = read_table(folder.read(f"{RESULTS}/{name}"))
        results = list(_results(table.to_pylist()))
        content = json.dumps(results, separators=(",", ":")).encode()
        folder.write(f"coco/{PurePosixPath(name).stem}.json", content)


def _results(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in rows:
        stem = PurePosixPath(row["key"]).stem
        for one in row["detections"] or ():
            x1, y1, x2, y2 = (round(one[side], 4) for side in ("x1", "y1", "x2", "y2"))
            yield {
                "image_id": int(stem) if stem.isdecimal() else stem,
                "key": row["key"],
                "category_id": one["class_id"],
                "category_name": one["label"],
                "bbox": [x1, y1, round(x2 - x1, 4), round(y2 - y1, 4)],
                "score": round(one["score"], 6),
            }
