// BullMQ on Redis, synced once a second or always, or on PostgreSQL.
// Usage: node bullmq.mjs drain|enqueue-one|http|latency|idle [always|postgres]
import { Queue, Worker, createPostgresBackend } from "bullmq";
import { Redis } from "ioredis";
import { atOnce, COUNT as MANY, idle, latencies, payload, poster, print } from "./common.mjs";

const store = process.argv[3] ?? "everysec";
const onPostgres = store === "postgres";
const COUNT = onPostgres ? MANY / 5 : MANY;
const connection = onPostgres
  ? { connectionString: process.env.TAKT_DATABASE_URL, max: 20, migrate: true }
  : new Redis({ host: "127.0.0.1", port: Number(store === "always" ? process.env.BENCH_REDIS_ALWAYS_PORT : process.env.BENCH_REDIS_PORT), maxRetriesPerRequest: null });
const backend = onPostgres ? [createPostgresBackend] : [];
const queue = new Queue("work", { connection }, ...backend);
await queue.obliterate({ force: true });
const kept = { removeOnComplete: true };

async function fill(count) {
  for (let first = 0; first < count; first += 1000) {
    await queue.addBulk(Array.from({ length: Math.min(1000, count - first) }, (_, i) => ({ name: "work", data: payload(first + i), opts: kept })));
  }
}

async function drained(count, concurrency, task) {
  let done = 0, finish;
  const all = new Promise((resolve) => (finish = resolve));
  const began = process.hrtime.bigint();
  const worker = new Worker("work", async (job) => { await task(job.data); }, { connection, concurrency }, ...backend);
  worker.on("completed", () => { if (++done === count) finish(); });
  await all;
  const rate = count / (Number(process.hrtime.bigint() - began) / 1e9);
  await worker.close();
  return rate;
}

const mode = process.argv[2];
if (mode === "drain") {
  await fill(COUNT);
  print(await drained(COUNT, 200, async () => {}));
} else if (mode === "http") {
  const count = Math.round(COUNT / 4);
  await fill(count);
  print(await drained(count, 50, poster()));
} else if (mode === "enqueue-one") {
  print(await atOnce(50, Math.round(COUNT / 4), (n) => queue.add("work", payload(n), kept)));
} else if (mode === "latency") {
  const added = new Map(), ms = [];
  const worker = new Worker("work", async (job) => { const now = performance.now(); ms.push(now - (added.get(job.data.n) ?? now)); }, { connection, concurrency: 8 }, ...backend);
  await worker.waitUntilReady();
  await latencies(ms, async (n) => {
    await queue.add("work", payload(n), kept);
    added.set(n, performance.now());
  });
  await worker.close();
} else if (mode === "idle") {
  const worker = new Worker("work", async () => {}, { connection, concurrency: 8 }, ...backend);
  await worker.waitUntilReady();
  await idle();
  await worker.close();
} else {
  throw new Error(`unknown mode ${mode}`);
}
await queue.close();
process.exit(0);
