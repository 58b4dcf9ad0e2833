/** Heads and tails that PyTorch trained, trained here: `tests/web/trainings.py` writes them when pytest runs. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { tensorsFromBytes, type Engine, type LossSource, type SegmentTrainer, type TrainerOptions, type Value } from "../src/engine/index.ts";
import { assertClose, bytesOf, engine, tensorOf, type Packed } from "./engine.ts";

type Recorded = Packed | number | null;

interface Step {
  readonly inputs: readonly Recorded[];
  readonly outputs: readonly Recorded[];
  readonly weights?: readonly Recorded[];
  readonly loss?: number;
  readonly targets?: readonly Packed[];
  readonly gradients: readonly Recorded[];
}

interface Training {
  readonly name: string;
  readonly role: "head" | "tail";
  readonly settings: Pick<TrainerOptions, "optimizer" | "schedule" | "clip" | "accumulate">;
  readonly graph: string;
  readonly tensors: string;
  readonly loss: null | { name: "cross_entropy" } | { graph: string; tensors: string; targets: number };
  readonly steps: readonly Step[];
  readonly inputs: readonly Recorded[];
  readonly evaluated: readonly Recorded[];
  readonly state: string;
}

/** Steps on from each other: what differs in the first is larger in the third. */
const TOLERANCE = 3e-4;
const SHARE = 0.75;
const FILE = process.env.SPLITEASY_TRAININGS;

const valueOf = (recorded: Recorded): Value => (typeof recorded === "number" ? recorded : tensorOf(recorded!));

function same(ours: Value | null, theirs: Recorded, where: string): void {
  if (typeof ours === "number" || typeof theirs === "number" || !ours || !theirs) assert.equal(ours, theirs, where);
  else assertClose(ours, tensorOf(theirs), TOLERANCE, where);
}

function load(machine: Engine, { role, settings, graph, tensors }: Training): Promise<SegmentTrainer> {
  const key = Uint8Array.from({ length: 32 }, (_, place) => place);
  return machine.load({ graph: bytesOf(graph), tensors: bytesOf(tensors) }, { role, key, ...settings });
}

function lossSource({ loss }: Training): LossSource | null {
  if (!loss || "name" in loss) return loss;
  return { graph: bytesOf(loss.graph), tensors: bytesOf(loss.tensors), targets: loss.targets };
}

async function trained(machine: Engine, training: Training): Promise<void> {
  const trainer = await load(machine, training);
  const source = lossSource(training);
  const loss = source && (await machine.loadLoss(source));
  for (const [at, step] of training.steps.entries()) {
    const where = `${training.name}, step ${at + 1}`;
    const opened = await trainer.forward(step.inputs.map(valueOf));
    step.outputs.forEach((theirs, place) => same(opened.outputs[place], theirs, `${where}, output ${place}`));
    let gradients;
    if (loss) {
      const found = await trainer.backwardFromLoss(opened, loss, step.targets!.map(tensorOf), SHARE);
      assert(Math.abs(found.loss - step.loss!) < 1e-4 * Math.max(1, step.loss!), `${where}: loss ${found.loss}, not ${step.loss}`);
      gradients = found.gradients;
    } else {
      gradients = await trainer.backward(opened, step.weights!.map((weight) => (weight === null ? null : tensorOf(weight as Packed))));
    }
    step.gradients.forEach((theirs, place) => same(gradients[place], theirs, `${where}, gradient ${place}`));
    assert.equal(await trainer.notFinite(), null);
    await trainer.apply();
  }
  const evaluated = await trainer.evaluate(training.inputs.map(valueOf));
  training.evaluated.forEach((theirs, place) => same(evaluated[place], theirs, `${training.name}, evaluation ${place}`));
  const [ours, theirs] = [await trainer.snapshot(), tensorsFromBytes(bytesOf(training.state))];
  assert.deepEqual(Object.keys(ours).sort(), Object.keys(theirs).sort(), training.name);
  for (const [name, tensor] of Object.entries(theirs)) assertClose(ours[name], tensor, TOLERANCE, `${training.name}, ${name}`);
  await trainer.dispose();
  await loss?.dispose();
}

if (FILE) {
  const machine = await engine();
  for (const training of JSON.parse(readFileSync(FILE, "utf8")) as Training[]) {
    test(`${training.name} trains as in PyTorch`, () => trained(machine, training));
  }
} else {
  test("trainings", { skip: "pytest writes what PyTorch trained" }, () => undefined);
}
