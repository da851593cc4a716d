"""deploy/docs/gateway.md, made from the words and registers of the gateway."""

import inspect
import re
from collections.abc import Sequence
from enum import Enum, IntEnum, IntFlag
from typing import Final

from edge_daemon.gateway.config import (
    DaemonConfig,
    GatewayConfig,
    JobConfig,
    MetricsConfig,
    ModbusConfig,
    OpcuaConfig,
    OpcuaUserConfig,
    Section,
    StationConfig,
)
from edge_daemon.gateway.registers import (
    COMMAND_ADDRESS,
    COMMANDS,
    REPORT_ADDRESS,
    REPORTS,
    RESULT_ADDRESS,
    RESULTS,
    Register,
    placed,
)
from edge_daemon.gateway.words import Bits, CommandBits, Disposition, ErrorCode, ReasonCode, Station, Verdict

_HEAD: Final = """\
# The gateway to the PLC

<!-- Made by `edge-gateway registers --page`; change the text in edge_daemon/gateway/. -->

`edge-gateway` is a process of its own beside the daemon. It takes the PLC's triggers, hands them to the daemon, and
shows the PLC each verdict that is proven. It is part of an inspection system, not of a safety function.

**The line rejects every part for which the PLC holds no valid, fresh OK.** The gateway is built so that no fault of
ours makes an OK; the PLC must be programmed so that nothing but an OK lets a part pass. Both halves are on this page.

## Set it up

```toml
# gateway.toml
[modbus]
host = "127.0.0.1"           # this PC's address on the PLC's network; then name the PLC in `clients`
port = 5020

[stations.st1]
unit = 1
window_ms = 800              # from trigger to verdict; shorter than the way from camera to gate

[stations.st1.jobs.1]
name = "flange"              # the recipes of this product
```

It needs the extra `gateway` (`pip install 'edge-daemon[gateway]'`). `edge-gateway check --config gateway.toml` says
what is wrong, `edge-gateway run --config gateway.toml` serves; `systemd/edge-gateway.service` runs it for good.
Modbus knows no passwords: give the PLC a network of its own, and name its address in `clients`.
"""

