import assert from "node:assert/strict";
import { test } from "node:test";

import { CHUNK, Key, Twister, fill, permutation, seedOf, type Part } from "../src/random/index.ts";
import { assertNumbers, fromHex, hex, numbersOf, vectors, type Bits } from "./vectors.ts";

interface Keys {
  secret: string;
  keys: { parts: Part[]; stream: string }[];
  chained: { parts: Part[][]; stream: string };
  job_key: { device: string; job: string; stream: string };
  seeds: { parts: Part[]; seed: string }[];
}

interface Numbers {
  laws: { law: string; args: number[]; key: Part[]; out: Bits }[];
  second_stream: { key: Part[]; count: number; last_three: Bits };
  permutations: { key: Part[]; order: number[] }[];
}

interface Device {
  order: { epochs: number[][]; evaluation_at_step_5: number[] };
  masks: { key: Part[]; first_words: number[]; p: number; kept: number[] }[];
}

const KEYS = vectors<Keys>("vectors", "keys.json");
const NUMBERS = vectors<Numbers>("vectors", "numbers.json");
const DEVICE = vectors<Device>("vectors", "device.json");
const ROOT = new Key(fromHex(KEYS.secret));
const JOB = ROOT.at("device", KEYS.job_key.device, "job", KEYS.job_key.job);

test("keys have the streams of the vectors", () => {
  for (const { parts, stream } of KEYS.keys) assert.equal(hex(ROOT.at(...parts).stream(40)), stream, String(parts));
  const [first, second] = KEYS.chained.parts;
  assert.equal(hex(ROOT.at(...first).at(...second).stream(40)), KEYS.chained.stream);
  assert.equal(hex(JOB.stream(40)), KEYS.job_key.stream);
});

test("seeds are those of the vectors", () => {
  for (const { parts, seed } of KEYS.seeds) assert.equal(seedOf(...parts).toString(), seed);
});

test("a key is not shown", () => {
  assert.equal(JSON.stringify({ key: ROOT }), '{"key":"<Key>"}');
});

test("every law gives the numbers of the vectors", () => {
  for (const { law, args, key, out } of NUMBERS.laws) {
    const ours = numbersOf(out).map(() => 0);
    fill(ours, law, args, ROOT.at(...key));
    assertNumbers(ours, out, `${law} ${args.join(" ")} ${out.dtype}`);
  }
});

test("long tensors go on in a second stream", () => {
  const { key, count, last_three } = NUMBERS.second_stream;
  assert(count > CHUNK);
  const ours = new Float32Array(count);
  fill(ours, "uniform", [0, 1], ROOT.at(...key));
  assertNumbers(ours.slice(-3), last_three, "the last three");
});

test("orders are those of the vectors", () => {
  for (const { key, order } of NUMBERS.permutations) {
    assert.deepEqual([...permutation(order.length, ROOT.at(...key))], order);
  }
  DEVICE.order.epochs.forEach((order, epoch) => {
    assert.deepEqual([...permutation(order.length, JOB.at("order").at(epoch))], order);
  });
  const evaluated = DEVICE.order.evaluation_at_step_5;
  assert.deepEqual([...permutation(evaluated.length, JOB.at("evaluation").at(5))], evaluated);
});

test("dropout masks are those that torch draws from the same words", () => {
  for (const { key, first_words, p, kept } of DEVICE.masks) {
    const own = JOB.at(...key);
    assert.deepEqual([...new Uint32Array(own.stream(16).slice().buffer)], first_words);
    const mask = new Uint8Array(kept.length);
    Twister.of(own).bernoulli(mask, 1 - p);
    assert.deepEqual([...mask], kept);
  }
});
