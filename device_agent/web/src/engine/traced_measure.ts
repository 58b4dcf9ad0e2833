/** Which scores a traced loss compares with which labels, and which elements its mean is over: `traced_measure.py`. */

import { Ref, type Argument, type Document, type Node } from "./document.ts";
import { Measure, type Answers, type Classes } from "./measure.ts";
import { NdArray, type Machine } from "./nd_array.ts";
import { Program, refsOf } from "./program.ts";
import type { Tensor } from "./types.ts";

const CLASS_OPERATORS: readonly string[] = [
  "aten.cross_entropy_loss.default", "aten.nll_loss.default", "aten.nll_loss_nd.default", "aten.nll_loss2d.default",
];

/** The score above which each of them means yes. */
const YES_NO_OPERATORS: Readonly<Record<string, number>> = {
  "aten.binary_cross_entropy_with_logits.default": 0,
  "aten.binary_cross_entropy.default": 0.5,
};

/** Operators that multiply a single number by a constant. */
const SCALINGS: readonly string[] = [
  "aten.mul.Tensor", "aten.mul.Scalar", "aten.div.Tensor", "aten.div.Scalar", "aten.neg.default", "aten.clone.default",
  "aten.alias.default", "aten.mean.default", "aten.sum.default",
];

const MEAN = 1;
const IGNORED = -100;

type Source = "outputs" | "targets";

/** What can be counted for the loss of this graph, whose last `targets` inputs are the targets. */
export function tracedMeasure(machine: Machine, document: Document, tensors: readonly NdArray[], targets: number): Measure {
  return new Reader(machine, document, tensors, document.train.inputs.length - targets).measure();
}

class Reader {
  /** The slot of the first node. */
  private readonly first: number;
  /** Whether the value of each slot depends on the model's outputs and on the targets. */
  private readonly sources: ReadonlySet<Source>[];
  private readonly programs = new Map<number, Program>();

  constructor(
    private readonly machine: Machine,
    private readonly document: Document,
    private readonly tensors: readonly NdArray[],
    private readonly outputs: number,
  ) {
    const { inputs, nodes } = document.train;
    this.first = tensors.length + inputs.length;
    this.sources = tensors.map(() => new Set<Source>());
    inputs.forEach((_, place) => this.sources.push(new Set<Source>([place < outputs ? "outputs" : "targets"])));
    for (const node of nodes) this.sources.push(new Set(refsOf(node).flatMap((slot) => [...this.sources[slot]])));
  }

  measure(): Measure {
    const found = new Map<string, Classes | Answers>();
    const means: Classes[] = [];
    let proportional = true;
    const { nodes } = this.document.train;
    const writes = nodes.some(({ op }) => /_\.[^.]*$/.test(op));
    for (const [place, node] of nodes.entries()) {
      const isClasses = CLASS_OPERATORS.includes(node.op);
      if (!isClasses && !(node.op in YES_NO_OPERATORS)) continue;
      const [scores, labels] = [refOf(argument(node, 0, "")), refOf(argument(node, 1, ""))];
      if (scores === null || labels === null || writes || !this.isOf(labels, "targets")) continue;
      const of = { scores: this.ofBoth(scores), labels: this.ofTargets(labels) };
      if (!isClasses) {
        found.set(`${scores} ${labels}`, { kind: "answers", ...of, threshold: YES_NO_OPERATORS[node.op] });
        continue;
      }
      const classes: Classes = { kind: "classes", ...of, ...this.settings(node) };
      found.set(`${scores} ${labels}`, classes);
      if (!classes.mean) continue;
      means.push(classes);
      proportional &&= this.isTheLoss(this.first + place);
    }
    const clear = [...found].filter(([slots]) => this.isOf(Number(slots.split(" ")[0]), "outputs"));
    const alone = found.size === 1 && clear.length === 1 ? clear[0][1] : null;
    return new Measure(alone, means, proportional && means.length <= 1);
  }

  private isOf(slot: number, source: Source): boolean {
    return this.sources[slot].size === 1 && this.sources[slot].has(source);
  }

  private settings(node: Node): Pick<Classes, "ignored" | "weights" | "mean"> {
    const weight = refOf(argument(node, 2, "weight"));
    const isFixed = weight !== null && !this.sources[weight].size;
    return {
      ignored: Number(argument(node, 4, "ignore_index") ?? IGNORED),
      weights: isFixed ? Array.from(this.run(weight, [], []).data as Float32Array) : null,
      mean: (argument(node, 3, "reduction") ?? MEAN) === MEAN,
    };
  }

  /** Whether the graph's result is the value at `slot` times a constant. */
  private isTheLoss(slot: number): boolean {
    let [at] = this.document.train.results;
    while (at !== slot) {
      if (at < this.first) return false;
      const node = this.document.train.nodes[at - this.first];
      const varying = refsOf(node).filter((ref) => this.sources[ref].size);
      if (!SCALINGS.includes(node.op) || varying.length !== 1 || varying[0] !== refOf(argument(node, 0, ""))) return false;
      [at] = varying;
    }
    return true;
  }

  private ofBoth(slot: number): Classes["scores"] {
    return (outputs, targets) => this.run(slot, outputs, targets);
  }

  private ofTargets(slot: number): Classes["labels"] {
    return (targets) => this.run(slot, [], targets);
  }

  /** The value at `slot`; inputs that it does not depend on may be absent. */
  private run(slot: number, outputs: readonly Tensor[], targets: readonly Tensor[]): Tensor {
    const { machine } = this;
    const { inputs } = this.document.train;
    return machine.arena.guarded(() => {
      const given = inputs.map((_, place) => {
        const tensor = place < this.outputs ? outputs[place] : targets[place - this.outputs];
        return tensor === undefined ? machine.integers([0]) : machine.imported(tensor);
      });
      const [value] = this.programFor(slot).run(machine, this.tensors, given, null, null);
      if (!(value instanceof NdArray)) throw new Error("an argument of a loss is no tensor");
      const found = machine.exported(value);
      for (const each of [...given, value]) machine.drop(each);
      return found;
    });
  }

  /** The part of the graph that leads to `slot`. */
  private programFor(slot: number): Program {
    const kept = this.programs.get(slot);
    if (kept) return kept;
    const graph = this.document.train;
    const needed = new Set<number>();
    const open = [slot];
    for (let at = open.pop(); at !== undefined; at = open.pop()) {
      if (at < this.first || needed.has(at)) continue;
      needed.add(at);
      open.push(...refsOf(graph.nodes[at - this.first]));
    }
    const order = [...needed].sort((a, b) => a - b);
    const number = (old: number): number => (old < this.first ? old : this.first + order.indexOf(old));
    const nodes = order.map((at) => renumbered(graph.nodes[at - this.first], number));
    const made = new Program({ ...graph, nodes, results: [number(slot)], outputs: [], wire: 0 }, this.document);
    this.programs.set(slot, made);
    return made;
  }
}

function argument(node: Node, place: number, name: string): Argument | undefined {
  return place < node.args.length ? node.args[place] : node.kwargs.get(name);
}

function refOf(value: Argument | undefined): number | null {
  return value instanceof Ref ? value.slot : null;
}

function renumbered(node: Node, number: (slot: number) => number): Node {
  const renamed = (arg: Argument): Argument => {
    if (arg instanceof Ref) return new Ref(number(arg.slot));
    return Array.isArray(arg) ? (arg as readonly Argument[]).map(renamed) : arg;
  };
  return { ...node, args: node.args.map(renamed), kwargs: new Map([...node.kwargs].map(([key, arg]) => [key, renamed(arg)])) };
}
