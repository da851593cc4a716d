"""What a video device and a stream say of their settings, from a capture of the test's own."""

from typing import Any

import cv2

from edge_daemon.cameras.config import RtspConfig, UsbConfig
from edge_daemon.cameras.opencv import read_back

USB = UsbConfig.model_validate({"kind": "usb", "device": 0, "mono": True})
STREAM = RtspConfig.model_validate({"kind": "rtsp", "url": "rtsp://192.0.2.1/live"})
PICTURE = {cv2.CAP_PROP_FRAME_WIDTH: 640.0, cv2.CAP_PROP_FRAME_HEIGHT: 480.0, cv2.CAP_PROP_FPS: 30.00003,
           cv2.CAP_PROP_FOURCC: float(int.from_bytes(b"YUYV", "little"))}  # fmt: skip
SHOWN = {"width": 640, "height": 480, "fps": 30.0, "fourcc": "YUYV"}


class Device:
    """A capture as a table of properties."""

    def __init__(self, **controls: float) -> None:
        self.values = PICTURE | {getattr(cv2, f"CAP_PROP_{name}"): value for name, value in controls.items()}

    def get(self, prop: int) -> float:
        return self.values.get(prop, -1.0)


def found(device: Any, config: UsbConfig | RtspConfig = USB) -> dict[str, Any]:
    return dict(read_back(device, config))


def test_a_device_tells_the_controls_that_it_has() -> None:
    device = Device(AUTO_EXPOSURE=1, EXPOSURE=156, GAIN=0, AUTO_WB=0, WB_TEMPERATURE=4600)
    assert found(device) == SHOWN | {
        "mono": True, "exposure_auto": 1, "exposure": 156, "gain": 0, "balance_auto": 0, "balance_kelvin": 4600,
    }  # fmt: skip


def test_what_an_automatic_chooses_from_picture_to_picture_is_no_setting() -> None:
    device = Device(AUTO_EXPOSURE=3, EXPOSURE=156, AUTO_WB=1, WB_TEMPERATURE=4600, AUTOFOCUS=1, FOCUS=30)
    assert found(device) == SHOWN | {"mono": True, "exposure_auto": 3, "balance_auto": 1, "focus_auto": 1}


def test_a_device_that_does_not_say_whether_it_is_automatic_tells_its_values() -> None:
    assert found(Device(EXPOSURE=156))["exposure"] == 156


def test_a_stream_says_nothing_of_exposure_and_gain() -> None:
    device = Device(EXPOSURE=156, GAIN=3)
    assert found(device, STREAM) == SHOWN | {"mono": False}
