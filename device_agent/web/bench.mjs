// Time the built engine: `node bench.mjs FILE`. FILE has a segment and its values; each line of input is one forward
// and backward, whose milliseconds are a line of output. `python -m benchmarks.browser_engine` asks.
import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const DIST = join(dirname(fileURLToPath(import.meta.url)), "dist");
const { createEngine } = await import(join(DIST, "engine.js"));
const job = JSON.parse(readFileSync(process.argv[2], "utf8"));
const bytes = (text) => new Uint8Array(Buffer.from(text, "base64"));
const tensor = ({ shape, data }) => ({ dtype: "float32", shape, data: new Float32Array(bytes(data).buffer) });

const engine = await createEngine({ kernels: readFileSync(join(DIST, "kernels.wasm")), maxBytes: 2 ** 31 });
const options = { role: "head", optimizer: { name: "sgd", lr: 0.01 }, key: new Uint8Array(32) };
const trainer = await engine.load({ graph: bytes(job.graph), tensors: bytes(job.tensors) }, options);
const [inputs, weights] = [job.inputs, job.weights].map((tensors) => tensors.map(tensor));
for await (const line of createInterface({ input: process.stdin })) {
  if (line === "memory") {
    console.log(JSON.stringify(await engine.memory()));
    continue;
  }
  const began = performance.now();
  const opened = await trainer.forward(inputs);
  await trainer.backward(opened, weights);
  console.log((performance.now() - began).toFixed(3));
}
