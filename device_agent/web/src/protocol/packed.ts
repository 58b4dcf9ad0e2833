/** Values for the wire, packed by a codec: `spliteasy/codecs/packer.py`. */

import type { Value } from "./messages.ts";

export type Meta = { readonly [name: string]: number | string | readonly number[] };

/** The packing of one value: how many tensors it takes, and what its codec adds. */
export interface Packing {
  readonly parts: number;
  readonly meta?: Meta;
}

export interface Packed {
  readonly values: readonly Value[];
  readonly codec: string;
  readonly packing: readonly Packing[];
  /** The codec that the answer has to be packed by, where the job leaves that open. */
  readonly reply_codec: string | null;
}

export const PLAIN = "fp32";
export const NOTHING: Packed = { values: [], codec: PLAIN, packing: [], reply_codec: null };

interface Carrier {
  readonly values: readonly Value[];
  readonly codec?: string;
  readonly packing?: readonly Packing[];
  readonly reply_codec?: string | null;
}

/** The fields of a message that carries these values, and the targets after them. */
export function carried(packed: Packed, targets: readonly Value[] = []) {
  const { codec, packing, reply_codec } = packed;
  return { values: [...packed.values, ...targets], codec, packing, reply_codec };
}

/** The packed values that `carried` was given. */
export function packedIn(message: Carrier): Packed {
  const { values, codec = PLAIN, packing = [], reply_codec = null } = message;
  return { values, codec, packing, reply_codec };
}
