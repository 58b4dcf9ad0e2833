import assert from "node:assert/strict";
import { test } from "node:test";

import { WireError } from "../../src/errors.ts";
import { decode, encode } from "../../src/protocol/envelope.ts";
import { fromHex, toHex } from "../../src/protocol/hex.ts";
import { vectors } from "../vectors.ts";

interface Told {
  kind?: string;
  name?: string;
  header: { m: Record<string, unknown>; v: unknown[] };
  bytes: string;
}

const { messages, values, refused } = vectors<{
  messages: Told[];
  values: Told[];
  refused: { why: string; bytes: string }[];
}>("vectors", "envelopes.json");

for (const vector of [...messages, ...values]) {
  test(`an envelope is read and written: ${vector.kind ?? vector.name}`, () => {
    const message = decode(fromHex(vector.bytes));
    const { values: carried, ...fields } = message;
    assert.deepEqual(fields, vector.header.m);
    assert.equal(carried.length, vector.header.v.length);
    const again = encode(message);
    assert.deepEqual(decode(again), message);
    // JSON of JavaScript writes the number 1.0 as 1, which is the same number to a reader.
    if (!/\d\.0[,}]/.test(new TextDecoder().decode(fromHex(vector.bytes)))) assert.equal(toHex(again), vector.bytes);
  });
}

for (const { why, bytes } of refused) {
  test(`an envelope is refused: ${why}`, () => assert.throws(() => decode(fromHex(bytes)), WireError));
}

test("a newer minor version may have fields that are unknown here", () => {
  const data = fromHex(messages[0].bytes);
  const text = JSON.stringify({ m: { ...messages[0].header.m, surprise: [1] }, v: [], x: 1 });
  const made = new Uint8Array(12 + text.length);
  made.set(data.subarray(0, 12));
  made.set(new TextEncoder().encode(text), 12);
  const view = new DataView(made.buffer);
  view.setUint32(8, text.length, true);
  assert.throws(() => decode(made), WireError);
  view.setUint16(6, 99, true);
  assert.equal(decode(made).kind, messages[0].kind);
});
