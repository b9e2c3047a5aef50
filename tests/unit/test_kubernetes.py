"""The Helm chart and the KServe manifests are valid, confined, and agree with the launcher."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from charts import (
    CHART,
    KUBERNETES,
    NAMESPACE,
    RELEASE,
    VALUES,
    Resource,
    helm,
    kserve_errors,
    kserve_pod,
    launcher_variables,
    manifests,
    needs_classes,
    needs_helm,
    rendered,
    resource,
    resources,
    unknown_or_wrong,
)
from google.protobuf import text_format
from pod_security import violations
from support import REPOSITORY, ROOT
from tritonclient.grpc import model_config_pb2

from yolov5_client import __version__
from yolov5_client._cli import _parser
from yolov5_server import Settings, StartError
from yolov5_server._checks import check_shared_memory

VERSIONS = [f"1.{minor}" for minor in range(30, 38)]
SNAPSHOTS = KUBERNETES / "snapshots"
KSERVE = manifests(KUBERNETES / "kserve")
NO_RULES = "monitoring.prometheusRule.enabled=false"  # they have a test of their own
OWN = ("keda.sh", "monitoring.coreos.com", "serving.kserve.io")


def group(one: Resource) -> str:
    return str(one["apiVersion"]).rpartition("/")[0]


@cache
def chart_resources(name: str) -> list[Resource]:
    return resources(rendered(name))


def pod_spec(name: str) -> dict[str, Any]:
    spec: dict[str, Any] = resource(chart_resources(name), "Deployment")["spec"]["template"]["spec"]
    return spec


def container(name: str, of: str = "server") -> dict[str, Any]:
    (found,) = (one for one in pod_spec(name)["containers"] if one["name"] == of)
    assert isinstance(found, dict)
    return found


@needs_helm
@pytest.mark.parametrize("name", VALUES)
def test_helm_finds_no_fault(name: str) -> None:
    result = helm("lint", ".", "--strict", *(f"--values={file}" for file in VALUES[name]))
    assert result.returncode == 0, result.stdout


@needs_helm
@pytest.mark.parametrize("version", VERSIONS)
def test_resources_are_valid_for_kubernetes(version: str) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    seen = []
    for one in (one for name in VALUES for one in chart_resources(name)):
        if group(one) not in OWN and one not in seen:
            seen.append(one)
            assert kubernetes_validate.validate(one, version, strict=True) == version
    assert len(seen) > 10


@needs_helm
@needs_classes
@pytest.mark.parametrize("name", VALUES)
def test_resources_of_keda_and_prometheus_are_valid(name: str) -> None:
    found = [one for one in chart_resources(name) if group(one) in OWN]
    assert found or name == "default"
    assert [error for one in found for error in unknown_or_wrong(one)] == []


@needs_helm
@needs_classes
def test_wrong_resource_is_found() -> None:
    (one,) = (one for one in chart_resources("gpu") if one["kind"] == "ScaledObject")
    wrong = {**one, "spec": {**one["spec"], "minReplicas": 1}}
    assert unknown_or_wrong(wrong) == ["ScaledObject.spec.minReplicas"]


@needs_helm
@pytest.mark.parametrize("name", VALUES)
def test_pods_keep_to_the_restricted_profile(name: str) -> None:
    spec = pod_spec(name)
    assert violations(spec) == []
    for one in spec["containers"]:
        assert one["securityContext"]["readOnlyRootFilesystem"] is True
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False


@needs_helm
@pytest.mark.parametrize("name", VALUES)
def test_snapshot_shows_what_is_rendered(name: str) -> None:
    path = SNAPSHOTS / f"{name}.yaml"
    text = rendered(name, NO_RULES)
    if os.environ.get("UPDATE"):
        path.write_text(text)

    def ordered(text: str) -> list[Resource]:
        return sorted(resources(text), key=lambda one: (one["kind"], one["metadata"]["name"]))

    assert ordered(path.read_text()) == ordered(text), "UPDATE=1 writes it anew"


def network(values: dict[str, int]) -> model_config_pb2.ModelConfig:
    """A network as `make model` writes its configuration, for one of the values `networks`."""
    types = {1: "UINT8", 2: "FP16", 4: "FP32"}
    config = model_config_pb2.ModelConfig()
    text_format.Parse(
        f"""
        name: "yolov5" max_batch_size: {values["maxBatchSize"]}
        input {{
          name: "pixels" data_type: TYPE_{types[values["inputBytes"]]}
          dims: [ 3, {values["height"]}, {values["width"]} ]
        }}
        input {{ name: "nms" data_type: TYPE_FP32 dims: [ 5 ] }}
        output {{
          name: "output0" data_type: TYPE_{types[values["outputBytes"]]}
          dims: [ -1, {5 + values["classes"]} ]
        }}
        parameters {{
          key: "imgsz" value: {{ string_value: "{values["height"]} {values["width"]}" }}
        }}
        """,
        config,
    )
    return config


def needed(config: model_config_pb2.ModelConfig) -> int:
    """Bytes that the launcher wants to find free in /dev/shm."""
    low, high = 0, 1 << 40
    while low < high:
        middle = (low + high) // 2
        try:
            check_shared_memory(config, middle)
            high = middle
        except StartError:
            low = middle + 1
    return low


def shared_memory(text: str) -> int:
    """Size of /dev/shm in bytes."""
    spec = resource(resources(text), "Deployment")["spec"]["template"]["spec"]
    (volume,) = (one for one in spec["volumes"] if one["name"] == "shared-memory")
    assert volume["emptyDir"]["medium"] == "Memory"
    return int(str(volume["emptyDir"]["sizeLimit"]).removesuffix("Mi")) << 20


@needs_helm
@pytest.mark.parametrize(
    "values",
    [
        {"height": 640, "width": 640, "classes": 80, "inputBytes": 4, "outputBytes": 4},
        {"height": 1280, "width": 1280, "classes": 3, "inputBytes": 1, "outputBytes": 4},
        {"height": 384, "width": 672, "classes": 1203, "inputBytes": 2, "outputBytes": 2},
    ],
)
@pytest.mark.parametrize("batch", [0, 8, 32])
def test_shared_memory_is_twice_what_the_launcher_wants(values: dict[str, int], batch: int) -> None:
    values = {**values, "maxBatchSize": batch}
    text = rendered("default", *(f"networks[0].{key}={value}" for key, value in values.items()))
    wanted = -(-2 * needed(network(values)) // (1 << 20)) << 20
    assert shared_memory(text) == max(256 << 20, wanted)


@needs_helm
def test_shared_memory_holds_all_networks() -> None:
    values = yaml.safe_load((CHART / "values-bucket.yaml").read_text())["networks"]
    wanted = 2 * sum(needed(network(one)) for one in values)
    assert wanted <= shared_memory(rendered("bucket")) < wanted + (1 << 20)


@needs_helm
def test_shared_memory_suffices_for_the_bundled_network() -> None:
    config = model_config_pb2.ModelConfig()
    text_format.Parse((REPOSITORY / "yolov5" / "config.pbtxt").read_text(), config)
    assert shared_memory(rendered("default")) > needed(config)


@needs_helm
def test_size_of_shared_memory_can_be_set() -> None:
    assert "sizeLimit: 3Gi" in rendered("default", "sharedMemory.size=3Gi")


@needs_helm
@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("drainSeconds=-1", "at '/drainSeconds': minimum: got -1, want 0"),
        ("replica=3", "additional properties 'replica' not allowed"),
        ("autoscaling.kind=vpa", "must be one of 'none', 'hpa', 'keda'"),
        ("user=0", "at '/user': minimum: got 0, want 1"),
        ("model.source=ftp://a/b", "at '/model/source': 'ftp://a/b' does not match"),
        ("image.digest=sha256:1", "at '/image/digest': 'sha256:1' does not match"),
        ("resources.limits.memory=null", "missing property 'memory'"),
        ("autoscaling.minReplicas=20", "allowed: at most autoscaling.maxReplicas, 10."),
        ("strategy.maxSurge=0", "are both 0; allowed: one of them."),
        ("settings.http_port=9000", "the ports of the container are fixed: 8000 to 8003."),
        ("settings.drain_seconds=9", "settings.drain_seconds is set; use drainSeconds"),
        ("settings.Conf=1", "'Conf' does not match pattern"),
    ],
)
def test_wrong_values_are_refused_by_a_sentence(setting: str, sentence: str) -> None:
    result = helm("template", RELEASE, ".", f"--set={setting}")
    assert result.returncode != 0
    assert sentence in result.stderr


@needs_helm
@pytest.mark.parametrize("drain", [0, 5, 20, 120])
def test_server_may_drain_before_it_is_killed(drain: int) -> None:
    found = resources(rendered("default", f"drainSeconds={drain}", "rest.enabled=true"))
    spec = resource(found, "Deployment")["spec"]["template"]["spec"]
    server, rest = spec["containers"]
    assert {"name": "YOLOV5_DRAIN_SECONDS", "value": str(drain)} in server["env"]
    assert spec["terminationGracePeriodSeconds"] > drain + 10
    sleep = rest["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert sleep + 8 <= max(drain, 9)  # seconds that the REST service gives requests in progress


@needs_helm
def test_ports_are_those_of_the_launcher() -> None:
    ports = {
        one["name"].upper() + "_PORT": one["containerPort"] for one in container("cpu")["ports"]
    }
    assert ports == Settings().ports


@needs_helm
def test_settings_become_variables_as_they_were_written() -> None:
    found = resources(
        rendered(
            "default",
            "settings.max_image_pixels=64000000",
            "settings.conf_thres=0.4",
            "settings.multi_label=true",
        )
    )
    (server,) = resource(found, "Deployment")["spec"]["template"]["spec"]["containers"]
    variables = {one["name"]: one["value"] for one in server["env"]}
    assert variables["YOLOV5_MAX_IMAGE_PIXELS"] == "64000000"
    assert variables["YOLOV5_CONF_THRES"] == "0.4"
    assert variables["YOLOV5_MULTI_LABEL"] == "true"


@needs_helm
def test_launcher_knows_all_variables() -> None:
    known = launcher_variables()
    if "YOLOV5_HOST" not in known:
        pytest.skip("the launcher takes no settings from variables")
    used = {one["name"] for name in VALUES for one in container(name)["env"]}
    (theirs,) = resource(KSERVE, "ServingRuntime")["spec"]["containers"]
    assert (used | {one["name"] for one in theirs["env"]}) - known == set()


@needs_helm
def test_rest_service_is_given_flags_that_it_knows() -> None:
    rest = container("bucket", "rest")
    _, *command = rest["command"]
    options = _parser().parse_args([*command, *rest["args"]])
    ports = Settings().ports
    assert options.server == f"127.0.0.1:{ports['GRPC_PORT']}"
    assert options.health == f"http://127.0.0.1:{ports['HEALTH_PORT']}"
    assert [options.port] == [one["containerPort"] for one in rest["ports"]]
    (mount,) = (one for one in rest["volumeMounts"] if one["name"] == "api-keys")
    assert str(options.api_keys) == f"{mount['mountPath']}/api-keys"


@needs_helm
def test_gpu_is_asked_for_by_its_resource() -> None:
    assert container("gpu")["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert container("bucket")["resources"]["limits"]["nvidia.com/mig-1g.10gb"] == 1
    assert "nvidia.com/gpu" not in container("bucket")["resources"]["limits"]


@needs_helm
def test_replicas_are_left_to_the_autoscaler() -> None:
    assert resource(chart_resources("default"), "Deployment")["spec"]["replicas"] == 2
    for name in ("cpu", "gpu"):
        assert "replicas" not in resource(chart_resources(name), "Deployment")["spec"]


@needs_helm
def test_both_autoscalers_ask_for_the_same() -> None:
    hpa = resource(chart_resources("cpu"), "HorizontalPodAutoscaler")["spec"]
    keda = resource(chart_resources("gpu"), "ScaledObject")["spec"]
    assert hpa["behavior"] == keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    (metric,), (trigger,) = hpa["metrics"], keda["triggers"]
    assert metric["pods"]["target"] == {"type": "AverageValue", "averageValue": "700m"}
    assert (trigger["metricType"], trigger["metadata"]["threshold"]) == ("AverageValue", "0.7")
    adapter = yaml.safe_load((KUBERNETES / "prometheus-adapter.yaml").read_text())
    (rule,) = adapter["rules"]["custom"]
    assert rule["name"]["as"] == metric["pods"]["metric"]["name"]
    per_server = rule["metricsQuery"].replace("<<.GroupBy>>", "instance")
    per_server = per_server.replace("<<.Series>>", "yolov5_saturation")
    per_server = per_server.replace("<<.LabelMatchers>>", f'job="{NAMESPACE}/{RELEASE}"')
    assert trigger["metadata"]["query"] == f"sum({per_server})"


@needs_helm
def test_prometheus_gives_the_job_that_is_asked_for() -> None:
    monitor = resource(chart_resources("gpu"), "ServiceMonitor")["spec"]
    (job,) = {
        rule["replacement"]
        for endpoint in monitor["endpoints"]
        for rule in endpoint["relabelings"]
        if rule["targetLabel"] == "job"
    }
    query = resource(chart_resources("gpu"), "ScaledObject")["spec"]["triggers"][0]["metadata"]
    assert f'job="{job}"' in query["query"]
    pods = resource(chart_resources("gpu"), "Service", f"{RELEASE}-pods")
    assert monitor["selector"]["matchLabels"].items() <= pods["metadata"]["labels"].items()
    service = resource(chart_resources("gpu"), "Service")
    assert not monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()


@needs_helm
def test_selectors_find_the_pods() -> None:
    found = chart_resources("gpu")
    labels = resource(found, "Deployment")["spec"]["template"]["metadata"]["labels"]
    selectors = [
        resource(found, "Deployment")["spec"]["selector"]["matchLabels"],
        resource(found, "Service")["spec"]["selector"],
        resource(found, "Service", f"{RELEASE}-pods")["spec"]["selector"],
        resource(found, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        resource(found, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
    ]
    assert all(one.items() <= labels.items() for one in selectors)
    # A selector cannot be changed later, so that it must not hold a version.
    assert not any(key.endswith(("version", "chart")) for one in selectors for key in one)


@needs_helm
def test_each_peer_reaches_only_its_ports() -> None:
    setting = "networkPolicy.balancers[0].podSelector.matchLabels.app=envoy"
    found = resources(rendered("default", setting, "rest.enabled=true"))
    rules = resource(found, "NetworkPolicy")["spec"]["ingress"]
    assert [[one["port"] for one in rule["ports"]] for rule in rules] == [
        ["http", "grpc", "rest"],
        ["http", "grpc", "rest", "health"],
        ["metrics", "health", "rest"],
    ]
    assert all(rule["from"] for rule in rules)
    names = {
        port["name"]
        for one in resource(found, "Deployment")["spec"]["template"]["spec"]["containers"]
        for port in one["ports"]
    }
    assert {one["port"] for rule in rules for one in rule["ports"]} <= names


@needs_helm
def test_nobody_is_let_in_by_an_empty_list() -> None:
    found = resources(
        rendered("default", "networkPolicy.clients=null", "networkPolicy.monitoring=null")
    )
    policy = resource(found, "NetworkPolicy")["spec"]
    assert not policy["ingress"] and not policy["egress"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]


@needs_helm
@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_rules_are_those_of_the_monitoring_folder(name: str) -> None:
    rules = resource(chart_resources(name), "PrometheusRule")["spec"]
    assert rules == yaml.safe_load((ROOT / "deploy" / "monitoring" / "rules.yaml").read_text())


@needs_helm
def test_package_holds_the_rules_and_no_link(tmp_path: Path) -> None:
    result = helm("package", ".", f"--destination={tmp_path}")
    assert result.returncode == 0, result.stderr
    (path,) = tmp_path.iterdir()
    with tarfile.open(path) as archive:
        member = archive.extractfile(f"{RELEASE}/files/rules.yaml")
        assert member is not None
        assert member.read() == (ROOT / "deploy" / "monitoring" / "rules.yaml").read_bytes()


# Saturation of the servers, and how many Kubernetes then runs. The last server has two networks,
# which share one queue.
DEMANDS = [
    ([[0.1], [0.1, 0.1]], 1),
    ([[0.7], [0.7, 0.7]], 2),
    ([[1.4], [0.7, 0.7]], 3),
    ([[1.6], [1.6], [1.6, 1.5]], 7),
]


@needs_helm
@pytest.mark.parametrize(("demand", "wanted"), DEMANDS)
def test_query_asks_for_the_right_number_of_servers(
    demand: list[list[float]], wanted: int, tmp_path: Path
) -> None:
    spec = resource(chart_resources("gpu"), "ScaledObject")["spec"]
    metadata = spec["triggers"][0]["metadata"]
    job = f"{NAMESPACE}/{RELEASE}"
    series = {
        f'yolov5_saturation{{job="{job}",instance="{i}",model="{m}"}}': value
        for i, values in enumerate(demand)
        for m, value in enumerate(values)
    }
    recorded = f'yolov5:replicas_wanted{{job="{job}"}}'
    answers = {
        f"ceil(round(1000 * {metadata['query']}) / (1000 * {metadata['threshold']}))": "{}",
        recorded: recorded,
    }
    test = {
        "interval": "5s",
        "input_series": [
            {"series": name, "values": f"{value}x20"}
            for name, value in {**series, 'yolov5_saturation{job="other"}': 9}.items()
        ],
        "promql_expr_test": [
            {
                "expr": expr,
                "eval_time": "1m",
                "exp_samples": [{"labels": labels, "value": wanted}],
            }
            for expr, labels in answers.items()
        ],
    }
    assert evaluated(test, tmp_path) == 0


def evaluated(test: dict[str, Any], folder: Path) -> int:
    """Run a test of promtool on the rules of the project; the status of promtool."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    path = folder / "test.yaml"
    rules = str(ROOT / "deploy" / "monitoring" / "rules.yaml")
    path.write_text(
        yaml.safe_dump({"rule_files": [rules], "evaluation_interval": "5s", "tests": [test]})
    )
    return subprocess.run([promtool, "test", "rules", path], timeout=60, check=False).returncode


