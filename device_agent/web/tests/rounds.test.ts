/** Sealed sums and handovers, bit for bit as Python makes them: `tests/web/rounds.py` writes them when pytest runs. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { DataError, RemoteError } from "../src/errors.ts";
import { Tensor } from "../src/protocol/tensor.ts";
import { Key } from "../src/random/index.ts";
import { Fleet } from "../src/rounds/fleet.ts";
import { openHandover, sealHandover } from "../src/rounds/handover.ts";
import { RoundPlace } from "../src/rounds/place.ts";
import { seal, unseal, type SealedPart } from "../src/rounds/sealed.ts";
import type { Tensors } from "../src/storage/tensors.ts";
import type { Spec } from "../src/training/job.ts";
import { bytesOf, type Packed } from "./engine.ts";

type Named = Readonly<Record<string, Packed>>;

interface Rounds {
  readonly bits: number;
  readonly devices: readonly { readonly part: SealedPart; readonly tensors: Named; readonly sealed: Packed }[];
  readonly total: Packed;
  readonly mean: Named;
  readonly handed: Named;
  readonly handover: string;
  readonly fleets: readonly { readonly fleet: NonNullable<Spec["fleet"]>; readonly bits: readonly number[] }[];
}

const ROUND = 4;
const TURN = 7;
const FILE = process.env.SPLITEASY_ROUNDS;
const key = new Key(Uint8Array.from({ length: 32 }, (_, at) => at + 1));
const other = new Key(new Uint8Array(32));

const tensorOf = ({ dtype, shape, data }: Packed): Tensor => new Tensor(dtype, shape, bytesOf(data));
const named = (tensors: Named): Tensors => Object.fromEntries(Object.entries(tensors).map(([name, packed]) => [name, tensorOf(packed)]));

function same(ours: Tensors, theirs: Tensors): void {
  assert.deepEqual(Object.keys(ours).sort(), Object.keys(theirs).sort());
  for (const [name, tensor] of Object.entries(theirs)) {
    assert.deepEqual([ours[name].dtype, ours[name].shape, Buffer.from(ours[name].bytes)], [tensor.dtype, tensor.shape, Buffer.from(tensor.bytes)], name);
  }
}

if (FILE) {
  const given = JSON.parse(readFileSync(FILE, "utf8")) as Rounds;
  const parts = given.devices.map(({ part }) => part);
  const total = tensorOf(given.total);
  const mean = named(given.mean);

  test("each device seals the bits that Python seals", () => {
    for (const { part, tensors, sealed } of given.devices) {
      assert.deepEqual(Buffer.from(seal(named(tensors), part, key, ROUND, given.bits).bytes), Buffer.from(bytesOf(sealed.data)));
    }
  });

  test("the sum opens to the mean that Python finds", () => same(unseal(total, parts, mean, key, ROUND, given.bits), mean));

  test("a sum that is not that of the devices it names is refused", () => {
    const changed = new Tensor("int64", total.shape, total.bytes.map((byte, at) => (at === total.bytes.length - 1 ? byte ^ 1 : byte)));
    const shorter = new Tensor("int64", [total.size - 1], total.bytes.slice(8));
    const tries: [Tensor, SealedPart[], Key, number][] = [
      [changed, parts, key, ROUND], [shorter, parts, key, ROUND], [total, parts.slice(1), key, ROUND],
      [total, [...parts.slice(1), { ...parts[0], device: "phone-9" }], key, ROUND], [total, parts, other, ROUND], [total, parts, key, ROUND + 1],
      [total, parts.map((part, at) => ({ ...part, weight: at ? 1 : 0 })), key, ROUND],
    ];
    for (const [sum, addends, its, round] of tries) assert.throws(() => unseal(sum, addends, mean, its, round, given.bits), RemoteError);
  });

  test("what does not fit the range is refused, never cut off", () => {
    for (const value of [NaN, Infinity, 65536, -65536]) {
      assert.throws(() => seal({ w: Tensor.float32([1], Float32Array.of(value)) }, parts[0], key, ROUND, given.bits), DataError);
    }
  });

  test("a handover has the bytes of Python's, and opens; another key, device or byte does not", () => {
    const handed = named(given.handed);
    const sealed = sealHandover(handed, key, "phone-1", TURN, "n");
    assert.deepEqual(Buffer.from(sealed.bytes), Buffer.from(bytesOf(given.handover)));
    same(openHandover(sealed, key, "phone-1", TURN, "n"), handed);
    const changed = new Tensor("uint8", sealed.shape, sealed.bytes.map((byte, at) => (at === 9 ? byte ^ 1 : byte)));
    assert.throws(() => openHandover(changed, key, "phone-1", TURN, "n"), RemoteError);
    assert.throws(() => openHandover(sealed, other, "phone-1", TURN, "n"), RemoteError);
    assert.throws(() => openHandover(sealed, key, "phone-2", TURN, "n"), RemoteError);
    assert.throws(() => openHandover(new Tensor("uint8", [5], new Uint8Array(5)), key, "phone-1", TURN, "n"), RemoteError);
  });

  test("sealed rounds have the places behind the point that Python counts", () => {
    for (const { fleet, bits } of given.fleets) {
      const its = new Fleet({ batch_size: 4, fleet } as Spec);
      assert.deepEqual([1, 2, 3, 100].map((count) => its.fractionBits(count)), bits, JSON.stringify(fleet));
    }
  });
} else {
  test("rounds", { skip: "pytest writes what Python seals" }, () => undefined);
}

test("a device's place in the rounds is kept, and begins anew with each round", () => {
  const place = new RoundPlace().goneOn(0, 0, 3, false).trained(5).trained(0);
  assert.deepEqual([place.round, place.samples, place.roundSamples, place.steps], [1, 5, 5, 2]);
  assert.deepEqual(RoundPlace.of(place.asTensor()), place);
  const window = place.goneOn(1, 0, 3, true);
  assert.deepEqual([window.round, window.samples, window.roundSamples, window.steps], [2, 0, 5, 2]);
  assert.deepEqual(place.goneOn(1, 1, 2, false), new RoundPlace(2, 1, 2));
  assert.deepEqual(RoundPlace.of(undefined), new RoundPlace());
});
