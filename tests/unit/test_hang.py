from __future__ import annotations

from yolov5_server._hang import BUSY_SECONDS, HangDetector

LATE = "the endpoint does not answer an image in time"


class Server:
    """A server that is checked every two seconds.

    Args:
        share: CPU time used for each second.
        images: images finished each second.
    """

    def __init__(self, *, share: float, images: float = 0.0, may_be_busy: bool = True) -> None:
        self.detector = HangDetector()
        self.share, self.images, self.may_be_busy = share, images, may_be_busy
        self.now, self.cpu, self.finished = 0.0, 100.0, 0.0

    def check(self) -> str | None:
        self.now += 2.0
        self.cpu += 2.0 * self.share
        self.finished += 2.0 * self.images
        return self.detector.judge(
            LATE,
            may_be_busy=self.may_be_busy,
            now=self.now,
            cpu=self.cpu,
            finished=self.finished,
        )

    def hung_after(self, most: float = 1000.0) -> float | None:
        while self.now < most:
            if self.check():
                return self.now
        return None


def test_one_failure_is_no_hang() -> None:
    server = Server(share=0.0)
    assert server.check() is None
    server.detector.reset()
    assert server.check() is None
    assert server.detector.is_failing


def test_server_that_computes_nothing_is_hung() -> None:
    assert Server(share=0.0).hung_after() == 6.0
    assert Server(share=0.02).hung_after() == 6.0


def test_server_that_waits_for_cancelled_requests_is_not_hung() -> None:
    detector = HangDetector()
    verdicts = [
        detector.judge("saturated", may_be_busy=True, now=now, cpu=cpu, finished=progress)
        for now, cpu, progress in ((0.0, 1.0, 5), (1.5, 1.0, 5), (3.0, 1.0, 5), (3.4, 2.0, 6))
    ]
    assert verdicts == [None] * 4


def test_drop_in_cpu_time_after_a_process_ended_is_no_hang() -> None:
    detector = HangDetector()
    verdicts = [
        detector.judge("late", may_be_busy=True, now=now, cpu=cpu, finished=now)
        for now, cpu in ((0.0, 500.0), (2.0, 504.0), (4.0, 212.0), (6.0, 216.0))
    ]
    assert verdicts == [None] * 4


def test_server_that_fails_at_once_is_not_busy() -> None:
    assert Server(share=1.9, may_be_busy=False).hung_after() == 4.0


def test_busy_server_without_progress_is_hung_after_a_minute() -> None:
    server = Server(share=0.5)
    after = server.hung_after()
    assert after is not None and BUSY_SECONDS < after <= BUSY_SECONDS + 6


def test_busy_server_with_progress_is_never_hung() -> None:
    assert Server(share=1.5, images=0.2).hung_after() is None


def test_busy_server_that_stops_computing_is_hung() -> None:
    server = Server(share=1.0)
    for _ in range(5):
        assert server.check() is None
    server.share = 0.0
    assert server.check() is None
    assert server.check() == LATE


def judged(*canaries: tuple[float, float, float], may_be_busy: bool = True) -> list[str | None]:
    """Verdicts on canaries at these seconds, with CPU time and progress at that moment."""
    detector = HangDetector()
    return [
        detector.judge("late", may_be_busy=may_be_busy, now=now, cpu=cpu, finished=progress)
        for now, cpu, progress in canaries
    ]


def test_a_tenth_of_a_core_is_busy_and_less_is_not() -> None:
    assert judged((0, 50, 0), (10, 51, 0)) == [None, None]
    assert judged((0, 50, 0), (10, 50.5, 0)) == [None, "late"]
    assert judged((100, 50, 0), (110, 51, 0)) == [None, None]
    assert judged((100, 50, 0), (110, 50.5, 0)) == [None, "late"]


def test_four_idle_seconds_are_a_hang() -> None:
    assert judged((0, 50, 0), (3.9, 50, 0), (4.0, 50, 0)) == [None, None, "late"]
    assert judged((0, 50, 0), (3, 50, 1), (6.9, 50, 1), (7, 50, 1)) == [None, None, None, "late"]
    assert judged((0, 50, 0), (4, 51, 0), (7.9, 51, 0), (8, 51, 0)) == [None, None, None, "late"]


def test_minute_of_work_without_progress_is_a_hang() -> None:
    work = [(float(now), 50.0 + now, 7.0) for now in (0, 30, 60, 60.5)]
    sentence = "late, and nothing was finished for 60 s"
    assert judged(*work) == [None, None, None, sentence]
    progress = [(now, cpu, 7.0 + (now >= 30)) for now, cpu, _ in work]
    assert judged(*progress, (90.0, 140.0, 8.0), (90.5, 141.0, 8.0)) == [None] * 5 + [sentence]


def test_cpu_time_that_drops_a_little_is_not_judged() -> None:
    assert judged((0, 50, 0), (3, 50, 0), (6, 49.5, 0), (9, 49.5, 0)) == [None, None, None, "late"]


def test_answered_canary_begins_anew() -> None:
    detector = HangDetector()
    assert not detector.is_failing
    for _ in range(2):
        verdict = detector.judge("dead", may_be_busy=False, now=0, cpu=0, finished=0)
        assert (verdict, detector.is_failing) == (None, True)
        detector.reset()
        assert not detector.is_failing
