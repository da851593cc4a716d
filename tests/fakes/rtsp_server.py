"""An RTSP server whose pictures say when they were made: `/usr/bin/python3 rtsp_server.py PORT WIDTH HEIGHT`.

Needs Debian's python3-gi, gir1.2-gst-rtsp-server-1.0 and gstreamer1.0-plugins-{base,good}. Streams MJPEG at 25 frames
a second from rtsp://127.0.0.1:PORT/live and prints `ready` when it listens. Each picture holds the milliseconds of the
monotonic clock as 40 black and white blocks, 8 a row, lowest bit first: `made_ms` of the tests reads them again.
"""

import sys
import time

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

COLUMNS, ROWS, PERIOD_MS = 8, 5, 40


def picture(width: int, height: int) -> bytes:
    """Grey, row by row; width and height are multiples of 8 and 5."""
    bits = time.monotonic_ns() // 1_000_000
    lines = []
    for row in range(ROWS):
        levels = (240 if bits >> (row * COLUMNS + column) & 1 else 16 for column in range(COLUMNS))
        line = b"".join(bytes([level]) * (width // COLUMNS) for level in levels)
        lines.append(line * (height // ROWS))
    return b"".join(lines)


def stream(media, width: int, height: int) -> None:
    source = media.get_element().get_by_name_recurse_up("source")

    def push() -> bool:
        flow = source.emit("push-buffer", Gst.Buffer.new_wrapped(picture(width, height)))
        return flow == Gst.FlowReturn.OK

    GLib.timeout_add(PERIOD_MS, push)


def main() -> None:
    port, width, height = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(port)
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(
        "( appsrc name=source is-live=true do-timestamp=true format=time "
        f"caps=video/x-raw,format=GRAY8,width={width},height={height},framerate=25/1 "
        "! videoconvert ! video/x-raw,format=I420 ! jpegenc quality=90 ! rtpjpegpay name=pay0 pt=26 )"
    )
    factory.connect("media-configure", lambda _factory, media: stream(media, width, height))
    server.get_mount_points().add_factory("/live", factory)
    server.attach(None)
    print("ready", flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main()
