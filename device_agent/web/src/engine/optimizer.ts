/** The optimizer of a segment, with the arithmetic and the state of torch's classes: `spliteasy/training/optim.py`. */

import { NotSupported } from "../errors.ts";
import type { Machine, NdArray, Shape } from "./nd_array.ts";
import type { AdagradSpec, AdamSpec, ClipSpec, GroupSpec, LionSpec, OptimizerSpec, RmsPropSpec, SgdSpec } from "./types.ts";

export interface Parameter {
  readonly name: string;
  readonly tensor: NdArray;
  readonly group: GroupSpec | null;
}

const KNOWN: readonly string[] = ["sgd", "adam", "adamw", "rmsprop", "adagrad", "lion"];

/** What an optimizer keeps of a parameter: tensors by torch's names for them. */
export type Fields = Map<string, NdArray>;

/** The first group whose pattern matches the parameter's original name. */
export function groupOf(spec: OptimizerSpec, name: string): GroupSpec | null {
  return spec.groups?.find((group) => patternOf(group.pattern).test(name)) ?? null;
}

/** A pattern of Python's `fnmatchcase`. */
function patternOf(pattern: string): RegExp {
  const source = pattern.replace(/\*|\?|\[(!?)([^\]]+)\]|[\\^$.|+(){}[\]]/g, (found, not: string | undefined, set: string | undefined) => {
    if (found === "*") return ".*";
    if (found === "?") return ".";
    if (set !== undefined) return `[${not ? "^" : ""}${set.replace(/[\\^]/g, "\\$&")}]`;
    return `\\${found}`;
  });
  return new RegExp(`^(?:${source})$`, "s");
}

export function stateFields(spec: OptimizerSpec): readonly string[] {
  if (spec.name === "sgd") return spec.momentum ? ["momentum_buffer"] : [];
  if (spec.name === "rmsprop") {
    return ["step", "square_avg", ...(spec.momentum ? ["momentum_buffer"] : []), ...(spec.centered ? ["grad_avg"] : [])];
  }
  if (spec.name === "adagrad") return ["step", "sum"];
  if (spec.name === "lion") return ["exp_avg"];
  return ["step", "exp_avg", "exp_avg_sq"];
}

export class Optimizer {
  readonly #state = new Map<string, Fields>();

  constructor(
    private readonly machine: Machine,
    private readonly spec: OptimizerSpec,
  ) {
    const name: string = spec.name;
    if (!KNOWN.includes(name)) throw new NotSupported(`this device has no optimizer ${name}, only ${KNOWN.join(", ")}`);
  }

  fields(name: string): Fields {
    return this.#state.get(name) ?? new Map<string, NdArray>();
  }

  set(name: string, field: string, value: NdArray): void {
    const fields = this.#state.get(name) ?? new Map<string, NdArray>();
    this.#state.set(name, fields.set(field, value));
  }

  clear(): void {
    for (const fields of this.#state.values()) for (const value of fields.values()) this.machine.drop(value);
    this.#state.clear();
  }

  /** Change a parameter by its gradient; `scale` is the schedule's factor. */
  step({ name, tensor, group }: Parameter, gradient: NdArray, scale: number): void {
    const { spec } = this;
    const rate = (group?.lr ?? spec.lr) * scale;
    const decay = group?.weight_decay ?? spec.weight_decay ?? (spec.name === "adamw" ? 0.01 : 0);
    switch (spec.name) {
      case "sgd":
        return this.#sgd(spec, name, tensor, gradient, rate, decay);
      case "rmsprop":
        return this.#rmsprop(spec, name, tensor, gradient, rate, decay);
      case "adagrad":
        return this.#adagrad(spec, name, tensor, gradient, rate, decay);
      case "lion":
        return this.#lion(spec, name, tensor, gradient, rate, decay);
      default:
        return this.#adam(spec, name, tensor, gradient, rate, decay);
    }
  }

  /** Make what an optimizer that has taken no step keeps of the parameter, where that is anything. */
  begin({ name, tensor }: Parameter): void {
    if (this.spec.name === "adagrad") this.#fields(name, tensor.shape, this.spec.initial_accumulator_value ?? 0);
  }

  /** The fields of a parameter; those that are missing begin with `value`, its count of steps with 0. */
  #fields(name: string, shape: Shape, value = 0): Fields {
    for (const field of stateFields(this.spec)) {
      if (this.fields(name).has(field)) continue;
      this.set(name, field, field === "step" ? this.machine.filled([], 0) : this.machine.filled(shape, value));
    }
    return this.fields(name);
  }

