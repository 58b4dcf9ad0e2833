/** A sealed handover: what a device leaves to the next one. See `spliteasy/fleet/handover.py`. */

import { blake2b } from "@noble/hashes/blake2.js";

import { tensorsFromBytes, tensorsToBytes } from "../engine/index.ts";
import { RemoteError } from "../errors.ts";
import { Tensor } from "../protocol/tensor.ts";
import type { Key } from "../random/index.ts";
import type { Tensors } from "../storage/tensors.ts";
import { fromEngine, toEngine } from "../training/values.ts";

const CODE_BYTES = 32;

/** The tensors as bytes that only the fleet's devices can read. */
export function sealHandover(tensors: Tensors, key: Key, device: string, turn: number, nonce: string): Tensor {
  const place = key.at("handover", turn, device, nonce);
  const plain = Object.fromEntries(Object.entries(tensors).map(([name, tensor]) => [name, toEngine(tensor)]));
  const hidden = hide(tensorsToBytes(plain), place);
  const sealed = new Uint8Array(hidden.length + CODE_BYTES);
  sealed.set(hidden);
  sealed.set(code(hidden, place), hidden.length);
  return Tensor.of("uint8", [sealed.length], sealed);
}

/** What `sealHandover` was given. Throws RemoteError where that device did not seal it. */
export function openHandover(sealed: Tensor, key: Key, device: string, turn: number, nonce: string): Tensors {
  const place = key.at("handover", turn, device, nonce);
  const { bytes } = sealed.contiguous();
  const hidden = bytes.subarray(0, Math.max(0, bytes.length - CODE_BYTES));
  const expected = code(hidden, place);
  const given = bytes.subarray(hidden.length);
  const differs = expected.reduce((sum, byte, at) => sum | (byte ^ (given[at] ?? 0)), given.length ^ CODE_BYTES);
  if (sealed.dtype !== "uint8" || differs) {
    throw new RemoteError(
      `what the server sent for turn ${turn} was not handed over by ${device}, or was changed since`, "bad-tensor",
      "a device with another fleet key took part, or the server changed the bytes: tell the person who sent you the link",
    );
  }
  return Object.fromEntries(Object.entries(tensorsFromBytes(hide(hidden, place))).map(([name, tensor]) => [name, fromEngine(tensor)]));
}

/** The bytes under the stream of that place; the same again takes it off. */
function hide(data: Uint8Array, place: Key): Uint8Array {
  const stream = place.at("stream").stream(data.length);
  return data.map((byte, at) => byte ^ stream[at]);
}

function code(hidden: Uint8Array, place: Key): Uint8Array {
  return blake2b.create({ dkLen: CODE_BYTES, key: place.at("code").stream(CODE_BYTES) }).update(hidden).digest();
}
