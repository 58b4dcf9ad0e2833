/** The device's half of the training: head, tail, loss, data: `device_agent/training/trainer.py`. */

import { DataError, SplitEasyError } from "../errors.ts";
import type { Loss, OpenForward, SegmentTrainer, Tensor as EngineTensor, Value as EngineValue } from "../engine/types.ts";
import type { MessageOf } from "../protocol/messages.ts";
import type { Packed } from "../protocol/packed.ts";
import { product, Tensor } from "../protocol/tensor.ts";
import type { RoundEnds } from "../rounds/ends.ts";
import { RoundPlace } from "../rounds/place.ts";
import { microSizes } from "../session/plan.ts";
import { bytesTensor, type Tensors } from "../storage/tensors.ts";
import type { Batch, BatchOrder, EvaluationBatches } from "./batch_order.ts";
import { unpack, type Expected, type Packer, type Place } from "./codecs/packer.ts";
import { EarlyStopping, STOPPING } from "./early_stopping.ts";
import type { Job } from "./job.ts";
import { makeMetric, type Metric } from "./metrics.ts";
import type { CutTransforms, Order } from "./privacy/cut_transforms.ts";
import { checkedGradients, checkedValues, expectedOf, fromEngine, hasNan, isFinite, spoilt, toEngine, valueFromEngine } from "./values.ts";

const HEAD = "head";
const TAIL = "tail";
const ROUND = "fleet/round";

/** A micro-batch of the open step. */
interface Micro {
  readonly inputs: EngineTensor;
  readonly targets: Tensor;
  /** The weight of its loss in the batch's. */
  readonly share: number;
  readonly elements: number;
  head: OpenForward | null;
  /** What crossed the first cut, where transforms make it another than the head's outputs. */
  sent: readonly EngineValue[];
  /** The order in which its tokens cross, where it is not their own. */
  order: Order | null;
  keptGradients: (EngineTensor | null)[];
}

interface Step {
  readonly micros: Micro[];
  tails: number;
  returned: number;
  loss: number;
  /** What is NaN or infinite, where the job lets the step pass without effect. */
  spoiled: string | null;
}

/** Sums over the held-back samples so far. */
export interface Evaluation {
  samples: number;
  loss: number;
  elements: number;
  correct: number;
  counted: number;
  judged: boolean;
  /** No output of any batch was NaN. */
  finite: boolean;
  /** The metrics that the job names. */
  readonly gathered: ReadonlyMap<string, Metric>;
}

/** The share of right predictions; null where it was not measured. */
export function accuracyOf({ correct, counted, judged }: Evaluation): number | null {
  return judged && counted ? correct / counted : null;
}

/** The loss, or the metric of that name; null where it was not measured. */
export function numberOf({ loss, elements, finite, gathered }: Evaluation, name: string): number | null {
  if (name === "loss") return elements ? loss / elements : null;
  return finite ? (gathered.get(name)?.value() ?? null) : null;
}

/** What of an evaluation's head stays on the device for the tail. */
export interface Kept {
  readonly values: readonly EngineValue[];
  readonly order: Order | null;
}

export interface Parts {
  readonly job: Job;
  readonly head: SegmentTrainer;
  readonly tail: SegmentTrainer | null;
  readonly loss: Loss;
  /** The metrics that are functions of the job's author, by their references. */
  readonly metrics: ReadonlyMap<string, Loss>;
  readonly codecs: Readonly<Record<Place, string>>;
  readonly packer: Packer;
  readonly rounds: RoundEnds;
  readonly transforms: CutTransforms;
  /** The codec of answers to evaluations, where the job leaves it open. */
  readonly evaluationCodec: string | null;
}

export class DeviceTrainer {
  /** Training loss of the last step; null where it was not measured. */
  loss: number | null = null;
  evaluation: Evaluation = noEvaluation(new Map());
  /** There where an evaluation may end the training. */
  readonly stopping: EarlyStopping | null;
  /** Steps taken, and those of them that went on from a mean of a fleet. */
  step = 0;
  private rebases = 0;
  private open: Step | null = null;
  private evaluated: { targets: Tensor; kept: Kept } | null = null;

  constructor(
    readonly parts: Parts,
    readonly batches: BatchOrder,
    readonly tests: EvaluationBatches,
  ) {
    const { evaluation } = parts.job.spec;
    this.stopping = evaluation !== undefined && typeof evaluation.patience === "number" ? new EarlyStopping(evaluation) : null;
  }

