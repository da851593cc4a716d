// Prints one line a part: [EDGE_KEY=mes-1.key] node subscriber.mjs [endpoint] [station] [count]
// The prebuilt library comes with the package: npm ci
import { readFileSync } from "node:fs";
import { Subscriber } from "zeromq";

const [endpoint = "tcp://127.0.0.1:5561", station = "", count = "Infinity"] = process.argv.slice(2);
const file = process.env.EDGE_KEY ? readFileSync(process.env.EDGE_KEY, "utf8") : ""; // TOML, one `name = "value"` a line
const key = (name) => file.match(new RegExp(`^${name} = "(.{40})"$`, "m"))?.[1];
const socket = new Subscriber({ linger: 0, maxMessageSize: 64 * 1024 * 1024, heartbeatInterval: 1000,
  heartbeatTimeout: 3000, heartbeatTimeToLive: 3000, ...(file && { curveServerKey: key("server_public_key"),
    curvePublicKey: key("public_key"), curveSecretKey: key("secret_key") }) });
socket.connect(endpoint);
socket.subscribe(station ? `result/${station}/` : "result/"); // the last slash: st1 must not catch st10

const position = new Map(); // station -> { boot, seq } of the last record seen
let seen = 0;
for await (const [topic, header] of socket) {
  let result;
  try {
    result = JSON.parse(header.toString("utf8"));
  } catch { /* not JSON: falls through to the check of the schema */ }
  if (result?.schema !== "edge-daemon/result/1" || `result/${result.station}/` !== topic.toString()) {
    console.error(`not understood, not acted upon: ${topic}`);
    continue;
  }
  const last = position.get(result.station) ?? { boot: result.boot_id, seq: result.seq - 1 };
  const expected = last.boot === result.boot_id ? last.seq + 1 : 1;
  if (result.seq < expected) continue; // seen before
  if (result.seq > expected) console.error(`gap: ${result.station} boot ${result.boot} seq ${expected}..${result.seq - 1}`);
  position.set(result.station, { boot: result.boot_id, seq: result.seq });

  // Only this is a good part; everything else is not, whatever it is called.
  const good = result.evaluation === "OK" && result.result_state === "Completed" && result.mode === "production" && !result.simulated;
  const scores = result.views.map((v) => `${v.camera} ${v.score ?? "-"}/${v.threshold ?? "-"}`).join(", ");
  console.log(`${result.station} ${result.seq} ${result.part_id ?? result.trigger_id} ${result.evaluation} ` +
    `${result.reason || "-"} ${good ? "good" : "not good"} ${scores}`);
  if (++seen >= Number(count)) break;
}
socket.close();
