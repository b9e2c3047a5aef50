from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support import PHOTO, PHOTOS, free_ports

from yolov5_client import Client, UnavailableError
from yolov5_client._cli import main


def test_status_without_a_server_exits_with_3(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    with Client(address, timeout=5) as client:
        with pytest.raises(UnavailableError):
            client.detect(PHOTO)
        with pytest.raises(UnavailableError):
            client.status()
        with pytest.raises(FileNotFoundError):
            client.detect(tmp_path / "none.jpg")
    assert main(["status", "--server", address]) == 3
    assert capsys.readouterr().err.startswith(f"error: {address}: ")


def test_client_imports_neither_torch_nor_opencv() -> None:
    script = (
        "import sys; sys.modules['cv2'] = sys.modules['torch'] = None; "
        "import yolov5_client, yolov5_client._cli; "
        "from yolov5_client._sources import expand; "
        f"print(expand([{str(PHOTOS)!r}], stdin=sys.stdin.buffer)[1])"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (answer.stdout, answer.stderr) == ("8\n", "")
