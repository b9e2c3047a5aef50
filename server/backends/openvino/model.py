"""Triton glue of the Python-based backend `openvino`.

It replaces Triton's C++ backend of the same name, which the embedded server does not have. The work
is in the module beside this one, and in those that the backends share.
"""

import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "shared"))
from compiled import Network
from config_check import check_config
from cores import cores_for_instance
from cpu_model import CpuModel
from executor import thread_counts
from prefilter import config_of_full, has_full_head, with_prefilter


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"], args["model_version"])
        network = Network(config, folder / (config.get("default_model_filename") or "model.xml"))
        check_config(config_of_full(config, network.outputs), network.inputs, network.outputs)
        cores = cores_for_instance(config)
        runs = {
            threads: with_prefilter(
                network.run_with(threads, max(1, cores // threads)),
                full_head=has_full_head(config),
            )
            for threads in thread_counts(cores)
        }
        self.model = CpuModel(config, runs, cores)

    def execute(self, requests):
        return self.model.execute(requests)

    def finalize(self):
        self.model.close()
