"""Triton glue of `preprocess`: unpack requests, call the modules beside this one, pack answers."""

import json
import traceback
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from time import monotonic, perf_counter

import malloc
import numpy as np
import triton_python_backend_utils as pb_utils
from admission_queue import AdmissionQueue, QueueFullError, Request
from completion import CompletionListener
from decode import Decoder, ImageError, in_full
from gather import Gather
from network_spec import network_folder, read_network_spec
from parameters import ParameterError, parse_parameters, read_text
from preprocess_metrics import Metrics
from settings import read_settings


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        given = {key: value["string_value"] for key, value in config["parameters"].items()}
        network = read_network_spec(network_folder(Path(args["model_repository"]), given))
        settings = read_settings(
            given, network.class_names, best_class_only=network.best_class_only
        )
        malloc.configure(tensor_bytes=3 * 4 * network.height * network.width)
        self.names = network.class_names
        self.parse = partial(
            parse_parameters,
            names=network.class_names,
            defaults=settings.defaults,
            best_class_only=network.best_class_only,
        )
        self.decoder = Decoder(settings.limits)
        # These import OpenCV, which must not happen before the decoder has set its limit.
        from batch_builder import BatchBuilder
        from letterbox import letterbox, reduction
        from normalise import PlaneSplitter, make_normaliser

        shape = {"height": network.height, "width": network.width, "mode": network.letterbox}
        self.letterbox = partial(letterbox, **shape, stride=network.stride)
        self.decode = partial(
            self.decoder.decode_scaled,
            reduction=partial(reduction, **shape) if settings.scaled_decoding else in_full,
        )
        gpu = (
            int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else None
        )
        self.normalisers = {"images": make_normaliser(gpu), "pixels": PlaneSplitter()}
        size = None if network.letterbox == "rect" else (network.height, network.width)
        self.new_batch = partial(BatchBuilder, size=size)
        self.patience = settings.max_queue_seconds
        self.pool = ThreadPoolExecutor(settings.threads)
        self.queue = AdmissionQueue(
            capacity=settings.max_queued_images, max_in_flight=settings.max_in_flight_images
        )
        self.completions = CompletionListener(self.queue.complete)
        self.metrics = Metrics(pb_utils)

    def execute(self, requests):
        for request in requests:
            self.admit(request)
        # Each is answered by the thread that prepares the last of its images.

    def admit(self, request):
        """Have the request wait for its turn, or refuse it."""
        elements = pb_utils.get_input_tensor_by_name(request, "image").as_numpy().reshape(-1)
        self.metrics.receive(len(elements))
        respond = sender_of(request)
        asked = request.requested_output_names()
        wanted = {name: how for name, how in self.normalisers.items() if name in asked}
        refuse = partial(self.refuse, respond, len(elements))
        try:
            parameters = self.parse(read_parameters(request))
            patience = self.patience
            if request.timeout():  # microseconds
                patience = min(patience, request.timeout() / 1e6)
            self.queue.submit(
                Request(
                    images=len(elements),
                    deadline=monotonic() + patience,
                    on_admit=partial(self.begin, elements, wanted, parameters, respond),
                    on_expire=partial(
                        refuse, "saturated", f"saturated: not begun within {patience:g} s"
                    ),
                )
            )
        except ParameterError as error:
            refuse("parameter", str(error))
        except QueueFullError as error:
            refuse("saturated", str(error))

    def begin(self, elements, wanted, parameters, respond, admission_id):
        batch = self.new_batch(wanted, len(elements))

        def prepare(index):
            return self.prepare(elements[index], batch, index)

        def answer(results):
            try:
                if not self.has_refused(results, respond):
                    respond(self.pack(parameters, results, batch, admission_id))
                    return
            except Exception:
                pb_utils.Logger.log_error(traceback.format_exc())
                respond(internal_fault("internal fault in preprocess"))
            self.queue.release(admission_id)

        Gather(len(elements), prepare=prepare, answer=answer).start(self.pool)

    def prepare(self, element, batch, index):
        started = perf_counter()
        picture, size = self.decode(element)
        decoded = perf_counter()
        canvas, placement = self.letterbox(picture, size=size)
        batch.add(index, canvas)
        self.metrics.time(decoded - started, perf_counter() - decoded)
        return placement

    def has_refused(self, results, respond):
        """Answer the request if one of its images cannot be."""
        refusals = []
        for number, result in enumerate(results, 1):
            if isinstance(result, ImageError):
                refusals.append((result.reason, f"image {number} of {len(results)}: {result}"))
            elif isinstance(result, Exception):
                pb_utils.Logger.log_error("".join(traceback.format_exception(result)))
                message = f"image {number} of {len(results)}: internal fault in preprocess"
                respond(internal_fault(message))
                return True
        if refusals:
            self.refuse(respond, len(refusals), *refusals[0])
        return bool(refusals)

    def pack(self, parameters, placements, batch, admission_id):
        tensors, placements = batch.build(placements)
        rows = len(placements)
        class_filter = parameters.class_filter(len(self.names))
        return pb_utils.InferenceResponse(
            [
                *batch.pack(pb_utils.Tensor, tensors),
                pb_utils.Tensor(
                    "placement", np.array([p.as_row() for p in placements], np.float32)
                ),
                pb_utils.Tensor("nms", np.array([parameters.as_row()] * rows, np.float32)),
                pb_utils.Tensor("class_filter", np.array([class_filter] * rows)),
                pb_utils.Tensor(
                    "admission_id", np.array([self.completions.as_row(admission_id)] * rows)
                ),
            ]
        )

    def refuse(self, respond, images, reason, message):
        self.metrics.reject(reason, images)
        codes = pb_utils.TritonError
        code = codes.UNAVAILABLE if reason == "saturated" else codes.INVALID_ARG
        respond(error_response(message, code))

    def finalize(self):
        self.queue.close()
        self.pool.shutdown()
        self.completions.close()
        self.metrics.close()


def sender_of(request):
    """What sends the only response to a request."""
    sender = request.get_response_sender()

    def respond(response):
        sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    return respond


def read_parameters(request):
    """By name. Triton makes JSON of them, and takes over a header's bytes as they are."""
    try:
        return read_text(request.parameters() or "{}")
    except UnicodeDecodeError:
        raise ParameterError("a parameter is no text; allowed: UTF-8") from None


def internal_fault(message):
    return error_response(message, pb_utils.TritonError.INTERNAL)


def error_response(message, code):
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
