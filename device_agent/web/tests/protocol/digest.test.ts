import assert from "node:assert/strict";
import { test } from "node:test";

import { digestOf, strongDigest } from "../../src/protocol/digest.ts";
import { tensorOf, type TensorBits } from "../tensors.ts";
import { vectors } from "../vectors.ts";

const { digests, strong } = vectors<{
  digests: { name: string; values: (TensorBits | number | null)[]; digest: string }[];
  strong: { value: TensorBits; digest: string }[];
}>("vectors", "digests.json");

for (const { name, values, digest } of digests) {
  test(`the digest of ${name}`, () => {
    const found = values.map((value) => (typeof value === "object" && value !== null ? tensorOf(value) : value));
    assert.equal(digestOf(found), digest);
  });
}

test("strong digests", () => {
  for (const { value, digest } of strong) assert.equal(strongDigest(tensorOf(value)), digest);
});
