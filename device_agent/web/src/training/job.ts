/**
 * A job package: `spliteasy/job/package.py` and `signing.py`.
 *
 * The operator's signature is of the manifest's digest, and the manifest lists every part by SHA-256. Nothing is
 * parsed before both were found right.
 */

import { JobError } from "../errors.ts";
import { fromHex, toHex } from "../protocol/hex.ts";
import { SCHEMAS } from "../protocol/generated/schemas.ts";
import type { EndsRoot as Ends } from "../protocol/generated/ends.ts";
import type { ManifestRoot as Manifest } from "../protocol/generated/manifest.ts";
import type { SpecRoot as Spec } from "../protocol/generated/spec.ts";
import { isRecord, misfit, type Schema } from "../protocol/schema.ts";
import { isDtype, type Dtype } from "../protocol/tensor.ts";

export type { Ends, Spec };

const MAX_MANIFEST_BYTES = 1 << 16;
const MAX_DIMENSIONS = 32;
/** What a package may need, by the names that this build knows; and of what it can't do, what it is for a person. */
const FEATURES: Readonly<Record<string, string | null>> = {
  "least-samples": null,
  "labelled-shares": null,
  "data-recipe": null,
  "secret-ends": null,
  defences: null,
  rounds: null,
  accumulation: null,
  "averaged-weights": null,
  metrics: null,
  "early-stopping": null,
  "keep-best": "[evaluation] keep_best",
  lengths: "samples with lengths of their own ([model] max_length)",
  "more-optimizers": null,
};

export interface SampleSpec {
  readonly name: string;
  readonly dtype: Dtype;
  readonly shape: readonly number[];
}

export interface Signature {
  readonly inputs: readonly SampleSpec[];
  readonly targets: readonly SampleSpec[];
  readonly outputs: readonly SampleSpec[];
  readonly least_samples: number;
}

export interface Job {
  readonly name: string;
  readonly digest: string;
  readonly spec: Spec;
  readonly signature: Signature;
  readonly ends: Ends;
  readonly parts: ReadonlyMap<string, Uint8Array>;
  /** There is a tail; else the worker has the labels and computes the loss. */
  readonly hasTail: boolean;
}

export async function digestOfManifest(manifest: Uint8Array): Promise<string> {
  return sha256(manifest);
}

/** Resolves where the operator's key signed the job. Rejects with JobError; nothing of the job is parsed before. */
export async function checkSignature(manifest: Uint8Array, signature: string | null, operatorKey: string): Promise<void> {
  if (signature === null) {
    throw new JobError("the training is not signed by its operator, and this phone takes signed ones only", "tell the person who sent you the link");
  }
  const statement = new TextEncoder().encode(`spliteasy job 1\n${await sha256(manifest)}\n`);
  let right = false;
  try {
    const key = await crypto.subtle.importKey("raw", bytes(operatorKey), { name: "Ed25519" }, false, ["verify"]);
    right = await crypto.subtle.verify({ name: "Ed25519" }, key, bytes(signature), statement);
  } catch (error) {
    if (error instanceof DOMException && error.name === "NotSupportedError") {
      throw new JobError("this browser can't check who signed the training", "use a newer browser");
    }
    throw error;
  }
  if (!right) {
    throw new JobError(
      "the training is not signed by the operator that sent you the link",
      "it was altered on its way, or signed by somebody else; nothing of it was loaded. Tell the person who sent you the link",
    );
  }
}

/** Check every part against the manifest, and read them. Rejects with JobError. */
export async function openJob(manifest: Uint8Array, parts: ReadonlyMap<string, Uint8Array>): Promise<Job> {
  if (manifest.length > MAX_MANIFEST_BYTES) throw new JobError("the job's manifest is too large");
  const raw = parsed(manifest, "the manifest");
  if (isRecord(raw) && Array.isArray(raw["needs"])) checkNeeds(raw["needs"]);
  const listed = checked<Manifest>(raw, "manifest");
  for (const [name, its] of Object.entries(listed.parts)) {
    const part = parts.get(name);
    if (part === undefined && !name.startsWith("body.")) throw new JobError(`the job has no part ${name}`);
    if (part !== undefined && (part.length !== its.size || (await sha256(part)) !== its.sha256)) {
      throw new JobError(`part ${name} of the job is damaged`, "load the page again");
    }
  }
  const unlisted = [...parts.keys()].find((name) => !Object.hasOwn(listed.parts, name));
  if (unlisted !== undefined) throw new JobError("the job has a part that its manifest does not list");
  const spec = checked<Spec>(parsed(part(parts, "spec.json"), "spec.json"), "spec");
  if (spec.name !== listed.name) throw new JobError("the manifest is of another job than the spec");
  const ends = parts.has("ends.json") ? checked<Ends>(parsed(part(parts, "ends.json"), "ends.json"), "ends") : {};
  const hasTail = parts.has("tail.json");
  if (hasTail === (spec.model.cuts.length === 1)) throw new JobError("the job lacks a segment, or has one too many");
  const signature = signatureOf(parsed(part(parts, "signature.json"), "signature.json"));
  return { name: spec.name, digest: await sha256(manifest), spec, signature, ends, parts, hasTail };
}

export function part(parts: ReadonlyMap<string, Uint8Array>, name: string): Uint8Array {
  const found = parts.get(name);
  if (found === undefined) throw new JobError(`the job has no part ${name}`);
  return found;
}

function checkNeeds(needs: readonly unknown[]): void {
  for (const need of needs) {
    if (typeof need !== "string" || !Object.hasOwn(FEATURES, need)) {
      throw new JobError("the training needs what this page does not know yet", "load the page again, or ask for a newer one");
    }
    const what = FEATURES[need];
    if (what !== null) throw new JobError(`the training needs ${what}, which a browser can't do yet`, "train it with the Python agent");
  }
}

function parsed(data: Uint8Array, name: string): unknown {
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(data));
  } catch {
    throw new JobError(`${name} of the job is not JSON`);
  }
}

function checked<T>(value: unknown, schema: string): T {
  const why = misfit(value, SCHEMAS[schema] as Schema);
  if (why !== null) throw new JobError(`the job's ${schema} is malformed: ${why}`);
  return value as T;
}

function signatureOf(value: unknown): Signature {
  if (!isRecord(value)) throw new JobError("the job's signature is malformed");
  const least = value["least_samples"] ?? 1;
  if (least !== 1 && least !== 2) throw new JobError("the job's signature is malformed");
  return { inputs: specs(value["inputs"]), targets: specs(value["targets"]), outputs: specs(value["outputs"]), least_samples: least };
}

function specs(value: unknown): SampleSpec[] {
  if (!Array.isArray(value)) throw new JobError("the job's signature is malformed");
  return value.map((each: unknown): SampleSpec => {
    const { name, dtype, shape } = isRecord(each) ? each : {};
    const sizes = Array.isArray(shape) && shape.length <= MAX_DIMENSIONS && shape.every((size) => Number.isSafeInteger(size) && size >= 0 && size < 2 ** 31);
    if (typeof name !== "string" || !isDtype(dtype) || !sizes) throw new JobError("the job's signature is malformed");
    return { name, dtype, shape: shape as number[] };
  });
}

async function sha256(data: Uint8Array): Promise<string> {
  return toHex(new Uint8Array(await crypto.subtle.digest("SHA-256", data as Uint8Array<ArrayBuffer>)));
}

function bytes(hex: string): Uint8Array<ArrayBuffer> {
  return fromHex(hex) as Uint8Array<ArrayBuffer>;
}
