/** The values of a cut as they travel, with error feedback as part of the state: `spliteasy/codecs/packer.py`. */

import { DataError, WireError } from "../../errors.ts";
import type { Value } from "../../protocol/messages.ts";
import { PLAIN, type Meta, type Packed, type Packing } from "../../protocol/packed.ts";
import { Tensor, type Dtype } from "../../protocol/tensor.ts";
import { seedOf } from "../../random/index.ts";
import { decode, encode } from "./codec.ts";
import { parseCodec } from "./registry.ts";

export type Place = "activations" | "gradients";

/** Shape and dtype of a tensor; null for an integer. */
export type Expected = { readonly shape: readonly number[]; readonly dtype: Dtype } | null;

const FEEDBACK = "feedback/";

export class Packer {
  private memory = new Map<string, Float32Array>();
  private readonly pending = new Map<string, Float32Array>();

  /**
   * `answers` are the codecs that the answers to values of each place have to be packed by, where the job leaves that
   * open. `device` and `seed` tell this side and session apart in what is rounded at random.
   */
  constructor(
    private readonly codecs: Readonly<Record<Place, string>>,
    private readonly answers: Readonly<Record<Place, string | null>>,
    private readonly seed: number,
    private readonly device: string,
  ) {}

  /** Pack for `step`. Gradients are rounded without bias, by a seed of this place. */
  async pack(place: Place, values: readonly Value[], step: number, micro: number): Promise<Packed> {
    const codec = parseCodec(this.codecs[place]);
    const reply_codec = this.answers[place];
    if (codec === null) return { values, codec: PLAIN, packing: [], reply_codec };
    const out: Value[] = [];
    const packing: Packing[] = [];
    for (const [index, value] of values.entries()) {
      if (!(value instanceof Tensor)) {
        out.push(value);
        packing.push({ parts: 1, meta: {} });
        continue;
      }
      const key = `${place}/${micro}/${index}/${value.shape.join("x")}`;
      const seed = place === "gradients" ? seedOf(this.seed, this.device, "up", step, micro, index) : null;
      const packed = await encode(codec, value, seed, codec.feedback ? (this.memory.get(key) ?? null) : null);
      if (packed.memory !== null) this.pending.set(key, packed.memory);
      out.push(...packed.parts);
      packing.push({ parts: packed.parts.length, meta: packed.meta });
    }
    return { values: out, codec: codec.name, packing, reply_codec };
  }

  /** Pack activations of an evaluation: no memory is touched, so error feedback sends them whole. */
  async packEvaluation(values: readonly Value[], reply_codec: string | null): Promise<Packed> {
    if (parseCodec(this.codecs.activations)?.feedback !== false) return { values, codec: PLAIN, packing: [], reply_codec };
    return { ...(await this.pack("activations", values, 0, 0)), reply_codec };
  }

  /** The step took effect: what was held back in it counts. Of a value's other sizes only the largest is kept. */
  apply(): void {
    for (const [key, held] of this.pending) {
      const value = key.slice(0, key.lastIndexOf("/"));
      const others = [...this.memory.keys()].filter((other) => other !== key && other.slice(0, other.lastIndexOf("/")) === value);
      others.sort((a, b) => (this.memory.get(a)?.length ?? 0) - (this.memory.get(b)?.length ?? 0));
      for (const other of others.slice(0, -1)) this.memory.delete(other);
      this.memory.set(key, held);
    }
    this.pending.clear();
  }

  /** The step did not: forget what was held back in it. */
  abort(): void {
    this.pending.clear();
  }

  /** The remainders that are held back after the last step, by name. */
  state(): Record<string, Tensor> {
    return Object.fromEntries([...this.memory].map(([key, held]) => [FEEDBACK + key, Tensor.float32([held.length], held.slice())]));
  }

  loadState(state: Readonly<Record<string, Tensor>>): void {
    this.pending.clear();
    const kept = Object.entries(state).filter(([name]) => name.startsWith(FEEDBACK));
    this.memory = new Map(kept.map(([name, held]) => [name.slice(FEEDBACK.length), held.floats().slice()]));
  }
}

/** The values again, of the expected shapes and dtypes. Rejects with DataError; plain values are as they arrived. */
export async function unpack(packed: Packed, expected: readonly Expected[], allowed: string): Promise<Value[]> {
  if (packed.codec === PLAIN && !packed.packing.length) return [...packed.values];
  const codec = packed.codec === allowed ? parseCodec(allowed) : null;
  if (codec === null) throw new DataError(`values packed by ${packed.codec.slice(0, 40)}, the job says ${allowed}`);
  const count = packed.packing.reduce((sum, { parts }) => sum + parts, 0);
  if (packed.packing.length !== expected.length || count !== packed.values.length) {
    throw new DataError(`${packed.packing.length} packed values arrived at a cut of ${expected.length}`);
  }
  const values: Value[] = [];
  let at = 0;
  for (const [place, { parts, meta = {} as Meta }] of packed.packing.entries()) {
    const its = packed.values.slice(at, (at += parts));
    const tensors = its.filter((part) => part instanceof Tensor);
    const form = expected[place];
    if (form === null || !tensors.length) values.push(its.length === 1 ? its[0] : null);
    else if (tensors.length !== its.length) throw new DataError("a packed tensor has parts that are no tensors");
    else values.push(await decode(codec, tensors, meta, form.shape, form.dtype).catch(asDataError));
  }
  return values;
}

function asDataError(error: unknown): never {
  throw error instanceof WireError ? new DataError(error.message) : error;
}
