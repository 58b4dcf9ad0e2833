/** One segment in training: `spliteasy/training/segment_trainer.py`, computed here and at once. */

import { DataError, NotSupported, SplitEasyError } from "../errors.ts";
import { Key, Twister } from "../random/index.ts";
import { checkValues, shapeFor } from "./checks.ts";
import { NdArray, type Machine } from "./nd_array.ts";
import { Optimizer, clipGradients, groupOf, stateFields, type Parameter } from "./optimizer.ts";
import type { LossFunction } from "./loss.ts";
import type { Program } from "./program.ts";
import { factor } from "./schedule.ts";
import type { Segment } from "./segment.ts";
import { Tape } from "./tape.ts";
import type { Gradients, State, Tensor, TrainerOptions, Value } from "./types.ts";

const STEP = "trainer/step";
const REBASES = "trainer/rebases";
const AHEAD = "trainer/ahead";
const MODEL = "model/";
const OPTIMIZER = "optimizer/";
const ACCUMULATED = "accumulated/";
const AVERAGE = "average/";

interface Open {
  readonly tape: Tape;
  readonly inputs: readonly (NdArray | number)[];
  readonly outputs: readonly (NdArray | number)[];
}

export class LocalTrainer {
  step = 0;
  rebases = 0;
  /** Steps by which the schedule of the learning rate is ahead: other devices took them. */
  #ahead = 0;
  readonly #machine: Machine;
  readonly #parameters: readonly Parameter[];
  readonly #trainable: readonly Parameter[];
  readonly #buffers: readonly [string, NdArray][];
  readonly #optimizer: Optimizer;
  readonly #key: Key;
  readonly #open = new Map<number, Open>();
  #before: readonly NdArray[] | null = null;
  #opened = 0;
  /** The gradients of the batches since the optimizer's last step, by weight, where the job accumulates. */
  #accumulated = new Map<string, NdArray>();
  /** The moving average of each trainable weight, once the optimizer has stepped, where the job asks. */
  #average = new Map<string, NdArray>();

