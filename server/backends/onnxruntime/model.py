"""Triton glue of the Python-based backend `onnxruntime`.

It replaces Triton's C++ backend of the same name, which the embedded server does not have: the same
`config.pbtxt` with `backend: "onnxruntime"` runs on both. The work is in the modules beside this
one, and in those that the backends share.
"""

import json
import sys
from functools import partial
from pathlib import Path

import triton_python_backend_utils as pb_utils

sys.path.append(str(Path(__file__).resolve().parents[1] / "shared"))
from config_check import DATA_TYPES, dims
from cores import cores_for_instance
from cpu_model import CpuModel
from onnxruntime import get_available_providers, set_default_logger_severity
from prefilter import has_full_head, with_prefilter
from session import CUDA, open_session, why_not_on_cuda, without_missing_tensorrt
from variants import check_full, full_path, open_runs, runner, weights_path

ERRORS, FATAL = 3, 4  # ONNX Runtime's levels of severity
DEFAULT_MAX_BATCH_SIZE = 4  # as in the C++ backend, if the configuration has none


class TritonPythonModel:
    model = None  # GpuModel or CpuModel

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
        if kind == "GPU":
            try:
                self.model = self.on_gpu(config, folder, device)
            except Exception as error:
                # Such as too little memory on it. What is wrong with the file, or with the
                # configuration, is so on the CPU too, and keeps the network from being served.
                self.warn_of_cpu(config, device, error)
            if self.model:
                return
        cores = cores_for_instance(config)
        runs = open_runs(config, folder, cores, warn=pb_utils.Logger.log_warn)
        self.model = CpuModel(config, runs, cores)

    def on_gpu(self, config, folder, device):
        """The network on a GPU; None, and a warning, if ONNX Runtime cannot use it."""
        if CUDA in get_available_providers():
            # Imported here because it imports torch, which is slow. It also loads the libraries of
            # CUDA, which the provider would look for in the system alone.
            from gpu_model import GpuModel

            set_default_logger_severity(ERRORS)
            config, missing = without_missing_tensorrt(config)
            if missing:
                pb_utils.Logger.log_warn(
                    f"{config['name']} runs by {CUDA}, not TensorRT: {missing}"
                )
            path = full_path(config, folder)
            open_fixed = partial(open_session, config, path, kind="GPU", device=device)
            session = open_fixed({})
            check_full(config, session)
            if CUDA in session.get_providers():
                # It logs each convolution that cuDNN has no plan for, and runs it another way.
                set_default_logger_severity(FATAL)
                model = GpuModel.from_session(config, session, device, open_fixed)
                # To the operator: Triton's own information is not shown.
                provider = session.get_providers()[0]
                print(f"{config['name']} runs on GPU {device}, by {provider}.", flush=True)
                run = with_prefilter(runner(config, session), full_head=has_full_head(config))
                return model or CpuModel(config, {1: run}, 1)
        self.warn_of_cpu(config, device, why_not_on_cuda())
        return None

    def warn_of_cpu(self, config, device, cause):
        pb_utils.Logger.log_warn(f"{config['name']} runs on the CPU, not on GPU {device}: {cause}")

    def execute(self, requests):
        return self.model.execute(requests)

    def finalize(self):
        self.model.close()