  /** The loss of the open step, where the job lets it leave the device; null until all is added. */
  get sharedLoss(): number | null {
    const { micros, tails, loss } = this.live();
    const told = tails === micros.length && this.parts.job.spec.share_loss === true && this.counted > 0;
    return told && Number.isFinite(loss) ? loss : null;
  }

  /** The accuracy that was measured last, where the job lets it leave the device; null before. */
  get toldAccuracy(): number | null {
    return this.parts.job.spec.share_loss === true ? accuracyOf(this.evaluation) : null;
  }

  private get counted(): number {
    return this.live().micros.reduce((sum, { elements }) => sum + elements, 0);
  }

  /** The head's wire values of a micro-batch, in order; micro-batch 0 begins `step`. */
  async runHead(number: number, micro: number) {
    const step = number - this.rebases;
    if (micro === 0) this.open = await this.begun(step);
    const { head, tail, packer } = this.parts;
    const underWay = this.live();
    const part = underWay.micros[micro];
    part.head = await head.forward([part.inputs], micro);
    const clean = part.head.outputs.slice(0, head.wire.train);
    part.order = this.parts.transforms.order(clean, "activations", step);
    part.sent = this.parts.transforms.activations(clean, "activations", step, part.order);
    let wire = part.sent;
    this.refuseUnless(!wire.some(hasNan), "an output of the head");
    if (underWay.spoiled !== null) wire = wire.map(spoilt);
    const values = await packer.pack("activations", wire.map(valueFromEngine), step, micro);
    const samples = part.inputs.shape[0];
    const batch = underWay.micros.reduce((sum, { inputs }) => sum + inputs.shape[0], 0);
    const shared = tail === null;
    const counted = underWay.micros.length > 1 && shared ? this.counted || null : null;
    return { values, samples, targets: shared ? [part.targets] : [], batch, counted };
  }

  /** Tail, loss and tail backward of a micro-batch, in order: the gradients of the body's outputs. */
  async runTail(packed: Packed, micro: number): Promise<Packed> {
    const { tail, loss, packer } = this.parts;
    const step = this.live();
    const part = step.micros[micro];
    if (tail === null || part.head === null) throw new Error("no tail is to be computed");
    const kept = part.head.outputs.slice(this.parts.head.wire.train);
    const specs = tail.inputs.train.slice(0, tail.inputs.train.length - kept.length);
    const down = await this.arrived(packed, expectedOf(specs, part.inputs.shape[0]), "activations");
    const values = this.parts.transforms.inOrder(checkedValues(down, specs, part.inputs.shape[0]), part.order);
    const opened = await tail.forward([...values, ...kept], micro);
    this.refuseUnless(!opened.outputs.some(hasNan), "an output of the tail");
    const found = await tail.backwardFromLoss(opened, loss, [toEngine(part.targets)], part.share);
    if (part.share && part.elements) step.loss += found.loss * part.share;
    this.refuseUnless(Number.isFinite(step.loss), "the loss");
    this.refuseUnless(found.gradients.every(isFinite), "a gradient of the tail's inputs");
    const noisy = this.parts.transforms.gradients(found.gradients.slice(0, specs.length), toEngine(part.targets), this.taken + 1, part.order);
    const sent = noisy.map((gradient) => (step.spoiled !== null ? spoilt(gradient) : gradient));
    part.keptGradients = found.gradients.slice(specs.length);
    step.tails = micro + 1;
    return packer.pack("gradients", sent.map((gradient) => (gradient === null ? null : fromEngine(gradient))), this.taken + 1, micro);
  }

  /** Head backward of the next micro-batch. `loss` is the worker's, if it has it. */
  async runHeadBackward(packed: Packed, loss: number | null): Promise<void> {
    const { head } = this.parts;
    const step = this.live();
    const part = step.micros[step.returned];
    if (part.head === null) throw new Error("no head is open");
    const outputs = part.head.outputs.slice(0, head.wire.train);
    const kept = part.head.outputs.length - outputs.length;
    const expected = outputs.map((value): Expected => (typeof value === "number" ? null : { shape: value.shape, dtype: value.dtype }));
    const gradients = checkedGradients(await this.arrived(packed, expected, "gradients"), outputs);
    const none = Array.from({ length: kept }, () => null);
    const share = part.share / (this.parts.job.spec.accumulate ?? 1);
    const returned = this.parts.transforms.returned([part.inputs], outputs, part.sent, gradients, share, part.order);
    await head.backward(part.head, [...returned, ...(part.keptGradients.length ? part.keptGradients : none)]);
    part.head = null;
    step.returned += 1;
    if (loss !== null) step.loss += loss * part.share;
  }

