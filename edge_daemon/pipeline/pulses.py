"""What a station says and assumes about pulses on a wire; see `core.binding`."""

from collections.abc import Mapping

from edge_daemon.config import HardwareConfig
from edge_daemon.core.binding import BindFault, BindingWindow
from edge_daemon.core.decision import Reason

_NS_PER_MS = 1_000_000

_REASONS: Mapping[BindFault, Reason] = {
    BindFault.NO_FRAME: Reason.NO_FRAME,
    BindFault.AMBIGUOUS: Reason.TRIGGER_AMBIGUOUS,
    BindFault.SECOND_FRAME: Reason.TRIGGER_AMBIGUOUS,
    BindFault.COUNT: Reason.TRIGGER_COUNT,
    BindFault.STRAY: Reason.TRIGGER_COUNT,
    BindFault.CLOCK: Reason.CAMERA_CLOCK,
    BindFault.OUT_OF_STEP: Reason.OUT_OF_STEP,
    BindFault.STREAM: Reason.CAMERA,
}


def reason_of(fault: BindFault) -> Reason:
    """The word of the record for a part without a frame of its own."""
    return _REASONS[fault]


def binding_window(config: HardwareConfig) -> BindingWindow:
    """The configuration's milliseconds in nanoseconds. They fit together, or `load_config` would have refused them."""
    return BindingWindow(
        earliest_ns=round(config.earliest_ms * _NS_PER_MS),
        latest_ns=round(config.latest_ms * _NS_PER_MS),
        shortest_delay_ns=round(config.shortest_delay_ms * _NS_PER_MS),
        longest_delay_ns=round(config.longest_delay_ms * _NS_PER_MS),
        quiet_ns=round(config.quiet_ms * _NS_PER_MS),
    )


def advice(camera: str, doubt: BindFault | None, config: HardwareConfig) -> str:
    """The alarm of a station that is out of step."""
    why = f" ({doubt.value})" if doubt is not None else ""
    return (
        f"camera {camera}: nobody can say which part its pictures show{why}. No trigger is taken until neither a "
        f"pulse nor an announcement came for {config.quiet_ms / 1_000:g} s: stop the parts for that long. If it comes "
        "back, check the wire, the announcements and the times in the station's table `hardware`"
    )
