/**
 * What a device keeps of one training: `device_agent/state_folder.py`.
 *
 * Each file begins with a checksum of its contents, so that one that was cut off or damaged counts as absent.
 */

import { StateError } from "../errors.ts";
import { newNonce, toHex } from "../protocol/hex.ts";
import type { AttemptRef } from "../protocol/messages.ts";
import type { Folder } from "./folder.ts";
import { packTensors, unpackTensors, type Tensors } from "./tensors.ts";

const MAGIC = new TextEncoder().encode("SPEWEB01");
const CHECKSUM_BYTES = 32;
const KEY_BYTES = 32;
const MAX_ATTEMPT = 2 ** 40;
const STEP_DIGITS = 16;
const CHECKPOINT = "checkpoint-";
const START_OVER = "start over: the training begins again from its first step";

/** What the folder belongs to. */
export interface Binding {
  readonly job: string;
  readonly device: string;
  readonly fingerprint: string;
}

export class StateFolder {
  private steps: number[] = [];
  binding: Binding | null = null;

  private constructor(private readonly folder: Folder) {}

  /** Rejects with StateError where the binding is damaged. */
  static async open(folder: Folder): Promise<StateFolder> {
    const state = new StateFolder(folder);
    for (const name of await folder.list()) {
      const step = name.startsWith(CHECKPOINT) ? Number(name.slice(CHECKPOINT.length)) : NaN;
      if (Number.isSafeInteger(step) && (await state.read(name)) !== null) state.steps.push(step);
    }
    state.steps.sort((a, b) => a - b);
    state.binding = await state.readJson<Binding>("binding");
    if (state.binding === null && (await folder.list()).includes("binding")) {
      throw new StateError("what this device kept of the training is damaged", START_OVER);
    }
    return state;
  }

  /** Keep the folder to this job, device and data; refuse any other. */
  async bind(binding: Binding): Promise<void> {
    const bound = this.binding;
    if (bound === null) {
      await this.writeJson("binding", binding);
      this.binding = binding;
    } else if (bound.job !== binding.job) {
      throw new StateError("the job was changed since this device began to train it", START_OVER);
    } else if (bound.device !== binding.device) {
      throw new StateError(`this training belongs to device ${bound.device}`, START_OVER);
    } else if (bound.fingerprint !== binding.fingerprint) {
      throw new StateError("the pictures or rows are not those that this training began with", `bring them back, or ${START_OVER}`);
    }
  }

  /** Forget the training, but for the files named: it begins again with another secret. */
  async startOver(...kept: readonly string[]): Promise<void> {
    for (const name of await this.folder.list()) if (!kept.includes(name)) await this.folder.remove(name);
    this.binding = null;
    this.steps = [];
  }

  /** The 32 bytes that only this device knows, made at the first call. */
  async secret(): Promise<Uint8Array> {
    const kept = await this.read("secret");
    if (kept !== null) return kept;
    if (this.binding !== null) throw new StateError("the secret of this training is lost", START_OVER);
    const made = crypto.getRandomValues(new Uint8Array(KEY_BYTES));
    await this.write("secret", made);
    return made;
  }

  /** The initial weights that were drawn; null before that. They are drawn once. */
  async ends(): Promise<Tensors | null> {
    const raw = await this.read("ends");
    if (raw === null && this.steps.length) throw new StateError("the first weights of this training are lost", START_OVER);
    return raw === null ? null : unpackTensors(raw);
  }

  async saveEnds(ends: Tensors): Promise<void> {
    await this.write("ends", packTensors(ends));
  }

  /** Named tensors of another kind, such as the samples; null where there are none. */
  async tensors(name: string): Promise<Tensors | null> {
    const raw = await this.read(name);
    return raw === null ? null : unpackTensors(raw);
  }

  async saveTensors(name: string, tensors: Tensors): Promise<void> {
    await this.write(name, packTensors(tensors));
  }

