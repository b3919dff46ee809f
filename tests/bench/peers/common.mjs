// What every peer's program shares: the same counts and payloads as Takt's, and one line of output.
import { createHmac } from "node:crypto";
import { Pool } from "undici";

export const COUNT = Number(process.env.BENCH_COUNT ?? 100000);
const LATENCY_COUNT = Number(process.env.BENCH_LATENCY_COUNT ?? 500);
/** The first latencies, which are not counted, Takt's neither: what connections, statements and compiling cost once. */
const LATENCY_FIRST = 50;
const pad = "p".repeat(170);

/** About 200 bytes as JSON. */
export const payload = (n) => ({ n, pad });

function percentile(values, share) {
  values.sort((a, b) => a - b);
  return values[Math.min(values.length - 1, Math.floor(share * values.length))];
}

/** Waits as one does that has nothing to do; prints resident MiB and the share of a core in per cent. */
export async function idle() {
  await new Promise((resolve) => setTimeout(resolve, 5000));
  const before = process.cpuUsage(), began = performance.now();
  await new Promise((resolve) => setTimeout(resolve, 10000));
  const used = process.cpuUsage(before);
  print(process.memoryUsage.rss() / 2 ** 20, (used.user + used.system) / 10 / (performance.now() - began));
}

/** Sends one every 10 ms, waits until `ms` has the latencies of all, and prints p50 and p99 of LATENCY_COUNT after the first. */
export async function latencies(ms, send) {
  const all = LATENCY_FIRST + LATENCY_COUNT;
  for (let n = 0; n < all; n++) {
    const next = performance.now() + 10;
    await send(n);
    await new Promise((resolve) => setTimeout(resolve, Math.max(0, next - performance.now())));
  }
  while (ms.length < all) await new Promise((resolve) => setTimeout(resolve, 10));
  const counted = ms.slice(LATENCY_FIRST);
  print(percentile(counted, 0.5), percentile(counted, 0.99));
}

/** `put(n)` of 0 to `count`, `parallel` at once, after ten each to warm up: a second. */
export async function atOnce(parallel, count, put) {
  const each = async (from, to) => {
    let next = from;
    await Promise.all(Array.from({ length: parallel }, async () => { while (next < to) await put(next++); }));
  };
  await each(0, parallel * 10);
  const began = process.hrtime.bigint();
  await each(0, count);
  return count / (Number(process.hrtime.bigint() - began) / 1e9);
}

export const print = (...values) => console.log("RESULT " + values.map((v) => v.toFixed(3)).join(" "));

/** Signs and posts a payload as a job would, by the fastest client that Node.js has; resolves when the answer is read. */
export function poster() {
  const url = new URL(process.env.BENCH_URL);
  const pool = new Pool(url.origin, { connections: 50 });
  const key = Buffer.alloc(32, 7);
  return async (p) => {
    const body = JSON.stringify(p), stamp = Math.floor(Date.now() / 1000), id = `msg_${p.n}`;
    const signature = "v1," + createHmac("sha256", key).update(`${id}.${stamp}.${body}`).digest("base64");
    const headers = { "content-type": "application/json", "webhook-id": id, "webhook-timestamp": String(stamp), "webhook-signature": signature };
    const answer = await pool.request({ path: url.pathname, method: "POST", headers, body });
    await answer.body.dump();
    if (answer.statusCode >= 300) throw new Error(`answered ${answer.statusCode}`);
  };
}
