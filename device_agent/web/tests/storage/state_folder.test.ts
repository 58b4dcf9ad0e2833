import assert from "node:assert/strict";
import { test } from "node:test";

import { StateError } from "../../src/errors.ts";
import { Tensor } from "../../src/protocol/tensor.ts";
import { MemoryFolder } from "../../src/storage/folder.ts";
import { StateFolder } from "../../src/storage/state_folder.ts";

const BINDING = { job: "ab", device: "phone-1", fingerprint: "cd" };
const ROWS = { "head/weight": Tensor.float32([2, 3], Float32Array.of(1, 2, 3, 4, 5, 6)) };

async function opened(): Promise<[MemoryFolder, StateFolder]> {
  const folder = new MemoryFolder();
  return [folder, await StateFolder.open(folder)];
}

test("what was written is there after the folder is opened again", async () => {
  const [folder, state] = await opened();
  const secret = await state.secret();
  await state.bind(BINDING);
  await state.saveEnds(ROWS);
  await state.saveCheckpoint(3, ROWS);
  const first = await state.raiseAttempt(0);
  const again = await StateFolder.open(folder);
  assert.deepEqual(await again.secret(), secret);
  assert.deepEqual(again.binding, BINDING);
  assert.deepEqual(await again.ends(), ROWS);
  assert.deepEqual(again.held(), [3]);
  assert.deepEqual(await again.loadCheckpoint(3), ROWS);
  assert.equal((await again.raiseAttempt(0)).number, first.number + 1);
  assert.equal((await again.raiseAttempt(40)).number, 41);
});

test("a damaged checkpoint counts as absent, whichever byte it is", async () => {
  const [folder, state] = await opened();
  await state.saveCheckpoint(1, ROWS);
  const [name] = [...folder.files.keys()].filter((each) => each.startsWith("checkpoint"));
  const whole = folder.files.get(name)!;
  for (const at of [0, 9, whole.length - 1]) {
    folder.files.set(name, whole.map((byte, place) => (place === at ? byte ^ 1 : byte)));
    assert.deepEqual((await StateFolder.open(folder)).held(), []);
  }
  folder.files.set(name, whole.slice(0, 5));
  assert.deepEqual((await StateFolder.open(folder)).held(), []);
});

test("a folder is of one job, device and data set, and of one secret", async () => {
  const [folder, state] = await opened();
  await state.secret();
  await state.bind(BINDING);
  await state.bind(BINDING);
  for (const other of [{ job: "x" }, { device: "x" }, { fingerprint: "x" }]) {
    await assert.rejects(state.bind({ ...BINDING, ...other }), StateError);
  }
  folder.files.delete("secret");
  await assert.rejects((await StateFolder.open(folder)).secret(), StateError);
  folder.files.set("binding", new Uint8Array(3));
  await assert.rejects(StateFolder.open(folder), StateError);
});

test("checkpoints that the server may fall back to are kept", async () => {
  const [folder, state] = await opened();
  for (const step of [0, 10, 20, 30, 40, 50]) await state.saveCheckpoint(step, ROWS);
  await state.prune(15, 2);
  assert.deepEqual(state.held(), [10, 20, 40, 50]);
  await state.dropAfter(20);
  assert.deepEqual(state.held(), [10, 20]);
  await state.prune(5, 1);
  assert.deepEqual((await StateFolder.open(folder)).held(), [10, 20]);
});
