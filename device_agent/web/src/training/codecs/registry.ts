/** Codecs by name: `spliteasy/codecs/registry.py`. */

import { JobError } from "../../errors.ts";
import { PLAIN } from "../../protocol/packed.ts";
import type { Codec } from "./codec.ts";
import { INT8 } from "./int8.ts";
import { LOSSLESS } from "./lossless.ts";
import { BF16, FP16 } from "./narrow.ts";
import { TopK } from "./topk.ts";

const PLAINLY_NAMED: Readonly<Record<string, Codec>> = { lossless: LOSSLESS, fp16: FP16, bf16: BF16, int8: INT8 };

/** The codec of that name; null for the one that packs nothing. Throws JobError for anything else. */
export function parseCodec(name: string): Codec | null {
  if (name === PLAIN) return null;
  if (Object.hasOwn(PLAINLY_NAMED, name)) return PLAINLY_NAMED[name];
  const ratio = name.startsWith("topk:") ? Number(name.slice(5)) : NaN;
  if (ratio > 0 && ratio <= 1) return new TopK(name, ratio);
  throw new JobError(`no codec is named ${name.slice(0, 40)}`);
}
