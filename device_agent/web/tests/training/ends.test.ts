import assert from "node:assert/strict";
import { test } from "node:test";

import { JobError } from "../../src/errors.ts";
import { fromHex } from "../../src/protocol/hex.ts";
import { drawEnds, jobKey } from "../../src/training/ends.ts";
import { checkEntropy } from "../../src/training/entropy.ts";
import type { Ends } from "../../src/training/job.ts";
import { bitsOf, type TensorBits } from "../tensors.ts";
import { vectors } from "../vectors.ts";

const { ends } = vectors<{ ends: { "ends.json": string; drawn: Record<string, Record<string, TensorBits>> } }>("vectors", "device.json");
const { secret } = vectors<{ secret: string }>("vectors", "keys.json");
const LAW = JSON.parse(ends["ends.json"]) as Ends;
const WEIGHTS = [{ path: "head/0.weight", size: 30, rows: 5 }, { path: "tail/7.weight", size: 15, rows: 3 }];

test("first weights are drawn as the vectors say", () => {
  const drawn = drawEnds(LAW, jobKey(fromHex(secret), "phone-1", "ab".repeat(32)).at("ends"));
  for (const [role, table] of Object.entries(ends.drawn)) {
    for (const [name, bits] of Object.entries(table)) assert.deepEqual(bitsOf(drawn[`${role}/${name}`]), bits);
  }
});

test("a law that gives everybody the same is refused, unless the job says that it is public", () => {
  checkEntropy(LAW, WEIGHTS, () => false);
  const constant = { ...LAW, law: { ...LAW.law, steps: LAW.law!.steps!.map((step) => ({ ...step, args: [0.1, 0.1] })) } };
  assert.throws(() => checkEntropy(constant, WEIGHTS, () => false), JobError);
  assert.throws(() => checkEntropy({}, WEIGHTS, () => false), JobError);
  checkEntropy({}, WEIGHTS, () => true);
});

test("a law that reaches outside its memory, or needs too much of it, is refused", () => {
  const { memory, views, steps } = LAW.law!;
  const laws: Ends["law"][] = [
    { ...LAW.law, memory: [{ ...memory![0], size: 29 }, ...memory!.slice(1)] },
    { ...LAW.law, memory: [...memory!, { dtype: "float32", size: 1 << 22 }] },
    { ...LAW.law, views: views!.slice(0, 1) },
    { ...LAW.law, steps: [{ ...steps![0], args: [NaN, 1] }] },
    { ...LAW.law, steps: [{ ...steps![0], op: "aten.linalg_qr.default" }] },
    { ...LAW.law, steps: [{ ...steps![0], out: [99] }] },
  ];
  const key = jobKey(new Uint8Array(32), "a", "b");
  for (const law of laws) assert.throws(() => drawEnds({ ...LAW, law }, key), JobError, JSON.stringify(law));
});
