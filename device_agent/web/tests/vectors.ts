/** The vectors that the Python tests write and check: `tests/vectors/` and `tests/web/`. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";

export interface Bits {
  readonly dtype: "float32" | "float64" | "int64" | "bool" | "float16";
  readonly shape: readonly number[];
  /** Little-endian bytes of the elements, as hexadecimal digits. */
  readonly bytes: string;
  /** Where the numbers need not agree in the last bits: relative to the largest. */
  readonly within?: number;
}

export function vectors<T>(...path: string[]): T {
  const folder = process.env.SPLITEASY_TESTS;
  assert(folder, "SPLITEASY_TESTS names the folder of the tests");
  return JSON.parse(readFileSync(join(folder, ...path), "utf8")) as T;
}

export function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("hex");
}

export function fromHex(text: string): Uint8Array {
  return new Uint8Array(Buffer.from(text, "hex"));
}

/** The numbers of a recorded tensor, in an array of its kind. */
export function numbersOf(bits: Bits): Float32Array | Float64Array {
  const buffer = fromHex(bits.bytes).slice().buffer;
  if (bits.dtype === "float32") return new Float32Array(buffer);
  if (bits.dtype === "float64") return new Float64Array(buffer);
  throw new Error(`no reader for ${bits.dtype}`);
}

/** Fail unless the numbers are the recorded ones: bit for bit, or as near as the vector says. */
export function assertNumbers(ours: Float32Array | Float64Array, bits: Bits, where: string): void {
  if (bits.within === undefined) {
    assert.equal(hex(new Uint8Array(ours.buffer, ours.byteOffset, ours.byteLength)), bits.bytes, where);
    return;
  }
  const theirs = numbersOf(bits);
  assert.equal(ours.length, theirs.length, where);
  const largest = Math.max(...Array.from(theirs, Math.abs));
  ours.forEach((x, place) => {
    assert(Math.abs(x - theirs[place]) <= bits.within! * largest, `${where}, number ${place}: ${x}, not ${theirs[place]}`);
  });
}
