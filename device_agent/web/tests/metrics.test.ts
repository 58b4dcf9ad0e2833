/** Metrics and counts as Python takes them: `tests/web/metrics.py` writes them when pytest runs. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import type { LossSource } from "../src/engine/index.ts";
import { makeMetric } from "../src/training/metrics.ts";
import { bytesOf, engine, tensorOf, type Packed } from "./engine.ts";

interface Measured {
  readonly name: string;
  readonly loss: { readonly name: "cross_entropy" } | { readonly graph: string; readonly tensors: string; readonly targets: number };
  readonly batches: readonly { readonly outputs: readonly Packed[]; readonly targets: readonly Packed[]; readonly elements: number; readonly right: readonly number[] | null }[];
  /** The shares of the batches as micro-batches of one; null where no one share is right. */
  readonly shares: readonly number[] | null;
  /** Each metric that the loss has something for, after all batches. */
  readonly metrics: Readonly<Record<string, number | null>>;
  readonly refused: readonly string[];
}

const FILE = process.env.SPLITEASY_METRICS;

function sourceOf({ loss }: Measured): LossSource {
  return "name" in loss ? loss : { graph: bytesOf(loss.graph), tensors: bytesOf(loss.tensors), targets: loss.targets };
}

function close(ours: number | null, theirs: number | null, where: string): void {
  if (ours === null || theirs === null) assert.equal(ours, theirs, where);
  else assert(Math.abs(ours - theirs) <= 1e-5 * Math.max(1, Math.abs(theirs)), `${where}: ${ours}, not ${theirs}`);
}

async function measured(given: Measured): Promise<void> {
  const machine = await engine();
  const loss = await machine.loadLoss(sourceOf(given));
  const metrics = Object.keys(given.metrics).map((name) => [name, makeMetric(name, loss, new Map())] as const);
  for (const name of given.refused) assert.throws(() => makeMetric(name, loss, new Map()), /needs scores/, name);
  for (const [at, { outputs, targets, elements, right }] of given.batches.entries()) {
    const [made, wanted] = [outputs.map(tensorOf), targets.map(tensorOf)];
    close(await loss.elements(wanted), elements, `elements of batch ${at}`);
    assert.deepEqual(await loss.right(made, wanted), right, `right of batch ${at}`);
    for (const [, metric] of metrics) await metric.add(made, wanted);
  }
  const parts = given.batches.map(({ targets }) => targets.map(tensorOf));
  if (given.shares === null) await assert.rejects(loss.shares(parts), /unequally many/);
  else for (const [at, share] of (await loss.shares(parts)).entries()) close(share, given.shares[at], `share ${at}`);
  for (const [name, metric] of metrics) close(metric.value(), given.metrics[name], name);
  await loss.dispose();
  assert.equal((await machine.memory()).used, 0);
}

if (FILE) {
  for (const given of JSON.parse(readFileSync(FILE, "utf8")) as Measured[]) {
    test(`${given.name}: metrics as in Python`, () => measured(given));
  }
} else {
  test("metrics", { skip: "pytest writes what Python measured" }, () => undefined);
}
