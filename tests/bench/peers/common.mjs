// What every peer's program shares: the same counts and payloads as Takt's, and one line of output.
export const COUNT = Number(process.env.BENCH_COUNT ?? 100000);
export const LATENCY_COUNT = Number(process.env.BENCH_LATENCY_COUNT ?? 500);
const pad = "p".repeat(170);

/** About 200 bytes as JSON. */
export const payload = (n) => ({ n, pad });

export function percentile(values, share) {
  values.sort((a, b) => a - b);
  return values[Math.min(values.length - 1, Math.floor(share * values.length))];
}

export const print = (...values) => console.log("RESULT " + values.map((v) => v.toFixed(3)).join(" "));
