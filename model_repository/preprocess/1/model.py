"""Triton glue of `preprocess`: unpack requests, call the modules beside this one, pack answers."""

import json
import traceback
from functools import partial
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import malloc
import numpy as np
import triton_python_backend_utils as pb_utils
from admission_queue import AdmissionQueue, QueuedRequest, QueueFullError
from completion import CompletionListener
from decode import Decoder, ImageError
from endpoint_registry import INPUTS, EndpointError, EndpointRegistry
from gather import Gather
from image_pipeline import ImagePipeline
from parameter_reader import ParameterReader
from parameters import ParameterError
from periodic import Periodic
from preprocess_metrics import PARAMETER, SATURATED, Metrics, ModelMetrics
from request_outcomes import (
    ANSWERED,
    EXPIRED,
    FAILED,
    LOST,
    REJECTED,
    SHED,
    PendingRequests,
    RequestTimer,
)
from settings import Settings, read_endpoint_settings, read_image_limits
from tracing import open_tracer
from workers import Workers


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.given = {key: value["string_value"] for key, value in config["parameters"].items()}
        on_gpu = args["model_instance_kind"] == "GPU"
        self.gpu = int(args["model_instance_device_id"]) if on_gpu else None
        self.metrics = Metrics(pb_utils)
        self.tracer = open_tracer(config["name"], pb_utils.Logger.log_error)
        self.decoder = Decoder(read_image_limits(self.given))
        self.tensor_bytes = 0  # of one image, for the largest network
        self.served = EndpointRegistry(
            Path(args["model_repository"]).parent, self.serve, pb_utils.Logger.log_error
        )
        settings = self.served.find(0).settings  # those of the pool and the queue are common
        self.metrics.start()
        self.max_queue_seconds = settings.max_queue_seconds
        self.workers = Workers(settings.threads, pb_utils.Logger.log_error)
        self.queue = AdmissionQueue(
            capacity=settings.max_queued_images,
            max_in_flight=settings.max_in_flight_images,
        )
        self.pending = PendingRequests()  # calls that the network has
        self.completions = CompletionListener(self.complete)
        self.signals = Periodic(self.publish_signals, pb_utils.Logger.log_error)

    def serve(self, endpoint):
        """Prepare for the requests of an endpoint."""
        network = endpoint.network
        settings = read_endpoint_settings(
            self.given, endpoint.parameters, network.class_names, **network.head
        )
        self.tensor_bytes = max(self.tensor_bytes, 3 * 4 * network.height * network.width)
        malloc.configure(self.tensor_bytes)
        metrics = self.metrics.for_model(endpoint.name)
        pipeline = ImagePipeline(
            self.decoder.limited_to(settings.limits),
            network,
            scaled_decoding=settings.scaled_decoding,
            gpu=self.gpu,
            observe=metrics.observe,
        )
        parameters = ParameterReader(network.class_names, settings.defaults, **network.head)
        return Served(endpoint.name, settings, parameters, metrics, pipeline)

    def execute(self, requests):
        for request in requests:
            self.submit(request)
        # Each request is answered by the thread that prepares the last of its images.

    def submit(self, request):
        """Put the request into the queue, or refuse it."""
        call = Call(request)
        call.trace = self.tracer.trace_of(request)
        try:
            call.served = self.served.find(call.slot)
        except (EndpointError, OSError) as error:
            pb_utils.Logger.log_error(f"a request was refused: {error}")
            message = "this endpoint has no network that can be used"
            call.fail(message, pb_utils.TritonError.UNAVAILABLE)
            return
        call.timer = RequestTimer(call.arrived, call.served.metrics.count_request)
        call.served.metrics.count_received(len(call.elements))
        seconds = min(self.max_queue_seconds, call.timeout or float("inf"))
        try:
            parameters = self.read_parameters(request, call.served)
            self.queue.submit(
                QueuedRequest(
                    network=call.served.name,
                    weight=call.served.settings.weight,
                    images=len(call.elements),
                    deadline=monotonic() + seconds,
                    on_admit=partial(self.prepare, call, parameters),
                    on_expire=partial(self.expire, call, seconds),
                    on_evict=partial(self.refuse, call, SATURATED),
                )
            )
        except ParameterError as error:
            self.refuse(call, PARAMETER, str(error))
        except QueueFullError as error:
            self.refuse(call, SATURATED, str(error))

    def read_parameters(self, request, served):
        """Read the JSON that Triton makes of the parameters; bytes of headers may not be UTF-8."""
        try:
            text = request.parameters()
        except UnicodeDecodeError:
            raise ParameterError("a parameter is no text; allowed: UTF-8") from None
        return served.parameters.read(text)

    def expire(self, call, seconds):
        message = f"saturated: not begun within {seconds:g} s"
        self.refuse(call, SATURATED, message, outcome=EXPIRED)

    def prepare(self, call, parameters, admission_id):
        """Prepare the images in parallel; the thread that prepares the last one answers."""
        admitted = monotonic()
        call.served.metrics.observe_queue(admitted - call.arrived)
        call.trace.record("queue", call.arrived, admitted)
        pipeline = call.served.pipeline
        batch = pipeline.new_batch(call.outputs, len(call.elements))
        gather = Gather(
            len(call.elements),
            work=lambda index: pipeline.prepare(call.elements[index], batch, index, call.trace),
            answer=partial(self.answer, call, parameters, batch, admission_id),
        )
        for task in gather.tasks():
            self.workers.submit(task)

    def answer(self, call, parameters, batch, admission_id, results):
        """Answer the call.

        Args:
            results: for each image its placement or an exception.
        """
        try:
            if not self.has_failed(call, results):
                started = monotonic()
                response = self.pack(call, parameters, results, batch, admission_id)
                call.trace.record("pack", started)
                if call.goes_on:
                    self.queue.hand_on(admission_id)
                    self.pending.add(admission_id, call.timer)
                    call.respond(response)
                    return
                call.respond(response)
                call.timer.stop(ANSWERED)
        except Exception:
            pb_utils.Logger.log_error(traceback.format_exc())
            self.pending.take(admission_id)
            self.fault(call, "internal fault in preprocess")
        self.queue.release(admission_id)

    def complete(self, admission_id):
        """Note that `postprocess` has the request."""
        self.queue.complete(admission_id)
        if timer := self.pending.take(admission_id):
            timer.stop(ANSWERED)

    def publish_signals(self):
        """Tell the metrics how much the server has to do, and which requests are lost."""
        self.metrics.show_load(self.queue.read_load())
        for timer in self.pending.take_lost():
            timer.stop(LOST)

    def has_failed(self, call, results):
        """Answer the call with an error if one of its images failed."""
        refusals = []
        for number, result in enumerate(results, 1):
            if isinstance(result, ImageError):
                refusals.append((result.reason, f"image {number} of {len(results)}: {result}"))
            elif isinstance(result, Exception):
                pb_utils.Logger.log_error("".join(traceback.format_exception(result)))
                self.fault(call, f"image {number} of {len(results)}: internal fault in preprocess")
                return True
        if refusals:
            self.refuse(call, *refusals[0], images=len(refusals))
        return bool(refusals)

    def pack(self, call, parameters, placements, batch, admission_id):
        tensors, placements = batch.build(placements)
        rows = len(placements)
        nms, class_conf_thres = parameters.repeat(rows)
        admission = self.completions.as_row(admission_id)
        return pb_utils.InferenceResponse(
            [
                *batch.pack(pb_utils.Tensor, tensors),
                pb_utils.Tensor(
                    "placement", np.array([p.as_row() for p in placements], np.float32)
                ),
                pb_utils.Tensor("nms", nms),
                pb_utils.Tensor("class_conf_thres", class_conf_thres),
                pb_utils.Tensor("admission_id", np.array([admission] * rows)),
                pb_utils.Tensor("network", np.array([[call.slot]] * rows, np.int32)),
            ]
        )

    def fault(self, call, message):
        call.timer.stop(FAILED)
        call.trace.record("failed", call.arrived, error=message)
        call.fail(message, pb_utils.TritonError.INTERNAL)

    def refuse(self, call, reason, message, images=None, outcome=None):
        """Answer with an error that is no fault: the request is wrong, or there are too many.

        Args:
            reason: one of `decode.REASONS`, PARAMETER or SATURATED.
            images: how many are counted as refused; all unless given.
            outcome: of the request; SHED or REJECTED, by the reason, unless given.
        """
        outcome = outcome or (SHED if reason == SATURATED else REJECTED)
        call.timer.stop(outcome)
        call.trace.record(outcome, call.arrived, error=message, reason=reason)
        call.served.metrics.count_rejected(reason, images or len(call.elements))
        codes = pb_utils.TritonError
        call.fail(message, codes.UNAVAILABLE if reason == SATURATED else codes.INVALID_ARG)

    def finalize(self):
        self.signals.close()
        self.queue.close()
        self.workers.close()
        self.completions.close()
        self.metrics.close()
        self.tracer.close()


