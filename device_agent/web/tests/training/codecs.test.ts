import assert from "node:assert/strict";
import { test } from "node:test";

import { WireError } from "../../src/errors.ts";
import type { Meta } from "../../src/protocol/packed.ts";
import { Tensor } from "../../src/protocol/tensor.ts";
import { decode, encode } from "../../src/training/codecs/codec.ts";
import { Packer, unpack } from "../../src/training/codecs/packer.ts";
import { parseCodec } from "../../src/training/codecs/registry.ts";
import { bitsOf, tensorOf, type TensorBits } from "../tensors.ts";
import { vectors } from "../vectors.ts";

interface Case {
  codec: string;
  value: TensorBits;
  parts: TensorBits[];
  meta: Meta;
  decoded: TensorBits;
}

const book = vectors<{ seed: number; codecs: Case[] }>("vectors", "codecs.json");

for (const [number, { codec: name, value, parts, meta, decoded }] of book.codecs.entries()) {
  const codec = parseCodec(name);
  if (codec === null) continue;
  test(`${name}, case ${number}`, async () => {
    const found = await encode(codec, tensorOf(value), BigInt(book.seed), null);
    // A browser's deflate can't be told to use Huffman codes only: its bytes are others that say the same.
    if (name !== "lossless") {
      assert.deepEqual(found.parts.map(bitsOf), parts);
      assert.deepEqual(found.meta, meta);
    }
    for (const [its, about] of [[parts.map(tensorOf), meta], [found.parts, found.meta]] as const) {
      assert.deepEqual(bitsOf(await decode(codec, its, about, value.shape, "float32")), decoded);
    }
  });
}

test("a permuted tensor comes back permuted, and NaN and infinities stay", async () => {
  const odd = Float32Array.of(NaN, -Infinity, 1.5, -0, 3e-40, 65519, 70000, -2, 0, 0.1, 1e-8, 7);
  const tensor = new Tensor("float32", [3, 4], new Uint8Array(odd.buffer), [1, 3]);
  for (const name of ["lossless", "bf16", "fp16", "topk:0.5"]) {
    const codec = parseCodec(name)!;
    const found = await encode(codec, tensor, null, null);
    const back = await decode(codec, found.parts, found.meta, [3, 4], "float32");
    assert.deepEqual(back.strides, [1, 3]);
    assert(Number.isNaN(back.floats()[0]), name);
    assert.equal(back.floats()[1], -Infinity, name);
    if (name === "lossless") assert.deepEqual(back.bytes, tensor.bytes);
    if (name === "fp16") assert.deepEqual([...back.floats().slice(5, 7)], [65504, Infinity]);
  }
});

test("what a codec does not write is refused", async () => {
  const flat = Tensor.float32([8], Float32Array.of(5, 0, 0, 0, 0, 0, 0, 1));
  for (const name of ["fp16", "int8", "topk:0.25", "lossless"]) {
    const codec = parseCodec(name)!;
    const { parts, meta } = await encode(codec, flat, null, null);
    await assert.rejects(decode(codec, [...parts, parts[0]], meta, [8], "float32"), WireError);
    await assert.rejects(decode(codec, parts, { ...meta, x: 1 }, [8], "float32"), WireError);
    await assert.rejects(decode(codec, parts, { ...meta, strides: [2] }, [8], "float32"), WireError);
    await assert.rejects(decode(codec, parts, meta, [9], "float32"), WireError);
  }
  const topk = parseCodec("topk:0.25")!;
  const values = Tensor.float32([2], Float32Array.of(1, 2));
  for (const places of [[3, 3], [4, 2], [0, 8], [-1, 2]]) {
    const where = Tensor.of("int32", [2], Int32Array.from(places));
    await assert.rejects(Promise.resolve().then(() => topk.unpack([values, where], {}, { shape: [8], strides: [1], size: 8 })), WireError);
  }
});

test("what error feedback holds back goes with the next step, unless the step had no effect", async () => {
  const codecs = { activations: "topk:0.25", gradients: "topk:0.25" };
  const packer = new Packer(codecs, { activations: null, gradients: null }, 5, "phone-1");
  const expected = [{ shape: [4], dtype: "float32" as const }];
  const sent = async (step: number, ...numbers: number[]) => {
    const packed = await packer.pack("gradients", [Tensor.float32([4], Float32Array.from(numbers))], step, 0);
    const [value] = await unpack(packed, expected, "topk:0.25");
    return [...(value as Tensor).floats()];
  };
  assert.deepEqual(await sent(1, 1, 2, 3, 4), [0, 0, 0, 4]);
  packer.abort();
  assert.deepEqual(await sent(1, 1, 2, 3, 4), [0, 0, 0, 4]);
  packer.apply();
  const state = packer.state();
  assert.deepEqual(await sent(2, 1, 2, 3, 4), [0, 0, 6, 0]);
  packer.loadState(state);
  assert.deepEqual(await sent(2, 1, 2, 3, 4), [0, 0, 6, 0]);
});
