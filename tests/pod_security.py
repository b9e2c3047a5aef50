"""The restricted Pod Security Standard, as the Kubernetes documentation lists its controls.

The standard builds upon the baseline one. Each control has its name in the documentation, and a
test of a Pod's spec that yields the fields at fault. Windows is left out: its controls are other
ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

Spec: TypeAlias = Mapping[str, Any]
Control: TypeAlias = Callable[[Spec], Iterator[str]]

_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
_SELINUX_TYPES = {
    "",
    "container_t",
    "container_init_t",
    "container_kvm_t",
    "container_engine_t",
}
_SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
}
_BASELINE_CAPABILITIES = {
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
}
_PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
_HOOKS = ("postStart", "preStop")


def violations(spec: Spec) -> list[str]:
    """What of a Pod's spec the restricted standard forbids: `control: field`, in order."""
    return [f"{name}: {field}" for name, control in CONTROLS.items() for field in control(spec)]


def _containers(spec: Spec) -> Iterator[tuple[str, Spec]]:
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        for number, container in enumerate(spec.get(kind) or ()):
            yield f"spec.{kind}[{number}]", container


def _security(part: Spec) -> Spec:
    return part.get("securityContext") or {}


def _contexts(spec: Spec) -> Iterator[tuple[str, Spec]]:
    yield "spec.securityContext", _security(spec)
    for path, container in _containers(spec):
        yield f"{path}.securityContext", _security(container)


def _host_process(spec: Spec) -> Iterator[str]:
    for path, context in _contexts(spec):
        if (context.get("windowsOptions") or {}).get("hostProcess"):
            yield f"{path}.windowsOptions.hostProcess"


def _host_namespaces(spec: Spec) -> Iterator[str]:
    yield from (f"spec.{key}" for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key))


def _privileged(spec: Spec) -> Iterator[str]:
    for path, container in _containers(spec):
        if _security(container).get("privileged"):
            yield f"{path}.securityContext.privileged"


def _baseline_capabilities(spec: Spec) -> Iterator[str]:
    for path, container in _containers(spec):
        added = (_security(container).get("capabilities") or {}).get("add") or ()
        if set(added) - _BASELINE_CAPABILITIES:
            yield f"{path}.securityContext.capabilities.add"


def _host_path(spec: Spec) -> Iterator[str]:
    for number, volume in enumerate(spec.get("volumes") or ()):
        if "hostPath" in volume:
            yield f"spec.volumes[{number}].hostPath"


def _host_ports(spec: Spec) -> Iterator[str]:
    for path, container in _containers(spec):
        for number, port in enumerate(container.get("ports") or ()):
            if port.get("hostPort"):
                yield f"{path}.ports[{number}].hostPort"


def _host_probes(spec: Spec) -> Iterator[str]:
    for path, container in _containers(spec):
        handlers = {name: container.get(name) for name in _PROBES}
        lifecycle = container.get("lifecycle") or {}
        handlers |= {f"lifecycle.{name}": lifecycle.get(name) for name in _HOOKS}
        for name, handler in handlers.items():
            for action in ("httpGet", "tcpSocket"):
                if ((handler or {}).get(action) or {}).get("host"):
                    yield f"{path}.{name}.{action}.host"


def _app_armor(spec: Spec) -> Iterator[str]:
    for path, context in _contexts(spec):
        kind = (context.get("appArmorProfile") or {}).get("type")
        if kind not in (None, "RuntimeDefault", "Localhost"):
            yield f"{path}.appArmorProfile.type"


def _selinux(spec: Spec) -> Iterator[str]:
    for path, context in _contexts(spec):
        options = context.get("seLinuxOptions") or {}
        if options.get("type", "") not in _SELINUX_TYPES:
            yield f"{path}.seLinuxOptions.type"
        yield from (f"{path}.seLinuxOptions.{key}" for key in ("user", "role") if options.get(key))


def _proc_mount(spec: Spec) -> Iterator[str]:
    for path, container in _containers(spec):
        if _security(container).get("procMount") not in (None, "Default"):
            yield f"{path}.securityContext.procMount"


def _baseline_seccomp(spec: Spec) -> Iterator[str]:
    for path, context in _contexts(spec):
        if (context.get("seccompProfile") or {}).get("type") == "Unconfined":
            yield f"{path}.seccompProfile.type"


def _sysctls(spec: Spec) -> Iterator[str]:
    for number, sysctl in enumerate(_security(spec).get("sysctls") or ()):
        if sysctl["name"] not in _SYSCTLS:
            yield f"spec.securityContext.sysctls[{number}].name"


def _volume_types(spec: Spec) -> Iterator[str]:
    for number, volume in enumerate(spec.get("volumes") or ()):
        for kind in sorted(set(volume) - {"name"} - _VOLUMES):
            yield f"spec.volumes[{number}].{kind}"


def _privilege_escalation(spec: Spec) -> Iterator[str]:
    for path, container in _containers(spec):
        if _security(container).get("allowPrivilegeEscalation") is not False:
            yield f"{path}.securityContext.allowPrivilegeEscalation"


def _non_root(spec: Spec) -> Iterator[str]:
    of_pod = _security(spec).get("runAsNonRoot")
    for path, container in _containers(spec):
        if _security(container).get("runAsNonRoot", of_pod) is not True:
            yield f"{path}.securityContext.runAsNonRoot"


def _non_root_user(spec: Spec) -> Iterator[str]:
    yield from (f"{path}.runAsUser" for path, one in _contexts(spec) if one.get("runAsUser") == 0)


def _seccomp(spec: Spec) -> Iterator[str]:
    allowed = ("RuntimeDefault", "Localhost")
    of_pod = (_security(spec).get("seccompProfile") or {}).get("type")
    for path, container in _containers(spec):
        of_container = (_security(container).get("seccompProfile") or {}).get("type", of_pod)
        if of_container not in allowed:
            yield f"{path}.securityContext.seccompProfile.type"


def _capabilities(spec: Spec) -> Iterator[str]:
    for path, container in _containers(spec):
        capabilities = _security(container).get("capabilities") or {}
        if "ALL" not in (capabilities.get("drop") or ()):
            yield f"{path}.securityContext.capabilities.drop"
        if set(capabilities.get("add") or ()) - {"NET_BIND_SERVICE"}:
            yield f"{path}.securityContext.capabilities.add"


CONTROLS: dict[str, Control] = {
    "HostProcess": _host_process,
    "Host Namespaces": _host_namespaces,
    "Privileged Containers": _privileged,
    "Capabilities (baseline)": _baseline_capabilities,
    "HostPath Volumes": _host_path,
    "Host Ports": _host_ports,
    "Host Probes / Lifecycle Hooks": _host_probes,
    "AppArmor": _app_armor,
    "SELinux": _selinux,
    "/proc Mount Type": _proc_mount,
    "Seccomp (baseline)": _baseline_seccomp,
    "Sysctls": _sysctls,
    "Volume Types": _volume_types,
    "Privilege Escalation": _privilege_escalation,
    "Running as Non-root": _non_root,
    "Running as Non-root user": _non_root_user,
    "Seccomp": _seccomp,
    "Capabilities": _capabilities,
}
