// graphile-worker with the fastest preset of its documentation. Usage: node graphile.mjs drain|enqueue|enqueue-one|http|latency|idle
import pg from "pg";
import { run, makeWorkerUtils } from "graphile-worker";
import { atOnce, COUNT, idle, latencies, payload, poster, print } from "./common.mjs";

const connectionString = process.env.TAKT_DATABASE_URL;
const pool = new pg.Pool({ connectionString, max: 20 });
const utils = await makeWorkerUtils({ pgPool: pool });
await utils.migrate();
await pool.query("TRUNCATE graphile_worker._private_jobs");

const preset = {
  worker: {
    connectionString,
    maxPoolSize: 24,
    concurrentJobs: 24,
    localQueue: { size: 500, refetchDelay: { durationMs: 10 } },
    completeJobBatchDelay: 0,
    failJobBatchDelay: 0,
  },
};
// One latency-minded queue fetch at a time: the local queue would add its refetch delay.
const prompt = { worker: { connectionString, maxPoolSize: 10, concurrentJobs: 8, pollInterval: 2000 } };

async function fill(count) {
  for (let first = 0; first < count; first += 1000) {
    await utils.addJobs(Array.from({ length: Math.min(1000, count - first) }, (_, i) => ({ identifier: "work", payload: payload(first + i) })));
  }
}

async function drained(chosen, count, task) {
  await pool.query("VACUUM ANALYZE graphile_worker._private_jobs"); // its plans are poor until autovacuum has been there
  let done = 0, finish;
  const all = new Promise((resolve) => (finish = resolve));
  const began = process.hrtime.bigint();
  const runner = await run({ preset: chosen, taskList: { work: async (p) => { await task(p); if (++done === count) finish(); } }, noHandleSignals: true });
  await all;
  await runner.stop(); // completions are batched: they count
  return count / (Number(process.hrtime.bigint() - began) / 1e9);
}

const mode = process.argv[2];
if (mode === "drain") {
  await fill(COUNT);
  print(await drained(preset, COUNT, async () => {}));
} else if (mode === "http") {
  const count = Math.round(COUNT / 4);
  await fill(count);
  const fifty = { worker: { ...preset.worker, concurrentJobs: 50 } };
  print(await drained(fifty, count, poster()));
} else if (mode === "enqueue") {
  const began = process.hrtime.bigint();
  await fill(COUNT);
  print(COUNT / (Number(process.hrtime.bigint() - began) / 1e9));
} else if (mode === "enqueue-one") {
  print(await atOnce(50, Math.round(COUNT / 10), (n) => utils.addJob("work", payload(n))));
} else if (mode === "latency") {
  const committed = new Map(), ms = [];
  const runner = await run({ preset: prompt, taskList: { work: async (p) => { const now = performance.now(); ms.push(now - (committed.get(p.n) ?? now)); } }, noHandleSignals: true });
  await latencies(ms, async (n) => {
    const added = utils.addJob("work", payload(n));
    committed.set(n, performance.now());
    await added;
    committed.set(n, performance.now());
  });
  await runner.stop();
} else if (mode === "idle") {
  const runner = await run({ preset: prompt, taskList: { work: async () => {} }, noHandleSignals: true });
  await idle();
  await runner.stop();
} else {
  throw new Error(`unknown mode ${mode}`);
}
await utils.release();
await pool.end();
process.exit(0);
