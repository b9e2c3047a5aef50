"""Requests over gRPC with Triton's own client: blocking, and for asyncio."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from . import _contract as names
from . import _wire
from ._connection import LARGEST_ANSWER, Call, Connection
from ._errors import InvalidRequestError, ServerError, TimedOutError
from ._status import ServerStatus

T = TypeVar("T")
_LARGEST_REQUEST = 2**31 - 1  # bytes
_NO_MESSAGE = "the answer is not a message of Triton."


def _channel(connection: Connection) -> dict[str, Any]:
    """Return the arguments for either of Triton's clients."""
    # https://github.com/grpc/grpc/blob/master/include/grpc/impl/channel_arg_names.h
    arguments: list[tuple[str, Any]] = [
        ("grpc.max_send_message_length", _LARGEST_REQUEST),
        ("grpc.max_receive_message_length", LARGEST_ANSWER),
        # Accept no compression: a small answer could unpack to far more than the limit.
        ("grpc.compression_enabled_algorithms_bitset", 1),
        # gRPC by itself would use a proxy for a loopback address, too.
        ("grpc.enable_http_proxy", int(connection.proxy is not None)),
        # Distribute requests over all addresses; the default uses only the first.
        ("grpc.lb_policy_name", "round_robin"),
        # Find a server that comes back within seconds; the default waits up to two minutes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1000),
        ("grpc.max_reconnect_backoff_ms", 250),
        # By default clients of one process with the same address share one connection.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if connection.keepalive is not None:
        arguments += [
            ("grpc.keepalive_time_ms", round(connection.keepalive * 1000)),
            ("grpc.keepalive_timeout_ms", round(connection.keepalive * 1000)),
            ("grpc.http2.ping_timeout_ms", round(connection.keepalive * 1000)),
            ("grpc.http2.max_pings_without_data", 0),
        ]
    options: dict[str, Any] = {"url": connection.address, "channel_args": arguments}
    if tls := connection.encryption:
        options |= {
            "ssl": True,
            "root_certificates": tls.ca,
            "certificate_chain": tls.certificate,
            "private_key": tls.key,
        }
    return options


def _request(connection: Connection, image: bytes, call: Call) -> dict[str, Any]:
    tensor = triton.InferInput(names.IMAGE, [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[image]], np.object_))
    return {
        "model_name": call.endpoint,
        "inputs": [tensor],
        "request_id": call.request_id,
        "parameters": _wire.parameters_for_grpc(call.parameters),
        "client_timeout": connection.timeout,
        "headers": {**_metadata(connection), **call.trace},
    }


def _metadata(connection: Connection) -> dict[str, str]:
    return {name.lower(): value for name, value in connection.headers.items()}


def _outputs(result: triton.InferResult) -> _wire.Outputs:
    answer = result.get_response()
    if answer is None:
        raise ServerError(_NO_MESSAGE)
    described, contents = answer.outputs, answer.raw_output_contents
    if len(described) != len(contents):
        raise ServerError(
            f"the answer does not follow the contract: it has {len(described)} outputs, and the"
            f" contents of {len(contents)}."
        )
    try:
        return _wire.tensors(
            (one.name, one.datatype, [*one.shape], data) for one, data in zip(described, contents)
        )
    except ValueError as error:
        raise ServerError(f"the answer does not follow the contract: {error}.") from error


def _error(error: InferenceServerException, connection: Connection) -> Exception:
    if error.status() is None:  # Triton's client itself refuses to send the request
        return InvalidRequestError(_wire.one_line(str(error.message())))
    return _wire.error_from_grpc(str(error.status()), str(error.message()), via=connection.via)


class _TimeBudget:
    """One timeout for several calls."""

    def __init__(self, connection: Connection, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds
        self._connection = connection

    def options(self) -> dict[str, Any]:
        """Return the arguments for the next call, with the time that is left.

        Raises:
            TimedOutError: no time is left.
        """
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimedOutError(f"no answer within the timeout{self._connection.via}.")
        return {"client_timeout": left, "headers": _metadata(self._connection)}


class GrpcTransport:
    """The blocking transport. Threads may share one."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._triton = triton.InferenceServerClient(**_channel(connection))

    def infer(self, image: bytes, call: Call) -> _wire.Outputs:
        return _outputs(self._call(self._triton.infer, **_request(self._connection, image, call)))

    def status(self, timeout: float) -> ServerStatus:
        budget = _TimeBudget(self._connection, timeout)
        ask, endpoint = self._triton, self._connection.endpoint
        metadata = self._call(ask.get_server_metadata, **budget.options())
        return ServerStatus(
            address=self._connection.address,
            version=_wire.one_line(metadata.version),
            ready=self._call(ask.is_server_ready, **budget.options()),
            models={endpoint: self._call(ask.is_model_ready, endpoint, **budget.options())},
        )

    def _call(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        try:
            return function(*arguments, **options)
        except InferenceServerException as error:
            raise _error(error, self._connection) from None

    def close(self) -> None:
        self._triton.close()


class AsyncGrpcTransport:
    """The transport for asyncio. It must be made inside the running event loop."""

    def __init__(self, connection: Connection) -> None:
        from tritonclient.grpc.aio import InferenceServerClient

        self._connection = connection
        self._triton = InferenceServerClient(**_channel(connection))

    async def infer(self, image: bytes, call: Call) -> _wire.Outputs:
        return _outputs(
            await self._call(self._triton.infer, **_request(self._connection, image, call))
        )

    async def status(self, timeout: float) -> ServerStatus:
        budget = _TimeBudget(self._connection, timeout)
        ask, endpoint = self._triton, self._connection.endpoint
        metadata = await self._call(ask.get_server_metadata, **budget.options())
        return ServerStatus(
            address=self._connection.address,
            version=_wire.one_line(metadata.version),
            ready=await self._call(ask.is_server_ready, **budget.options()),
            models={endpoint: await self._call(ask.is_model_ready, endpoint, **budget.options())},
        )

    async def _call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        try:
            answer = await function(*arguments, **options)
        except InferenceServerException as error:
            raise _error(error, self._connection) from None
        if answer is None:  # gRPC for asyncio returns None for bytes that are not a message
            raise ServerError(_NO_MESSAGE)
        return answer

    async def close(self) -> None:
        await self._triton.close()