_DIALOGUE: Final = """\
## The dialogue

1. The PLC sets **Trigger Enable**. When everything is well, **Trigger Ready** comes.
2. A part is at the photo-eye: the PLC writes its number as **Acquisition Id** and raises **Trigger**, in one request.
3. The gateway answers with **Trigger Ack** (taken, on record) or **Missed Acquisition** (not taken, `missed_reason`
   says why) and echoes the id in `trigger_echo`. The PLC holds Trigger until then, and lowers it; the answer goes.
   Lowering Trigger before the answer takes it back: that part is never OK. Another id under a Trigger that is still
   high is no new trigger.
4. The verdict appears with **Results Valid**: id, code word, id again. It stays until the PLC writes the id as
   **Inspection Results Ack**; then the next one appears. Eight wait at most; one more is thrown away and said
   (**Buffer Overrun**). Results may come in another order than the triggers: go by the id.
5. An OK that is not acknowledged within `hold_ms` of its trigger becomes WITHDRAWN. A part without a verdict inside
   its window gets NO_VERDICT; three of these in a row are an **Error** that stays until **Clear Error** rises.
6. What became of the part, as gate and reject sensor saw it, the PLC may report with its command block:
   `disposition_id` and `disposition`, in the same request, until that is answered; then the next part's, or zeros. A
   program that leaves the report out (6 registers instead of 9) works as before. Reports change no verdict.

Whether the PLC took each verdict (`delivery`), and what it reports of the part (`disposition`), is added to the part's
record on the line PC, each once: see [Records](records.md). A part that is reported as PASSED or GATE_FAILURE although
no OK was shown for it is the alarm `passed_without_ok`, which stands until `edge-ctl acknowledge`.

What the daemon has not taken yet waits in the gateway's own file (`state_dir`), also across a restart or a `kill -9`
of either, up to 20,000 entries (five minutes at 30 parts a second); past that the oldest deliveries are dropped
first, and the alarm `amendments_full` says so. The file is written beside the dialogue: the answer to a Modbus
request does not wait for it (a `kill -9` in the few milliseconds after the answer loses the report, a power cut what
the last second said), Good of the OPC UA server does. Where it cannot be written (`outbox_failing`) or is damaged
(`outbox_damaged`: set aside, what can be read of it is told) the line runs on: both are in the log and in the metric
`edge_gateway_alarm`. A report on a part that this start of the gateway did not trigger is counted only.

Ids are the PLC's own. 0 is none; after 4294967295 comes 1; a restarted PLC may begin with any. An id that is still in
use is refused, and the older part's result withdrawn. Each scan takes two requests, so that some twenty parts a
second are what a cycle of 20 ms can carry.

OK is set only for a part that is open here, by a record that came live from the running daemon, with the trigger id
and result id that were promised, of the same boot, newer than the trigger, judged by the recipe set that was active
at the trigger and by the job's recipes, with every view of the station there once and OK, all scores finite and at most
their thresholds, on time, durable, in production, not simulated, not provisional (unless configured), inside the
window of this PC's monotonic clock.

## What the PLC must do

- **Reject unless all of this holds**: `result_id` and `result_id_again` are equal and the part's own id; the part was
  acknowledged by Trigger Ack; `verdict` is the OK word, compared as a whole word, never as a bit; and `heartbeat`
  **moved** within a time T that is shorter than the way from camera to gate.
- **Measure the time from raising Trigger to Trigger Ack**, and reject the part if it was longer than the part may lie
  before the picture is of something else: a request that the network held up triggers late.
- One request at a time: wait for its answer, or close the connection, before the next. Of more than 16 connections the
  one that has been silent for longest is closed.
- Write the whole command block every cycle: that is the PLC's sign of life (`plc_timeout_ms`). Read the whole result
  block in one request. A read that fails is a cycle without news, not a reason to keep what was read before.
- Begin with Trigger Enable low after every start of the PLC, and track no part across it.
- Track each part by its id from photo-eye to gate. Never take "the next result" for "the next part".
- Acknowledge every result, also one whose id is unknown.
- Compare `layout` with {layout}, so that another map is noticed.
- Check the gate: a reject sensor that does not see what the gate should have thrown stops the line, and is reported
  as GATE_FAILURE.
- Report what **sensors** saw, not what was commanded: PASSED behind the gate, REJECTED in the chute. Report each part
  after its trigger's answer and before its id is used again, and repeat the report until its request is answered.
"""

_EXAMPLE: Final = """\
## Example: the PLC's side in structured text

One station, one part between photo-eye and gate for brevity; track several in an array by their ids.

```
// Every cycle. io: your Modbus function blocks; FC16 to address {command}, FC03 from address {result}.
bits := 0;
bits.0 := running;                              // Trigger Enable; FALSE in the first cycle after a start
bits.1 := triggering;                           // Trigger
Write[0] := bits;                 Write[1] := jobId;
Write[2] := WORD(trigId / 65536); Write[3] := WORD(trigId MOD 65536);
Write[4] := WORD(ackId / 65536);  Write[5] := WORD(ackId MOD 65536);
Write[6] := WORD(toldId / 65536); Write[7] := WORD(toldId MOD 65536);
Write[8] := told;                               // leave 6 to 8 out if you report nothing: 6 registers then
io(ok => fresh, read => R);                     // fresh: both requests of this cycle were answered
IF fresh THEN low := NOT bits.1; END_IF;        // a Trigger that was never seen low is no new one

IF fresh AND R[0] = {layout} THEN
    beat := DWORD(R[8]) * 65536 + R[9];
    IF NOT seen THEN seen := TRUE; lastBeat := beat; END_IF;      // the first value is no movement
    IF beat <> lastBeat THEN lastBeat := beat; moved := TRUE; still(IN := FALSE); END_IF;

    echo := DWORD(R[4]) * 65536 + R[5];
    IF triggering AND echo = trigId THEN        // Trigger Ack or Missed Acquisition
        acknowledged := R[1].2;
        triggering := FALSE;
    END_IF;

    first := DWORD(R[11]) * 65536 + R[12];
    last  := DWORD(R[18]) * 65536 + R[19];
    IF first = last THEN
        ackId := first;                         // 0 acknowledges nothing
        IF tracked AND acknowledged AND first = trigId AND first <> 0 THEN
            good := (R[13] = 16#{ok:04X});          // the word, not a bit
        END_IF;
    END_IF;
END_IF;
still(IN := TRUE, PT := T);                     // Q when the counter stood still for T
unanswered(IN := triggering, PT := T);
IF unanswered.Q THEN triggering := FALSE; END_IF;

IF photoEye.rising THEN
    good := FALSE; acknowledged := FALSE;       // nothing is known of this part
    tracked := NOT triggering AND low;          // else this part is not asked for, and rejected
    IF tracked THEN
        trigId := trigId + 1; IF trigId = 0 THEN trigId := 1; END_IF;
        triggering := TRUE;                     // the id stays as it is while Trigger is high
    END_IF;
END_IF;

IF atGate.rising THEN
    eject := NOT (good AND moved AND NOT still.Q);  // everything else is rejected
    good := FALSE; tracked := FALSE;
    goneId := trigId; watch := TRUE;            // what do the sensors see of it?
END_IF;

sensors(IN := watch, PT := tSensors);           // Q when neither has seen it in time
IF watch AND (passSensor.rising OR rejectSensor.rising OR sensors.Q) THEN
    toldId := goneId; watch := FALSE;
    IF rejectSensor.rising THEN told := 2;      // REJECTED
    ELSIF passSensor.rising AND NOT eject THEN told := 1;   // PASSED
    ELSIF eject THEN told := 3; stop := TRUE;   // GATE_FAILURE: it may have passed
    ELSE told := 5; END_IF;                     // LOST
END_IF;
```
"""

