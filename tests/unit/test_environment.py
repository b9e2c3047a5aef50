"""Settings from environment variables: those of the launcher and those of the REST service."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from hypothesis import given as generated
from hypothesis import strategies as st
from parameters import PARAMETER_NAMES
from settings import _OWN
from support import ROOT, wait_until

from yolov5_client._commands import UsageError
from yolov5_client._commands import _environment as client
from yolov5_client._commands import api as api_command
from yolov5_server import Settings, StartError
from yolov5_server import _environment as server
from yolov5_server._arguments import STEP_SETTINGS, make_parser, make_settings, read_arguments
from yolov5_server._checks import check_repository
from yolov5_server._errors import SettingError
from yolov5_server._repository import FIRST, read_config

PACKAGES = pytest.mark.parametrize(
    ("package", "failure"), [(server, StartError), (client, UsageError)], ids=["server", "client"]
)


def make_api_parser() -> tuple[argparse.ArgumentParser, list[client.Flag]]:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()
    api_command.add_parser(commands, argparse.ArgumentParser(add_help=False))
    flags: list[client.Flag] = parser.parse_args(["api"]).flags
    return commands.choices["api"], flags


def read(
    package: ModuleType, environment: Mapping[str, str], arguments: Sequence[str] = ()
) -> dict[str, Any]:
    """The values and origins that a small parser of this package finds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--name", default="yolov5", help="50%% (%(default)s)")
    parser.add_argument("--loud", action=argparse.BooleanOptionalAction, default=False)
    flags = package.add_variables(parser)
    found = package.read_given(flags, parser.parse_args(arguments), environment)
    return {name: (one.value, one.origin) for name, one in found.items()}


def named(package: ModuleType, environment: Mapping[str, str]) -> dict[str, str]:
    return {f"{package.PREFIX}{name}": text for name, text in environment.items()}


@PACKAGES
def test_command_line_wins_over_the_environment(package: ModuleType, failure: type) -> None:
    given = named(package, {"PORT": "9000", "NAME": "plates", "FOLDER": "/models", "LOUD": "True"})
    assert read(package, given, ["--port=7", "--no-loud"]) == {
        "port": (7, "--port"),
        "loud": (False, "--loud"),
        "name": ("plates", f"{package.PREFIX}NAME"),
        "folder": (Path("/models"), f"{package.PREFIX}FOLDER"),
    }
    assert read(package, {}) == {}


@PACKAGES
def test_flag_with_the_value_of_the_default_wins_as_well(
    package: ModuleType, failure: type
) -> None:
    found = read(package, named(package, {"PORT": "9000"}), ["--port=8000"])
    assert found == {"port": (8000, "--port")}


@PACKAGES
@pytest.mark.parametrize(
    ("name", "text", "allowed"),
    [
        ("PORT", "http", "a whole number"),
        ("PORT", "8000.0", "a whole number"),
        ("LOUD", "yes", "true or false"),
        ("LOUD", "2", "true or false"),
    ],
)
def test_wrong_kind_is_refused_by_name(
    package: ModuleType, failure: type[Exception], name: str, text: str, allowed: str
) -> None:
    with pytest.raises(failure) as caught:
        read(package, named(package, {name: text}))
    assert str(caught.value) == f"{package.PREFIX}{name} is {text!r}; allowed: {allowed}."


@PACKAGES
def test_unknown_variable_is_refused_with_the_nearest_name(
    package: ModuleType, failure: type[Exception]
) -> None:
    with pytest.raises(failure) as caught:
        read(package, named(package, {"PROT": "9000"}))
    prefix = package.PREFIX
    assert str(caught.value) == f"{prefix}PROT is no setting; did you mean {prefix}PORT?"
    with pytest.raises(failure, match="--help` lists those that there are"):
        read(package, named(package, {"ZZZZZZZZZZZZZZZZZZ": ""}))


@PACKAGES
def test_empty_variable_counts_as_not_set(package: ModuleType, failure: type) -> None:
    assert read(package, named(package, {"PORT": "", "LOUD": "", "NAME": ""})) == {}