class Served(NamedTuple):
    """What a request needs of its endpoint."""

    name: str
    settings: Settings
    parameters: ParameterReader
    metrics: ModelMetrics
    pipeline: ImagePipeline


class Call:
    """What is kept of a request until it is answered.

    Attributes:
        slot: number of the input that the images came through.
        served: the endpoint in this slot, set when it is found.
        arrived: when, by `time.monotonic()`.
        timer: to be stopped at its end, set together with `served`.
        trace: takes its spans.
        elements: the encoded images, bytes.
        outputs: names of the tensors that the ensemble asks for.
        timeout: seconds that the caller allows it to wait; 0 for no limit.
    """

    slot, elements = -1, ()

    def __init__(self, request):
        self.arrived = monotonic()
        # An endpoint fills one; of several, which only other callers can fill, the last one counts.
        for image in request.inputs():
            self.slot = INPUTS.index(image.name())
            self.elements = image.as_numpy().reshape(-1)
        self.outputs = request.requested_output_names()
        self.timeout = request.timeout() / 1e6  # from microseconds
        self.sender = request.get_response_sender()

    @property
    def goes_on(self):
        """Whether it goes on to a network. An ensemble asks for one of the two; Triton's warm-up
        asks for both, and nothing comes after it."""
        return not ("images" in self.outputs and "pixels" in self.outputs)

    def respond(self, response):
        self.sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def fail(self, message, code):
        self.respond(pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code)))
