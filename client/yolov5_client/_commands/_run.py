"""One run of `detect`: sends the sources in order and writes the results."""

from __future__ import annotations

import argparse
import json
import os
import queue
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._client import Client
from .._connection import RETRY_FAULTS_AFTER
from .._detections import Detections
from .._errors import (
    DeniedError,
    InvalidRequestError,
    ServerError,
    TimedOutError,
    UnavailableError,
    YoloClientError,
)
from .._journal import Journal, Progress, RunRecord
from .._outputs import OutputOptions, ResultWriter, UniqueStems, frame_stem, write_coco, write_csv
from .._sources import STDIN, Source
from . import INTERRUPTED, NO_SERVER, OK, SOME_FAILED, USAGE, UsageError, result_folder
from ._report import Report, printable

if TYPE_CHECKING:
    from .._draw import Picture
    from .._video import LiveStream, Writer

Answer = Detections | YoloClientError | OSError

NO_OPENCV = "a video or stream needs OpenCV: pip install opencv-python-headless"
_STREAMS_END_WITHIN = 2.0  # seconds, when the run ends before its streams
_PARAMETERS = (
    "conf_thres",
    "iou_thres",
    "max_det",
    "classes",
    "agnostic_nms",
    "multi_label",
    "class_conf_thres",
)
# Matches the refusal of a parameter, which concerns all images, rather than of one image.
_PARAMETER = re.compile(rf"parameter\b|({'|'.join(_PARAMETERS)}) ")


class _Clip:
    """A video or stream in progress.

    Attributes:
        complete: all frames have been sent.
        has_failures: a frame has no answer.
        length: seconds that have been read.
    """

    def __init__(self, source: Source, rate: float) -> None:
        self.source = source
        self.rate = rate
        self.length = 0.0
        self.complete = self.has_failures = False
        self.stem: str | None = None
        self.writer: Writer | None = None

    def close(self) -> None:
        if self.writer:
            self.writer.close(self.length)
            self.writer = None


class _PendingImage:
    """One image to send. The client calls it in a thread of its own to get the bytes."""

    def __init__(
        self,
        source: Source,
        place: str,
        load: Callable[[], bytes],
        *,
        frame: int | None = None,
        picture: Picture | None = None,
        clip: _Clip | None = None,
        seconds: float = 0.0,
    ) -> None:
        self.source = source
        self.place = place
        self.frame = frame
        self.picture = picture
        self.clip = clip
        self.seconds = seconds  # from the start of the clip
        self._load = load
        self._data: bytes | None = None
        self._sent = 0.0

    def __call__(self) -> bytes:
        if self._data is None:
            self._data = self._load()
        self._sent = time.perf_counter()
        return self._data

    def load_picture(self) -> Picture:
        from .._draw import decode

        return decode(self()) if self.picture is None else self.picture

    @property
    def milliseconds(self) -> float:
        return (time.perf_counter() - self._sent) * 1000

    @property
    def name(self) -> str:
        return self.source.name if self.frame is None else f"{self.source.name} ({self.frame})"


