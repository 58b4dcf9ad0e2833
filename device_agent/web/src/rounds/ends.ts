/** Head and tail in the rounds of a fleet: what a device hands in, and how it goes on from the mean. See `device_agent/rounds/ends.py`. */

import { stateFields } from "../engine/optimizer.ts";
import type { OptimizerSpec, SegmentTrainer, State } from "../engine/types.ts";
import { DataError, RemoteError } from "../errors.ts";
import type { MessageOf } from "../protocol/messages.ts";
import { sameNumbers, Tensor } from "../protocol/tensor.ts";
import type { Key } from "../random/index.ts";
import type { Tensors } from "../storage/tensors.ts";
import { fromEngine, isFinite, toEngine } from "../training/values.ts";
import type { Fleet } from "./fleet.ts";
import { openHandover, sealHandover } from "./handover.ts";
import { RoundPlace } from "./place.ts";
import { seal, unseal } from "./sealed.ts";

/** The name of sealed ends, and of their sum. */
export const SEALED = "sealed";

const MODEL = "model/";
const OPTIMIZER = "optimizer/";
const RUNNING = ".running_mean";
const COUNTER = "step";

/** The key that a fleet's devices share, and its name. */
export interface FleetKey {
  readonly name: string;
  readonly key: Key;
}

/** No step is open while one of its methods is called. */
export class RoundEnds {
  place = new RoundPlace();
  /** Steps of a round; 0: there are none. */
  length = 0;

  private constructor(
    readonly fleet: Fleet,
    private readonly device: string,
    private readonly optimizer: OptimizerSpec,
    /** Head and tail, each under the prefix of its names. */
    private readonly ends: readonly (readonly [string, SegmentTrainer])[],
    readonly shared: FleetKey | null,
    /** The averaged part of the ends as they began. */
    private readonly initial: Tensors,
  ) {}

  static async of(
    fleet: Fleet, device: string, optimizer: OptimizerSpec, ends: readonly (readonly [string, SegmentTrainer])[], shared: FleetKey | null,
  ): Promise<RoundEnds> {
    return new RoundEnds(fleet, device, optimizer, ends, shared, await averaged(ends, fleet));
  }

  /** The device has ended its round; else there are more windows of it. */
  get isWhole(): boolean {
    return !this.fleet.sharesBody || this.place.steps >= this.length;
  }

  /** What the round gets of head and tail; nothing where this device comes new. Rejects with DataError. */
  async handIn(nonce: string): Promise<Tensors> {
    const { place, fleet, device } = this;
    const ends: Tensors = place.round && this.isWhole ? await averaged(this.ends, fleet) : {};
    if (!Object.keys(ends).length || !fleet.seals) return ends;
    const key = this.sealingKey();
    if (fleet.handsOver) return { [SEALED]: sealHandover(ends, key, device, place.round, nonce) };
    const part = { device, nonce, weight: fleet.weightOf(place.roundSamples) };
    return { [SEALED]: seal(ends, part, key, place.opened + 1, fleet.fractionBits(place.drawn)) };
  }

  /** Go on from the mean that the message brings. Rejects with DataError or RemoteError where it is none of these ends. */
  async takeMean(message: MessageOf<"MEAN">): Promise<void> {
    const { round, drawn = 0, opened = null, kept = false, scheduled = null } = message;
    const next = this.place.goneOn(round, opened ?? round, drawn, kept === true);
    if (kept === true) {
      for (const [, trainer] of this.ends) await trainer.rebase(null, scheduled);
    } else {
      const mean = message.initial === true ? this.initial : this.meanOf(message);
      this.check(mean);
      for (const [prefix, trainer] of this.ends) {
        const state = this.fleet.endsLeave ? rebased(await trainer.snapshot(), under(prefix, mean), this.fleet) : null;
        await trainer.rebase(state, scheduled);
      }
    }
    this.place = next;
  }

  private meanOf(message: MessageOf<"MEAN">): Tensors {
    const names = message.names ?? [];
    const given: Record<string, Tensor> = {};
    names.forEach((name, at) => {
      const value = message.values[at];
      if (value instanceof Tensor) given[name] = value;
    });
    const { sealed } = message;
    if (!sealed || !(SEALED in given)) return given;
    const key = this.sealingKey();
    if (!this.fleet.handsOver) return unseal(given[SEALED], sealed.addends, this.initial, key, sealed.round, this.fleet.fractionBits(sealed.drawn));
    const [by, ...more] = sealed.addends;
    if (by === undefined || more.length) throw new RemoteError(`the server sent the handover of ${sealed.addends.length} devices`, "bad-tensor");
    return openHandover(given[SEALED], key, by.device, sealed.round, by.nonce);
  }

