/** An engine in this thread. */

import { Arena } from "./arena.ts";
import { loadKernels } from "./kernels.ts";
import { loadLoss, type LoadedLoss } from "./loss.ts";
import { Machine } from "./nd_array.ts";
import { tensorsFromBytes, tensorsToBytes } from "./safetensors.ts";
import { Segment } from "./segment.ts";
import { LocalTrainer } from "./segment_trainer.ts";
import type { Engine, EngineOptions, Loss, SegmentTrainer } from "./types.ts";

const GIBI = 2 ** 30;

/** Make an engine. The kernels' memory grows as far as `maxBytes`. */
export async function createEngine({ kernels, maxBytes = GIBI }: EngineOptions): Promise<Engine> {
  const loaded = await loadKernels(kernels);
  const machine = new Machine(loaded, new Arena(loaded, maxBytes));
  const losses = new Map<number, LoadedLoss>();
  let count = 0;
  return {
    load: async (source, options) => {
      const trainer = machine.arena.guarded(() => {
        const made = new LocalTrainer(Segment.load(machine, source), options);
        made.tryOut();
        return made;
      });
      return trainerOver(trainer, losses);
    },
    loadLoss: async (source) => {
      const id = ++count;
      losses.set(id, machine.arena.guarded(() => loadLoss(machine, source)));
      return lossOver(machine, id, losses);
    },
    memory: async () => machine.arena.figures,
    dispose: async () => losses.clear(),
  };
}

function lossOver(machine: Machine, id: number, losses: Map<number, LoadedLoss>): Loss {
  const { measure } = losses.get(id)!;
  return {
    id,
    shows: measure.predictions?.kind ?? null,
    isMean: measure.means.length > 0 && measure.proportional,
    value: async (outputs, targets) =>
      machine.arena.guarded(() => {
        const given = [outputs, targets].map((tensors) => tensors.map((each) => machine.imported(each)));
        const loss = losses.get(id)!.compute(given[0], given[1], null);
        const value = machine.floats(loss)[0];
        for (const each of [...given.flat(), loss]) machine.drop(each);
        return value;
      }),
    elements: async (targets) => measure.elements(targets),
    shares: async (parts) => measure.shares(parts),
    judged: async (outputs, targets) => measure.judged(outputs, targets),
    right: async (outputs, targets) => measure.right(outputs, targets),
    dispose: async () => {
      losses.get(id)?.free();
      losses.delete(id);
    },
  };
}

/** The interface over a trainer that computes at once. Each call is whole before the next begins. */
function trainerOver(trainer: LocalTrainer, losses: ReadonlyMap<number, LoadedLoss>): SegmentTrainer {
  const { train, eval: evaluation } = trainer.segment.document;
  return {
    name: trainer.segment.document.name,
    trainable: trainer.trainable,
    fixed: trainer.fixed,
    wire: { train: train.wire, eval: evaluation.wire },
    inputs: { train: train.inputs, eval: evaluation.inputs },
    outputs: { train: train.outputs, eval: evaluation.outputs },
    progress: async () => ({ step: trainer.step, rebases: trainer.rebases, taken: trainer.taken }),
    forward: async (values, micro) => trainer.forward(values, micro),
    forwardAhead: async (values, step, micro) => trainer.forwardAhead(values, step, micro),
    backward: async (opened, gradients) => trainer.backward(opened.id, gradients),
    backwardFromLoss: async (opened, loss, targets, share) => {
      const found = losses.get(loss.id);
      if (!found) throw new Error("the loss was disposed of");
      return trainer.backwardFromLoss(opened.id, found.compute, targets, share);
    },
    release: async (opened) => trainer.release(opened.id),
    notFinite: async () => trainer.notFinite(),
    apply: async () => trainer.apply(),
    skip: async () => trainer.skip(),
    rebase: async (state, scheduled) => trainer.rebase(state, scheduled),
    abort: async () => trainer.abort(),
    evaluate: async (values) => trainer.evaluate(values),
    fixedNames: async () => trainer.fixedNames(),
    snapshot: async () => trainer.snapshot(),
    loadState: async (state, step) => trainer.loadState(state, step),
    exportState: async () => tensorsToBytes(trainer.snapshot()),
    importState: async (bytes, step) => trainer.loadState(tensorsFromBytes(bytes), step),
    dispose: async () => trainer.dispose(),
  };
}