  constructor(
    readonly segment: Segment,
    private readonly options: TrainerOptions,
  ) {
    this.#machine = segment.machine;
    this.#key = new Key(options.key);
    this.#optimizer = new Optimizer(this.#machine, options.optimizer);
    this.#parameters = segment.named("parameter").map(([name, tensor]) => ({ name, tensor, group: groupOf(options.optimizer, name) }));
    for (const { tensor, group } of this.#parameters) if (group?.frozen) tensor.needsGrad = false;
    this.#trainable = this.#parameters.filter(({ tensor }) => tensor.needsGrad);
    this.#buffers = segment.named("buffer");
    for (const parameter of this.#trainable) this.#optimizer.begin(parameter);
  }

  get #window(): number {
    return this.options.accumulate ?? 1;
  }

  get taken(): number {
    return this.step - this.rebases;
  }

  get trainable(): boolean {
    return this.#trainable.length > 0;
  }

  get fixed(): boolean {
    return !this.trainable && !this.segment.train.stateful;
  }

  /**
   * Run both graphs once on two samples of zeros, and go back: what this build can't run is refused now, before
   * anything is trained.
   */
  tryOut(): void {
    const { document } = this.segment;
    const zeros = (specs: Program["graph"]["inputs"]): Value[] =>
      specs.map((spec) => (spec.dtype === null ? (shapeFor(spec, 2)[0] ?? 0) : emptyTensor(spec.dtype, shapeFor(spec, 2))));
    const named = <T>(mode: string, work: () => T): T => {
      try {
        return work();
      } catch (error) {
        if (!(error instanceof SplitEasyError)) throw error;
        const names = error instanceof NotSupported ? error.operators : [];
        throw new NotSupported(`${document.name}, ${mode} graph: ${error.message}`, names, error.hint);
      }
    };
    named("training", () => {
      const opened = this.forward(zeros(document.train.inputs));
      this.backward(opened.id, opened.outputs.map((value) => (typeof value === "object" && value.dtype === "float32" ? emptyTensor("float32", value.shape) : null)));
    });
    this.abort();
    named("evaluation", () => this.evaluate(zeros(document.eval.inputs)));
  }

  forward(values: readonly Value[], micro = 0): { id: number; outputs: readonly Value[] } {
    if (micro === 0) {
      this.abort();
      this.#before = this.#buffers.map(([, buffer]) => this.#machine.copy(buffer));
    }
    return this.#forward(values, this.taken + 1, micro);
  }

  forwardAhead(values: readonly Value[], step: number, micro: number): { id: number; outputs: readonly Value[] } {
    if (!this.fixed) throw new Error("only a segment that training does not change is computed ahead");
    return this.#forward(values, step, micro);
  }

  #forward(values: readonly Value[], step: number, micro: number): { id: number; outputs: readonly Value[] } {
    const machine = this.#machine;
    const { train, document } = this.segment;
    checkValues(document.name, document.train.inputs, values);
    return machine.arena.guarded(() => {
      const inputs = values.map((value, place) => {
        if (typeof value === "number") return value;
        const input = machine.imported(value);
        input.needsGrad = document.train.inputs[place].needs_grad === true && input.isFloat;
        return input;
      });
      const tape = new Tape(machine);
      const random = train.random ? Twister.of(this.#key.at("mask", this.options.role, step, micro)) : null;
      const outputs = train.run(machine, this.segment.tensors, inputs, tape, random);
      const id = ++this.#opened;
      this.#open.set(id, { tape, inputs, outputs });
      return { id, outputs: outputs.map((value) => (typeof value === "number" ? value : machine.exported(value))) };
    });
  }

  backward(id: number, gradients: Gradients): (Tensor | null)[] {
    const machine = this.#machine;
    const opened = this.#taken(id);
    if (gradients.length !== opened.outputs.length) throw new DataError(`${gradients.length} gradients for ${opened.outputs.length} outputs`);
    opened.outputs.forEach((output, place) => {
      const gradient = gradients[place];
      if (!gradient || typeof output === "number" || !output.needsGrad) return;
      if (gradient.data.length !== output.size) throw new DataError(`a gradient has ${gradient.data.length} numbers, its output ${output.size}`);
      const own = machine.imported(gradient).shaped(output.shape);
      if (output.grad) {
        machine.kernels.addInto(output.grad.at, own.at, own.size);
        machine.drop(own);
      } else {
        output.grad = own;
      }
    });
    return this.#back(opened);
  }

  backwardFromLoss(id: number, compute: LossFunction, targets: readonly Tensor[], share: number): { loss: number; gradients: (Tensor | null)[] } {
    const machine = this.#machine;
    const opened = this.#taken(id);
    return this.#orForgotten(opened, () => {
      const own = targets.map((target) => machine.imported(target));
      const outputs = opened.outputs.filter((value) => value instanceof NdArray);
      const value = compute(outputs, own, opened.tape);
      const loss = machine.floats(value)[0];
      if (value.needsGrad && share) value.grad = machine.filled(value.shape, this.#window === 1 ? share : Math.fround(1 / this.#window) * Math.fround(share));
      for (const target of own) machine.drop(target);
      const gradients = this.#back(opened);
      machine.drop(value);
      return { loss, gradients };
    });
  }