  private sealingKey(): Key {
    if (this.shared === null) throw new Error("a device without the fleet's key does not begin");
    return this.shared.key.at("seal");
  }

  /** Throws DataError unless the mean has the weights of these ends, in their shapes, and no NaN. */
  private check(mean: Tensors): void {
    const weights = Object.keys(mean).filter((name) => name.includes(MODEL));
    if (weights.length !== Object.keys(this.initial).length || !weights.every((name) => Object.hasOwn(this.initial, name))) {
      throw new DataError("the server sent a mean of other tensors than this phone's part of the model has");
    }
    for (const [name, tensor] of Object.entries(mean)) {
      const like = name.includes(`/${OPTIMIZER}`) ? this.likeOfOptimizer(name) : this.initial[name];
      if (like === undefined) throw new DataError(`the server sent ${name.slice(0, 90)}, which no optimizer of this phone keeps`);
      if (!sameNumbers(tensor.shape, like.shape) || tensor.dtype !== like.dtype) {
        throw new DataError(`the mean of ${name.slice(0, 90)} has another shape or type than this phone's own`);
      }
      if (!isFinite(toEngine(tensor))) throw new DataError(`the mean of ${name.slice(0, 90)} has numbers that are not finite; nothing was changed`);
    }
  }

  /** A tensor as the optimizer's tensor of that name must be; undefined where there is none. */
  private likeOfOptimizer(name: string): Tensor | undefined {
    const [role, rest] = [name.slice(0, name.indexOf("/") + 1), name.slice(name.indexOf("/") + 1 + OPTIMIZER.length)];
    const [weight, field] = [rest.slice(0, rest.lastIndexOf("/")), rest.slice(rest.lastIndexOf("/") + 1)];
    const like = this.initial[`${role}${MODEL}${weight}`];
    if (this.fleet.optimizer !== "average" || like === undefined || !stateFields(this.optimizer).includes(field)) return undefined;
    return field === COUNTER ? Tensor.float32([], new Float32Array(1)) : like;
  }
}

/** A copy of what of head and tail goes into the mean; nothing where they stay this device's own. */
async function averaged(ends: readonly (readonly [string, SegmentTrainer])[], fleet: Fleet): Promise<Tensors> {
  const found: Record<string, Tensor> = {};
  for (const [prefix, trainer] of fleet.endsLeave ? ends : []) {
    const [state, fixed] = [await trainer.snapshot(), new Set(await trainer.fixedNames())];
    const norms = normLayers(Object.keys(state));
    for (const [name, tensor] of Object.entries(state)) {
      if (fixed.has(name) || !isAveraged(name, fleet, norms)) continue;
      if (!fleet.sealsSums || tensor.dtype === "float32") found[prefix + name] = fromEngine(tensor);
    }
  }
  return found;
}

/** The batch-norm layers that keep running statistics, by their paths. */
function normLayers(names: readonly string[]): ReadonlySet<string> {
  return new Set(names.filter((name) => name.startsWith(MODEL) && name.endsWith(RUNNING)).map((name) => name.slice(MODEL.length, -RUNNING.length)));
}

function isAveraged(name: string, fleet: Fleet, norms: ReadonlySet<string>): boolean {
  const isWeight = name.startsWith(MODEL);
  if (!isWeight && !(name.startsWith(OPTIMIZER) && fleet.optimizer === "average")) return false;
  const tensor = isWeight ? name.slice(MODEL.length) : name.slice(OPTIMIZER.length, name.lastIndexOf("/"));
  return fleet.averagesNorm || !norms.has(tensor.slice(0, Math.max(0, tensor.lastIndexOf("."))));
}

/** The state of a segment that goes on from the mean: what is not averaged stays, but for an optimizer's that is reset. */
function rebased(state: State, mean: Tensors, fleet: Fleet): State {
  const norms = normLayers(Object.keys(state));
  const stays = (name: string): boolean => {
    if (!name.startsWith(OPTIMIZER)) return true;
    return fleet.optimizer !== "reset" && !isAveraged(name, fleet, norms);
  };
  const kept = Object.entries(state).filter(([name]) => stays(name));
  const taken = Object.entries(mean).map(([name, tensor]) => [name, toEngine(tensor)] as const);
  return Object.fromEntries([...kept, ...taken]);
}

function under(prefix: string, tensors: Tensors): Tensors {
  const own = Object.entries(tensors).filter(([name]) => name.startsWith(prefix));
  return Object.fromEntries(own.map(([name, tensor]) => [name.slice(prefix.length), tensor]));
}
