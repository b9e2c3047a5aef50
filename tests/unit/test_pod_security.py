"""Each control of the restricted Pod Security Standard finds what it is about."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from pod_security import CONTROLS, violations

GOOD: dict[str, Any] = {
    "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
    "containers": [
        {
            "name": "one",
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            },
        }
    ],
    "volumes": [{"name": "tmp", "emptyDir": {}}],
}

BAD: dict[str, dict[str, Any]] = {
    "HostProcess": {"securityContext.windowsOptions": {"hostProcess": True}},
    "Host Namespaces": {"hostIPC": True},
    "Privileged Containers": {"containers.0.securityContext.privileged": True},
    "Capabilities (baseline)": {"containers.0.securityContext.capabilities.add": ["SYS_ADMIN"]},
    "HostPath Volumes": {"volumes.0.hostPath": {"path": "/"}},
    "Host Ports": {"containers.0.ports": [{"containerPort": 80, "hostPort": 80}]},
    "Host Probes / Lifecycle Hooks": {
        "containers.0.livenessProbe": {"httpGet": {"host": "10.0.0.1", "port": 80}}
    },
    "AppArmor": {"securityContext.appArmorProfile": {"type": "Unconfined"}},
    "SELinux": {"securityContext.seLinuxOptions": {"type": "spc_t"}},
    "/proc Mount Type": {"containers.0.securityContext.procMount": "Unmasked"},
    "Seccomp (baseline)": {"containers.0.securityContext.seccompProfile": {"type": "Unconfined"}},
    "Sysctls": {"securityContext.sysctls": [{"name": "kernel.msgmax", "value": "1"}]},
    "Volume Types": {"volumes.0.nfs": {"server": "a", "path": "/"}},
    "Privilege Escalation": {"containers.0.securityContext.allowPrivilegeEscalation": None},
    "Running as Non-root": {"securityContext.runAsNonRoot": False},
    "Running as Non-root user": {"securityContext.runAsUser": 0},
    "Seccomp": {"securityContext.seccompProfile": None},
    "Capabilities": {"containers.0.securityContext.capabilities.add": ["CHOWN"]},
}


def changed(spec: Any, path: str, value: object) -> Any:
    """A copy of the spec with one field set; `path` has the keys, with dots between them."""
    spec = copy.deepcopy(spec)
    part = spec
    *keys, last = path.split(".")
    for key in keys:
        part = part[int(key)] if isinstance(part, list) else part[key]
    part[last] = value
    return spec


def test_spec_that_keeps_to_the_standard_has_no_violation() -> None:
    assert violations(GOOD) == []


@pytest.mark.parametrize("name", CONTROLS)
def test_each_control_finds_its_violation(name: str) -> None:
    ((path, value),) = BAD[name].items()
    found = violations(changed(GOOD, path, value))
    assert any(one.startswith(f"{name}: spec.") for one in found), found


def test_spec_without_any_security_context_is_refused() -> None:
    found = {one.split(":")[0] for one in violations({"containers": [{"name": "one"}]})}
    assert found == {"Privilege Escalation", "Running as Non-root", "Seccomp", "Capabilities"}
