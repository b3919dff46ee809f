// amqplib on a quorum queue, prefetch 200, each message acknowledged, no database. Usage: node amqp.mjs consume|latency|idle
import amqp from "amqplib";
import { COUNT, idle, latencies, payload, print } from "./common.mjs";

const connection = await amqp.connect(process.env.TAKT_AMQP_URL, { noDelay: true });
const channel = await connection.createConfirmChannel();
const queue = "takt-peers";
await channel.deleteQueue(queue);
await channel.assertQueue(queue, { durable: true, arguments: { "x-queue-type": "quorum" } });
await channel.prefetch(200);

const mode = process.argv[2];
if (mode === "consume") {
  for (let n = 0; n < COUNT; n++) {
    channel.sendToQueue(queue, Buffer.from(JSON.stringify(payload(n))), { persistent: true });
    if (n % 1000 === 999) await channel.waitForConfirms();
  }
  await channel.waitForConfirms();
  let got = 0, finish;
  const all = new Promise((resolve) => (finish = resolve));
  const began = process.hrtime.bigint();
  await channel.consume(queue, (message) => { if (message === null) return; channel.ack(message); if (++got === COUNT) finish(); });
  await all;
  print(COUNT / (Number(process.hrtime.bigint() - began) / 1e9));
} else if (mode === "idle") {
  await channel.consume(queue, () => {});
  await idle();
} else {
  const sent = new Map(), ms = [];
  await channel.consume(queue, (message) => { if (message === null) return; ms.push(performance.now() - sent.get(JSON.parse(message.content.toString()).n)); channel.ack(message); });
  await latencies(ms, (n) => {
    sent.set(n, performance.now());
    channel.sendToQueue(queue, Buffer.from(JSON.stringify(payload(n))), { persistent: true });
  });
}
await channel.deleteQueue(queue);
await connection.close();