  /** Do what ends an open forward; where it throws, what the forward held is freed. */
  #orForgotten<T>(opened: Open, work: () => T): T {
    return this.#machine.arena.guarded(() => {
      try {
        return work();
      } catch (error) {
        this.#forget(opened);
        throw error;
      }
    });
  }

  /** The open forward of that number, which is open no more. */
  #taken(id: number): Open {
    const opened = this.#open.get(id);
    if (!opened) throw new Error(`forward ${id} of ${this.segment.document.name} is not open`);
    this.#open.delete(id);
    return opened;
  }

  #back({ tape, inputs, outputs }: Open): (Tensor | null)[] {
    const machine = this.#machine;
    tape.goBack();
    for (const value of outputs) if (typeof value !== "number") machine.drop(value);
    return inputs.map((input) => {
      if (typeof input === "number") return null;
      const gradient = input.grad ? machine.exported(input.grad.shaped(input.shape)) : null;
      if (input.grad) machine.drop(input.grad);
      machine.drop(input);
      return gradient;
    });
  }

  release(id: number): void {
    if (!this.#open.has(id)) return;
    this.#forget(this.#taken(id));
  }

  #forget({ tape, inputs, outputs }: Open): void {
    tape.forget();
    for (const value of [...inputs, ...outputs]) if (typeof value !== "number") this.#machine.drop(value);
  }

  notFinite(): string | null {
    const { kernels } = this.#machine;
    for (const { name, tensor } of this.#parameters) {
      if (tensor.grad && kernels.notFinite(tensor.grad.at, tensor.size)) return `the gradient of ${name}`;
    }
    const spoiled = this.#buffers.find(([, now], place) => {
      const before = this.#before?.[place];
      return before && now.isFloat && kernels.notFinite(now.at, now.size) && !kernels.notFinite(before.at, before.size);
    });
    return spoiled ? `the buffer ${spoiled[0]} (running statistics)` : null;
  }

  /** Let the optimizer step, or keep the gradients for it where the job adds up more batches first. */
  apply(): void {
    const batches = this.taken + 1;
    if (batches % this.#window) this.#keepGradients();
    else this.#stepOn(batches / this.#window);
    this.#forgetGradients();
    this.#forgetBefore();
    this.step++;
  }

  #stepOn(steps: number): void {
    const machine = this.#machine;
    const moved = this.#trainable.filter(({ tensor }) => tensor.grad);
    if (this.options.clip) clipGradients(machine, moved.map(({ tensor }) => tensor.grad!), this.options.clip);
    const scale = factor(this.options.schedule ?? {}, steps + this.#ahead);
    for (const parameter of moved) this.#optimizer.step(parameter, parameter.tensor.grad!, scale);
    this.#dropped(this.#accumulated);
    const { ema } = this.options.optimizer;
    for (const { name, tensor } of typeof ema === "number" ? this.#trainable : []) {
      const average = this.#average.get(name);
      if (average) machine.kernels.lerp(tensor.size, average.at, tensor.at, 1 - ema!);
      else this.#average.set(name, machine.copy(tensor));
    }
  }

  #keepGradients(): void {
    this.#dropped(this.#accumulated);
    for (const { name, tensor } of this.#trainable) {
      if (tensor.grad) this.#accumulated.set(name, this.#machine.copy(tensor.grad.shaped(tensor.shape)));
    }
  }

  #dropped(tensors: Map<string, NdArray>): void {
    for (const tensor of tensors.values()) this.#machine.drop(tensor);
    tensors.clear();
  }

  skip(): void {
    this.abort();
    this.step++;
  }

  rebase(state: State | null, scheduled: number | null): void {
    this.abort();
    const ahead = scheduled === null ? 0 : scheduled - this.taken;
    const [step, rebases] = [this.step + 1, this.rebases + 1];
    if (state) this.loadState({ ...state, [STEP]: counted(step), [REBASES]: counted(rebases) }, step);
    [this.step, this.rebases, this.#ahead] = [step, rebases, ahead];
  }

  abort(): void {
    for (const id of [...this.#open.keys()]) this.release(id);
    this.#forgetGradients();
    for (const { name, tensor } of this.#trainable) {
      const kept = this.#accumulated.get(name);
      if (kept) tensor.grad = this.#machine.copy(kept);
    }
    this.#before?.forEach((before, place) => this.#machine.assign(this.#buffers[place][1], before));
    this.#forgetBefore();
  }

  evaluate(values: readonly Value[]): Value[] {
    const machine = this.#machine;
    const { document } = this.segment;
    checkValues(document.name, document.eval.inputs, values);
    return machine.arena.guarded(() => {
      const inputs = values.map((value) => (typeof value === "number" ? value : machine.imported(value)));
      const others = new Map((this.#before ?? []).map((copy, place) => [this.#buffers[place][1], copy]));
      for (const { name, tensor } of this.#trainable) {
        const average = this.#average.get(name);
        if (average) others.set(tensor, average);
      }
      const tensors = this.segment.tensors.map((tensor) => others.get(tensor) ?? tensor);
      const random = this.segment.eval.random ? Twister.of(this.#key.at("mask", this.options.role, this.taken, 0)) : null;
      const outputs = this.segment.eval.run(machine, tensors, inputs, null, random);
      const found = outputs.map((value) => (typeof value === "number" ? value : machine.exported(value)));
      for (const value of [...inputs, ...outputs]) if (typeof value !== "number") machine.drop(value);
      return found;
    });
  }

  fixedNames(): string[] {
    return this.#parameters.filter(({ tensor }) => !tensor.needsGrad).map(({ name }) => MODEL + name);
  }

  snapshot(): State {
    const machine = this.#machine;
    const before = new Map((this.#before ?? []).map((copy, place) => [this.#buffers[place][1], copy]));
    const state: Record<string, Tensor> = {};
    for (const [name, tensor] of this.segment.stateNames()) state[MODEL + name] = machine.exported(before.get(tensor) ?? tensor);
    for (const { name } of this.#parameters) {
      for (const [field, value] of this.#optimizer.fields(name)) state[`${OPTIMIZER}${name}/${field}`] = machine.exported(value);
    }
    for (const [name, gradient] of this.#accumulated) state[ACCUMULATED + name] = machine.exported(gradient);
    for (const [name, average] of this.#average) state[AVERAGE + name] = machine.exported(average);
    state[STEP] = counted(this.step);
    if (this.rebases) state[REBASES] = counted(this.rebases);
    if (this.#ahead) state[AHEAD] = counted(this.#ahead);
    return state;
  }

  loadState(state: State, step: number): void {
    this.abort();
    const machine = this.#machine;
    const found = state[STEP] ? Number(state[STEP].data[0]) : NaN;
    if (found !== step) throw new DataError(`the state is of step ${found}, not of step ${step}`);
    const own = this.segment.stateNames();
    this.#checkFit(state, own);
    for (const [name, tensor] of own) this.#overwrite(tensor, state[MODEL + name]);
    this.#optimizer.clear();
    const fields = stateFields(this.options.optimizer);
    for (const parameter of this.#trainable) {
      for (const field of fields) {
        const value = state[`${OPTIMIZER}${parameter.name}/${field}`];
        if (value) this.#optimizer.set(parameter.name, field, machine.imported(value));
      }
      this.#optimizer.begin(parameter);
    }
    this.#kept(state, ACCUMULATED, this.#accumulated, this.#window > 1);
    this.#kept(state, AVERAGE, this.#average, typeof this.options.optimizer.ema === "number");
    this.abort();
    this.step = step;
    this.rebases = state[REBASES] ? Number(state[REBASES].data[0]) : 0;
    this.#ahead = state[AHEAD] ? Number(state[AHEAD].data[0]) : 0;
  }

  /** Take over what the state has under the prefix for weights that train. */
  #kept(state: State, prefix: string, into: Map<string, NdArray>, wanted: boolean): void {
    this.#dropped(into);
    for (const { name } of wanted ? this.#trainable : []) {
      const given = state[prefix + name];
      if (given) into.set(name, this.#machine.imported(given));
    }
  }

  #checkFit(state: State, own: readonly [string, NdArray][]): void {
    const names = new Set(own.map(([name]) => MODEL + name));
    const extra = Object.keys(state).find((name) => name.startsWith(MODEL) && !names.has(name));
    if (extra) throw new DataError(`the state is not the segment's: ${extra.slice(MODEL.length)} is new`);
    for (const [name, tensor] of own) {
      const given = state[MODEL + name];
      if (!given) throw new DataError(`the state is not the segment's: it has no ${name}`);
      if (given.dtype !== tensor.kind || given.shape.join() !== tensor.shape.join()) {
        throw new DataError(`the state is not the segment's: ${name} was ${given.dtype} [${given.shape.join(", ")}]`);
      }
    }
    for (const { name, tensor } of this.#trainable) {
      for (const prefix of [ACCUMULATED, AVERAGE]) {
        const given = state[prefix + name];
        if (given && (given.dtype !== "float32" || given.data.length !== tensor.size)) {
          throw new DataError(`the state is not the segment's: ${prefix}${name} has another form`);
        }
      }
      for (const field of stateFields(this.options.optimizer)) {
        const given = state[`${OPTIMIZER}${name}/${field}`];
        const size = field === "step" ? 1 : tensor.size;
        if (given && (given.dtype !== "float32" || given.data.length !== size)) {
          throw new DataError(`the state is not the segment's: ${field} of ${name} has another form`);
        }
      }
    }
  }

  #overwrite(tensor: NdArray, given: Tensor): void {
    const read = this.#machine.imported(given);
    this.#machine.assign(tensor, read);
    this.#machine.drop(read);
  }

  dispose(): void {
    this.#dropped(this.#accumulated);
    this.#dropped(this.#average);
    this.abort();
    this.#optimizer.clear();
    this.segment.free();
  }

  #forgetGradients(): void {
    for (const { tensor } of this.#parameters) {
      if (tensor.grad) this.#machine.drop(tensor.grad);
      tensor.grad = null;
    }
  }

  #forgetBefore(): void {
    this.#before?.forEach((copy) => this.#machine.drop(copy));
    this.#before = null;
  }
}

function counted(value: number): Tensor {
  return { dtype: "int64", shape: [], data: BigInt64Array.of(BigInt(value)) };
}

function emptyTensor(dtype: string, shape: readonly number[]): Tensor {
  const size = shape.reduce((a, b) => a * b, 1);
  const data = dtype === "float32" ? new Float32Array(size) : dtype === "int64" ? new BigInt64Array(size) : new Uint8Array(size);
  return { dtype: dtype as Tensor["dtype"], shape, data };
}