def test_chart_has_the_version_of_the_project() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == __version__


def test_every_value_has_a_place_in_the_schema() -> None:
    schema = yaml.safe_load((CHART / "values.schema.json").read_text())

    def missing(values: Any, schema: Any, path: str) -> list[str]:
        if not isinstance(values, dict) or "properties" not in schema:
            return []
        known = schema["properties"]
        return [f"{path}{key}" for key in values if key not in known] + [
            one
            for key, value in values.items()
            if key in known
            for one in missing(value, known[key], f"{path}{key}.")
        ]

    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert missing(values, schema, "") == []
    assert set(schema["properties"]) - set(values) == {"global"}


@needs_classes
def test_resources_of_kserve_are_valid() -> None:
    kinds = {one["kind"]: one for one in KSERVE}
    assert {"ServingRuntime", "InferenceService", "ScaledObject", "PodMonitor"} == set(kinds)
    for kind in ("ServingRuntime", "InferenceService"):
        assert kserve_errors(kinds[kind]) == []
    for kind in ("ScaledObject", "PodMonitor"):
        assert unknown_or_wrong(kinds[kind]) == []
    wrong = {**kinds["ServingRuntime"], "spec": {"containers": [], "supportedFormats": []}}
    assert kserve_errors(wrong) == ["ServingRuntime.spec.supportedFormats is unknown"]


