/** One graph made ready to run: `spliteasy/graph/program.py`. It holds no tensors. */

import { NotSupported } from "../errors.ts";
import { Arguments, type Given } from "./arguments.ts";
import { Ref, type Argument, type Document, type Graph, type Node } from "./document.ts";
import { NdArray, type Machine } from "./nd_array.ts";
import { functionalName, operatorOf, type Operator, type Result } from "./operators/index.ts";
import { Context, type Tape } from "./tape.ts";
import type { Twister } from "../random/index.ts";

/** A value in a slot; null once it was used the last time. */
export type SlotValue = Result | null;

interface Step {
  readonly op: string;
  readonly operator: Operator;
  readonly args: readonly Argument[];
  readonly kwargs: readonly (readonly [string, Argument])[];
  readonly grad: boolean;
  /** The slot that the operator writes into, in place. */
  readonly writes: number | null;
  /** Other slots that show the same numbers and are used later. */
  readonly sharers: readonly number[];
  /** Slots that nobody uses after this step. */
  readonly frees: readonly number[];
}

/** Operators that draw random numbers if their probability is above 0 and their flag says training. */
const DROPOUT = new Set(["aten.dropout.default", "aten.native_dropout.default"]);
const ATTENTION = "aten.scaled_dot_product_attention.default";
const NORM = "aten.batch_norm.default";
const RELU = new Set(["aten.relu.default", "aten.relu_.default"]);

export class Program {
  /** Whether a run draws random numbers. */
  readonly random: boolean;
  /** Whether a run may change the segment's tensors. */
  readonly stateful: boolean;
  readonly #steps: readonly Step[];
  readonly #first: number;

  /** Throws NotSupported, with all the operators that this build can't run. */
  constructor(
    readonly graph: Graph,
    private readonly document: Document,
  ) {
    this.#first = document.tensors.length + graph.inputs.length;
    const missing = [...new Set(graph.nodes.map(({ op }) => op).filter((op) => !found(op)))].sort();
    if (missing.length) {
      const names = missing.map((op) => op.replace(/^aten\./, "").replace(/\.default$/, ""));
      throw new NotSupported(
        `${document.name} needs what a browser can't compute yet: ${names.join(", ")}`, missing,
        "train this job on a device with Python, or express the model with other operators (docs/browser-engine.md)",
      );
    }
    this.#steps = this.#compiled();
    this.random = graph.nodes.some(drawsRandomNumbers);
    this.stateful = this.#steps.some(({ op, args, writes }) => writes !== null || (op === NORM && args[5] !== false));
  }

  /**
   * Run the graph on tensors, in the order of the table, and inputs. The results have holders of their own; buffers
   * among the tensors change in place. With a tape, what gradients need is recorded.
   */
  run(machine: Machine, tensors: readonly NdArray[], inputs: readonly (NdArray | number)[], tape: Tape | null, random: Twister | null): (NdArray | number)[] {
    const slots: SlotValue[] = [...tensors, ...inputs];
    for (const value of slots) if (value instanceof NdArray) machine.hold(value);
    const recording = new Context(machine, tape, random);
    const silent = new Context(machine, null, random);
    for (const step of this.#steps) {
      const context = step.grad ? recording : silent;
      const args = step.args.map((arg) => filled(arg, slots));
      const kwargs = step.kwargs.map(([name, arg]) => [name, filled(arg, slots)] as const);
      const value = step.operator.rule(context, new Arguments(step.op, step.operator.parameters, args, kwargs));
      slots.push(step.writes === null ? value : this.#written(machine, step, slots, value as NdArray));
      for (const slot of step.frees) {
        dropped(machine, slots[slot]);
        slots[slot] = null;
      }
    }
    const results = this.graph.results.map((slot) => slots[slot] as NdArray | number);
    for (const value of results) if (value instanceof NdArray) machine.hold(value);
    for (const value of slots) dropped(machine, value);
    return results;
  }

  /** Put what was written in place where it is read afterwards: into a buffer's memory, or into the slots. */
  #written(machine: Machine, step: Step, slots: SlotValue[], value: NdArray): NdArray {
    const at = step.writes!;
    const old = slots[at] as NdArray;
    const kept = cast(machine, value, old);
    if (at < this.document.tensors.length) {
      machine.assign(old, kept);
      machine.drop(kept);
      return machine.hold(old);
    }
    for (const slot of [at, ...step.sharers]) {
      const before = slots[slot] as NdArray;
      slots[slot] = machine.hold(slot === at ? kept : sharing(kept, before));
      machine.drop(before);
    }
    return kept;
  }