  /** The newest attempt; null before the first. */
  attempt(): Promise<AttemptRef | null> {
    return this.readJson<AttemptRef>("attempt");
  }

  /** Make a new attempt, numbered above the last one and above `above`; durable on return. */
  async raiseAttempt(above: number): Promise<AttemptRef> {
    const last = await this.attempt();
    const number = Math.max(above, last?.number ?? 0) + 1;
    if (number > MAX_ATTEMPT) throw new StateError("there were more attempts than there can be", START_OVER);
    const attempt = { number, nonce: newNonce() };
    await this.writeJson("attempt", attempt);
    return attempt;
  }

  /** Steps whose checkpoint is whole, ascending. */
  held(): number[] {
    return [...this.steps];
  }

  async saveCheckpoint(step: number, tensors: Tensors): Promise<void> {
    await this.write(checkpointName(step), packTensors(tensors));
    this.steps = [...new Set([...this.steps, step])].sort((a, b) => a - b);
  }

  async loadCheckpoint(step: number): Promise<Tensors> {
    const raw = await this.read(checkpointName(step));
    if (raw === null) throw new StateError(`the checkpoint of step ${step} is gone`, "load the page again: it goes on from another one");
    return unpackTensors(raw);
  }

  /**
   * Delete what is no longer needed. Kept are the newest checkpoint that the server can't fall behind (or the oldest),
   * the next one after it, and the `history` newest ones.
   */
  async prune(durableStep: number, history: number): Promise<void> {
    const durable = this.steps.filter((step) => step <= durableStep);
    const safe = durable.length ? durable : this.steps.slice(0, 1);
    const coming = this.steps.filter((step) => step > durableStep);
    const keep = new Set([...safe.slice(-1), ...coming.slice(0, 1), ...this.steps.slice(-history)]);
    await this.drop((step) => !keep.has(step));
  }

  /** Delete checkpoints newer than `step`: another course begins there. */
  async dropAfter(step: number): Promise<void> {
    await this.drop((held) => held > step);
  }

  /** A small record for people, such as the losses so far. Null where there is none. */
  readJson<T>(name: string): Promise<T | null> {
    return this.read(name).then((raw) => (raw === null ? null : (JSON.parse(new TextDecoder().decode(raw)) as T)));
  }

  async writeJson(name: string, value: unknown): Promise<void> {
    await this.write(name, new TextEncoder().encode(JSON.stringify(value)));
  }

  private async drop(isDoomed: (step: number) => boolean): Promise<void> {
    for (const step of this.steps.filter(isDoomed)) await this.folder.remove(checkpointName(step));
    this.steps = this.steps.filter((step) => !isDoomed(step));
  }

  private async write(name: string, data: Uint8Array): Promise<void> {
    const file = new Uint8Array(MAGIC.length + CHECKSUM_BYTES + data.length);
    file.set(MAGIC);
    file.set(await checksum(data), MAGIC.length);
    file.set(data, MAGIC.length + CHECKSUM_BYTES);
    await this.folder.write(name, file);
  }

  /** What was written, or null where it is absent or not what was written. */
  private async read(name: string): Promise<Uint8Array | null> {
    const file = await this.folder.read(name);
    if (file === null || file.length < MAGIC.length + CHECKSUM_BYTES) return null;
    const data = file.slice(MAGIC.length + CHECKSUM_BYTES);
    const found = toHex(file.subarray(0, MAGIC.length + CHECKSUM_BYTES));
    return found === toHex(MAGIC) + toHex(await checksum(data)) ? data : null;
  }
}

function checkpointName(step: number): string {
  return CHECKPOINT + String(step).padStart(STEP_DIGITS, "0");
}

async function checksum(data: Uint8Array): Promise<Uint8Array> {
  return new Uint8Array(await crypto.subtle.digest("SHA-256", data as Uint8Array<ArrayBuffer>));
}
