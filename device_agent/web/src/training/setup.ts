/** A device sets up the engine, its first weights and its plan before the first step: `device_agent/setup.py`. */

import { DataError, StateError } from "../errors.ts";
import type { Engine, Loss, LossSource, SegmentTrainer } from "../engine/types.ts";
import { isRecord } from "../protocol/schema.ts";
import { documentFromJson } from "../engine/document.ts";
import { tensorsFromBytes } from "../engine/index.ts";
import { fromHex, toHex } from "../protocol/hex.ts";
import { product, type Tensor } from "../protocol/tensor.ts";
import { Key } from "../random/index.ts";
import { RoundEnds, type FleetKey } from "../rounds/ends.ts";
import { Fleet } from "../rounds/fleet.ts";
import type { Settings } from "../session/plan.ts";
import type { StateFolder } from "../storage/state_folder.ts";
import type { Tensors } from "../storage/tensors.ts";
import { BatchOrder, EvaluationBatches } from "./batch_order.ts";
import { Packer, type Place } from "./codecs/packer.ts";
import { parseCodec } from "./codecs/registry.ts";
import type { DataSet } from "./data_set.ts";
import { drawEnds, jobKey, perturbed } from "./ends.ts";
import type { Enrolment } from "./enrolment.ts";
import { checkEntropy, type Weight } from "./entropy.ts";
import { part, type Job } from "./job.ts";
import { makeMetric } from "./metrics.ts";
import { CutTransforms } from "./privacy/cut_transforms.ts";
import { pythonNumber, RandomizedResponse } from "./privacy/label_dp.ts";
import { DeviceTrainer, type Parts } from "./trainer.ts";
import { fromEngine, toEngine } from "./values.ts";

/** What the job and the device leave open. */
const CHECKPOINT_EVERY = 10;
const DEFAULT_PERTURB = 0.1;
const AGENT = "0.2.0+web";

/** Load head, tail and loss of the job, with the device's own first weights. Refuses what can't be computed here. */
export async function loadParts(job: Job, engine: Engine, state: StateFolder, { device, fleetKey }: Enrolment): Promise<{ parts: Parts; key: Key }> {
  const { spec } = job;
  const key = jobKey(await state.secret(), device, job.digest);
  const fleet = new Fleet(spec);
  const shared = sharedKey(job, fleet, fleetKey);
  const ends = await initialEnds(job, state, shared?.key ?? key);
  const codecs = codecsOf(job);
  const { optimizer } = spec;
  const clip = spec.clip ? { max_norm: spec.clip.max_norm } : null;
  const load = (role: "head" | "tail"): Promise<SegmentTrainer> => {
    const own = Object.entries(ends).filter(([path]) => path.startsWith(`${role}/`));
    const drawn = Object.fromEntries(own.map(([path, tensor]) => [path.slice(role.length + 1), toEngine(tensor)]));
    const source = { graph: part(job.parts, `${role}.json`), tensors: part(job.parts, `${role}.safetensors`), drawn };
    return engine.load(source, { role, optimizer, schedule: spec.schedule ?? { name: "constant" }, clip, accumulate: spec.accumulate ?? 1, key: key.bytes() });
  };
  const head = await load("head");
  const tail = job.hasTail ? await load("tail") : null;
  const loss = await engine.loadLoss(lossOf(job));
  const metrics = await metricFunctions(job, engine);
  for (const name of spec.evaluation?.metrics ?? []) makeMetric(name, loss, metrics); // refused now, not at the first evaluation
  const open = openCodecs(job, codecs);
  const answers = { activations: job.hasTail ? open.activations : open.gradients, gradients: open.gradients };
  const packer = new Packer(codecs, answers, spec.seed ?? 0, device);
  const transforms = new CutTransforms(spec.privacy ?? {}, key);
  const both = [["head/", head] as const, ...(tail === null ? [] : [["tail/", tail] as const])];
  const rounds = await RoundEnds.of(fleet, device, optimizer, both, shared);
  return { parts: { job, head, tail, loss, metrics, codecs, packer, rounds, transforms, evaluationCodec: open.activations }, key };
}

/**
 * The key that the initial ends are drawn from where devices share it; null where they are this device's own. Ends that
 * are averaged must begin alike.
 */
