/** Losses, by name or as a graph: they are run as graphs both. */

import { DataError, JobError, PortableError } from "../errors.ts";
import { Arguments } from "./arguments.ts";
import { documentFromJson, foreignDtypes } from "./document.ts";
import { refuseDtypes } from "./checks.ts";
import { namedMeasure, type Measure } from "./measure.ts";
import type { Machine, NdArray } from "./nd_array.ts";
import { operatorOf } from "./operators/index.ts";
import { Program } from "./program.ts";
import { tensorsFromBytes } from "./safetensors.ts";
import { Context, type Tape } from "./tape.ts";
import { tracedMeasure } from "./traced_measure.ts";
import type { LossSource } from "./types.ts";

/** The operator of each loss by name. */
const NAMED: Readonly<Record<string, string>> = {
  cross_entropy: "aten.cross_entropy_loss.default",
  nll: "aten.nll_loss_nd.default",
  bce_with_logits: "aten.binary_cross_entropy_with_logits.default",
  mse: "aten.mse_loss.default",
  l1: "aten.l1_loss.default",
  smooth_l1: "aten.smooth_l1_loss.default",
};

/** Computes the loss of a batch: one number, which the tape can go back from. */
export type LossFunction = (outputs: readonly NdArray[], targets: readonly NdArray[], tape: Tape | null) => NdArray;

export interface LoadedLoss {
  readonly compute: LossFunction;
  readonly measure: Measure;
  readonly free: () => void;
}

export function loadLoss(machine: Machine, source: LossSource): LoadedLoss {
  return "name" in source ? namedLoss(machine, source.name) : tracedLoss(machine, source);
}

function namedLoss(machine: Machine, name: string): LoadedLoss {
  const op = NAMED[name];
  if (!op) throw new JobError(`the loss ${name} is none that this device knows`);
  const { rule, parameters } = operatorOf(op)!;
  const compute: LossFunction = (outputs, targets, tape) => {
    if (outputs.length !== 1 || targets.length !== 1) {
      throw new JobError(`loss ${name} takes one output and one target, got ${outputs.length} and ${targets.length}`);
    }
    return rule(new Context(machine, tape, null), new Arguments(op, parameters, [outputs[0], targets[0]], [])) as NdArray;
  };
  return { compute, measure: namedMeasure(name), free: () => undefined };
}

function tracedLoss(machine: Machine, { graph, tensors: bytes, targets: count }: Extract<LossSource, { graph: Uint8Array }>): LoadedLoss {
  const document = documentFromJson(graph);
  refuseDtypes(document.name, foreignDtypes(document));
  const program = new Program(document.train, document);
  const given = tensorsFromBytes(bytes);
  const tensors = document.tensors.map(({ names: [name] }) => {
    if (!given[name]) throw new PortableError(`tensor ${name} of the loss is missing`);
    return machine.imported(given[name]);
  });
  const compute: LossFunction = (outputs, targets, tape) => {
    if (outputs.length + targets.length !== document.train.inputs.length) throw new DataError("the loss takes other outputs and targets");
    const [loss] = program.run(machine, tensors, [...outputs, ...targets], tape, null);
    if (typeof loss === "number" || loss.size !== 1) throw new PortableError("a loss must give one scalar tensor");
    return loss;
  };
  const measure = tracedMeasure(machine, document, tensors, count);
  return { compute, measure, free: () => tensors.forEach((each) => machine.drop(each)) };
}