@PACKAGES
@pytest.mark.parametrize(
    "service",
    [
        {"YOLOV5_SERVICE_HOST": "10.0.0.1", "YOLOV5_SERVICE_PORT": "8000"},
        {"YOLOV5_SERVICE_PORT_HTTP": "8000", "YOLOV5_PORT": "tcp://10.0.0.1:8000"},
        {"YOLOV5_PORT_8000_TCP": "tcp://10.0.0.1:8000", "YOLOV5_PORT_8000_TCP_ADDR": "10.0.0.1"},
        {"YOLOV5_API_PORT": "tcp://10.0.0.1:8080", "YOLOV5_API_SERVICE_HOST": "10.0.0.1"},
        {"YOLOV5_API_PORT_8080_TCP_PROTO": "tcp", "YOLOV5_API_PORT_8080_TCP_PORT": "8080"},
        {"YOLOV5_HTTP_PORT": "tcp://10.0.0.1:8000", "YOLOV5_HTTP_SERVICE_HOST": "10.0.0.1"},
    ],
)
def test_what_kubernetes_says_of_a_service_is_no_setting(
    package: ModuleType, failure: type, service: dict[str, str]
) -> None:
    assert read(package, service) == {}


@PACKAGES
@generated(st.dictionaries(st.text(st.characters(codec="ascii"), max_size=8), st.text(max_size=8)))
def test_any_environment_gives_settings_or_one_sentence(
    package: ModuleType, failure: type[Exception], environment: dict[str, str]
) -> None:
    try:
        read(package, {**environment, **named(package, environment)})
    except failure as error:
        assert "\n" not in str(error).strip() or any("\n" in name for name in environment)


@PACKAGES
def test_help_names_the_variable_and_the_default(package: ModuleType, failure: type) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", default="yolov5", help="50%% (%(default)s)")
    package.add_variables(parser)
    assert f"50% (yolov5) [{package.PREFIX}NAME]" in parser.format_help()


@PACKAGES
def test_summary_names_what_differs_and_where_it_came_from(
    package: ModuleType, failure: type
) -> None:
    flags = [
        package.Flag(
            setting=name,
            option=f"--{name}",
            variable=f"{package.PREFIX}{name.upper()}",
            default=default,
            read=str,
            allowed="text",
        )
        for name, default in (("port", 8000), ("loud", False), ("source", None), ("rest", 1))
    ]
    given = {
        "source": package.Given("https://me:secret@host/a?token=secret", "--source"),
        "loud": package.Given(True, f"{package.PREFIX}LOUD"),
        "port": package.Given(8000, "--port"),
    }
    assert package.summary(flags, given) == (
        f"Settings: loud=true ({package.PREFIX}LOUD), source=https://...@host/a?... (--source);"
        " everything else is the default."
    )
    assert package.summary(flags, {"port": given["port"]}) == ""


def test_every_setting_of_the_launcher_is_a_flag_and_a_variable() -> None:
    parser, flags = make_parser()
    fields = {name for name in Settings.__dataclass_fields__ if name != "steps"}
    assert {flag.setting for flag in flags} == fields | {*STEP_SETTINGS}
    shown = parser.format_help()
    for flag in flags:
        assert flag.variable == f"YOLOV5_{flag.setting.upper()}"
        assert flag.option in shown and f"[{flag.variable}]" in shown


def test_every_setting_of_the_steps_is_one_of_the_launcher() -> None:
    assert {*STEP_SETTINGS} == {*PARAMETER_NAMES, *_OWN}


def test_defaults_of_the_flags_are_those_of_the_settings() -> None:
    _, given = read_arguments([], {})
    assert make_settings(given) == Settings()
    _, flags = make_parser()
    for flag in flags:
        if flag.setting not in (*STEP_SETTINGS, "health_port"):
            assert flag.default == getattr(Settings(), flag.setting), flag


def test_settings_of_the_steps_are_kept_as_text() -> None:
    _, given = read_arguments(["--max-det=9"], {"YOLOV5_MAX_DET": "8", "YOLOV5_THREADS": "2"})
    assert make_settings(given).steps == {"max_det": "9", "threads": "2"}


def test_launcher_leaves_the_variables_of_the_rest_service_alone() -> None:
    _, given = read_arguments([], {"YOLOV5_API_PORT": "9", "YOLOV5_API_KEYS_FILE": "/run/keys"})
    assert given == {}


def test_rest_service_leaves_the_variables_of_the_launcher_alone() -> None:
    _, flags = make_parser()
    _, own = make_api_parser()
    environment = {flag.variable: "1" for flag in flags}
    assert client.read_given(own, argparse.Namespace(), environment) == {}