class Run:
    """Sends the sources and writes the results.

    Args:
        folder: the folder of the run that is resumed; None for a new one.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        output_options: OutputOptions,
        record: RunRecord,
        folder: Path | None,
        report: Report,
    ) -> None:
        self._options = options
        self._parameters = given_parameters(options)
        self._output_options = output_options
        self._record = record
        self._report = report
        self._folder = folder
        self._journal: Journal | None = None
        self._done = Progress()
        if folder:
            self._journal = Journal(folder)
            try:
                self._done = self._journal.recover(record.videos)
            except ValueError as error:
                self._journal.close()
                raise UsageError(str(error)) from None
            report.resume(self._done)
        self._stems = UniqueStems(self._done)
        self._clips: list[_Clip] = []
        self._streams: list[tuple[str, Source]] = []

    def execute(self, client: Client, sources: Iterator[tuple[int, Source]]) -> int:
        """Send all sources, write the results, and return the exit status.

        Args:
            sources: with their numbers, from 1.
        """
        status, error = OK, ""
        try:
            self._send(client, sources)
            self._follow_streams(client)
        except KeyboardInterrupt:
            status, error = INTERRUPTED, "interrupted."
        except BrokenPipeError:
            # The reader of the output has closed it; Python must not flush it again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            status, error = INTERRUPTED, "standard output was closed by its reader."
        except (UnavailableError, DeniedError) as failure:
            status, error = NO_SERVER, f"{self._options.server}: {failure}"
        except InvalidRequestError as failure:
            status, error = USAGE, str(failure)
        except OSError as failure:
            status, error = SOME_FAILED, str(failure)
        try:
            self._finish()
            self._report.end(self._folder if self._journal else None, error)
        except OSError as failure:  # as on a full disk
            status, error = status or SOME_FAILED, error or str(failure)
            self._report.note(f"error: {failure}")
        if error and self._journal and not self._streams and STDIN not in self._options.source:
            self._report.note(f"Go on with: yolov5-client detect --resume {self._folder}")
        return status or (SOME_FAILED if self._report.failures else OK)

    def close(self) -> None:
        for clip in self._clips:
            clip.close()
        if self._journal:
            self._journal.close()

    # -- sending ------------------------------------------------------------------------------

    def _send(self, client: Client, sources: Iterator[tuple[int, Source]]) -> None:
        """Send images and videos in order, with many requests in flight."""
        sent: deque[_PendingImage] = deque()

        def images() -> Iterator[_PendingImage]:
            for item in self._items(sources):
                sent.append(item)
                yield item

        clip: _Clip | None = None
        answers = client.detect_stream(images(), return_exceptions=True, **self._parameters)
        for answer in answers:
            item = sent.popleft()
            if clip and item.clip is not clip:
                self._close_clip(clip)
            clip = item.clip
            self._handle_answer(client, item, answer)
        if clip:
            self._close_clip(clip)

    def _items(self, sources: Iterator[tuple[int, Source]]) -> Iterator[_PendingImage]:
        for number, source in sources:
            done = self._done.videos if source.kind == "video" else self._done.images
            if done[source.name] > 0:
                done[source.name] -= 1
                continue
            total = self._report.total
            place = f"{number}/{total}" if total else str(number)
            if source.kind == "stream":
                self._streams.append((place, source))
            elif source.kind == "video":
                yield from self._frames(place, source)
            else:
                yield _PendingImage(source, f"image {place}", source.read)

    def _frames(self, place: str, source: Source) -> Iterator[_PendingImage]:
        try:
            from .._video import Video

            video = Video(source.name)
        except ImportError:
            yield _PendingImage(source, place, _failing_loader(NO_OPENCV))
            return
        except OSError as error:
            yield _PendingImage(source, place, _failing_loader(_reason(error)))
            return
        clip = _Clip(source, video.rate)
        stride = self._options.vid_stride
        count = f"/{video.frames}" if video.frames else ""
        self._report.extend_total((video.frames + stride - 1) // stride - 1)
        number = 0
        for number, picture in video.read(stride):
            at = f"video {place} ({number}{count})"
            yield self._frame(clip, at, number, picture, video.seconds)
        clip.complete, clip.length = True, video.length
        if not number:
            yield _PendingImage(source, place, _failing_loader("has no frames"))

    def _frame(
        self, clip: _Clip, place: str, number: int, picture: Picture, seconds: float
    ) -> _PendingImage:
        from .._video import encode

        return _PendingImage(
            clip.source,
            place,
            lambda: encode(picture, self._options.jpeg_quality),
            frame=number,
            picture=picture,
            clip=clip,
            seconds=seconds,
        )

    def _follow_streams(self, client: Client) -> None:
        """Follow all live streams concurrently, with one request in flight for each."""
        if not self._streams:
            return
        answers: queue.Queue[tuple[_PendingImage, Answer] | _Clip | None] = queue.Queue(2)
        stop = threading.Event()
        arguments = [(client, place, source, answers, stop) for place, source in self._streams]
        threads = [
            threading.Thread(target=self._follow_stream, args=one, daemon=True) for one in arguments
        ]
        for thread in threads:
            thread.start()
        left = len(threads)
        try:
            while left:
                got = answers.get()
                if got is None:
                    left -= 1
                elif isinstance(got, _Clip):
                    self._close_clip(got)
                else:
                    self._handle_answer(client, *got)
        finally:
            stop.set()
            # A thread that waits for a server may take long; it ends with the process.
            deadline = time.monotonic() + _STREAMS_END_WITHIN
            while any(thread.is_alive() for thread in threads) and time.monotonic() < deadline:
                with suppress(queue.Empty):
                    answers.get(timeout=0.1)

    def _follow_stream(
        self,
        client: Client,
        place: str,
        source: Source,
        answers: queue.Queue[tuple[_PendingImage, Answer] | _Clip | None],
        stop: threading.Event,
    ) -> None:
        try:
            with closing(self._open_stream(source)) as live:
                clip = _Clip(source, live.rate)
                for number, picture in live:
                    if stop.is_set():
                        return
                    at = f"stream {place} ({number})"
                    item = self._frame(clip, at, number, picture, (number - 1) / live.rate)
                    try:
                        answer: Answer = client.detect(item, **self._parameters)
                    except (YoloClientError, OSError) as error:
                        answer = error
                    answers.put((item, answer))
                answers.put(clip)
            self._report.note(
                f"{printable(source.name)}: the stream has ended after {live.read} frames."
            )
        except ImportError:
            answers.put(
                (_PendingImage(source, place, _failing_loader(NO_OPENCV)), OSError(NO_OPENCV))
            )
        except Exception as error:  # such as OpenCV's own; nothing else would report it
            failure = error if isinstance(error, OSError) else OSError(repr(error))
            answers.put((_PendingImage(source, place, _failing_loader(str(failure))), failure))
        finally:
            answers.put(None)

    def _open_stream(self, source: Source) -> LiveStream:
        from .._video import LiveStream

        return LiveStream(
            source.name,
            reopen=source.name.lower().startswith(("rtsp", "rtmp")),
            stride=self._options.vid_stride,
        )

    # -- results --------------------------------------------------------------------------------

    def _handle_answer(self, client: Client, item: _PendingImage, answer: Answer) -> None:
        answer = settled(client, item, answer, self._parameters)
        self._report.advance()
        if self._output_options.needs_folder and self._journal is None:
            self._journal = self._create_folder()
        if isinstance(answer, Detections):
            self._save(item, answer)
        elif isinstance(answer, InvalidRequestError):
            sentence = answer_reason(answer)
            line = self._line(item, self._stem(item) if item.clip else None) | {"error": sentence}
            self._write_frame(item)
            self._write_line(line)
            self._report.result(None, line)
            self._report.failure(item.name, sentence)
        else:
            if item.clip:
                item.clip.has_failures = True
                self._write_frame(item)
            self._report.failure(item.name, answer_reason(answer))

    def _create_folder(self) -> Journal:
        while True:
            folder = result_folder(self._options)
            try:
                folder.mkdir(parents=True, exist_ok=self._options.exist_ok)
                journal = Journal(folder)
                journal.clear()
                self._record.write(folder)
            except OSError as error:
                if folder.exists() and not self._options.exist_ok:
                    continue  # another run has just created it
                raise UsageError(str(error)) from None
            self._folder = folder
            return journal

    def _stem(self, item: _PendingImage) -> str:
        if item.clip is None:
            return self._stems.allocate(item.source.stem)
        if item.clip.stem is None:
            item.clip.stem = self._stems.allocate(item.source.stem, video=True)
            self._clips.append(item.clip)
        return item.clip.stem

    def _save(self, item: _PendingImage, detections: Detections) -> None:
        milliseconds = item.milliseconds
        stem = self._stem(item)
        undrawn = None
        if self._folder and self._journal:
            writer = ResultWriter(self._folder, self._output_options)
            try:
                picture = writer.write(frame_stem(stem, item.frame), detections, item.load_picture)
                if self._output_options.pictures and picture is not None:
                    if item.clip:
                        self._write_frame(item)
                    else:
                        writer.write_picture(stem, item.source.suffix, picture)
            except ValueError as error:
                undrawn = str(error)
        line = self._line(item, stem) | detections.to_dict()
        self._write_line(line)
        height, width = detections.image_size
        self._report.result(
            f"{item.place} {printable(item.source.name)}: {height}x{width} {detections.summary()},"
            f" {milliseconds:.1f}ms",
            line,
        )
        if undrawn:
            self._report.failure(item.name, undrawn)

    def _write_frame(self, item: _PendingImage) -> None:
        """Append a frame to the annotated video, even without an answer, to keep all frames."""
        clip = item.clip
        if not (
            clip and item.picture is not None and self._folder and self._output_options.pictures
        ):
            return
        if clip.writer is None:
            from .._video import Writer

            path = ResultWriter(self._folder, self._output_options).video_path(self._stem(item))
            stride = self._options.vid_stride
            clip.writer = Writer(path, clip.rate, item.picture, stride=stride)
        clip.writer.write(item.picture, item.seconds)

    def _line(self, item: _PendingImage, stem: str | None) -> dict[str, Any]:
        line: dict[str, Any] = {"image": item.source.name}
        if item.frame is not None:
            line["frame"] = item.frame
        if stem is not None and stem != item.source.stem:
            line["stem"] = stem
        return line

    def _write_line(self, line: dict[str, Any]) -> None:
        if self._journal:
            self._journal.append(json.dumps(line))

    def _close_clip(self, clip: _Clip) -> None:
        clip.close()
        complete = clip.complete and not clip.has_failures and clip.stem is not None
        if complete and self._folder and self._journal:
            self._record.videos.append(str(clip.stem))
            self._record.write(self._folder)

    def _finish(self) -> None:
        """Write the files that are made from the whole journal."""
        for clip in self._clips:
            clip.close()
        if not (self._folder and self._journal):
            return
        if self._output_options.save_csv:
            write_csv(self._folder / "results.csv", self._journal.lines())
        if self._output_options.save_json:
            write_coco(self._folder / "results.json", self._journal.lines())


def settled(
    client: Client, image: Callable[[], bytes], answer: Answer, parameters: Mapping[str, Any]
) -> Answer:
    """Return an image's last answer, after further attempts if the server failed on it.

    Raises:
        UnavailableError, DeniedError: there is no server that answers.
        InvalidRequestError: the server refuses a parameter, and thus every image.
    """
    for pause in RETRY_FAULTS_AFTER:
        if not isinstance(answer, (TimedOutError, ServerError)):
            break
        time.sleep(pause)
        try:
            answer = client.detect(image, **parameters)
        except (YoloClientError, OSError) as error:
            answer = error
    if isinstance(answer, (UnavailableError, DeniedError)):
        raise answer
    if isinstance(answer, InvalidRequestError) and _PARAMETER.match(str(answer)):
        raise answer
    return answer


def answer_reason(answer: YoloClientError | OSError) -> str:
    """Return why an image has no detections."""
    if isinstance(answer, OSError):
        return _reason(answer)
    return str(answer).removeprefix("image 1 of 1: ")


def _failing_loader(sentence: str) -> Callable[[], bytes]:
    def fail() -> bytes:
        raise OSError(sentence)

    return fail


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def class_list(words: list[str]) -> list[str]:
    """Split `--classes`: each word is one class, whatever it contains, but `0,2` is two indices."""
    numbers = re.compile(r"\d+(,\d+)+", re.ASCII)
    return [
        item for word in words for item in (word.split(",") if numbers.fullmatch(word) else [word])
    ]


def given_parameters(options: argparse.Namespace) -> dict[str, Any]:
    """Return the parameters of the endpoint that the flags name."""
    given = {name: getattr(options, name) for name in _PARAMETERS}
    given["classes"] = class_list(options.classes) if options.classes else None
    return {name: value for name, value in given.items() if value is not None}