  /** Head backward of the last micro-batch, then head and tail step together. */
  async apply(packed: Packed, loss: number | null): Promise<void> {
    await this.runHeadBackward(packed, loss);
    const trainers = this.trainers();
    for (const trainer of trainers) {
      const what = await trainer.notFinite();
      if (what !== null) throw this.notFinite(what);
    }
    for (const trainer of trainers) await trainer.apply();
    this.parts.packer.apply();
    this.loss = this.counted ? this.live().loss : null;
    const samples = this.live().micros.reduce((sum, { inputs }) => sum + inputs.shape[0], 0);
    this.parts.rounds.place = this.parts.rounds.place.trained(samples);
    this.open = null;
    this.step += 1;
  }

  /** Let the open step pass without effect. */
  async skip(): Promise<void> {
    this.open = null;
    this.loss = null;
    this.parts.packer.abort();
    for (const trainer of this.trainers()) await trainer.skip();
    this.parts.rounds.place = this.parts.rounds.place.trained(0);
    this.step += 1;
  }

  /** Steps that trained, of all steps: what batches and random numbers follow. */
  private get taken(): number {
    return this.step - this.rebases;
  }

  /** Take a step that trains nothing, and goes on from the mean of a round. */
  async takeMean(mean: MessageOf<"MEAN">): Promise<void> {
    await this.abort();
    await this.parts.rounds.takeMean(mean);
    this.loss = null;
    this.step += 1;
    this.rebases += 1;
  }

  /** Forget the open step. */
  async abort(): Promise<void> {
    this.open = null;
    this.parts.packer.abort();
    for (const trainer of this.trainers()) await trainer.abort();
  }

  /** The wire values of held-back batch `index` in evaluation mode, and its size. */
  async evalHead(index: number): Promise<{ values: Packed; samples: number }> {
    if (index === 0) this.evaluation = noEvaluation(this.metrics());
    const { inputs, targets } = this.tests.batch(index, this.step);
    const values = await this.headOutputs(inputs, "evaluation", (kept) => (this.evaluated = { targets, kept }));
    return { values, samples: inputs.shape[0] };
  }

  /** The head in evaluation mode on any inputs, packed; `keep` gets what stays here for the tail. */
  async headOutputs(inputs: Tensor, purpose: "evaluation" | "prediction", keep: (kept: Kept) => void): Promise<Packed> {
    const { head, packer, transforms } = this.parts;
    const outputs = await head.evaluate([toEngine(inputs)]);
    const clean = outputs.slice(0, head.wire.eval);
    const order = transforms.order(clean, purpose, this.step);
    keep({ values: outputs.slice(head.wire.eval), order });
    return packer.packEvaluation(transforms.activations(clean, purpose, this.step, order).map(valueFromEngine), this.parts.evaluationCodec);
  }

  /** Add held-back batch `index` to `evaluation`; whether another follows. */
  async evalTail(index: number, packed: Packed): Promise<boolean> {
    if (this.evaluated === null) throw new Error("no batch is evaluated");
    const { targets, kept } = this.evaluated;
    const outputs = await this.modelOutputs(packed, kept, targets.shape[0]);
    const { loss } = this.parts;
    const about = [toEngine(targets)];
    const result = this.evaluation;
    const elements = await loss.elements(about);
    result.samples += targets.shape[0];
    if (elements) {
      result.elements += elements;
      result.loss += (await loss.value(outputs, about)) * elements;
    }
    const finite = !outputs.some(hasNan);
    result.finite &&= finite;
    for (const [name, metric] of finite ? result.gathered : []) {
      const shown = this.parts.metrics.has(name) ? outputs.slice(0, this.parts.job.signature.outputs.length) : outputs;
      await metric.add(shown, about);
    }
    const right = finite ? await loss.right(outputs, about) : null;
    result.judged = result.judged && right !== null;
    if (right !== null) {
      result.correct += right[0];
      result.counted += right[1];
    }
    const more = index + 1 < this.tests.count;
    if (!more) this.stopping?.judge(this.step, numberOf(result, this.stopping.chosenBy));
    return more;
  }

  /** The model's outputs from the body's, in evaluation mode. */
  async modelOutputs(packed: Packed, { values: kept, order }: Kept, samples: number): Promise<EngineTensor[]> {
    const { tail, job } = this.parts;
    if (tail === null) {
      const specs = job.signature.outputs.map(({ name, dtype, shape }) => ({ name, dtype: toEngineDtype(dtype), shape: [samples, ...shape] }));
      const values = await this.arrived(packed, specs.map(({ dtype, shape }) => ({ dtype, shape })), "activations");
      return checkedValues(values, specs, samples).filter((value) => typeof value !== "number");
    }
    const specs = tail.inputs.eval.slice(0, tail.inputs.eval.length - kept.length);
    const values = await this.arrived(packed, expectedOf(specs, samples), "activations");
    const outputs = await tail.evaluate([...this.parts.transforms.inOrder(checkedValues(values, specs, samples), order), ...kept]);
    return outputs.filter((value) => typeof value !== "number");
  }