function sharedKey(job: Job, fleet: Fleet, fleetKey: string | null): FleetKey | null {
  const isDrawn = Object.values(job.ends.drawn ?? {}).some((table) => Object.keys(table ?? {}).length > 0);
  if (!fleet.endsLeave || !(isDrawn || job.spec.privacy?.ends === "perturb" || fleet.seals)) return null;
  if (fleetKey === null) {
    throw new StateError("this training is one of several phones that share a key, and the link has none", "ask the person who sent you the link for one with the fleet's key");
  }
  const key = new Key(fromHex(fleetKey)).at("fleet", "job", job.digest);
  return { key, name: toHex(key.at("name").stream(8)) };
}

/** Bind the folder to job, device and data; a new one gets its checkpoint of step 0. */
export async function prepare(parts: Parts, key: Key, data: DataSet, state: StateFolder, device: string, restart: Restart) {
  const { job } = parts;
  const { rounds } = parts;
  const batches = new BatchOrder(data, job, key, await answersOf(job, data, state));
  rounds.length = rounds.fleet.roundLength(batches.stepsPerEpoch, batches.totalSteps);
  const trainer = new DeviceTrainer(parts, batches, new EvaluationBatches(data, job, key));
  if (trainer.stopping !== null && !trainer.tests.count) {
    throw new DataError("the training ends by how good the model is on held-back samples, and there are too few samples to hold any back", "add at least five of a label");
  }
  await state.bind({ job: job.digest, device, fingerprint: data.fingerprint });
  if (!state.held().length) await state.saveCheckpoint(0, await trainer.state());
  return { trainer, settings: settingsOf(job, trainer, device, restart) };
}

/** The answers that this device gives for its labels, where the job asks for that. */
async function answersOf({ spec, signature }: Job, data: DataSet, state: StateFolder): Promise<RandomizedResponse | null> {
  const epsilon = spec.privacy?.label_dp;
  if (typeof epsilon !== "number") return null;
  const key = new Key(await state.secret()).at("labels", data.fingerprint, pythonNumber(epsilon));
  return new RandomizedResponse(epsilon, signature.outputs[0].shape[0], key);
}

export interface Restart {
  /** Begin at step 0, whatever the server has. */
  readonly restart: boolean;
  /** Go on even if the server knows a newer attempt of this device. */
  readonly takeover: boolean;
}

function settingsOf({ name, digest, spec, hasTail }: Job, { batches, tests, parts }: DeviceTrainer, device: string, restart: Restart): Settings {
  const { fleet, length } = parts.rounds;
  const rounds = length ? Math.floor(batches.totalSteps / length) : 0;
  const windows = fleet.sharesBody ? length : 1; // where the body is shared, each step is a window with a mean behind it
  const roundSteps = length / windows || 0;
  return {
    session: `${name}.${device}`,
    digest,
    // Rounds are whole, and each ends with a step that goes on from the mean; so the first one begins.
    total_steps: roundSteps ? rounds * windows * (roundSteps + 1) + 1 : batches.totalSteps,
    checkpoint_every: spec.durability?.checkpoint_every ?? CHECKPOINT_EVERY,
    eval_every: (spec.evaluation?.every_epochs ?? 1) * batches.stepsPerEpoch,
    round_steps: roundSteps,
    means_per_round: windows,
    eval_batches: tests.count,
    has_tail: hasTail,
    micro_batches: spec.micro_batches ?? 1,
    stops_early: typeof spec.evaluation?.patience === "number",
    ...restart,
    previous: null,
    reply_timeout_s: 10,
    stop_grace_s: 3,
    retry_s: 1,
    ask_above_bytes: 32 << 10,
    agent: AGENT,
  };
}

/** The device's own first tensors: drawn at its first start and kept, since another browser may round otherwise. */
async function initialEnds(job: Job, state: StateFolder, key: Key): Promise<Tensors> {
  const kept = await state.ends();
  if (kept !== null) return kept;
  const weights = ["head", ...(job.hasTail ? ["tail"] : [])].flatMap((role) => weightsOf(role, part(job.parts, `${role}.json`)));
  checkEntropy(job.ends, weights, (path) => isPublic(job, path));
  const drawn = { ...drawEnds(job.ends, key.at("ends")), ...perturbedEnds(job, key) };
  await state.saveEnds(drawn);
  return drawn;
}

/** The public weights that train, moved on this device, where the job asks for that. */
function perturbedEnds(job: Job, key: Key): Tensors {
  const { ends, perturb = DEFAULT_PERTURB } = job.spec.privacy ?? {};
  if (ends !== "perturb") return {};
  return Object.fromEntries(publicWeights(job).map(([name, path, value]) => [path, perturbed(value, perturb, key.at("perturb", name))]));
}

