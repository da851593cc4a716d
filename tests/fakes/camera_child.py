"""A camera's process that misbehaves as told: `python -m tests.fakes.camera_child SOCKET PARENT`.

Speaks the protocol of `edge_daemon.cameras.channel` with the standard library alone, so that it starts in no time and
cannot share a mistake with the real one. The name of the camera says what it does once it is open.
"""

import array
import json
import mmap
import os
import signal
import socket
import struct
import sys
import time
import zlib
from typing import Any

_HEADER = struct.Struct("<8sQQIIBBBqQQqq")
_SEALS = 0x1 | 0x2 | 0x4  # F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW
_F_ADD_SEALS = 1033


def main() -> None:
    connection = socket.socket(fileno=int(sys.argv[1]))
    behaviour, absent = "", 0
    while True:
        head = connection.recv(4, socket.MSG_WAITALL)
        if len(head) < 4:
            return
        request = json.loads(connection.recv(struct.unpack("<I", head)[0], socket.MSG_WAITALL))
        match request["ask"]:
            case "end":
                if behaviour != "never_ends":
                    return
            case "open":
                behaviour = request["name"]
                if behaviour == "silent_at_open":
                    signal.pause()
                if behaviour == "absent_twice" and (absent := absent + 1) <= 2:
                    say(connection, {"seq": request["seq"], "error": "camera", "message": "nobody there"})
                    continue
                say(connection, {"seq": request["seq"], "counters": {"completed": 1}})
            case "grab":
                misbehave(connection, request, behaviour)
            case _ if behaviour != "silent":
                say(connection, {"seq": request["seq"]})


def misbehave(connection: socket.socket, request: dict[str, Any], behaviour: str) -> None:
    seq = request["seq"]
    match behaviour:
        case "garbage":
            connection.sendall(struct.pack("<I", 7) + b"no json")
        case "no_object":
            connection.sendall(struct.pack("<I", 2) + b"[]")
        case "endless":
            connection.sendall(struct.pack("<I", 0xFFFFFFFF))
        case "half_a_message":
            connection.sendall(struct.pack("<I", 100) + b"{")
            os._exit(3)
        case "never_ends" | "silent":
            pass
        case "no_memory":
            say(connection, {"seq": seq, "frame": True, "memory": False})
        case "no_descriptor":
            say(connection, {"seq": seq, "frame": True, "memory": True})
        case _ if behaviour.startswith("slot_"):
            offer(connection, seq, behaviour)
        case _:
            say(connection, {"seq": seq})


def offer(connection: socket.socket, seq: int, behaviour: str) -> None:
    """A frame of 4x4 in a new memory, with something wrong about it."""
    now_ns = time.monotonic_ns()
    size = {"slot_tiny": 64, "slot_too_short": 4096}.get(behaviour, 8192)
    numbered = {"slot_of_another_request": seq + 1}.get(behaviour, seq)
    height, channels = (1 << 31 if behaviour == "slot_huge" else 4), (7 if behaviour == "slot_channels" else 0)
    arrived_ns = {"slot_old": now_ns - 10**10, "slot_from_the_future": now_ns + 10**10}.get(behaviour, now_ns)
    quality = 9 if behaviour == "slot_quality" else 0
    flags, exposed_ns = (4, now_ns - 10**10) if behaviour == "slot_lain" else (0, 0)
    fields = (b"edgeslot", numbered, 1, height, 4, channels, flags, quality, arrived_ns, 0, 0, exposed_ns, 1000)
    header = _HEADER.pack(*fields)
    crc = zlib.crc32(header) ^ (behaviour == "slot_torn")
    descriptor = os.memfd_create("fake", 0x1 | 0x2)
    os.ftruncate(descriptor, size)
    with mmap.mmap(descriptor, size) as memory:
        memory[: len(header) + 4] = (header + struct.pack("<I", crc))[:size]
    if behaviour != "slot_unsealed":
        import fcntl

        fcntl.fcntl(descriptor, _F_ADD_SEALS, _SEALS)
    say(connection, {"seq": seq, "frame": True, "memory": True}, descriptor)
    os.close(descriptor)


def say(connection: socket.socket, message: dict[str, Any], descriptor: int | None = None) -> None:
    text = json.dumps(message).encode()
    beside = [] if descriptor is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
    connection.sendmsg([struct.pack("<I", len(text)) + text], beside)


if __name__ == "__main__":
    main()
