"""Triton glue of `preprocess`: unpack requests, call the modules beside this one, pack answers."""

import json
import os
import traceback
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import triton_python_backend_utils as pb_utils
from decode import Decoder, ImageError
from parameters import ParameterError, parse_parameters
from preprocess_metrics import Metrics
from served_model import read_served_model
from settings import network_name, read_settings

NICENESS = 10  # of 19


class TritonPythonModel:
    def initialize(self, args):
        # Decoding is several times faster than the network. When more comes in than the network can
        # do, let it have the processors: requests then wait here, still encoded, and those that are
        # too many are refused here, before work has gone into them.
        os.nice(NICENESS)
        config = json.loads(args["model_config"])
        given = {key: value["string_value"] for key, value in config["parameters"].items()}
        served = read_served_model(Path(args["model_repository"]).parent / network_name(given))
        settings = read_settings(given, served.names, best_class_only=served.best_class_only)
        self.names = served.names
        self.parse = partial(
            parse_parameters,
            names=served.names,
            defaults=settings.defaults,
            best_class_only=served.best_class_only,
        )
        self.decoder = Decoder(settings.limits)
        # These import OpenCV, which must not happen before the decoder has set its limit.
        from assemble import Batch
        from letterbox import letterbox
        from normalise import make_normaliser

        self.letterbox = partial(
            letterbox,
            height=served.height,
            width=served.width,
            mode=served.letterbox,
            stride=served.stride,
        )
        gpu = (
            int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else None
        )
        self.normaliser = make_normaliser(gpu)
        size = None if served.letterbox == "rect" else (served.height, served.width)
        self.new_batch = partial(Batch, self.normaliser, size=size)
        self.pool = ThreadPoolExecutor(settings.threads)
        self.metrics = Metrics(pb_utils)

    def execute(self, requests):
        # Every image of every request is in the pool before the first answer is awaited.
        return [finish() for finish in [self.start(request) for request in requests]]

    def start(self, request):
        """Queue one request's images; return the function that waits for its response."""
        elements = pb_utils.get_input_tensor_by_name(request, "image").as_numpy().reshape(-1)
        self.metrics.images.increment(len(elements))
        try:
            parameters = self.parse(json.loads(read_parameters(request)))
        except ParameterError as error:
            return partial(self.refuse, "parameter", len(elements), str(error))
        batch = self.new_batch(len(elements))
        jobs = [
            self.pool.submit(self.prepare, element, batch, index)
            for index, element in enumerate(elements)
        ]
        return partial(self.respond, parameters, jobs, batch)

    def prepare(self, element, batch, index):
        started = perf_counter()
        picture = self.decoder.decode(element)
        decoded = perf_counter()
        canvas, placement = self.letterbox(picture)
        batch.put(index, canvas)
        return placement, decoded - started, perf_counter() - decoded

    def respond(self, parameters, jobs, batch):
        placements = []
        refusals = []
        for number, job in enumerate(jobs, 1):
            try:
                placement, decode_seconds, letterbox_seconds = job.result()
            except ImageError as error:
                refusals.append((error.reason, f"image {number} of {len(jobs)}: {error}"))
            except Exception:
                pb_utils.Logger.log_error(traceback.format_exc())
                message = f"image {number} of {len(jobs)}: internal fault in preprocess"
                return error_response(message, pb_utils.TritonError.INTERNAL)
            else:
                placements.append(placement)
                self.metrics.decode_seconds.observe(decode_seconds)
                self.metrics.letterbox_seconds.observe(letterbox_seconds)
        if refusals:
            reason, message = refusals[0]
            return self.refuse(reason, len(refusals), message)
        try:
            return self.pack(parameters, placements, batch)
        except Exception:
            pb_utils.Logger.log_error(traceback.format_exc())
            return error_response("internal fault in preprocess", pb_utils.TritonError.INTERNAL)

    def pack(self, parameters, placements, batch):
        images, placements = batch.finish(placements)
        rows = len(placements)
        class_filter = parameters.class_filter(len(self.names))
        return pb_utils.InferenceResponse(
            [
                self.normaliser.pack(pb_utils.Tensor, "images", images),
                pb_utils.Tensor(
                    "placement", np.array([p.as_row() for p in placements], np.float32)
                ),
                pb_utils.Tensor("nms", np.array([parameters.as_row()] * rows, np.float32)),
                pb_utils.Tensor("class_filter", np.array([class_filter] * rows)),
            ]
        )

    def refuse(self, reason, images, message):
        self.metrics.rejected[reason].increment(images)
        return error_response(message, pb_utils.TritonError.INVALID_ARG)

    def finalize(self):
        self.pool.shutdown()


def read_parameters(request):
    """The JSON that Triton makes of them; it takes over a header's bytes as they are."""
    try:
        return request.parameters() or "{}"
    except UnicodeDecodeError:
        raise ParameterError("a parameter is no text; allowed: UTF-8") from None


def error_response(message, code):
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
