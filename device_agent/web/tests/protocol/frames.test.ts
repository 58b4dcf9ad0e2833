import assert from "node:assert/strict";
import { test } from "node:test";

import { WireError } from "../../src/errors.ts";
import { Assembler } from "../../src/protocol/assembler.ts";
import { toFrames } from "../../src/protocol/frames.ts";
import { fromHex, toHex } from "../../src/protocol/hex.ts";
import { ByteRanges, type Range } from "../../src/protocol/ranges.ts";
import { vectors } from "../vectors.ts";

const { cut, refused } = vectors<{
  cut: { body: string; message_id: string; chunk_bytes: number; skip: Range[]; frames: string[] }[];
  refused: { why: string; bytes: string }[];
}>("vectors", "frames.json");

test("bodies are cut as the vectors say", () => {
  for (const vector of cut) {
    const made = toFrames(fromHex(vector.body), vector.message_id, vector.chunk_bytes, vector.skip);
    assert.deepEqual([...made].map(toHex), vector.frames);
  }
});

test("frames give the body that they were cut from, in any order and in two sizes", () => {
  for (const vector of cut) {
    const body = fromHex(vector.body);
    const have = new ByteRanges(vector.skip);
    const small = [...toFrames(body, vector.message_id, 1)].filter((_, at) => have.covers(at, at + 1));
    const frames = [...vector.frames.map(fromHex), ...small.reverse()];
    const assembler = new Assembler();
    const outcomes = frames.map((frame) => assembler.add(frame));
    assert.equal(outcomes.filter(Boolean).length, 1);
    assert.equal(toHex(outcomes.find(Boolean)!.body), vector.body);
    assert.deepEqual(assembler.unfinished(), []);
  }
});

for (const { why, bytes } of refused) {
  test(`a frame is refused: ${why}`, () => assert.throws(() => new Assembler().add(fromHex(bytes)), WireError));
}

test("a message that contradicts itself is dropped, and one that is too large is refused", () => {
  const [one] = toFrames(new Uint8Array(250), "0123456789abcdef", 100);
  const [other] = toFrames(new Uint8Array(250).fill(7), "0123456789abcdef", 100);
  const assembler = new Assembler(1000);
  assert.equal(assembler.add(one), null);
  assert.deepEqual(assembler.held("0123456789abcdef"), [[0, 100]]);
  assert.throws(() => assembler.add(other), WireError);
  assert.deepEqual(assembler.unfinished(), []);
  const [large] = toFrames(new Uint8Array(1001), "0123456789abcdef", 100);
  assert.throws(() => assembler.add(large), WireError);
});

test("an unfinished message that nothing comes of is forgotten", () => {
  let now = 0;
  const assembler = new Assembler(1000, () => now);
  assembler.add([...toFrames(new Uint8Array(250), "0123456789abcdef", 100)][0]);
  now = 120_000;
  assembler.add([...toFrames(new Uint8Array(250), "fedcba9876543210", 100)][0]);
  assert.deepEqual(assembler.unfinished(), ["fedcba9876543210"]);
});
