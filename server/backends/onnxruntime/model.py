"""Triton glue of the Python-based backend `onnxruntime`.

It stands in for Triton's C++ backend of the same name, which the embedded server does not carry:
one `config.pbtxt` with `backend: "onnxruntime"` runs on both. The work is in the modules beside.
"""

import json
import traceback
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from batch import run_batch
from graph import DATA_TYPES, check_config, dims
from session import open_session

DEFAULT_MAX_BATCH_SIZE = 4  # the C++ backend's, where a configuration leaves it open


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(auto_complete_model_config):
        """Fill in what the configuration leaves out from the graph, as the C++ backend does."""
        config = auto_complete_model_config.as_dict()
        if config["input"] and config["output"]:
            return auto_complete_model_config
        folder = Path(pb_utils.get_model_dir())
        session = open_session(config, weights_path(config, folder), kind="CPU", device=0)
        inputs, outputs = session.get_inputs(), session.get_outputs()
        batching = all(dims(tensor.shape)[:1] == [-1] for tensor in (*inputs, *outputs))
        if batching and not config["max_batch_size"]:
            auto_complete_model_config.set_max_batch_size(DEFAULT_MAX_BATCH_SIZE)
            auto_complete_model_config.set_dynamic_batching()
        for tensors, add in (
            (inputs, auto_complete_model_config.add_input),
            (outputs, auto_complete_model_config.add_output),
        ):
            for tensor in tensors:
                add(
                    {
                        "name": tensor.name,
                        "data_type": DATA_TYPES[tensor.type],
                        "dims": dims(tensor.shape)[batching:],
                    }
                )
        return auto_complete_model_config

    def initialize(self, args):
        config = json.loads(args["model_config"])
        kind, device = args["model_instance_kind"], int(args["model_instance_device_id"])
        folder = Path(args["model_repository"], args["model_version"])
        self.session = open_session(config, weights_path(config, folder), kind=kind, device=device)
        check_config(config, self.session.get_inputs(), self.session.get_outputs())
        self.name = config["name"]
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"]]
        self.device = None
        join = np.concatenate
        if kind == "GPU":
            from device import DeviceRunner

            if DeviceRunner.supports(self.session):
                self.device = DeviceRunner(self.session, device)
                join = self.device.join
        self.join = join if config["max_batch_size"] > 0 else None

    def execute(self, requests):
        answers = run_batch(self.run, [self.unpack(r) for r in requests], join=self.join)
        return [self.respond(request, answer) for request, answer in zip(requests, answers)]

    def unpack(self, request):
        tensors = {name: pb_utils.get_input_tensor_by_name(request, name) for name in self.inputs}
        if self.device is None:
            return {name: on_host(tensor) for name, tensor in tensors.items()}
        return {name: self.device.take(tensor) for name, tensor in tensors.items()}

    def run(self, inputs):
        if self.device is not None:
            return self.device.run(inputs)
        return dict(zip(self.outputs, self.session.run(self.outputs, inputs)))

    def respond(self, request, answer):
        if isinstance(answer, Exception):
            pb_utils.Logger.log_error("".join(traceback.format_exception(answer)))
            message = f"onnx runtime error running model '{self.name}'"
            return pb_utils.InferenceResponse(
                error=pb_utils.TritonError(message, pb_utils.TritonError.INTERNAL)
            )
        wanted = request.requested_output_names()
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor(name, array)
                if isinstance(array, np.ndarray)
                else pb_utils.Tensor.from_dlpack(name, array)
                for name, array in answer.items()
                if name in wanted
            ]
        )


def on_host(tensor):
    if tensor.is_cpu():
        return tensor.as_numpy()
    # A GPU that the step before uses and the onnxruntime that is installed cannot.
    import torch

    return torch.utils.dlpack.from_dlpack(tensor.to_dlpack()).cpu().numpy()


def weights_path(config, folder):
    return folder / (config.get("default_model_filename") or "model.onnx")
