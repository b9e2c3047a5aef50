"""Triton glue of `postprocess`: unpack requests, call the modules beside this one, pack answers."""

import traceback
from itertools import groupby
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import numpy as np
import torch
import triton_python_backend_utils as pb_utils
from batch_thresholds import BatchThresholds
from completion import CompletionSender
from endpoint_registry import EndpointError, EndpointRegistry
from network_spec import NetworkSpec
from nms import InputError, check_lowest, detect
from numpy.typing import NDArray
from pack import encode_labels, pack_detections
from placement import SIZE
from postprocess_metrics import Metrics, ModelMetrics
from thresholds import CONF_THRES, ThresholdsError
from tracing import open_tracer

FEW_ROWS = 1000  # of an image, which take a moment


class TritonPythonModel:
    def initialize(self, args):
        torch.set_num_threads(1)  # leave the cores to the network
        # Triton may see a GPU whose driver is too old for torch.
        on_gpu = args["model_instance_kind"] == "GPU" and torch.cuda.is_available()
        self.metrics = Metrics(pb_utils)
        self.completions = CompletionSender()
        self.tracer = open_tracer(args["model_name"], pb_utils.Logger.log_error)
        self.served = EndpointRegistry(
            Path(args["model_repository"]).parent, self.serve, pb_utils.Logger.log_error
        )
        network = self.served.find(0).network
        self.metrics.start()
        self.warm_up(network, "cpu")
        if on_gpu:
            self.warm_up(network, f"cuda:{args['model_instance_device_id']}")

    def serve(self, endpoint):
        """Prepare for the rows of an endpoint's network."""
        names = endpoint.network.class_names
        metrics = self.metrics.for_model(endpoint.name, names)
        return Served(endpoint.network, encode_labels(names), metrics)

    def warm_up(self, network, device):
        """Detect two overlapping boxes of class 0: the first call of each operation is slow."""
        rows = torch.zeros((1, 2, network.columns), device=device)
        # Box, and objectness and score of class 0; with a reduced head box, score, and its index.
        rows[..., : 5 if network.best_class_only else 6] = 1.0
        for images in (1, 2):
            for multi_label in (0,) if network.best_class_only else (0, 1):
                asked = BatchThresholds.from_arrays(
                    np.array([[0.5, 0.5, 1, 0, multi_label]] * images, np.float32),
                    np.full((images, len(network.class_names)), 0.5, np.float32),
                    np.array([[1, 1, 0, 0, 2, 2]] * images, np.float32),
                    device,
                )
                detect([rows] * images, asked, **network.head)

    def execute(self, requests):
        calls = [*map(Call, requests)]
        for call in calls:
            call.trace = self.tracer.trace_of(call.request)
            self.completions.send(call.admission)
        few = max(FEW_ROWS, min(call.rows for call in calls))
        slow = sorted((call for call in calls if call.rows > few), key=lambda call: call.rows)
        if not slow:
            return self.respond(calls)
        # A low conf_thres admits thousands of candidates: other callers do not wait for these.
        for together in ([call for call in calls if call.rows <= few], *([call] for call in slow)):
            for call, response in zip(together, self.respond(together)):
                call.send(response)
        return None

    def respond(self, calls):
        """The responses to these calls, those for the same network in one pass."""
        responses = {}
        for _, together in groupby(sorted(calls, key=Call.key), key=Call.key):
            responses |= self.respond_together([*together])
        return [responses[call] for call in calls]

    def respond_together(self, calls):
        try:
            return dict(zip(calls, self.answer(calls)))
        except Exception as error:
            if len(calls) == 1:
                return {calls[0]: error_response(error)}
            # One of them is at fault: by themselves the others succeed.
            return {call: self.respond_together([call])[call] for call in calls}

    def answer(self, calls):
        network, labels, metrics = self.served.find(calls[0].slot)
        started = monotonic()
        nms, class_conf_thres, placement = (
            np.concatenate([getattr(call, name) for call in calls])
            for name in ("nms", "class_conf_thres", "placement")
        )
        outputs = [call.output0 for call in calls]
        check(network, outputs, nms, class_conf_thres)
        device = outputs[0].device  # the work is done where the network has left its rows
        asked = BatchThresholds.from_arrays(nms, class_conf_thres, placement, device)
        detections = detect(outputs, asked, **network.head)
        found = monotonic()
        metrics.observe(found - started, images=len(nms))
        metrics.count_detections(detections.classes, network.class_names)
        metrics.sample_score(detections.scores, found)
        packed = pack_detections(detections, [*map(len, outputs)], labels)
        responses = [call.pack(arrays) for call, arrays in zip(calls, packed)]
        packed_at = monotonic()
        for call in calls:
            call.trace.record("nms", started, found, images_together=len(nms))
            call.trace.record("pack", found, packed_at)
        return responses

    def finalize(self):
        self.metrics.close()
        self.tracer.close()


class Served(NamedTuple):
    """What a request needs of its endpoint."""

    network: NetworkSpec
    labels: NDArray[np.object_]
    metrics: ModelMetrics


class Call:
    """The inputs of a request.

    Attributes:
        output0: where the network has left its rows [B, N, columns]; the rest is on the host.
        admission: one row, as the rows of a request are equal.
        rows: of each image.
        trace: takes its spans.
    """

    def __init__(self, request):
        self.request = request
        self.output0 = as_tensor(pb_utils.get_input_tensor_by_name(request, "output0"))
        self.nms, self.class_conf_thres, self.placement, admission, network = (
            as_array(pb_utils.get_input_tensor_by_name(request, name))
            for name in ("nms", "class_conf_thres", "placement", "admission_id", "network")
        )
        self.admission = admission[0].tolist()
        self.slot = int(network[0, 0])
        self.rows = self.output0.shape[1]

    def key(self):
        """Equal for calls that one pass can answer."""
        return self.slot, str(self.output0.device)

    def pack(self, arrays):
        arrays["image_size"] = self.placement[:, SIZE].astype(np.int32)
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, array) for name, array in arrays.items()]
        )

    def send(self, response):
        self.request.get_response_sender().send(
            response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        )


def as_tensor(tensor):
    """One input as a torch tensor, on the device where it is."""
    if tensor.is_cpu():
        return torch.from_numpy(tensor.as_numpy())
    return torch.from_dlpack(tensor.to_dlpack())


def as_array(tensor):
    """One input on the host."""
    return tensor.as_numpy() if tensor.is_cpu() else as_tensor(tensor).cpu().numpy()


def check(network, outputs, nms, class_conf_thres):
    columns, classes = network.columns, len(network.class_names)
    for output0 in outputs:
        if output0.shape[2] != columns or class_conf_thres.shape[1] != classes:
            raise InputError(
                f"output0 has {output0.shape[2]} columns and class_conf_thres"
                f" {class_conf_thres.shape[1]}; allowed: {columns} and {classes}, for the {classes}"
                " lines of labels.txt"
            )
    check_lowest(nms[:, CONF_THRES], class_conf_thres)


def error_response(error):
    """The response to a request that failed. Only the log says what a fault was."""
    if isinstance(error, InputError | ThresholdsError | EndpointError):
        message, code = str(error), pb_utils.TritonError.INVALID_ARG
    else:
        pb_utils.Logger.log_error("".join(traceback.format_exception(error)))
        message, code = "internal fault in postprocess", pb_utils.TritonError.INTERNAL
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