def test_rest_service_finds_a_typing_error_in_its_prefix() -> None:
    _, flags = make_api_parser()
    with pytest.raises(UsageError, match="YOLOV5_AIP_PORT is no setting; did you mean YOLOV5_API_"):
        client.read_given(flags, argparse.Namespace(), {"YOLOV5_AIP_PORT": "1"})


def test_every_flag_of_the_rest_service_is_a_variable_and_secrets_are_files() -> None:
    parser, flags = make_api_parser()
    shown = " ".join(parser.format_help().split())
    for flag in flags:
        assert f"[{flag.variable}]" in shown, flag
    by_flag = {flag.option: flag.variable for flag in flags}
    assert by_flag["--api-keys"] == "YOLOV5_API_KEYS_FILE"
    assert by_flag["--key"] == "YOLOV5_API_KEY_FILE"
    assert by_flag["--header"] == "YOLOV5_API_HEADERS_FILE"
    assert "--open" not in by_flag


def test_lists_headers_and_numbers_of_the_rest_service_are_read() -> None:
    _, flags = make_api_parser()
    environment = {
        "YOLOV5_API_ALLOW_ORIGIN": "https://a.example, https://b.example",
        "YOLOV5_API_HEADERS_FILE": "/run/headers",
        "YOLOV5_API_DRAIN": "2.5",
        "YOLOV5_API_GATEWAY": "1",
    }
    found = client.read_given(flags, argparse.Namespace(), environment)
    assert {name: one.value for name, one in found.items()} == {
        "allow_origin": ["https://a.example", "https://b.example"],
        "header": ["@/run/headers"],
        "drain": 2.5,
        "gateway": True,
    }
    line = client.summary(flags, {**found, "header": client.Given(["X-Key: abc"], "--header")})
    assert "header (--header)" in line and "abc" not in line


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"PORT": "70000"}, "YOLOV5_API_PORT: --port is 70000; allowed: 0 to 65535."),
        ({"DRAIN": "x"}, "YOLOV5_API_DRAIN is 'x'; allowed: a number."),
        ({"TIMEOUT": "0"}, "YOLOV5_API_TIMEOUT: timeout is 0.0; allowed: "),
        ({"KEYS_FILE": "/none"}, "YOLOV5_API_KEYS_FILE: --api-keys cannot read /none: "),
        ({"SERVER": "http://x:0", "DRAIN": "2"}, "YOLOV5_API_SERVER: 'http://x:0' is no address"),
        ({"CERT_FILE": "/none", "KEY_FILE": "/none"}, "YOLOV5_API_CERT_FILE: "),
    ],
)
def test_wrong_variable_ends_the_rest_service_by_name(
    environment: dict[str, str], sentence: str
) -> None:
    command = [sys.executable, "-m", "yolov5_client._cli", "api"]
    variables = {**os.environ, **named(client, environment)}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {sentence}") and done.stderr.count("\n") == 1


def is_live(path: Path) -> bool:
    """Whether the REST service answers on this socket."""
    transport = httpx.HTTPTransport(uds=str(path))
    with suppress(httpx.TransportError), httpx.Client(transport=transport) as http:
        return http.get("http://localhost/live").status_code == 200
    return False


