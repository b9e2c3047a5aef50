"""The Helm chart of deploy/kubernetes: rendered by the real helm, and held against schemas.

tests/kubernetes_tools.sh fetches helm and the classes of KEDA's, KServe's and the Prometheus
operator's resources.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import types
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import yaml
from support import ROOT

Resource: TypeAlias = dict[str, Any]

KUBERNETES = ROOT / "deploy" / "kubernetes"
CHART = KUBERNETES / "chart"
RELEASE = "yolov5-triton"
NAMESPACE = "vision"
TOOLS = ROOT / ".venv" / "kubernetes"
HELM = TOOLS / "bin" / "helm"
DOCKER_COMPOSE = TOOLS / "bin" / "docker-compose"
_CLASSES = TOOLS / "python"
_HELP = "is not there; tests/kubernetes_tools.sh fetches it"

needs_helm = pytest.mark.skipif(not HELM.is_file(), reason=f"helm {_HELP}")
needs_compose = pytest.mark.skipif(not DOCKER_COMPOSE.is_file(), reason=f"docker compose {_HELP}")
needs_classes = pytest.mark.skipif(
    not _CLASSES.is_dir(), reason=f"the resources of KEDA and others {_HELP}"
)

# What is rendered: the values files, by the name of the snapshot.
VALUES = {
    "default": (),
    "cpu": ("values-cpu.yaml",),
    "gpu": ("values-gpu.yaml",),
    "bucket": ("values-gpu.yaml", "values-bucket.yaml"),
}


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run helm in the folder of the chart."""
    return subprocess.run(
        [HELM, *arguments],
        cwd=CHART,
        env={**os.environ, "HELM_NO_PLUGINS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@cache
def rendered(name: str, *settings: str) -> str:
    """The manifests that one of `VALUES` gives, with further `--set` settings."""
    files = [f"--values={file}" for file in VALUES[name]]
    more = [f"--set={setting}" for setting in settings]
    result = helm("template", RELEASE, ".", f"--namespace={NAMESPACE}", *files, *more)
    assert result.returncode == 0, result.stderr
    return result.stdout


def resources(text: str) -> list[Resource]:
    """The resources of a file of manifests."""
    return [one for one in yaml.safe_load_all(text) if one]


def resource(found: list[Resource], kind: str, name: str = RELEASE) -> Resource:
    """The one resource of a kind and name."""
    (one,) = (r for r in found if r["kind"] == kind and r["metadata"]["name"] == name)
    return one


@cache
def launcher_variables() -> set[str]:
    """The environment variables that the launcher lists in its help."""
    command = [sys.executable, "-m", "yolov5_server", "--help"]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    return set(re.findall(r"YOLOV5_[A-Z_]+", result.stdout))


def manifests(folder: Path) -> list[Resource]:
    """The resources of all YAML files of a folder."""
    return [one for path in sorted(folder.glob("*.yaml")) for one in resources(path.read_text())]


def unknown_or_wrong(one: Resource) -> list[str]:
    """What a resource of KEDA or of the Prometheus operator has that its class does not allow."""
    module = {
        "keda.sh/v1alpha1": "cloudcoil.models.keda.v1alpha1",
        "monitoring.coreos.com/v1": "cloudcoil.models.prometheus_operator.v1",
    }[one["apiVersion"]]
    made = getattr(_import(module), one["kind"]).model_validate(one)
    return [*_lost(one, made.model_dump(by_alias=True, exclude_unset=True), one["kind"])]


def kserve_errors(one: Resource) -> list[str]:
    """What a resource of KServe has that its class does not; parts of Kubernetes' own are left."""
    version = one["apiVersion"].rpartition("/")[2]
    return _kserve_errors(one, f"{version.capitalize()}{one['kind']}", one["kind"])


def kserve_pod(runtime: Resource, service: Resource) -> Resource:
    """The Pod that KServe makes: the runtime's container and the predictor's own fields."""
    own = _kserve_class("V1beta1PredictorSpec")
    predictor = service["spec"]["predictor"]
    core = {
        own.attribute_map[name]
        for name, kind in own.openapi_types.items()
        if "V1beta1" not in kind and not kind.startswith("K8s")
    } - {"minReplicas", "maxReplicas", "timeout", "name"}
    spec = {key: value for key, value in predictor.items() if key in core}
    from_runtime = {key: runtime["spec"][key] for key in ("containers", "volumes")}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "predictor"},
        "spec": {**spec, **from_runtime},
    }


def _import(name: str) -> Any:
    if str(_CLASSES) not in sys.path:
        sys.path.append(str(_CLASSES))  # last, so that the environment's own packages come first
    return importlib.import_module(name)


def _lost(given: object, kept: object, path: str) -> list[str]:
    if isinstance(given, dict) and isinstance(kept, dict):
        gone = [f"{path}.{key}" for key in given if key not in kept]
        both = [key for key in given if key in kept]
        return gone + [e for key in both for e in _lost(given[key], kept[key], f"{path}.{key}")]
    if isinstance(given, list) and isinstance(kept, list):
        pairs = enumerate(zip(given, kept, strict=True))
        return [e for n, (a, b) in pairs for e in _lost(a, b, f"{path}[{n}]")]
    return []


def _kserve_class(name: str) -> Any:
    if "kserve" not in sys.modules:
        package = types.ModuleType("kserve")  # its own one imports a server
        package.__path__ = [str(_CLASSES / "kserve")]
        sys.modules["kserve"] = package
    return getattr(_import("kserve.models"), name)


def _kserve_errors(value: Any, kind: str, path: str) -> list[str]:
    if kind.startswith("list["):
        if not isinstance(value, list):
            return [f"{path} is no list"]
        inner = kind[5:-1]
        return [
            e for n, one in enumerate(value) for e in _kserve_errors(one, inner, f"{path}[{n}]")
        ]
    plain = {"str": str, "int": int, "bool": bool}.get(kind)
    if plain is not None:
        return [] if type(value) is plain else [f"{path} is {value!r}; allowed: {kind}"]
    if not kind.startswith(("V1alpha1", "V1beta1")) or not isinstance(value, dict):
        return []
    model = _kserve_class(kind)
    names = {key: name for name, key in model.attribute_map.items()}
    unknown = [f"{path}.{key} is unknown" for key in value if key not in names]
    return unknown + [
        error
        for key, one in value.items()
        if key in names
        for error in _kserve_errors(one, model.openapi_types[names[key]], f"{path}.{key}")
    ]
