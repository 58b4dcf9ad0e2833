/** A small job package, made here: two classes of pictures of 1 × 2 × 2. */

import { createHash } from "node:crypto";

const SPEC = {
  name: "tiny", batch_size: 2, epochs: 3, seed: 1,
  model: { factory: "m:build", example: "m:example", cuts: ["a", "b"] },
  loss: { name: "cross_entropy" },
  optimizer: { name: "sgd", lr: 0.1 },
};
const SIGNATURE = {
  inputs: [{ name: "image", dtype: "float32", shape: [1, 2, 2] }],
  targets: [{ name: "label", dtype: "int64", shape: [] }],
  outputs: [{ name: "scores", dtype: "float32", shape: [2] }],
};

export function packageOf(spec: object = {}, signature: object = {}, needs: string[] = []) {
  const text: Record<string, object> = {
    "spec.json": { ...SPEC, ...spec },
    "signature.json": { ...SIGNATURE, ...signature },
    "head.json": { tensors: [] },
    "tail.json": { tensors: [] },
  };
  const parts = new Map(Object.entries(text).map(([name, value]) => [name, new TextEncoder().encode(JSON.stringify(value))]));
  const listed = [...parts].map(([name, bytes]) => [name, { sha256: createHash("sha256").update(bytes).digest("hex"), size: bytes.length }]);
  const manifest = { format: "spliteasy-job", version: 1, name: "tiny", ...(needs.length ? { needs } : {}), parts: Object.fromEntries(listed) };
  return { manifest: new TextEncoder().encode(JSON.stringify(manifest)), parts };
}
