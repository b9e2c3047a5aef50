"""A checkout and a temporary folder with paths that a shell would misread."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from support import PHOTO, ROOT, TRITON_FLAGS, ask_grpc, running_server

from yolov5_server.embedded import assemble_backends, triton_folder

# As `make serve`, except for the ports.
SERVE = """export "$@"
exec "$0" -m yolov5_server $TRITON --precision=fp32 \\
  --repository="$REPOSITORY" --http-port="$HTTP_PORT" \\
  --grpc-port="$GRPC_PORT" --metrics-port="$METRICS_PORT" --health-port="$HEALTH_PORT"
"""


@pytest.mark.parametrize("name", ["a b é", "$(touch pwned);'\"`x`:%&"])
def test_server_runs_from_a_checkout_with_an_odd_path(
    bundled_repository: Path, tmp_path: Path, name: str
) -> None:
    odd = tmp_path / name
    odd.mkdir()
    temporary = odd / "tmp"
    temporary.mkdir()
    repository = shutil.copytree(bundled_repository, odd / "model_repository")
    shutil.copytree(ROOT / "server", odd / "server")
    # The environment of that checkout: the same packages, and an interpreter of its own.
    environment = odd / ".venv"
    (environment / "bin").mkdir(parents=True)
    for link in ("python3", "python"):
        (environment / "bin" / link).symlink_to(Path(sys.executable).resolve())
    shutil.copy(Path(sys.prefix, "pyvenv.cfg"), environment)
    (environment / "lib").symlink_to(Path(sys.prefix, "lib"))

    variables = [f"TMPDIR={temporary}", f"TRITON={' '.join(TRITON_FLAGS)}"]
    if ":" not in name:  # PYTHONPATH separates folders by colons
        variables.append(f"PYTHONPATH={odd / 'server'}")
    command = ["env", *variables, "sh", "-c", SERVE, str(environment / "bin" / "python")]
    command.append(f"REPOSITORY={repository}")
    with running_server(command=command) as server:
        assert ask_grpc(server.grpc, [PHOTO.read_bytes()])["num_dets"].item() == 11
        assert not any(path.name == "pwned" for path in (*Path.cwd().iterdir(), *odd.iterdir()))
        assert "warning" not in server.log.read_text()
        assert server.stop() < 10
        assert not any(temporary.glob("yolov5-triton-*"))
    assert not any(path.name == "pwned" for path in (*ROOT.iterdir(), *odd.iterdir()))


def test_models_that_cannot_be_started_end_the_start_at_once(
    bundled_repository: Path, tmp_path: Path
) -> None:
    backends = assemble_backends(triton_folder(), tmp_path / "backends")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tritonserver").symlink_to(triton_folder() / "bin" / "tritonserver")
    stub = backends / "python" / "triton_python_backend_stub"
    stub.unlink()
    stub.write_text("#!/nowhere/at/all\n")
    stub.chmod(0o755)
    flags = (f"--repository={bundled_repository}", f"--triton={tmp_path}")
    with running_server(*flags, wait=False) as server:
        server.process.wait(20)
        assert server.process.returncode == 1
        settings, error = server.log.read_text().split("\n", 1)
        assert settings.startswith("Settings: ")
        assert error.startswith("error: Triton cannot start its models: ")
