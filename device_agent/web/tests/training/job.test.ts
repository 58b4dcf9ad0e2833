import assert from "node:assert/strict";
import { generateKeyPairSync, sign } from "node:crypto";
import { test } from "node:test";

import { JobError } from "../../src/errors.ts";
import { toHex } from "../../src/protocol/hex.ts";
import { checkSignature, digestOfManifest, openJob } from "../../src/training/job.ts";
import { refuseUnsupported } from "../../src/training/refusals.ts";
import { packageOf } from "./job_for_tests.ts";

test("a signed job is taken, and one that was altered or signed by another key is not", async () => {
  const { manifest } = packageOf();
  const [operator, other] = [generateKeyPairSync("ed25519"), generateKeyPairSync("ed25519")];
  const keyOf = (pair: typeof operator) => toHex(pair.publicKey.export({ format: "der", type: "spki" }).subarray(-32));
  const statement = Buffer.from(`spliteasy job 1\n${await digestOfManifest(manifest)}\n`);
  const signature = toHex(sign(null, statement, operator.privateKey));
  await checkSignature(manifest, signature, keyOf(operator));
  await assert.rejects(checkSignature(manifest, signature, keyOf(other)), JobError);
  await assert.rejects(checkSignature(manifest.map((byte, at) => (at === 3 ? byte ^ 1 : byte)), signature, keyOf(operator)), JobError);
  await assert.rejects(checkSignature(manifest, null, keyOf(operator)), JobError);
});

test("a package is read, and one with another byte, part or size is refused", async () => {
  const { manifest, parts } = packageOf();
  const job = await openJob(manifest, parts);
  assert.equal(job.name, "tiny");
  assert.equal(job.hasTail, true);
  for (const name of parts.keys()) {
    const damaged = new Map(parts).set(name, parts.get(name)!.map((byte, at) => (at ? byte : byte ^ 1)));
    await assert.rejects(openJob(manifest, damaged), JobError, name);
    const lacking = new Map(parts);
    lacking.delete(name);
    await assert.rejects(openJob(manifest, lacking), JobError, name);
  }
  await assert.rejects(openJob(manifest, new Map(parts).set("loss.json", new Uint8Array(2))), JobError);
  await assert.rejects(openJob(new Uint8Array(70_000), parts), JobError);
});

test("what this build can't do is refused by name", async () => {
  const refusals: [object, string][] = [
    [{ privacy: { peer_labels: true } }, "peer_labels"],
    [{ privacy: { dp: { expected_batch: 2, epsilon: 1 } } }, "dp"],
    [{ precision: "bf16" }, "precision"],
  ];
  for (const [spec, name] of refusals) {
    const { manifest, parts } = packageOf(spec);
    const job = await openJob(manifest, parts);
    assert.throws(() => refuseUnsupported(job), (error: JobError) => error.message.includes(name) && error.hint !== null);
  }
  const newer = packageOf({}, {}, ["teleportation"]);
  await assert.rejects(openJob(newer.manifest, newer.parts), /does not know yet/);
  const plain = packageOf();
  refuseUnsupported(await openJob(plain.manifest, plain.parts));
});
