/** The agent in a Web Worker: it takes commands of the page, and tells it what happens. */

import { AccountRefused, SplitEasyError, StateError } from "../errors.ts";
import { createEngine } from "../engine/index.ts";
import { PrivateFolder } from "../storage/folder.ts";
import { alone } from "../storage/lock.ts";
import { StateFolder } from "../storage/state_folder.ts";
import { Fleet } from "../rounds/fleet.ts";
import { product } from "../protocol/tensor.ts";
import { Agent, DATA } from "./agent.ts";
import { readEnrolment, type Enrolment } from "./enrolment.ts";
import { hasPublicWeights } from "./setup.ts";
import type { Command, DataShown, Failure, JobShown, Observation } from "./observations.ts";

const KERNELS = "kernels.wasm";
/** Their digest: `build.mjs` writes it. */
declare const KERNELS_INTEGRITY: string;
const FLOAT_BYTES = 4;

function tell(observation: Observation): void {
  postMessage(observation);
}

let agent: Agent | null = null;
let training: Promise<void> | null = null;

onmessage = ({ data }: MessageEvent<Command>): void => {
  void handle(data).catch((error: unknown) => tell({ type: data.type === "open" || data.type === "train" ? "failed" : "refused", failure: failureOf(error) }));
};

async function handle(command: Command): Promise<void> {
  if (command.type === "open") return open(command);
  const its = agent;
  if (its === null) throw new SplitEasyError("the page is not ready yet", "wait a moment");
  switch (command.type) {
    case "add":
    case "clear":
      if (its.hasBegun) throw new SplitEasyError("the training has begun with the samples that are there", "start over to change them");
      if (command.type === "add") its.data.add(command);
      else its.data.clear();
      await its.saveData();
      return tell({ type: "data", data: shownData(its) });
    case "show":
      return tell({ type: "sample", index: command.index, ...its.data.sample(command.index) });
    case "train":
      if (training !== null) return;
      training = its.train(command);
      return training.finally(() => (training = null));
    case "pause":
      return its.pause(command.why);
    case "predict":
      if (training !== null) throw new SplitEasyError("the phone is training", "try the model when it has finished");
      return tell({ type: "predicted", outputs: await its.predict(command.sample) });
  }
}

/** Hold the job's lock from now until the page is closed, and get ready. */
async function open({ fragment, page, startOver }: Extract<Command, { type: "open" }>): Promise<void> {
  const enrolment = readEnrolment(fragment);
  const name = `${enrolment.job.split("@")[0]}.${enrolment.device}`;
  await new Promise<void>((opened, failed) => {
    const held = alone(`spliteasy ${name}`, () => tell({ type: "locked" }), async () => {
      await begin(enrolment, name, page, startOver).then(opened, failed);
      await new Promise(() => undefined); // the lock goes when this worker goes
    });
    held.catch(failed);
  });
}

async function begin(enrolment: Enrolment, name: string, page: string, startOver: boolean): Promise<void> {
  const state = await StateFolder.open(await PrivateFolder.open(name));
  if (startOver) await state.startOver(DATA);
  const kernels = await (await fetch(new URL(KERNELS, page), { integrity: KERNELS_INTEGRITY })).arrayBuffer();
  const engine = await createEngine({ kernels });
  const url = new URL("link", page);
  url.protocol = url.protocol.replace("http", "ws");
  agent = await Agent.open(enrolment, url.href, state, engine, tell);
  const { step, isDone: done } = agent;
  tell({ type: "ready", job: shownJob(agent, enrolment), data: shownData(agent), step, done });
}

function shownJob({ job, data }: Agent, { operatorKey }: Enrolment): JobShown {
  const [input] = job.signature.inputs;
  const fleet = new Fleet(job.spec);
  return {
    name: job.name,
    digest: job.digest,
    signed: operatorKey !== null,
    isPicture: data.isPictures,
    inputShape: input.shape,
    classNames: data.classNames,
    hasClasses: data.classes !== null,
    resize: job.spec.data?.resize ?? "stretch",
    bytesPerSample: crossingBytes(job.parts),
    epochs: job.spec.epochs,
    batchSize: job.spec.batch_size,
    sharesLabels: !job.hasTail,
    sharesLoss: job.spec.share_loss === true,
    hasPublicWeights: hasPublicWeights(job),
    ends: fleet.endsLeave ? (fleet.seals ? "sealed" : "open") : null,
  };
}

/** About so many bytes cross the cuts for one sample of a step, before any codec: values and gradients, both ways. */
function crossingBytes(parts: ReadonlyMap<string, Uint8Array>): number {
  const values = ["head.json", "tail.json"].flatMap((name, tail) => {
    const graph = parts.get(name);
    if (graph === undefined) return [];
    const { train } = JSON.parse(new TextDecoder().decode(graph)) as { train: { inputs: Shaped[]; outputs: Shaped[]; wire: number } };
    return tail ? train.inputs : train.outputs.slice(0, train.wire);
  });
  const elements = values.map(({ shape = [] }) => product(shape.map((dim) => (typeof dim === "number" ? dim : 1))));
  return 2 * FLOAT_BYTES * elements.reduce((sum, count) => sum + count, 0);
}

interface Shaped {
  readonly shape?: (number | object)[];
}

function shownData({ data, hasBegun }: Agent): DataShown {
  return { count: data.count, counts: data.counts, heldBack: data.parts().test.length, locked: hasBegun };
}

function failureOf(error: unknown): Failure {
  if (error instanceof SplitEasyError) return { message: error.message, hint: error.hint, kind: kindOf(error) };
  console.error(error);
  return { message: error instanceof Error ? error.message : String(error), hint: "load the page again", kind: "bug" };
}

/** What the page offers to do about it. Names of classes do not tell: they are shortened where the page is built. */
function kindOf(error: SplitEasyError): Failure["kind"] {
  if (error instanceof AccountRefused) return "account";
  return error instanceof StateError ? "state" : "other";
}
