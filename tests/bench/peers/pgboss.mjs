// pg-boss, fetched and completed in batches of 500. Usage: node pgboss.mjs drain|enqueue
import PgBoss from "pg-boss";
import { COUNT, payload, print } from "./common.mjs";

const boss = new PgBoss({ connectionString: process.env.TAKT_DATABASE_URL, supervise: false, schedule: false });
await boss.start();
await boss.createQueue("work");
await boss.purgeQueue("work");

async function fill() {
  for (let first = 0; first < COUNT; first += 1000) {
    await boss.insert(Array.from({ length: Math.min(1000, COUNT - first) }, (_, i) => ({ name: "work", data: payload(first + i) })));
  }
}

const mode = process.argv[2];
let began = process.hrtime.bigint();
await fill();
if (mode === "drain") {
  await boss.getDb().executeSql("VACUUM ANALYZE pgboss.job");
  began = process.hrtime.bigint();
  await Promise.all(Array.from({ length: 4 }, async () => {
    for (;;) {
      const jobs = await boss.fetch("work", { batchSize: 500 });
      if (jobs.length === 0) return;
      await boss.complete("work", jobs.map((job) => job.id));
    }
  }));
} else if (mode !== "enqueue") {
  throw new Error(`unknown mode ${mode}`);
}
print(COUNT / (Number(process.hrtime.bigint() - began) / 1e9));
await boss.stop({ graceful: false });
process.exit(0);