def test_rest_service_listens_where_its_variables_say_and_shows_no_secret(tmp_path: Path) -> None:
    key, headers = "k" * 16, "X-Api-Key: a-secret-of-the-server"
    (tmp_path / "keys").write_text(f"{key} camera\n")
    (tmp_path / "headers").write_text(headers)
    path = tmp_path / "rest.socket"
    variables = {
        "SOCKET": str(path),
        "SERVER": "127.0.0.1:1",
        "KEYS_FILE": str(tmp_path / "keys"),
        "HEADERS_FILE": str(tmp_path / "headers"),
    }
    command = [sys.executable, "-m", "yolov5_client._cli", "api", "--drain=3"]
    process = subprocess.Popen(
        command,
        env={**os.environ, **named(client, variables)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: is_live(path), 60)
        process.terminate()
        output, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert output == f"Serving unix:{path} (server 127.0.0.1:1)\n"
    assert errors == (
        "Settings: server=127.0.0.1:1 (YOLOV5_API_SERVER), header (YOLOV5_API_HEADERS_FILE),"
        f" socket={path} (YOLOV5_API_SOCKET), api_keys={tmp_path}/keys (YOLOV5_API_KEYS_FILE),"
        " drain=3.0 (--drain); everything else is the default.\n"
    )


@pytest.mark.parametrize(
    ("steps", "sentence"),
    [
        ({"max_det": "0"}, "--max-det: max_det is '0'; allowed: a whole number from 1 to 1000."),
        ({"threads": "x"}, "--threads: setting 'threads' is 'x'; allowed: a whole number"),
        ({"classes": "tram"}, "--classes: classes names 'tram'; allowed: indices from 0 to 2"),
        ({"conf_thres": "0.5", "iou_thres": "2"}, "--iou-thres: iou_thres is '2'; allowed: "),
    ],
)
def test_wrong_setting_of_a_step_is_refused_by_the_steps_own_check(
    steps: dict[str, str], sentence: str
) -> None:
    with pytest.raises(SettingError) as caught:
        check_repository(Settings(steps=steps))
    assert str(caught.value).startswith(sentence)


def test_good_settings_of_the_steps_are_accepted() -> None:
    check_repository(Settings(steps={"max_det": "9", "classes": "RBC", "threads": "0"}))


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"HTTP_PORT": "0"}, "YOLOV5_HTTP_PORT is 0; allowed: 1 to 65535."),
        ({"HTTP_PORT": "8001"}, "YOLOV5_HTTP_PORT and GRPC_PORT are both 8001; they must be"),
        ({"HOST": "nowhere"}, "YOLOV5_HOST is 'nowhere'; allowed: a numeric address"),
        ({"GPU": "2"}, "YOLOV5_GPU is '2'; allowed: auto, 1, 0."),
        ({"HTP_PORT": "1"}, "YOLOV5_HTP_PORT is no setting; did you mean YOLOV5_HTTP_PORT?"),
    ],
)
def test_wrong_variable_ends_the_launcher_by_name(
    environment: dict[str, str], sentence: str
) -> None:
    variables = {**os.environ, **named(server, environment)}
    command = [sys.executable, "-m", "yolov5_server"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {sentence}") and done.stderr.count("\n") == 1


def make(target: str, *arguments: str, **environment: str) -> str:
    """The program that make would start."""
    command = ["make", "-n", "--old-file=.venv/.installed", target, *arguments]
    # Without what `make test` tells the makes that it starts.
    variables = {
        key: os.environ[key] for key in os.environ if key not in ("MAKEFLAGS", "MAKELEVEL")
    }
    variables |= environment
    done = subprocess.run(
        command, cwd=ROOT, env=variables, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()[-1]


def test_make_passes_only_what_its_command_line_sets() -> None:
    by_conda = make("serve", HOST="x86_64-conda-linux-gnu", HTTP_PORT="1")
    assert by_conda.split("-m yolov5_server")[1].strip() == ""
    assert "--http-port='9000'" in make("serve", "HTTP_PORT=9000", HTTP_PORT="1")
    assert make("serve", "GPU=0").rstrip().endswith("--gpu='0'")


def test_make_lets_the_variables_of_the_rest_service_count() -> None:
    usual = make("api", HOST="conda")
    assert "--host" not in usual and "--port" not in usual
    assert "--server=127.0.0.1:'8001'" in usual and "--health=http://127.0.0.1:" in usual
    named = {"YOLOV5_API_SERVER": "yolo:8001", "YOLOV5_API_HEALTH": "http://yolo:8003"}
    assert make("api", **named).split("yolov5-client api")[1].strip() == ""
    assert "--server=127.0.0.1:'9001'" in make("api", "GRPC_PORT=9001", **named)


def documented(flag: server.Flag | client.Flag, steps: Mapping[str, str]) -> str:
    """The flag's default as the tables of docs/operations.md write it."""
    default = steps.get(flag.setting, flag.default)
    others = {"health_port": "8003", "repository": "`model_repository`", "classes": "all"}
    if flag.setting in others:
        return others[flag.setting]
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, float):
        return f"{default:g}"
    return str(default) if default else "none"


def test_tables_of_the_documentation_are_those_of_the_programs() -> None:
    config = read_config(Settings().repository, FIRST)
    steps = {name: value.string_value for name, value in config.parameters.items()}
    _, launcher = make_parser()
    _, rest = make_api_parser()
    text = (ROOT / "docs" / "operations.md").read_text()
    section = text.split("\n## Settings\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(--[\w-]+)` \| `(\w+)` \| ([^|]+) \|", section, re.MULTILINE)
    assert rows == [
        *((flag.option, flag.variable, documented(flag, steps)) for flag in launcher),
        *((flag.option, flag.variable, documented(flag, {})) for flag in rest),
    ]
