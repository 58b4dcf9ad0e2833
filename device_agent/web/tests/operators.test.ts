import { test } from "node:test";

import { assertClose, bytesOf, engine, tensorOf, type Packed } from "./engine.ts";
import { tensorsToBytes } from "../src/engine/index.ts";
import { vectors } from "./vectors.ts";

interface Vector {
  readonly name: string;
  readonly graph: string;
  readonly inputs: readonly Packed[];
  readonly outputs: readonly Packed[];
  readonly weights: readonly (Packed | null)[];
  readonly gradients: readonly (Packed | null)[];
}

const VALUES = 1e-5;
const GRADIENTS = 1e-4;
const NONE = tensorsToBytes({});
const OPTIONS = { role: "head", optimizer: { name: "sgd", lr: 0.1 }, key: new Uint8Array(32) } as const;

const machine = await engine();

for (const vector of vectors<Vector[]>("web", "operators.json")) {
  test(`${vector.name}: results and gradients are PyTorch's`, async () => {
    const trainer = await machine.load({ graph: bytesOf(vector.graph), tensors: NONE }, OPTIONS);
    const opened = await trainer.forward(vector.inputs.map(tensorOf));
    vector.outputs.forEach((theirs, place) => {
      const ours = opened.outputs[place];
      if (typeof ours === "number") throw new Error("an integer, not a tensor");
      assertClose(ours, tensorOf(theirs), VALUES, `${vector.name}, output ${place}`);
    });
    const gradients = await trainer.backward(opened, vector.weights.map((weight) => weight && tensorOf(weight)));
    vector.gradients.forEach((theirs, place) => {
      const ours = gradients[place];
      if (!theirs !== !ours) throw new Error(`gradient ${place}: ${ours ? "one too many" : "missing"}`);
      if (ours && theirs) assertClose(ours, tensorOf(theirs), GRADIENTS, `${vector.name}, gradient ${place}`);
    });
    await trainer.dispose();
  });
}

test("nothing stays in memory", async () => {
  const { used } = await machine.memory();
  if (used !== 0) throw new Error(`${used} bytes are still in use`);
});