  #rmsprop(spec: RmsPropSpec, name: string, p: NdArray, g: NdArray, rate: number, decay: number): void {
    const { machine } = this;
    const fields = this.#fields(name, p.shape);
    machine.floats(fields.get("step")!)[0]++;
    machine.kernels.rmsprop(
      p.size, p.at, g.at, fields.get("square_avg")!.at, fields.get("grad_avg")?.at ?? 0, fields.get("momentum_buffer")?.at ?? 0,
      rate, spec.alpha ?? 0.99, spec.eps ?? 1e-8, spec.momentum ?? 0, decay,
    );
  }

  #adagrad(spec: AdagradSpec, name: string, p: NdArray, g: NdArray, rate: number, decay: number): void {
    const { machine } = this;
    const fields = this.#fields(name, p.shape, spec.initial_accumulator_value ?? 0);
    const step = ++machine.floats(fields.get("step")!)[0];
    const left = rate / (1 + (step - 1) * (spec.lr_decay ?? 0));
    machine.kernels.adagrad(p.size, p.at, g.at, fields.get("sum")!.at, left, spec.eps ?? 1e-10, decay);
  }

  #lion(spec: LionSpec, name: string, p: NdArray, g: NdArray, rate: number, decay: number): void {
    const [beta1, beta2] = spec.betas ?? [0.9, 0.99];
    const momentum = this.#fields(name, p.shape).get("exp_avg")!;
    this.machine.kernels.lion(p.size, p.at, g.at, momentum.at, rate, beta1, 1 - beta2, 1 - rate * decay);
  }

  #sgd(spec: SgdSpec, name: string, p: NdArray, g: NdArray, rate: number, decay: number): void {
    const momentum = spec.momentum ?? 0;
    const kept = this.fields(name).get("momentum_buffer");
    if (momentum && !kept) this.set(name, "momentum_buffer", this.machine.filled(p.shape, 0));
    const buffer = this.fields(name).get("momentum_buffer");
    this.machine.kernels.sgd(
      p.size, p.at, g.at, buffer ? buffer.at : 0, kept ? 0 : 1, rate, momentum, spec.dampening ?? 0, spec.nesterov ? 1 : 0, decay,
    );
  }

  #adam(spec: AdamSpec, name: string, p: NdArray, g: NdArray, rate: number, decay: number): void {
    const { machine } = this;
    const fields = this.#fields(name, p.shape);
    const step = ++machine.floats(fields.get("step")!)[0];
    const [beta1, beta2] = spec.betas ?? [0.9, 0.999];
    machine.kernels.adam(
      p.size, p.at, g.at, fields.get("exp_avg")!.at, fields.get("exp_avg_sq")!.at, rate, beta1, beta2, spec.eps ?? 1e-8,
      decay, spec.name === "adamw" ? 1 : 0, 1 - beta1 ** step, 1 - beta2 ** step,
    );
  }
}

/** Scale gradients so that their 2-norm together is at most `clip.max_norm`. */
export function clipGradients(machine: Machine, gradients: readonly NdArray[], clip: ClipSpec): void {
  const norm = Math.sqrt(gradients.reduce((sum, g) => sum + machine.kernels.squares(g.at, g.size), 0));
  const share = clip.max_norm / (norm + 1e-6);
  if (share >= 1) return;
  for (const g of gradients) machine.kernels.affine(g.at, share, 0, g.at, g.size);
}
