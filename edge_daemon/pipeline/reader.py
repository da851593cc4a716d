"""Camera readers: one thread per camera, so that a camera that hangs hangs alone."""

import queue
import threading
from collections.abc import Callable
from dataclasses import replace

from edge_daemon.cameras.base import Camera, CameraSilent, EndOfFrames, FrameLost
from edge_daemon.core.camera_settings import Settings, counting, identical
from edge_daemon.core.clock import Clock
from edge_daemon.core.decision import Reason
from edge_daemon.core.frame import Frame
from edge_daemon.errors import CameraError
from edge_daemon.pipeline.inspection import OpenInspection, ViewOutcome
from edge_daemon.pipeline.station import FRAME_RESERVE_NS, Station

_POLL_NS = 50_000_000
_BACK_OFF_S = (0.1, 0.2, 0.5)
# Two seconds may pass between a fault of an idle camera and the loss of Trigger Ready. A camera that was silent for
# the first is asked for a sign of life; after the second Trigger Ready drops; after the third it is opened anew.
_SILENCE_NS, _DOUBT_NS, _PATIENCE_NS = 500_000_000, 100_000_000, 500_000_000
_REPORT_NS = 500_000_000
# One that brings frames is asked so often whether they are still what they should be: ours, and set as they were.
_LOOK_NS = 1_000_000_000
# So many triggers in a row without a frame, and a camera that answers all the same is opened anew (the trade's rule:
# three): somebody may have stopped it, or sent its stream elsewhere.
_STARVED = 3
# How long a thread may take to let go by itself, and then once its camera was closed under it.
_JOIN_S, _JOIN_CLOSED_S = 0.5, 2.5


