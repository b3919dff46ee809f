// pg-boss, fetched and completed in batches of 500. Usage: node pgboss.mjs drain|enqueue|latency|idle
import { PgBoss } from "pg-boss";
import { COUNT, idle, latencies, payload, print } from "./common.mjs";

const boss = new PgBoss({ connectionString: process.env.TAKT_DATABASE_URL, supervise: false, schedule: false });
await boss.start();
await boss.createQueue("work");
await boss.getDb().executeSql("TRUNCATE pgboss.job"); // what earlier rounds completed stays otherwise

async function fill() {
  for (let first = 0; first < COUNT; first += 1000) {
    await boss.insert("work", Array.from({ length: Math.min(1000, COUNT - first) }, (_, i) => ({ data: payload(first + i) })));
  }
}

const mode = process.argv[2];
if (mode === "drain") {
  await fill();
  await boss.getDb().executeSql("VACUUM ANALYZE pgboss.job");
  const began = process.hrtime.bigint();
  await Promise.all(Array.from({ length: 4 }, async () => {
    for (;;) {
      const jobs = await boss.fetch("work", { batchSize: 500 });
      if (jobs.length === 0) return;
      await boss.complete("work", jobs.map((job) => job.id));
    }
  }));
  print(COUNT / (Number(process.hrtime.bigint() - began) / 1e9));
} else if (mode === "enqueue") {
  const began = process.hrtime.bigint();
  await fill();
  print(COUNT / (Number(process.hrtime.bigint() - began) / 1e9));
} else if (mode === "latency") {
  // Its own worker looks twice a second at most; this one fetches again every 10 ms.
  await boss.getDb().executeSql("VACUUM ANALYZE pgboss.job");
  const added = new Map(), ms = [];
  let over = false;
  const worker = (async () => {
    while (!over) {
      for (const job of await boss.fetch("work", { batchSize: 50 })) {
        const now = performance.now();
        ms.push(now - (added.get(job.data.n) ?? now));
        await boss.complete("work", job.id);
      }
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  })();
  await latencies(ms, async (n) => {
    await boss.send("work", payload(n));
    added.set(n, performance.now());
  });
  over = true;
  await worker;
} else if (mode === "idle") {
  await boss.work("work", { pollingIntervalSeconds: 0.5 }, async () => {});
  await idle();
} else {
  throw new Error(`unknown mode ${mode}`);
}
await boss.stop({ graceful: false });
process.exit(0);