_NODES: Final = """\
## OPC UA

For display, MES and diagnosis: `[opcua]` serves the same states and every record under the names of OPC 40100-1, for
reading. No part is released through it: it shows evaluations as recorded, not proven code words. With a certificate
it lets in only clients whose certificate is listed (`viewers`, `trusted`, `users`), signed and encrypted; without one
it listens on 127.0.0.1, for reading.

| role | may |
|---|---|
| viewer | browse, read, subscribe |
| operator | also write `Disposition` with REMOVED: a part was taken off by hand |
| plc | also write `Disposition` with every code, where the PLC reports here and not by Modbus |

A certificate that has expired or is not valid yet opens nothing, and ends what it has opened; 30 days before the end of
any of them, the server's included, the alarm `certificate` (`edge_gateway_alarm`) and `edge-gateway check` say so.

A client is its certificate, or a name with a password over a connection whose certificate is listed. Five wrong
passwords in a row refuse that name for 30 s. `Disposition` is one value, an array of two: Acquisition Id and code, as
in the registers; Good says that it is in the gateway's file, BadResourceUnavailable that it cannot be written there:
then write it again. Everything else is refused to everybody: triggers, acknowledgements, calls, changes of nodes.

```toml
[opcua]
endpoint = "opc.tcp://10.0.0.7:4840"
certificate = "opcua.der"
private_key = "opcua-key.pem"
viewers = ["mes.der"]
trusted = ["panel.der"]              # may connect; who sits there says so by name and password

[opcua.users.plc-7]
role = "plc"
certificate = "plc-7.der"

[opcua.users.anna]
role = "operator"
password = "anna.password"           # chmod 600; or /run/credentials/edge-gateway.service/anna.password
```

Namespace `urn:edge-daemon:gateway`; node ids `ns=…;s=STATION.NAME`.
"""


def register_table(layout: Sequence[Register], address: int) -> str:
    """A table in Markdown: address, name, type, meaning."""
    rows = [
        f"| {at} | `{register.name}` | {'UINT' if register.words == 1 else 'UDINT'} | {register.meaning} |"
        for at, register in placed(layout, address)
    ]
    return "\n".join(["| address | name | type | meaning |", "|---|---|---|---|", *rows])