  /** Head, tail and their optimizers after `step`, as they are kept. */
  async state(): Promise<Tensors> {
    const { head, tail, packer } = this.parts;
    const state: Record<string, Tensor> = { [HEAD]: bytesTensor(await head.exportState()), ...packer.state() };
    if (tail !== null) state[TAIL] = bytesTensor(await tail.exportState());
    if (this.stopping !== null) state[STOPPING] = this.stopping.state();
    if (this.parts.rounds.fleet.hasRounds) state[ROUND] = this.parts.rounds.place.asTensor();
    return state;
  }

  /** Take over what `state` gave. Rejects with DataError where it does not fit. */
  async loadState(state: Tensors, step: number): Promise<void> {
    const { head, tail, packer } = this.parts;
    await this.abort();
    await head.importState(state[HEAD].bytes, step);
    if (tail !== null) await tail.importState(state[TAIL].bytes, step);
    packer.loadState(state);
    this.stopping?.loadState(state[STOPPING]);
    this.parts.rounds.place = RoundPlace.of(state[ROUND]);
    this.step = step;
    this.rebases = (await head.progress()).rebases;
  }

  /** The metrics that the job names, before the first test batch. */
  private metrics(): Evaluation["gathered"] {
    const { job, loss, metrics } = this.parts;
    return new Map((job.spec.evaluation?.metrics ?? []).map((name) => [name, makeMetric(name, loss, metrics)]));
  }

  private trainers(): SegmentTrainer[] {
    const { head, tail } = this.parts;
    return tail === null ? [head] : [head, tail];
  }

  private async begun(step: number): Promise<Step> {
    const batch = this.batches.batch(step);
    const { loss, job } = this.parts;
    const parts = split(batch, job.spec.micro_batches ?? 1);
    const wanted = parts.map(({ targets }) => [toEngine(targets)]);
    const shares = await loss.shares(wanted);
    const elements: number[] = [];
    for (const targets of wanted) elements.push(await loss.elements(targets));
    const micros = parts.map(({ inputs, targets }, at): Micro =>
      ({ inputs: toEngine(inputs), targets, share: shares[at], elements: elements[at], head: null, sent: [], order: null, keptGradients: [] }));
    return { micros, tails: 0, returned: 0, loss: 0, spoiled: null };
  }

  private async arrived(packed: Packed, expected: readonly Expected[], place: Place) {
    return unpack(packed, expected, this.parts.codecs[place]);
  }

  private live(): Step {
    if (this.open === null) throw new Error("no step is open");
    return this.open;
  }

  private refuseUnless(fine: boolean, what: string): void {
    if (fine) return;
    const skips = this.parts.job.spec.durability?.on_non_finite === "skip";
    if (!skips) throw this.notFinite(what);
    this.live().spoiled ??= what;
  }

  private notFinite(what: string): SplitEasyError {
    return new DataError(
      `${what} is no finite number in step ${this.taken + 1}; nothing of the step was kept`,
      "tell the person who sent you the link: the learning rate may be too high",
    );
  }
}

function noEvaluation(gathered: Evaluation["gathered"]): Evaluation {
  return { samples: 0, loss: 0, elements: 0, correct: 0, counted: 0, judged: true, finite: true, gathered };
}

function toEngineDtype(dtype: Tensor["dtype"]): EngineTensor["dtype"] {
  if (dtype === "complex64" || dtype === "complex128") throw new DataError("the model's outputs are complex numbers");
  return dtype;
}

/** The batch in micro-batches of consecutive rows. */
function split({ inputs, targets }: Batch, count: number): Batch[] {
  let start = 0;
  return microSizes(inputs.shape[0], count).map((size) => {
    const rows = { inputs: rowsOf(inputs, start, size), targets: rowsOf(targets, start, size) };
    start += size;
    return rows;
  });
}

function rowsOf(tensor: Tensor, start: number, count: number): Tensor {
  const rest = tensor.shape.slice(1);
  const row = tensor.bytes.length / tensor.shape[0];
  if (!Number.isInteger(row) || !product(rest)) throw new DataError("a sample without numbers");
  return new Tensor(tensor.dtype, [count, ...rest], tensor.bytes.slice(start * row, (start + count) * row));
}