/** Name, path and the job's value of each public weight that trains. */
function publicWeights(job: Job): [string, string, Tensor][] {
  return rolesOf(job).flatMap((role) => {
    const values = tensorsFromBytes(part(job.parts, `${role}.safetensors`));
    return trainableIn(part(job.parts, `${role}.json`)).flatMap((name): [string, string, Tensor][] =>
      isPublic(job, `${role}/${name}`) && Object.hasOwn(values, name) ? [[name, `${role}/${name}`, fromEngine(values[name])]] : [],
    );
  });
}

/** Whether some weights of head and tail begin as they are in the job, where the server can read them. */
export function hasPublicWeights(job: Job): boolean {
  const moved = job.spec.privacy?.ends !== "perturb" ? [] : publicWeights(job).filter(([, , value]) => value.floats().some(Boolean)).map(([, path]) => path);
  return Object.entries(job.ends.public ?? {}).some(([role, table]) => Object.keys(table ?? {}).some((name) => !moved.includes(`${role}/${name}`)));
}

function rolesOf(job: Job): ("head" | "tail")[] {
  return job.hasTail ? ["head", "tail"] : ["head"];
}

/** The main names of a segment's tensors that train. */
function trainableIn(graph: Uint8Array): string[] {
  return documentFromJson(graph).tensors.flatMap(({ names: [name], requires_grad }) => (requires_grad === true ? [name] : []));
}

function isPublic(job: Job, path: string): boolean {
  const [role, name] = [path.slice(0, path.indexOf("/")), path.slice(path.indexOf("/") + 1)];
  return Object.hasOwn((job.ends.public ?? {})[role] ?? {}, name);
}

/** The trainable matrices in a segment's table. */
function weightsOf(role: string, graph: Uint8Array): Weight[] {
  const document: unknown = JSON.parse(new TextDecoder().decode(graph));
  const tensors = isRecord(document) && Array.isArray(document["tensors"]) ? (document["tensors"] as unknown[]) : [];
  return tensors.flatMap((each): Weight[] => {
    const { names, shape, requires_grad } = isRecord(each) ? each : {};
    if (requires_grad !== true || !Array.isArray(names) || !Array.isArray(shape) || shape.length < 2) return [];
    return [{ path: `${role}/${String(names[0])}`, size: product(shape as number[]), rows: (shape as number[])[0] }];
  });
}

/** One codec for each kind of values. Where the job leaves the choice, it is the one that the job likes best. */
function codecsOf({ spec }: Job): Record<Place, string> {
  const { activations = "fp32", gradients = "fp32", allow = [] } = spec.link ?? {};
  const chosen = (codec: string): string => (codec === "auto" ? (allow[0] ?? "fp32") : codec);
  const codecs = { activations: chosen(activations), gradients: chosen(gradients) };
  Object.values(codecs).forEach(parseCodec);
  return codecs;
}

/** The codecs that a request has to name, since the job allows several; else null. */
function openCodecs({ spec }: Job, codecs: Readonly<Record<Place, string>>): Record<Place, string | null> {
  const { activations, gradients, allow = [] } = spec.link ?? {};
  const several = (codec: string | undefined): boolean => codec === "auto" && allow.length > 1;
  return {
    activations: several(activations) ? codecs.activations : null,
    gradients: several(gradients) ? codecs.gradients : null,
  };
}

function lossOf({ spec, parts, signature }: Job): LossSource {
  const { name } = spec.loss;
  return name ? { name } : tracedIn(parts, "loss", signature.targets.length);
}

/** The metrics that are functions of the job's author, by their references. */
async function metricFunctions({ spec, parts, signature }: Job, engine: Engine): Promise<ReadonlyMap<string, Loss>> {
  const references = (spec.evaluation?.metrics ?? []).filter((name) => name.includes(":"));
  const loaded = new Map<string, Loss>();
  for (const [place, reference] of references.entries()) {
    loaded.set(reference, await engine.loadLoss(tracedIn(parts, `metric${place}`, signature.targets.length)));
  }
  return loaded;
}

function tracedIn(parts: Job["parts"], name: string, targets: number): LossSource {
  return { graph: part(parts, `${name}.json`), tensors: part(parts, `${name}.safetensors`), targets };
}