@needs_classes
@pytest.mark.parametrize("version", VERSIONS)
def test_pod_of_kserve_is_valid_and_restricted(version: str) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    pod = kserve_pod(
        resource(KSERVE, "ServingRuntime"), resource(KSERVE, "InferenceService", "yolov5")
    )
    assert kubernetes_validate.validate(pod, version, strict=True) == version
    assert violations(pod["spec"]) == []
    assert pod["spec"]["enableServiceLinks"] is False


@needs_helm
def test_kserve_runs_the_server_as_the_chart_does() -> None:
    found = resources(rendered("default", "model.source=/mnt/models"))
    (ours,) = resource(found, "Deployment")["spec"]["template"]["spec"]["containers"]
    (theirs,) = resource(KSERVE, "ServingRuntime")["spec"]["containers"]
    same = ("ports", "resources", "securityContext", "volumeMounts")
    assert {key: theirs[key] for key in same} == {key: ours[key] for key in same}
    numbers = {one["name"]: one["containerPort"] for one in ours["ports"]}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        ask = ours[probe]["httpGet"]
        assert theirs[probe] == {**ours[probe], "httpGet": {**ask, "port": numbers[ask["port"]]}}
    assert {one["name"] for one in theirs["env"]} == {
        one["name"] for one in ours["env"] if not one["name"].endswith("_POLL")
    }
    (volume,) = (
        one
        for one in resource(KSERVE, "ServingRuntime")["spec"]["volumes"]
        if one["name"] == "shared-memory"
    )
    size = int(str(volume["emptyDir"]["sizeLimit"]).removesuffix("Mi")) << 20
    assert size == shared_memory(rendered("default"))
    scaled = resource(KSERVE, "ScaledObject", "yolov5-predictor")["spec"]
    advanced = resource(chart_resources("gpu"), "ScaledObject")["spec"]["advanced"]
    behavior = advanced["horizontalPodAutoscalerConfig"]["behavior"]
    assert scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == behavior


def test_images_have_the_version_of_the_project() -> None:
    files = [
        KUBERNETES / "kserve" / "serving-runtime.yaml",
        *sorted(CHART.glob("values*.yaml")),
        *sorted((ROOT / "deploy" / "compose").glob("*.yaml")),
    ]
    found = [tag for path in files for tag in images(path)]
    assert found and set(found) == {__version__}


def images(path: Path) -> list[str]:
    """Tags of this project's images in a file."""
    return re.findall(r"yolov5-triton(?:-gpu)?:([0-9.]+)", path.read_text())
