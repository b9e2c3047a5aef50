"""Triton glue of `postprocess`: unpack requests, call the modules beside this one, pack answers."""

import traceback
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
import triton_python_backend_utils as pb_utils
from completion import CompletionSender
from endpoint_registry import EndpointError, EndpointRegistry
from network_spec import NetworkSpec
from nms import InputError, check_lowest, detect
from pack import pack_detections
from placement import Placement
from postprocess_metrics import Metrics, ModelMetrics
from thresholds import CONF_THRES, Thresholds, ThresholdsError


class TritonPythonModel:
    def initialize(self, args):
        torch.set_num_threads(1)  # leave the cores to the network
        # Triton may see a GPU whose driver is too old for torch.
        on_gpu = args["model_instance_kind"] == "GPU" and torch.cuda.is_available()
        self.metrics = Metrics(pb_utils)
        self.completions = CompletionSender()
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
        metrics = self.metrics.for_model(endpoint.name, endpoint.network.class_names)
        return Served(endpoint.network, metrics)

    def warm_up(self, network, device):
        """Detect two overlapping boxes of class 0: the first call of each operation is slow."""
        rows = torch.zeros((2, network.columns), device=device)
        # Box, and objectness and score of class 0; with a reduced head box, score, and its index.
        rows[:, : 5 if network.best_class_only else 6] = 1.0
        placement = Placement.from_row([1, 1, 0, 0, 2, 2])
        class_conf_thres = torch.full((len(network.class_names),), 0.5, device=device)
        for multi_label in (0,) if network.best_class_only else (0, 1):
            thresholds = Thresholds.from_row([0.5, 0.5, 1, 0, multi_label])
            detect(rows, thresholds, class_conf_thres, placement, **network.head)

    def execute(self, requests):
        for request in requests:
            rows = pb_utils.get_input_tensor_by_name(request, "admission_id").as_numpy()
            self.completions.send(rows[0].tolist())  # the rows of a request are equal
        # A low conf_thres admits thousands of candidates: other callers do not wait for these.
        if len(requests) > 1:
            requests = sorted(requests, key=self.lowest_conf_thres, reverse=True)
        for request in requests:
            request.get_response_sender().send(
                self.respond(request), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
            )

    def lowest_conf_thres(self, request):
        return float(self.tensor(request, "nms")[:, CONF_THRES].min())

    def respond(self, request):
        try:
            return self.answer(request)
        except (InputError, ThresholdsError, EndpointError) as error:
            return error_response(str(error), pb_utils.TritonError.INVALID_ARG)
        except Exception:
            pb_utils.Logger.log_error(traceback.format_exc())
            return error_response("internal fault in postprocess", pb_utils.TritonError.INTERNAL)

    def answer(self, request):
        slot = pb_utils.get_input_tensor_by_name(request, "network").as_numpy()[0, 0]
        network, metrics = self.served.find(int(slot))
        output0 = self.tensor(request, "output0")
        nms, class_conf_thres = (
            self.tensor(request, name).cpu() for name in ("nms", "class_conf_thres")
        )
        check(network, output0, nms, class_conf_thres)
        # The work is done where the network has left its rows.
        class_conf_thres = class_conf_thres.to(output0.device)
        placements = [*map(Placement.from_row, self.tensor(request, "placement").tolist())]
        thresholds = map(Thresholds.from_row, nms.tolist())
        detections = []
        for image in zip(output0, thresholds, class_conf_thres, placements):
            started = perf_counter()
            detections.append([part.cpu().numpy() for part in detect(*image, **network.head)])
            metrics.observe(perf_counter() - started)
            metrics.count_detections(detections[-1][2], network.class_names)
        outputs = pack_detections(detections, network.class_names)
        outputs["image_size"] = np.array([(p.height, p.width) for p in placements], np.int32)
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, array) for name, array in outputs.items()]
        )

    def tensor(self, request, name):
        """One input as a torch tensor, on the device where it is."""
        tensor = pb_utils.get_input_tensor_by_name(request, name)
        if tensor.is_cpu():
            return torch.from_numpy(tensor.as_numpy())
        return torch.from_dlpack(tensor.to_dlpack())

    def finalize(self):
        self.metrics.close()


class Served(NamedTuple):
    """What a request needs of its endpoint."""

    network: NetworkSpec
    metrics: ModelMetrics


def check(network, output0, nms, class_conf_thres):
    columns, classes = network.columns, len(network.class_names)
    if output0.shape[2] != columns or class_conf_thres.shape[1] != classes:
        raise InputError(
            f"output0 has {output0.shape[2]} columns and class_conf_thres"
            f" {class_conf_thres.shape[1]}; allowed: {columns} and {classes}, for the {classes}"
            " lines of labels.txt"
        )
    check_lowest(nms[:, CONF_THRES], class_conf_thres)


def error_response(message, code):
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
