"""Triton's model control, restricted to this launcher by a secret key."""

from __future__ import annotations

import json
import re
import secrets
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from tritonclient.grpc import model_config_pb2

from ._http import open_directly

APIS = "model-repository,shared-memory,trace,logging"
_HEADER = "x-yolov5-launcher"
# Loading a model by its name also loads its double, which may fail to load: see _reload.py.
_DOUBLE_FAILED = re.compile(r"load failed for model 'closed::[^\n]*\n?")
# Where in its code a Python model failed.
_PLACES = re.compile(r"\s*At:\n(?:[ \t]+[^\n]*\n?)*;?")
_NO_REASON = "Triton could not load it; its own messages in the log say why."
_LOAD_SECONDS = 120  # for loading a model: torch may come from a cold, slow disk
_ANSWER_SECONDS = 5  # for everything else


class ControlError(Exception):
    """Triton refused or failed; the message is its own."""


class ModelControl:
    """Loads and unloads models.

    Args:
        address: `host:port` of Triton's HTTP.
    """

    def __init__(self, address: str) -> None:
        self._address = f"http://{address}/v2"
        self._base = f"{self._address}/repository/models"
        self._key = secrets.token_hex(32)

    @property
    def restriction(self) -> str:
        """Value of Triton's options for restricted APIs: their names, and the header they need."""
        return f"{APIS}:{_HEADER}={self._key}"

    def load(self, model: str, config: model_config_pb2.ModelConfig | None = None) -> None:
        """Load or reload a model; an ensemble is loaded together with its steps.

        Args:
            config: replaces the configuration in the repository.

        Raises:
            ControlError: it could not be loaded. The models of before are still served.
        """
        body: dict[str, Any] = {}
        if config is not None:
            text = json_format.MessageToJson(config, preserving_proto_field_name=True, indent=None)
            body = {"parameters": {"config": text}}
        self._post(f"{model}/load", body)

    def unload(self, model: str) -> None:
        """Unload a model, once the requests that it has are answered."""
        self._post(f"{model}/unload", {})

    def steps(self, ensemble: str) -> list[str]:
        """Names of the models that this ensemble is made of now.

        Raises:
            ControlError: Triton does not tell.
        """
        config = self._request(f"{self._address}/models/{ensemble}/config", None, _ANSWER_SECONDS)
        try:
            return [step["model_name"] for step in config["ensemble_scheduling"]["step"]]
        except (KeyError, TypeError):
            raise ControlError(f"{ensemble} is not served") from None

    def is_served(self, model: str) -> bool:
        """Whether any version of this model is ready.

        Raises:
            ControlError: Triton does not tell.
        """
        return any(one["name"] == model for one in self._index({"ready": True}))

    def failures(self) -> dict[str, str]:
        """Why models could not be loaded, by their names.

        Raises:
            ControlError: Triton does not tell.
        """
        found = [one for one in self._index({}) if one.get("state") != "READY"]
        return {one["name"]: _without_places(one.get("reason")) or _NO_REASON for one in found}

    def version(self, model: str) -> int:
        """The served version of this model.

        Raises:
            ControlError: none is served, or Triton does not tell.
        """
        index = self._index({"ready": True})
        versions = [int(one.get("version", 0)) for one in index if one["name"] == model]
        if not versions:
            raise ControlError(f"{model} is not served")
        return max(versions)

    def _index(self, wanted: dict[str, Any]) -> list[dict[str, Any]]:
        index = self._request(f"{self._address}/repository/index", wanted, _ANSWER_SECONDS)
        if not isinstance(index, list):
            raise ControlError("Triton does not list its models")
        return index

    def _post(self, path: str, body: dict[str, Any]) -> None:
        self._request(f"{self._base}/{path}", body, _LOAD_SECONDS)

    def _request(self, url: str, body: dict[str, Any] | None, seconds: float) -> Any:
        request = urllib.request.Request(
            url,
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json", _HEADER: self._key},
        )
        try:
            with open_directly(request, timeout=seconds) as answer:
                return json.loads(answer.read() or "null")
        except urllib.error.HTTPError as error:
            try:
                message = _DOUBLE_FAILED.sub("", json.load(error)["error"])
            except (ValueError, KeyError, TypeError):
                message = str(error)
            if not message.strip():
                return None
            raise ControlError(_without_places(message)) from None
        except (OSError, HTTPException, ValueError) as error:
            raise ControlError(str(error)) from None

    def hide_key(self, pid: int) -> bool:
        """Overwrite the key in Triton's command line, which every user of this machine can read.

        Triton accepts the key only on its command line, and copies it before it loads a model.

        Args:
            pid: Triton's process number.

        Returns:
            Whether the key is gone.
        """
        try:
            # Fields 48 and 49: where the arguments start and end. Field 2 may contain spaces.
            fields = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
            start, end = int(fields[45]), int(fields[46])
            with Path("/proc", str(pid), "mem").open("r+b", buffering=0) as memory:
                memory.seek(start)
                arguments = memory.read(end - start)
                memory.seek(start)
                memory.write(arguments.replace(self._key.encode(), b"x" * len(self._key)))
            return self._key.encode() not in Path("/proc", str(pid), "cmdline").read_bytes()
        except (OSError, ValueError, IndexError):
            return False


def _without_places(message: object) -> str:
    """Triton's message without the lines of code that it names; they are in its own log."""
    return _PLACES.sub("", str(message or "")).strip()