  #compiled(): Step[] {
    const { nodes, results } = this.graph;
    const last = new Map<number, number>();
    nodes.forEach((node, place) => {
      last.set(this.#first + place, place);
      for (const slot of refsOf(node)) last.set(slot, place);
    });
    for (const slot of results) last.set(slot, Infinity);
    const frees: number[][] = nodes.map(() => []);
    for (const [slot, place] of last) if (place !== Infinity) frees[place].push(slot);
    const shared = new Sharing(this.#first);
    const steps = nodes.map((node, place) => {
      const slot = this.#first + place;
      const { operator, writes } = found(node.op)!;
      const target = writes ? (node.args[0] as Ref).slot : null;
      const used = (other: number): boolean => other !== target && other < slot && (last.get(other) ?? -1) > place;
      const sharers = target === null ? [] : this.#sharers(shared, node, target, used);
      shared.add(slot, operator, writes, node);
      return { op: node.op, operator, args: node.args, kwargs: [...node.kwargs], grad: node.grad, writes: target, sharers, frees: frees[place] };
    });
    return steps.map((step, place) => this.#joined(step, steps[place - 1], steps[place + 1], place));
  }

  /** Batch norm, and a relu behind it that alone reads it, become one operator, and another that does nothing. */
  #joined(step: Step, before: Step | undefined, after: Step | undefined, place: number): Step {
    const joins = (norm: Step | undefined, relu: Step | undefined, at: number): boolean =>
      norm?.op === NORM && relu !== undefined && RELU.has(relu.op) && norm.grad === relu.grad &&
      (relu.args[0] as Ref).slot === at && relu.frees.includes(at) && !relu.sharers.length;
    if (joins(step, after, this.#first + place)) return { ...step, operator: operatorOf("batch norm and relu")! };
    if (joins(before, step, this.#first + place - 1)) return { ...step, operator: operatorOf("same")!, writes: null };
    return step;
  }

  /** The values that show what is written; throws NotSupported where one shows a part of it, or it is a parameter. */
  #sharers(shared: Sharing, node: Node, target: number, used: (slot: number) => boolean): number[] {
    const kind = target < this.document.tensors.length ? this.document.tensors[target].kind : null;
    const isInput = kind === null && target < this.#first;
    const whole = shared.whole(target).filter(used);
    if (kind === "parameter" || isInput || shared.parts(target).some(used) || (kind !== null && whole.length)) {
      throw new NotSupported(`${this.document.name}: ${node.op} writes into values that are read under another name`, [node.op]);
    }
    return whole;
  }
}

/** Which values may share memory in PyTorch. */
class Sharing {
  readonly #wholes = new Map<number, number[]>();
  readonly #parts = new Map<number, number[]>();

  constructor(private readonly first: number) {}

  whole(slot: number): number[] {
    return this.#wholes.get(slot) ?? [slot];
  }

  /** Values that show a part of it, or of which it shows a part. */
  parts(slot: number): number[] {
    return this.whole(slot).flatMap((each) => this.#parts.get(each) ?? []);
  }

  add(slot: number, operator: Operator, writes: boolean, node: Node): void {
    const sources = refsOf(node);
    const first = sources[0];
    if (first === undefined || slot < this.first) return;
    if (writes || operator.view === "whole") {
      const group = this.whole(first);
      group.push(slot);
      for (const each of group) this.#wholes.set(each, group);
      const parts = this.#parts.get(first);
      if (parts) this.#parts.set(slot, parts);
    } else if (operator.view === "part" || node.op === "getitem") {
      for (const source of sources) {
        for (const other of [...this.whole(source), ...this.parts(source)]) {
          this.#parts.set(other, [...(this.#parts.get(other) ?? []), slot]);
          this.#parts.set(slot, [...(this.#parts.get(slot) ?? []), other]);
        }
      }
    }
  }
}

/** The operator of that name, and whether it writes into its first argument. */
function found(op: string): { operator: Operator; writes: boolean } | null {
  const operator = op.includes(".") ? operatorOf(op) : op === "getitem" ? operatorOf(op) : undefined;
  if (operator) return { operator, writes: false };
  const name = functionalName(op);
  const functional = name === null ? undefined : operatorOf(name);
  return functional ? { operator: functional, writes: true } : null;
}

/** Whether this build can run the operator of that name. */
export function isSupported(op: string): boolean {
  return found(op) !== null;
}

function drawsRandomNumbers({ op, args, kwargs }: Node): boolean {
  const number = (value: Argument | undefined): number => Number(typeof value === "object" && value !== null && "value" in value ? value.value : value ?? 0);
  if (DROPOUT.has(op)) return number(args[1]) > 0 && args[2] !== false;
  return op === ATTENTION && number(args[4] ?? kwargs.get("dropout_p")) > 0;
}

/** The slots that a node reads, in order. */
export function refsOf(node: Node): number[] {
  const slots: number[] = [];
  const look = (arg: Argument): void => {
    if (arg instanceof Ref) slots.push(arg.slot);
    else if (Array.isArray(arg)) arg.forEach(look);
  };
  node.args.forEach(look);
  for (const arg of node.kwargs.values()) look(arg);
  return slots;
}

function filled(arg: Argument, slots: readonly SlotValue[]): Given {
  if (arg instanceof Ref) return slots[arg.slot] as Given;
  if (Array.isArray(arg)) return arg.map((each) => filled(each as Argument, slots));
  return arg as Given;
}

function dropped(machine: Machine, value: SlotValue | undefined): void {
  if (value instanceof NdArray) machine.drop(value);
  else if (Array.isArray(value)) for (const each of value as readonly NdArray[]) machine.drop(each);
}

/** What was computed, in the kind of numbers of what it is written into. */
function cast(machine: Machine, value: NdArray, old: NdArray): NdArray {
  if (value.kind === old.kind) return value;
  if (old.kind !== "int64" || !value.isFloat) throw new NotSupported(`${value.kind} numbers are written into ${old.kind} ones`);
  const whole = machine.integers(value.shape, Float64Array.from(machine.floats(value), Math.trunc));
  machine.drop(value);
  return whole;
}

/** The new numbers in the shape of a value that shows them all. */
function sharing(value: NdArray, before: NdArray): NdArray {
  if (value.shape.length === before.shape.length && value.shape.every((side, place) => side === before.shape[place])) return value;
  if (value.needsGrad) throw new NotSupported("a value is written in place and read in another shape, with a gradient");
  return value.shaped(before.shape);
}
