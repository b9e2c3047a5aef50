"""A contender: `python -m yolov5_bench._triton NETWORK HTTP GRPC REPOSITORY FOLDER MODEL`.

A plain Triton with the network alone: its clients do the letterbox and the suppression. Our server
refuses such calls.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from yolov5_server.embedded import assemble_backends, server_environment, triton_folder


def main() -> None:
    _, http, grpc, repository, folder, model = sys.argv[1:]
    triton = triton_folder()
    binary = triton / "bin" / "tritonserver"
    backends = assemble_backends(triton, Path(folder, "backends"))
    command = [
        str(binary),
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        "--model-control-mode=explicit",
        f"--load-model={model}",
        # The same configuration as in `make serve`; asked with `images`, it returns all rows.
        "--model-config-name=embedded",
        "--disable-auto-complete-config",
        "--http-address=127.0.0.1",
        "--grpc-address=127.0.0.1",
        f"--http-port={http}",
        f"--grpc-port={grpc}",
        "--allow-metrics=false",
        "--log-info=false",
    ]
    os.execve(binary, command, server_environment(Path(folder)))


if __name__ == "__main__":
    main()
