"""Settings of cameras that are more than the fake one: in order, within bounds, read back."""

from collections.abc import Sequence
from typing import Any

import pytest

from edge_daemon.cameras.config import GigeConfig
from edge_daemon.cameras.genicam_settings import NodeError, Setup, Value, latched_clock_ns, ptp_locked
from edge_daemon.errors import CameraError

NODES: dict[str, Value] = {
    "UserSetSelector": "UserSet1", "UserSetLoad": False, "ExposureAuto": "Continuous", "GainAuto": "Once",
    "BinningHorizontal": 2, "AcquisitionMode": "SingleFrame", "PixelFormat": "Mono8",
    "Width": 640, "Height": 480, "OffsetX": 64, "OffsetY": 32, "ExposureTime": 5000.0, "Gain": 6.0,
    "AcquisitionFrameRateEnable": False, "AcquisitionFrameRate": 30.0,
    "TriggerSelector": "AcquisitionStart", "TriggerMode": "On", "TriggerSource": "Line0",
    "TriggerActivation": "LevelLow", "TriggerDelay": 9.0,
    "LineSelector": "Line0", "LineDebouncerTime": 1.0, "PtpEnable": False,
}  # fmt: skip
ENTRIES = {
    "UserSetSelector": ["Default", "UserSet1"], "ExposureAuto": ["Off", "Continuous"], "GainAuto": ["Off", "Once"],
    "AcquisitionMode": ["Continuous", "SingleFrame"], "PixelFormat": ["Mono8", "YUV422Packed", "Confidence8"],
    "TriggerSelector": ["AcquisitionStart", "FrameStart"], "TriggerMode": ["On", "Off"],
    "TriggerSource": ["Line0", "Line1", "Software"], "TriggerActivation": ["RisingEdge", "FallingEdge"],
    "LineSelector": ["Line0", "Line1"], "BalanceRatioSelector": ["Red", "Green"],
}  # fmt: skip


class ScriptedNodes:
    """A camera as a table. `after` changes what a write leaves behind; setting TriggerMode forgets the activation, as
    some firmware does."""

    def __init__(self, **after: Any) -> None:
        self.values, self.after, self.written = dict(NODES), after, list[tuple[str, Value]]()

    def has(self, node: str) -> bool:
        return node in self.values

    def read(self, node: str) -> Value:
        if node not in self.values:
            raise NodeError("not there")
        return self.values[node]

    def write(self, node: str, value: Value) -> None:
        self.written.append((node, value))
        self.values[node] = self.after.get(node, value)
        if node == "TriggerSource":
            self.values["TriggerActivation"] = "LevelLow"

    def bounds(self, node: str) -> tuple[float, float]:
        offset = {"Width": "OffsetX", "Height": "OffsetY"}.get(node)
        if offset:
            return 16, (1280 if node == "Width" else 1024) - int(self.values[offset])
        return 0, 1e6

    def increment(self, node: str) -> float:  # noqa: ARG002
        return 0.0

    def entries(self, node: str) -> Sequence[str]:
        return ENTRIES[node]

    def execute(self, node: str) -> None:
        self.written.append((node, True))


def setup(nodes: ScriptedNodes, **keys: Any) -> Setup:
    return Setup("top", nodes, GigeConfig.model_validate({"kind": "gige", "serial": "1", **keys}))


def test_what_an_earlier_program_left_is_gone_and_all_of_the_sensor_is_read() -> None:
    nodes = ScriptedNodes()
    made = setup(nodes)
    made.apply()
    found = made.verified()
    assert nodes.written[:2] == [("UserSetSelector", "Default"), ("UserSetLoad", True)]
    for node, value in {"ExposureAuto": "Off", "GainAuto": "Off", "BinningHorizontal": 1}.items():
        assert nodes.values[node] == value
    assert found["region"] == "1280x1024+0+0"
    assert (nodes.values["TriggerSource"], nodes.values["TriggerMode"]) == ("Software", "On")


def test_a_hardware_trigger_is_set_on_the_right_selector_and_after_what_resets_it() -> None:
    nodes = ScriptedNodes()
    made = setup(nodes, trigger="hardware", line="Line1", activation="FallingEdge", delay_us=12.5, debounce_us=3.0)
    made.apply()
    found = made.verified()
    names = [node for node, _ in nodes.written]
    assert nodes.values["TriggerSelector"] == "FrameStart"
    assert names.index("TriggerActivation") > names.index("TriggerSource")
    assert nodes.written[-1] == ("TriggerMode", "On")
    assert {key: found[key] for key in ("line", "activation", "delay_us", "debounce_us")} == {
        "line": "Line1", "activation": "FallingEdge", "delay_us": 12.5, "debounce_us": 3.0,
    }  # fmt: skip
    assert nodes.values["LineSelector"] == "Line1"


def test_a_free_run_has_every_trigger_off_and_its_rate() -> None:
    nodes = ScriptedNodes()
    made = setup(nodes, trigger="free_run", rate_hz=12.5, pixel_format="YUV422_8_UYVY", ptp=True)
    made.apply()
    assert made.verified()["pixel_format"] == "YUV422Packed", "under the name that the camera has for it"
    assert nodes.values["TriggerMode"] == "Off"
    assert (nodes.values["AcquisitionFrameRateEnable"], nodes.values["AcquisitionFrameRate"]) == (True, 12.5)
    assert nodes.values["PtpEnable"] is True