class CameraReader:
    """Opens a camera, keeps it open, and brings its frames to its station.

    frame_wait_ns: how long a trigger waits for its frame. on_event: told of (name, message) when the
    camera is lost, comes back, or ends its replay; fatal: of an exception that is no CameraError.
    The queue of requests is unbounded here: the station bounds it, by the triggers it lets in.
    """

    def __init__(
        self,
        camera: Camera,
        station: Station,
        frame_wait_ns: int,
        clock: Clock,
        on_event: Callable[[str, str], None],
        fatal: Callable[[BaseException], None],
    ) -> None:
        self._camera = camera
        self._station = station
        self._views = station.views_of(camera.name)
        self._frame_wait_ns = frame_wait_ns
        self._exposed_within_ns = round(station.config.exposed_within_ms * 1e6)
        self._clock = clock
        self._on_event = on_event
        self._fatal = fatal
        self._requests: queue.SimpleQueue[OpenInspection | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._sign_of_life_ns = self._asked_ns = 0
        self._without_frame = 0  # triggers in a row
        self._reported_ns = 0
        self._in_step = False
        self._reported_settings: Settings | None = None  # nothing was said yet, not even that there are none
        self._thread = threading.Thread(target=self._run, name=f"camera-{camera.name}", daemon=True)

    @property
    def name(self) -> str:
        return self._camera.name

    def start(self) -> None:
        self._thread.start()

    def close(self) -> bool:
        """Stop and release the camera. False when it hangs: its thread is left to the end of the process."""
        self._stop.set()
        self._requests.put(None)
        if self._thread.is_alive():
            self._thread.join(_JOIN_S)
        if self._thread.is_alive():
            self._camera.close()  # the one call that may come from here: it ends the one that hangs
            self._thread.join(_JOIN_CLOSED_S)
        return not self._thread.is_alive()

    def request(self, inspection: OpenInspection) -> None:
        """Ask for the frames of one inspection (software trigger)."""
        self._requests.put(inspection)

    # -- the thread ----------------------------------------------------------------------------------

    def _run(self) -> None:
        failures = 0
        try:
            while not self._stop.is_set():
                if not self._open(failures):
                    failures += 1
                    continue
                failures = 0
                self._serve_until_lost()
        except Exception as error:  # a defect of the program, not of a camera
            self._station.camera_down(self.name, f"internal error: {error}")
            self._fatal(error)
        finally:
            self._camera.close()

    def _open(self, failures: int) -> bool:
        try:
            self._camera.open()
        except CameraError as error:
            if failures == 0:
                self._lost(error)
            self._fail_requests()
            self._stop.wait(_BACK_OFF_S[min(failures, len(_BACK_OFF_S) - 1)])
            return False
        self._sign_of_life_ns = self._asked_ns = self._clock.monotonic_ns()
        self._without_frame = 0
        self._report()
        self._station.camera_up(self.name)
        self._on_event("camera_connected", f"camera {self.name} is connected")
        return True

    def _lost(self, error: CameraError) -> None:
        self._station.camera_down(self.name, str(error))
        self._station.camera_counters(self.name, self._camera.counters())
        self._on_event("camera_lost", f"camera {self.name}: {error}")

    def _serve_until_lost(self) -> None:
        match self._station.config.trigger:
            case "software":
                serve = self._serve_trigger
            case "hardware":
                serve = self._serve_pulses
            case "free_run":
                serve = self._serve_free_run
        try:
            while not self._stop.is_set():
                try:
                    serve()
                except FrameLost as error:
                    self._on_event("frame_lost", str(error))
                self._report_when_due()
        except EndOfFrames as error:
            self._end_of_replay(error)
        except CameraError as error:
            self._lost(error)
            self._fail_requests()
        finally:
            self._camera.close()

    def _end_of_replay(self, error: EndOfFrames) -> None:
        """A finite replay has ended: the camera has no more frames, and says so to every trigger."""
        self._on_event("replay_ended", str(error))
        self._station.camera_down(self.name, str(error), Reason.NO_FRAME)
        while not self._stop.is_set():
            self._fail_requests(timeout_s=0.1)

    def _fail_requests(self, timeout_s: float = 0.0) -> None:
        """Whatever waits for a camera that is gone fails now."""
        try:
            while (inspection := self._requests.get(timeout=timeout_s)) is not None:
                self._fail(inspection, Reason.CAMERA)
                timeout_s = 0.0
        except queue.Empty:
            return

    def _fail(self, inspection: OpenInspection, reason: Reason) -> None:
        """Every view of this camera that has no frame yet fails."""
        for view in self._views:
            if view not in inspection.frames and view not in inspection.outcomes:
                self._station.view_done(inspection, view, ViewOutcome.failed(reason))

    # -- signs of life -------------------------------------------------------------------------------

    def _check_when_silent(self) -> None:
        """A camera that has not been heard of for half a second is asked whether it is there. Raises CameraError."""
        if self._clock.monotonic_ns() - self._sign_of_life_ns >= _SILENCE_NS:
            self._ask_for_a_sign_of_life(_DOUBT_NS)
            self._station.camera_answers(self.name)

    def _look_now_and_then(self) -> None:
        """Ask also a camera that brings one frame after the other. Not while its frame is awaited. Raises
        CameraError."""
        if self._clock.monotonic_ns() - self._asked_ns >= _LOOK_NS and not self._camera.overdue:
            self._ask_for_a_sign_of_life(_DOUBT_NS)

    def _ask_for_a_sign_of_life(self, doubt_ns: int) -> None:
        """Raises CameraError when none comes. After `doubt_ns` without one the station takes no triggers and who
        waits has failed; a PC that was merely busy has some time more before the connection is given up."""
        try:
            self._camera.check(doubt_ns)
        except CameraSilent as error:
            self._station.camera_down(self.name, str(error))
            self._camera.check(_PATIENCE_NS)
            self._station.camera_up(self.name)
        self._sign_of_life_ns = self._asked_ns = self._clock.monotonic_ns()

    def _report_when_due(self) -> None:
        if self._clock.monotonic_ns() - self._reported_ns >= _REPORT_NS:
            self._report()
        else:
            self._report_settings(self._camera.settings())

    def _report(self) -> None:
        """Tell the station what the camera counts and how it is set."""
        self._reported_ns = self._clock.monotonic_ns()
        self._station.camera_counters(self.name, self._camera.counters())
        self._report_settings(self._camera.settings())

    def _report_settings(self, settings: Settings) -> None:
        """A camera that is being closed has none: that is no news."""
        reported = self._reported_settings
        if (reported is None or not identical(settings, reported)) and not self._stop.is_set():
            self._station.camera_settings(self.name, settings)
            self._reported_settings = dict(settings)

    # -- frames --------------------------------------------------------------------------------------

    def _serve_trigger(self) -> None:
        try:
            inspection = self._requests.get(timeout=_SILENCE_NS / 1e9)
        except queue.Empty:
            self._check_when_silent()
            return
        self._station.camera_answers(self.name)
        if inspection is not None:
            self._take(inspection)
            self._station.camera_answers(self.name)
            if self._requests.empty():
                self._look_now_and_then()

    def _take(self, inspection: OpenInspection) -> None:
        """All exposures of the part, and only then what takes longer: meanwhile the part moves on."""
        taken: dict[str, Frame] = {}
        failed: Reason | None = None
        try:
            for view in self._views:
                if inspection.finished or view in inspection.outcomes:
                    break  # a view that has failed meanwhile must not be exposed: another part may lie there
                frame = self._expose(inspection)
                if isinstance(frame, Reason):
                    failed = frame
                    break
                taken[view] = frame
        except FrameLost:
            failed = Reason.CAMERA
            raise
        finally:
            for view, frame in taken.items():
                self._station.frame_arrived(inspection, view, frame)
            if failed is not None:
                self._give_up(inspection, failed)

    def _expose(self, inspection: OpenInspection) -> Frame | Reason:
        """One exposure of the part, or why there is none. Raises CameraError."""
        if self._clock.monotonic_ns() - inspection.accepted_ns > self._exposed_within_ns:
            return Reason.EXPOSED_LATE
        self._discard_old_frames()
        before = dict(self._camera.settings())
        asked_ns = self._clock.monotonic_ns()
        self._camera.trigger()
        frame = self._await_frame(inspection, asked_ns, before)
        if frame is None:
            return Reason.NO_FRAME
        self._sign_of_life_ns, self._without_frame = frame.arrived_ns, 0
        if frame.exposed_at_the_latest_ns - inspection.accepted_ns > self._exposed_within_ns:
            return Reason.EXPOSED_LATE
        return frame

    def _give_up(self, inspection: OpenInspection, reason: Reason) -> None:
        """The views without a frame fail. Raises CameraError when the camera that brought none is gone."""
        if reason is Reason.NO_FRAME:
            left_ns = inspection.deadline_ns - self._clock.monotonic_ns()
            self._ask_for_a_sign_of_life(max(0, min(_DOUBT_NS, left_ns // 2)))
        self._fail(inspection, reason)
        self._without_frame += reason is Reason.NO_FRAME
        if self._without_frame >= _STARVED:
            raise CameraError(
                f"camera {self.name}: answers, but has sent no frame for {self._without_frame} triggers in a row; it "
                "is opened anew. Check that its exposure fits into the time for a frame, that no firewall keeps its "
                "packets from this PC, and that no other program stops it"
            )

    def _discard_old_frames(self) -> None:
        """A frame that came after its trigger had given up must not be taken for the next part's."""
        while self._camera.grab(0) is not None:
            self._station.frame_nobody_asked_for(self.name)

    def _grab(self, timeout_ns: int, before: Settings | None = None) -> Frame | None:
        """The next frame, with what its camera was set to. before: what that was before the frame was asked for. The
        station has heard of its settings by then. Raises CameraError."""
        if before is None:
            before = dict(self._camera.settings())
        frame = self._camera.grab(timeout_ns)
        if frame is None:
            return None
        after = dict(self._camera.settings())
        self._report_settings(after)
        unchanged = identical(before, after) or identical(counting(before), counting(after))
        return replace(frame, settings=after if unchanged else {})

    def _await_frame(self, inspection: OpenInspection, asked_ns: int, before: Settings) -> Frame | None:
        """The first frame exposed after the trigger, or None when the time for it is up."""
        reserve_ns = min(FRAME_RESERVE_NS, (inspection.deadline_ns - inspection.accepted_ns) // 8)
        until_ns = min(asked_ns + self._frame_wait_ns, inspection.deadline_ns - reserve_ns)
        while (left_ns := until_ns - self._clock.monotonic_ns()) > 0 and not self._stop.is_set():
            frame = self._grab(left_ns, before)
            if frame is not None and _exposed_since(frame, asked_ns):
                return frame
            if frame is not None:
                self._station.frame_nobody_asked_for(self.name)
        return None

    def _serve_pulses(self) -> None:
        """Fetch whatever pulses brought, and only then let time decide: a part has no frame when none lies here. A
        frame that came incomplete is no interruption: the camera counted it, and its part will have none."""
        due_ns, asked_ns = self._station.next_pulse_ns(self.name), self._clock.monotonic_ns()
        wait_ns = _POLL_NS if due_ns is None else min(max(0, due_ns - asked_ns), _POLL_NS)
        frame = self._grab(wait_ns)
        if frame is None:
            self._check_when_silent()
        while frame is not None and not self._stop.is_set():
            self._sign_of_life_ns = frame.arrived_ns
            self._station.frame_of_pulse(self.name, frame)
            asked_ns = self._clock.monotonic_ns()
            frame = self._grab(0)
        self._station.camera_answers(self.name)
        if frame is None and not self._camera.overdue:
            self._station.pulses_fetched(self.name, asked_ns)
        self._tell_step()
        self._look_now_and_then()

    def _tell_step(self) -> None:
        """An event when pictures and announcements fall out of step, and when they are in step again."""
        doubt = self._station.out_of_step(self.name)
        if doubt and self._in_step:
            self._on_event("out_of_step", doubt)
        elif not doubt and not self._in_step:
            self._on_event("in_step", f"camera {self.name}: its pictures belong to what is announced")
        self._in_step = not doubt

    def _serve_free_run(self) -> None:
        if self._camera.waits_for_host and not self._station.wait_for_room(_POLL_NS / 1e9):
            self._check_when_silent()
            return
        try:
            frame = self._grab(_POLL_NS)
        except FrameLost:
            # A part may have been on it: it gets its record.
            self._station.frame_lost(self.name)
            raise
        if frame is None:
            self._check_when_silent()
            return
        self._sign_of_life_ns = frame.arrived_ns
        # A camera that shows parts in real time has triggered when it exposed, however long the frame was on its way.
        exposed_ns = None if self._camera.waits_for_host else frame.exposed_at_the_latest_ns
        self._station.frame_without_trigger(self.name, frame, exposed_ns)
        self._look_now_and_then()


def _exposed_since(frame: Frame, asked_ns: int) -> bool:
    """Whether the frame can be the answer to a trigger at `asked_ns`. A time of exposure after the arrival is none:
    the camera's clock has jumped, and nothing can be said of the frame."""
    if frame.exposed_ns is None:
        return frame.arrived_ns >= asked_ns
    earliest_ns = asked_ns - frame.exposed_uncertainty_ns
    latest_ns = frame.arrived_ns + frame.exposed_uncertainty_ns
    return frame.arrived_ns >= asked_ns and earliest_ns <= frame.exposed_ns <= latest_ns
