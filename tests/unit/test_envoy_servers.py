from __future__ import annotations

import json
from pathlib import Path

import pytest
from servers import Server, main, make_endpoints, parse_servers

LIST = """
# two of three
stable  10.0.0.1                    # the ports of the launcher
stable  10.0.0.2  9000 9001 9003  drain
canary  fd00::3
"""


def test_list_is_read() -> None:
    first, second, third = parse_servers(LIST)
    assert first == Server(
        group="stable", address="10.0.0.1", http_port=8000, grpc_port=8001, health_port=8003
    )
    assert (second.http_port, second.grpc_port, second.health_port) == (9000, 9001, 9003)
    assert second.draining
    assert (third.group, third.address) == ("canary", "fd00::3")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("stabel 10.0.0.1", "line 1: the group is 'stabel'; allowed: stable, canary."),
        ("\nstable", "line 2: 'stable' is not a server; allowed: GROUP ADDRESS"),
        ("stable 10.0.0.1 8000", "line 1: 'stable 10.0.0.1 8000' is not a server; allowed: GROUP"),
        ("stable host", "line 1: 'host' is not an address; allowed: a numeric one."),
        ("stable 10.0.0.1 1 2 65536", "line 1: the port is '65536'; allowed: 1 to 65535."),
        ("stable 10.0.0.1\ncanary 10.0.0.1", "10.0.0.1 port 8000 is in the list twice."),
        ("canary 10.0.0.1", "the list has no server of the group 'stable'; allowed: one or more."),
        ("drain", "line 1: the group is 'drain'; allowed: stable, canary."),
    ],
)
def test_wrong_list_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence.replace('[', '.')}"):
        parse_servers(text)


def test_servers_are_probed_on_their_health_port() -> None:
    resource = make_endpoints(parse_servers(LIST), "stable", "grpc")["resources"][0]
    assert resource["cluster_name"] == "stable-grpc"
    first, second = resource["endpoints"][0]["lb_endpoints"]
    assert first["endpoint"]["address"]["socket_address"] == {
        "address": "10.0.0.1",
        "port_value": 8001,
    }
    assert first["endpoint"]["health_check_config"] == {"port_value": 8003}
    assert (first["health_status"], second["health_status"]) == ("UNKNOWN", "DRAINING")


def test_files_are_written_for_each_group_and_protocol(tmp_path: Path) -> None:
    (tmp_path / "servers.txt").write_text(LIST)
    assert main([str(tmp_path / "servers.txt"), str(tmp_path)]) == 0
    files = {path.name: json.loads(path.read_text()) for path in tmp_path.glob("endpoints/*")}
    assert sorted(files) == [
        f"{group}-{protocol}.json"
        for group in ("canary", "stable")
        for protocol in ("grpc", "http")
    ]


def test_wrong_list_leaves_the_files_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "servers.txt").write_text("stable nowhere")
    assert main([str(tmp_path / "servers.txt"), str(tmp_path)]) == 1
    assert "line 1: 'nowhere' is not an address" in capsys.readouterr().err
    assert not (tmp_path / "endpoints").exists()
    assert main([str(tmp_path / "missing.txt"), str(tmp_path)]) == 1
    assert capsys.readouterr().err.endswith("(No such file or directory).\n")