@pytest.mark.parametrize(
    ("keys", "after", "words"),
    [
        ({"exposure_us": 800.0}, {"ExposureTime": 700.0}, r"exposure_us was set to 800.*camera has 700"),
        ({"gain_db": 3.0}, {"Gain": 0.0}, r"gain_db was set to 3.*camera has 0"),
        ({"region": [0, 0, 101, 100]}, {"Width": 96}, r"width of region was set to 101.*camera has 96"),
        ({}, {"TriggerMode": "Off"}, r"trigger.*was set to On.*camera has Off"),
        ({}, {"GainAuto": "Once"}, r"GainAuto.*was set to Off.*camera has Once"),
    ],
)
def test_what_the_camera_does_not_keep_is_told_with_both_values(
    keys: dict[str, Any], after: dict[str, Any], words: str
) -> None:
    made = setup(ScriptedNodes(**after), **keys)
    made.apply()
    with pytest.raises(CameraError, match=f"camera top: {words}"):
        made.verified()


def test_a_value_within_the_cameras_own_step_is_fine_and_told_as_it_is() -> None:
    made = setup(ScriptedNodes(ExposureTime=796.0), exposure_us=800.0)
    made.apply()
    assert made.verified()["exposure_us"] == 796.0


def test_whatever_shapes_the_picture_is_told_configured_or_not() -> None:
    nodes = ScriptedNodes()
    nodes.values |= {
        "BlackLevel": 2.5, "Gamma": 0.9, "GammaEnable": True, "ReverseX": True, "BinningHorizontalMode": "Sum",
        "BalanceRatioSelector": "Green", "BalanceRatio": 1.0, "DeviceSerialNumber": "1", "GevSCPSPacketSize": 1500,
    }  # fmt: skip
    made = setup(nodes)
    made.apply()
    found = made.verified()
    assert found == {
        "pixel_format": "Mono8", "region": "1280x1024+0+0", "trigger": "software", "exposure_us": 5000.0,
        "gain_db": 6.0, "exposure_auto": "Off", "gain_auto": "Off", "black_level": 2.5, "gamma_enable": True,
        "gamma": 0.9, "binning_x": 1, "binning_x_mode": "Sum", "flip_x": True, "balance_red": 1.0, "balance_green": 1.0,
    }  # fmt: skip
    assert nodes.values["BalanceRatioSelector"] == "Green", "the selector stays where it was"


def test_what_a_camera_has_and_does_not_let_be_read_is_not_told_and_it_opens_all_the_same() -> None:
    nodes = ScriptedNodes()
    nodes.values |= {"Gamma": 0.9, "BalanceRatioSelector": "Red", "BalanceRatio": 1.0, "ReverseX": False}
    read = nodes.read

    def refuse(node: str) -> Value:
        if node in ("Gamma", "BalanceRatio"):
            raise NodeError("not readable now")
        return read(node)

    nodes.read = refuse  # type: ignore[method-assign]
    made = setup(nodes)
    made.apply()
    found = made.verified()
    assert found["flip_x"] is False
    assert not {"gamma", "balance_red"} & found.keys()


def test_a_region_that_only_fits_at_the_old_place_is_not_refused_for_it() -> None:
    made = setup(ScriptedNodes(), region=[0, 0, 1280, 1024])
    made.apply()
    assert made.verified()["region"] == "1280x1024+0+0"


def test_a_setting_that_somebody_else_changes_is_found_by_looking_at_one_after_the_other() -> None:
    nodes = ScriptedNodes()
    made = setup(nodes, exposure_us=8_000, gain_db=3.0)
    made.apply()
    made.verified()
    watch = made.watched()

    def look_at_all() -> None:
        for _ in watch.as_set:
            watch.look(nodes)

    look_at_all()
    look_at_all()
    for node, value, words in (
        ("ExposureTime", 8_200.0, "exposure_us is 8200 in the camera, 8000 in what it was set to"),
        ("OffsetX", 16, "OffsetX of region is 16"), ("ExposureAuto", "Continuous", "exposure_auto is"),
        ("TriggerMode", "Off", 'TriggerMode is "Off"'), ("PixelFormat", "YUV422Packed", "pixel_format is"),
    ):  # fmt: skip
        before, nodes.values[node] = nodes.values[node], value
        with pytest.raises(CameraError, match=words):
            look_at_all()
        nodes.values[node] = before
    nodes.values["ExposureTime"] = 8_010.0  # as a camera may round it
    del nodes.values["Gain"]  # cannot be read for now, which the sign of life is for
    look_at_all()


def test_the_cameras_clock_is_read_by_either_convention_or_not_at_all() -> None:
    nodes = ScriptedNodes()
    assert latched_clock_ns(nodes) is None
    nodes.values |= {
        "GevTimestampControlLatch": False,
        "GevTimestampValue": 250,
        "GevTimestampTickFrequency": 125_000_000,
    }
    assert latched_clock_ns(nodes) == 2_000
    nodes.values |= {"TimestampLatch": False, "TimestampLatchValue": 77}
    assert latched_clock_ns(nodes) == 77


def test_only_a_clock_that_follows_the_network_counts_as_locked() -> None:
    nodes = ScriptedNodes()
    assert not ptp_locked(nodes)
    for status, locked in (("Slave", True), ("Master", False), ("Listening", False)):
        nodes.values["PtpStatus"] = status
        assert ptp_locked(nodes) is locked
