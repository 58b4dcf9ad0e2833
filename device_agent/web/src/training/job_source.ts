/** An agent's job: from what it keeps, or from a worker over the link: `device_agent/job_source.py`. */

import { JobError, RemoteError, StateError } from "../errors.ts";
import { newNonce } from "../protocol/hex.ts";
import { Tensor } from "../protocol/tensor.ts";
import type { StateFolder } from "../storage/state_folder.ts";
import { bytesTensor, type Tensors } from "../storage/tensors.ts";
import type { Client } from "./client.ts";
import type { Enrolment } from "./enrolment.ts";
import { checkSignature, digestOfManifest, openJob, type Job } from "./job.ts";

const JOB = "job";
const MANIFEST = "manifest.json";
const SIGNATURE = "signature";
const PART = "part/";

/** The job as it is kept here; null where there is none. Where a key is to have signed it, that is checked first. */
export async function storedJob(state: StateFolder, enrolment: Enrolment): Promise<Job | null> {
  const kept = await state.tensors(JOB);
  if (kept === null) return null;
  const manifest = kept[MANIFEST].bytes;
  const signature = SIGNATURE in kept ? new TextDecoder().decode(kept[SIGNATURE].bytes) : null;
  if (enrolment.operatorKey !== null) await checkSignature(manifest, signature, enrolment.operatorKey);
  const parts = Object.entries(kept).filter(([name]) => name.startsWith(PART));
  const job = await openJob(manifest, new Map(parts.map(([name, part]) => [name.slice(PART.length), part.bytes])));
  const [, pinned] = enrolment.job.split("@");
  if (pinned === undefined || pinned === job.digest) return job;
  if (state.binding === null) return null; // nothing was trained yet: the link's version is fetched
  throw new StateError("this link is for another version of the training than the one that was begun here", "start over, to train that version");
}

/** Fetch the job from a worker, check it, and keep it. */
export async function fetchedJob(client: Client, state: StateFolder, enrolment: Enrolment): Promise<{ job: Job; shard: number }> {
  const [name, pinned = null] = enrolment.job.split("@");
  const session = `${name}.${enrolment.device}`;
  const reply = await client.ask({ kind: "GET_JOB", session, request: newNonce(), digest: pinned, values: [] }, "JOB");
  const manifest = new TextEncoder().encode(reply.manifest);
  const digest = await digestOfManifest(manifest);
  if (digest !== reply.digest || (pinned !== null && digest !== pinned)) {
    throw new JobError("the training is not the one that was asked for", "tell the person who sent you the link");
  }
  const signature = reply.signature ?? null;
  if (enrolment.operatorKey !== null) await checkSignature(manifest, signature, enrolment.operatorKey);
  if (reply.parts.length !== reply.values.length) throw new RemoteError("a job with a part too few or too many", "bad-tensor");
  const parts = new Map(reply.parts.map((part, at) => [part, bytesOf(reply.values[at])]));
  const job = await openJob(manifest, parts);
  if (job.name !== name) throw new JobError(`the server sent the training ${job.name}, not ${name}`, "tell the person who sent you the link");
  const kept = Object.fromEntries([...parts].map(([part, bytes]) => [PART + part, bytesTensor(bytes)]));
  const signed: Tensors = signature === null ? {} : { [SIGNATURE]: bytesTensor(new TextEncoder().encode(signature)) };
  await state.saveTensors(JOB, { [MANIFEST]: bytesTensor(manifest), ...signed, ...kept });
  return { job, shard: reply.shard };
}

/** The shard that serves the session of a job that this device holds. */
export async function shardOf(client: Client, job: Job, device: string): Promise<number> {
  const about = { session: `${job.name}.${device}`, request: newNonce(), digest: job.digest };
  const reply = await client.ask({ kind: "GET_JOB", ...about, without_parts: true, values: [] }, "JOB");
  return reply.shard;
}

function bytesOf(value: unknown): Uint8Array {
  if (!(value instanceof Tensor) || value.dtype !== "uint8" || value.shape.length !== 1) {
    throw new RemoteError("a part of the job is not a row of bytes", "bad-tensor");
  }
  return value.bytes.slice();
}