def gateway_page() -> str:
    """The whole page."""
    from edge_daemon.gateway.opcua import DISPOSITION, RESULT_FIELDS, STATES

    ok, layout = int(Verdict.OK), RESULTS[0].meaning.split()[1].rstrip(";")
    nodes = [
        f"| `{path}{name}` | {kind.name} | {meaning} |"
        for path, fields in (("", (*STATES, DISPOSITION)), ("Result.", RESULT_FIELDS))
        for name, kind, meaning in fields
    ]
    sections = (
        _HEAD,
        _DIALOGUE.replace("{layout}", layout),
        "## Registers\n\nHolding registers, high word first; each block whole, in one request (functions 3, 4, 16,\n"
        "23). Anything less is refused.\n\nPLC to gateway:\n",
        register_table(COMMANDS, COMMAND_ADDRESS) + "\n\n" + _bits("command", CommandBits),
        "and right after it, in the same request, from who reports:\n",
        register_table(REPORTS, REPORT_ADDRESS) + "\n",
        _codes("disposition", Disposition, "{}"),
        "Gateway to PLC:\n",
        register_table(RESULTS, RESULT_ADDRESS) + "\n\n" + _bits("status", Bits),
        _codes("verdict", Verdict, "16#{:04X}"),
        _codes("error_code", ErrorCode, "{}"),
        _codes("reason", ReasonCode, "{}"),
        _states(),
        _EXAMPLE.replace("{command}", str(COMMAND_ADDRESS))
        .replace("{result}", str(RESULT_ADDRESS))
        .replace("{layout}", layout)
        .replace("{ok:04X}", f"{ok:04X}"),
        _NODES + "\n| node | type | meaning |\n|---|---|---|\n" + "\n".join(nodes) + "\n",
        "## Every key of gateway.toml\n",
        *_tables(),
    )
    return "\n".join(sections)


def _meanings(words: type[Enum]) -> dict[str, str]:
    """The text under each member in the source."""
    found = re.findall(r'^    ([A-Z_]+) = [^\n]*\n    """(.*?)"""', inspect.getsource(words), re.M | re.S)
    return {name: " ".join(text.split()) for name, text in found}


def _bits(register: str, bits: type[IntFlag]) -> str:
    meanings = _meanings(bits)
    rows = [
        f"| {flag.value.bit_length() - 1} | {flag.name} | {meanings.get(flag.name or '', '')} |"
        for flag in bits
        if flag.value
    ]
    return "\n".join([f"| bit of `{register}` | name | |", "|---|---|---|", *rows, ""])


def _codes(register: str, codes: type[IntEnum], form: str) -> str:
    meanings = _meanings(codes)
    rows = [f"| {form.format(int(code))} | {code.name} | {meanings.get(code.name, '')} |" for code in codes]
    return "\n".join([f"| `{register}` | name | |", "|---|---|---|", *rows, ""])


def _states() -> str:
    rows = [f"| {number} | {state.value} |" for number, state in enumerate(Station, start=1)]
    return "\n".join(["| `state` | |", "|---|---|", *rows, ""])


def _tables() -> list[str]:
    sections: tuple[tuple[str, type[Section]], ...] = (
        ("[daemon]", DaemonConfig),
        ("[modbus]", ModbusConfig),
        ("[opcua]", OpcuaConfig),
        ("[opcua.users.NAME]", OpcuaUserConfig),
        ("[metrics]", MetricsConfig),
        ("[stations.NAME]", StationConfig),
        ("[stations.NAME.jobs.NUMBER]", JobConfig),
    )
    tables = {"daemon", "modbus", "opcua", "metrics", "stations"}
    assert {*GatewayConfig.model_fields} == tables | {"state_dir"}
    state_dir = GatewayConfig.model_fields["state_dir"]
    row = f"| `state_dir` | `{state_dir.default}` | {' '.join((state_dir.description or '').split())} |"
    first = "\n".join(
        ["### At the top, before the first table", "", "| key | default | meaning |", "|---|---|---|", row, ""]
    )
    return [first, *(_table(heading, section) for heading, section in sections)]


def _table(heading: str, section: type[Section]) -> str:
    rows = []
    for key, field in section.model_fields.items():
        if key in ("jobs", "users"):
            continue
        shown = "required" if field.is_required() else "" if field.default in (None, ()) else f"`{field.default}`"
        rows.append(f"| `{key}` | {shown} | {' '.join((field.description or '').split())} |")
    head = [f"### `{heading}`", "", inspect.cleandoc(section.__doc__ or ""), "", "| key | default | meaning |"]
    return "\n".join([*head, "|---|---|---|", *rows, ""])
