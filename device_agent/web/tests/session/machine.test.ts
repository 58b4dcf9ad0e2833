/** The machine does what Python's does: it is handed the events of the transcripts, and gives their actions. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { fromHex } from "../../src/protocol/hex.ts";
import { Tensor } from "../../src/protocol/tensor.ts";
import type { Event } from "../../src/session/events.ts";
import { DeviceSession } from "../../src/session/machine.ts";
import type { Settings } from "../../src/session/plan.ts";
import type { TensorBits } from "../tensors.ts";
import { vectors } from "../vectors.ts";

interface Life {
  plan: Settings;
  held: number[];
  start: unknown[];
  steps: { event: { type: string }; ids: string[]; actions: unknown[]; state: string }[];
}

const book = vectors<{ tensors: (TensorBits & { strides: number[] })[]; lives: Life[] }>("vectors", "machine.json");

const tensors = book.tensors.map(({ dtype, shape, bytes, strides }) => {
  const plain = new Tensor(dtype, shape, fromHex(bytes));
  // The table has the elements in row-major order, and says how they lie in memory.
  return plain.bytes.length ? laid(plain, strides) : plain;
});

function laid(plain: Tensor, strides: number[]): Tensor {
  const item = plain.bytes.length / plain.size;
  const bytes = new Uint8Array(plain.bytes.length);
  for (let at = 0; at < plain.size; at++) {
    let rest = at;
    let to = 0;
    for (let dim = plain.shape.length - 1; dim >= 0; dim--) {
      to += (rest % plain.shape[dim]) * strides[dim];
      rest = Math.floor(rest / plain.shape[dim]);
    }
    bytes.set(plain.bytes.subarray(at * item, (at + 1) * item), to * item);
  }
  return new Tensor(plain.dtype, plain.shape, bytes, strides);
}

const numbers = new Map(tensors.map((tensor, number) => [tensor, number]));

/** What is recorded, with tensors in place of their numbers. */
function alive(told: unknown): unknown {
  if (Array.isArray(told)) return told.map(alive);
  if (typeof told !== "object" || told === null) return told;
  if ("tensor" in told) return tensors[told.tensor as number];
  return Object.fromEntries(Object.entries(told).map(([name, value]) => [name, alive(value)]));
}

/** What the machine said, as it is recorded. What is absent, null or an empty list is the same on the wire. */
function told(value: unknown): unknown {
  if (value instanceof Tensor) return { tensor: numbers.get(value) };
  if (value instanceof Error) return { error: value.name, message: value.message };
  if (Array.isArray(value)) return value.map(told);
  if (typeof value !== "object" || value === null) return value;
  const kept = Object.entries(value).filter(([, v]) => v !== null && v !== undefined && !(Array.isArray(v) && !v.length));
  return Object.fromEntries(kept.map(([name, v]) => [name, told(v)]));
}

test("every life gives the actions of the transcript", () => {
  for (const [number, life] of book.lives.entries()) {
    let ids: string[] = [];
    const session = new DeviceSession(life.plan, life.held, () => {
      const next = ids.shift();
      assert(next !== undefined, `life ${number}: one request too many`);
      return next;
    });
    assert.deepEqual(told(session.start()), told(life.start));
    for (const [at, step] of life.steps.entries()) {
      ids = [...step.ids];
      const where = `life ${number}, step ${at}: ${step.event.type}`;
      assert.deepEqual(told(session.handle(alive(step.event) as Event)), told(step.actions), where);
      assert.equal(session.state, step.state, where);
      assert.deepEqual(ids, [], `${where}: a request too few`);
    }
  }
});

test("the transcripts have every kind of event, action and state", () => {
  const seen = new Set(book.lives.flatMap(({ steps }) => steps.map(({ event }) => event.type)));
  for (const type of ["Fired", "StopAsked", "NotSent", "Hold", "Go", "LinkDown", "HeadBackwardDone", "EvalTailDone", "HandInDone"]) {
    assert(seen.has(type), type);
  }
  const states = new Set(book.lives.flatMap(({ steps }) => steps.map(({ state }) => state)));
  assert.equal(states.size, 18);
});
