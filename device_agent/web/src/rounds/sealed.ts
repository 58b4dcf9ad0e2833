/**
 * The sealed mean: devices add up numbers that broker, store and worker can't read. See `spliteasy/fleet/sealed.py`.
 *
 * Each device writes its weights, times what it counts for, as whole numbers modulo 2^64, and adds a pad: a stream of
 * the fleet's key that is used once. A worker adds up what it gets; each device takes the pads off, and divides.
 */

import { DataError, RemoteError } from "../errors.ts";
import { Tensor } from "../protocol/tensor.ts";
import type { Key } from "../random/index.ts";
import type { Tensors } from "../storage/tensors.ts";

const LARGEST = 2 ** 16;
const CHECK_WORDS = 4;
const LEAST_DEVICES = 3;
const WHOLE = 2 ** 52;

/** A device's part in a sum: the name of its pad, and its weight in the mean. */
export interface SealedPart {
  readonly device: string;
  readonly nonce: string;
  readonly weight: number;
}

/** What the device hands in: one int64 number an element, and words that the devices know. Throws DataError. */
export function seal(tensors: Tensors, part: SealedPart, key: Key, round: number, bits: number): Tensor {
  const names = Object.keys(tensors).sort();
  const count = names.reduce((sum, name) => sum + tensors[name].size, 0);
  const words = new BigUint64Array(count + CHECK_WORDS);
  let at = 0;
  for (const name of names) {
    for (const value of tensors[name].contiguous().floats()) {
      if (!(Math.abs(value) < LARGEST)) {
        throw new DataError(`${name} has a number that is not finite, or beyond ±${LARGEST}: it can't be sealed`);
      }
      words[at++] = BigInt.asUintN(64, BigInt(rounded(value * part.weight * 2 ** bits)));
    }
  }
  words.set(known(key, part, round), count);
  const hidden = pad(key, part, round, words.length);
  return Tensor.of("int64", [words.length], words.map((word, place) => BigInt.asUintN(64, word + hidden[place])));
}

/** The mean of what these devices sealed, in the shapes of `like`. Throws RemoteError where it is another sum. */
export function unseal(total: Tensor, parts: readonly SealedPart[], like: Tensors, key: Key, round: number, bits: number): Tensors {
  const names = Object.keys(like).sort();
  const count = names.reduce((sum, name) => sum + like[name].size, 0);
  if (total.dtype !== "int64" || total.size !== count + CHECK_WORDS) {
    throw new RemoteError("the server sent a sum of another length than this phone's part of the model has", "bad-tensor");
  }
  if (parts.filter(({ weight }) => weight > 0).length < LEAST_DEVICES) {
    throw new RemoteError(`the server sent a sum of fewer than ${LEAST_DEVICES} devices: it would not be sealed`, "bad-tensor");
  }
  const words = new BigUint64Array(total.contiguous().bytes.slice().buffer);
  const expected = new BigUint64Array(CHECK_WORDS);
  for (const part of parts) {
    const hidden = pad(key, part, round, words.length);
    for (let at = 0; at < words.length; at++) words[at] = BigInt.asUintN(64, words[at] - hidden[at]);
    known(key, part, round).forEach((word, at) => (expected[at] = BigInt.asUintN(64, expected[at] + word)));
  }
  if (expected.some((word, at) => word !== words[count + at])) {
    throw new RemoteError(
      `the sum that the server sent for round ${round} is not that of the devices it names`, "bad-tensor",
      "a device with another fleet key took part, or the server did not add them all up: tell the person who sent you the link",
    );
  }
  return meanOf(new BigInt64Array(words.buffer, 0, count), parts.reduce((sum, { weight }) => sum + weight, 0) * 2 ** bits, like, names);
}

/** The tensors that a sum of fixed-point numbers stands for. */
function meanOf(total: BigInt64Array, divisor: number, like: Tensors, names: readonly string[]): Tensors {
  let at = 0;
  return Object.fromEntries(names.map((name) => {
    const { shape, size } = like[name];
    const values = Float32Array.from({ length: size }, () => Number(total[at++]) / divisor);
    return [name, Tensor.float32(shape, values)];
  }));
}

/** The nearest whole number; of two, the even one. */
function rounded(value: number): number {
  if (Math.abs(value) >= WHOLE) return value;
  return value < 0 ? value - WHOLE + WHOLE : value + WHOLE - WHOLE;
}

function pad(key: Key, { device, nonce }: SealedPart, round: number, count: number): BigUint64Array {
  return new BigUint64Array(key.at("pad", round, device, nonce).stream(8 * count).slice().buffer);
}

function known(key: Key, { device, nonce }: SealedPart, round: number): BigUint64Array {
  return new BigUint64Array(key.at("known", round, device, nonce).stream(8 * CHECK_WORDS).slice().buffer);
}
