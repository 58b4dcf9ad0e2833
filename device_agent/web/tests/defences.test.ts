/** What crosses the cuts, as Python computes it from the same numbers: `tests/web/defences.py` writes it when pytest runs. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import type { Tensor } from "../src/engine/index.ts";
import { Key } from "../src/random/index.ts";
import { CutTransforms } from "../src/training/privacy/cut_transforms.ts";
import { pythonNumber, RandomizedResponse } from "../src/training/privacy/label_dp.ts";
import { perturbed } from "../src/training/ends.ts";
import { fromEngine, toEngine } from "../src/training/values.ts";
import { assertClose, tensorOf, type Packed } from "./engine.ts";

type Name = "inputs" | "clean" | "sent" | "labels" | "down" | "restored" | "tail_gradient" | "up" | "came" | "returned";

interface Defended {
  readonly cuts: readonly ({ readonly settings: object } & Readonly<Record<Name, Packed>>)[];
  readonly answers: readonly { readonly epsilon: number; readonly labels: readonly number[]; readonly answers: readonly number[] }[];
  readonly perturbed: { readonly value: Packed; readonly moved: Packed };
}

const STEP = 3;
const SHARE = 0.75;
const TOLERANCE = 1e-5;
const FILE = process.env.SPLITEASY_DEFENCES;
const key = new Key(Uint8Array.from({ length: 32 }, (_, place) => place));

function same(ours: unknown, theirs: Packed, where: string): void {
  assertClose(ours as Tensor, tensorOf(theirs), TOLERANCE, where);
}

function crossing(given: Defended["cuts"][number]): void {
  const made = new CutTransforms(given.settings, key);
  const [inputs, clean, labels, down, gradient, came] =
    ([given.inputs, given.clean, given.labels, given.down, given.tail_gradient, given.came]).map(tensorOf);
  const order = made.order([clean], "activations", STEP);
  const sent = made.activations([clean], "activations", STEP, order);
  same(sent[0], given.sent, "sent");
  same(made.inOrder([down], order)[0], given.restored, "restored");
  same(made.gradients([gradient], labels, STEP, order)[0], given.up, "gradients that go up");
  same(made.returned([inputs], [clean], sent, [came], SHARE, order)[0], given.returned, "gradients of the head");
}

if (FILE) {
  const given = JSON.parse(readFileSync(FILE, "utf8")) as Defended;
  for (const [at, each] of given.cuts.entries()) test(`what crosses under ${JSON.stringify(each.settings)}, ${at % 2 ? "one class" : "two classes"}`, () => crossing(each));
  for (const { epsilon, labels, answers } of given.answers) {
    test(`the answers to labels at ${epsilon}`, () => {
      const response = new RandomizedResponse(epsilon, 4, key.at("labels", "fingerprint", pythonNumber(epsilon)));
      assert.deepEqual(labels.map((label, place) => response.answer(label, place)), answers);
    });
  }
  test("public weights are moved", () => {
    same(toEngine(perturbed(fromEngine(tensorOf(given.perturbed.value)), 0.1, key.at("perturb", "w"))), given.perturbed.moved, "weights");
  });
} else {
  test("defences", { skip: "pytest writes what Python computes" }, () => undefined);
}
