"""A contender: `python -m yolov5_bench._triton NETWORK HTTP GRPC REPOSITORY FOLDER MODEL`.

A plain Triton with the network alone: its clients do the letterbox and the suppression. Our server
refuses such calls.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from yolov5_server.embedded import assemble_backends, server_environment, triton_folder


def main() -> None:
    _, http, grpc, repository, folder, model = sys.argv[1:]
    triton = triton_folder()
    binary = triton / "bin" / "tritonserver"
    backends = assemble_backends(triton, Path(folder, "backends"))
    command = [
        str(binary),
        f"--model-repository={in_full(Path(repository, model), Path(folder))}",
        f"--backend-directory={backends}",
        "--model-control-mode=explicit",
        f"--load-model={model}",
        "--http-address=127.0.0.1",
        "--grpc-address=127.0.0.1",
        f"--http-port={http}",
        f"--grpc-port={grpc}",
        "--allow-metrics=false",
        "--log-info=false",
    ]
    os.execve(binary, command, server_environment(Path(folder)))


def in_full(network: Path, folder: Path) -> Path:
    """A repository with the network in full, `images` in and all rows out, as it is exported."""
    config = text_format.Parse(
        (network / "config.pbtxt").read_text("utf-8"), model_config_pb2.ModelConfig()
    )
    config.default_model_filename = "model.onnx"
    for field in ("input", "output", "model_warmup"):  # the backend reads them in the file
        config.ClearField(field)
    target = folder / "models" / network.name
    target.mkdir(parents=True)
    (target / "config.pbtxt").write_text(text_format.MessageToString(config), "utf-8")
    for version in network.glob("[0-9]*"):
        (target / version.name).symlink_to(version)
    return target.parent


if __name__ == "__main__":
    main()
