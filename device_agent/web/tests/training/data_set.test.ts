import assert from "node:assert/strict";
import { test } from "node:test";

import { DataError } from "../../src/errors.ts";
import { Key } from "../../src/random/index.ts";
import { BatchOrder, EvaluationBatches } from "../../src/training/batch_order.ts";
import { DataSet } from "../../src/training/data_set.ts";
import { openJob } from "../../src/training/job.ts";
import { packageOf } from "./job_for_tests.ts";

async function dataOf(spec: object = {}, count = 12): Promise<DataSet> {
  const { manifest, parts } = packageOf(spec);
  const data = new DataSet(await openJob(manifest, parts));
  data.add({ inputs: Uint8Array.from({ length: 4 * count }, (_, at) => at), labels: Array.from({ length: count }, (_, at) => at % 2) });
  return data;
}

test("every fifth sample of a label is held back, and all others are in each epoch once", async () => {
  const data = await dataOf();
  const { train, test: held } = data.parts();
  assert.deepEqual(held, [8, 9]);
  const { manifest, parts } = packageOf();
  const job = await openJob(manifest, parts);
  const order = new BatchOrder(data, job, new Key(new Uint8Array(32)));
  assert.equal(order.stepsPerEpoch, 5);
  assert.equal(order.totalSteps, 15);
  const seen = (epoch: number) =>
    Array.from({ length: 5 }, (_, step) => [...order.batch(epoch * 5 + step + 1).inputs.floats()].filter((_, at) => at % 4 === 0))
      .flat().map((value) => Math.round((value * 255) / 4));
  assert.deepEqual([...seen(0)].sort((a, b) => a - b), train);
  assert.notDeepEqual(seen(0), seen(1));
  assert.deepEqual(seen(0), seen(0));
  const tests = new EvaluationBatches(data, job, new Key(new Uint8Array(32)));
  assert.equal(tests.count, 1);
  assert.equal(tests.batch(0, 5).inputs.shape[0], 2);
});

test("pictures are scaled by the job's recipe", async () => {
  const data = await dataOf({ data: { kind: "images", classes: ["no", "yes"], mean: [0.5], std: [0.25] } }, 1);
  const { inputs, targets } = data.gather([0]);
  const expected = [0, 1, 2, 3].map((byte) => Math.fround(Math.fround(Math.fround(byte / 255) - 0.5) / 0.25));
  assert.deepEqual([...inputs.floats()], expected);
  assert.deepEqual(targets.shape, [1]);
  assert.deepEqual(data.classNames, ["no", "yes"]);
});

test("samples that do not fit are refused, and none of them is taken", async () => {
  const data = await dataOf();
  for (const labels of [[2], [-1], [0.5], [NaN], [0, 1]]) {
    assert.throws(() => data.add({ inputs: new Uint8Array(4), labels }), DataError);
  }
  assert.throws(() => data.add({ inputs: new Uint8Array(3), labels: [0] }), DataError);
  assert.throws(() => data.add({ inputs: new Float32Array(4), labels: [0] }), DataError);
  assert.equal(data.count, 12);
});

test("what is kept comes back, and another sample has another fingerprint", async () => {
  const [data, again] = [await dataOf(), await dataOf()];
  again.clear();
  again.load(data.state());
  assert.equal(again.fingerprint, data.fingerprint);
  again.add({ inputs: new Uint8Array(4), labels: [1] });
  assert.notEqual(again.fingerprint, data.fingerprint);
});

test("too few samples are told", async () => {
  const { manifest, parts } = packageOf({ batch_size: 2, drop_last: true });
  const job = await openJob(manifest, parts);
  const data = new DataSet(job);
  data.add({ inputs: new Uint8Array(4), labels: [1] });
  assert.throws(() => new BatchOrder(data, job, new Key(new Uint8Array(32))), /samples to train on/);
});

test("a training that adds up batches takes whole sums only, and at least one", async () => {
  const data = await dataOf();
  const orderFor = async (accumulate: number) => {
    const { manifest, parts } = packageOf({ accumulate });
    return new BatchOrder(data, await openJob(manifest, parts), new Key(new Uint8Array(32)));
  };
  assert.equal((await orderFor(4)).totalSteps, 12);
  await assert.rejects(orderFor(16), /adds up 16/);
});
