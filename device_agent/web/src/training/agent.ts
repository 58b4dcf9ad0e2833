/** The agent: runs a device's session over link, storage and engine: `device_agent/agent.py`. */

import { SplitEasyError } from "../errors.ts";
import type { Engine } from "../engine/types.ts";
import { Link } from "../link/link.ts";
import { connect } from "../link/transport.ts";
import { newNonce } from "../protocol/hex.ts";
import type { Key } from "../random/index.ts";
import type { Action, Computation, Event, Timer } from "../session/events.ts";
import { DeviceSession } from "../session/machine.ts";
import type { StateFolder } from "../storage/state_folder.ts";
import { Client } from "./client.ts";
import { DataSet } from "./data_set.ts";
import { perform } from "./effects.ts";
import type { Enrolment } from "./enrolment.ts";
import { History } from "./history.ts";
import type { Job } from "./job.ts";
import { fetchedJob, shardOf, storedJob } from "./job_source.ts";
import type { Observe } from "./observations.ts";
import { Queue } from "./queue.ts";
import { refuseUnsupported } from "./refusals.ts";
import { loadParts, prepare, type Restart } from "./setup.ts";
import { accuracyOf, DeviceTrainer, numberOf, type Kept, type Parts } from "./trainer.ts";

const PREDICT_MS = 60_000;
export const DATA = "data";

export class Agent {
  readonly link: Link;
  private readonly events = new Queue<Event>();
  private readonly timers = new Map<Timer, ReturnType<typeof setTimeout>>();
  private session: DeviceSession | null = null;
  private trainer: DeviceTrainer | null = null;
  private paused: string | null = null;
  private stepBegan = 0;

  private constructor(
    private readonly enrolment: Enrolment,
    private readonly state: StateFolder,
    readonly job: Job,
    readonly data: DataSet,
    private readonly parts: Parts,
    private readonly key: Key,
    private readonly observe: Observe,
    readonly history: History,
    link: { link: Link; attach: (emit: (event: Event) => void) => void },
  ) {
    this.link = link.link;
    link.attach((event) => this.events.put(event));
  }

  /** Connect, get the job, and load it. Refuses what can't be trained here before anything is computed. */
  static async open(enrolment: Enrolment, url: string, state: StateFolder, engine: Engine, observe: Observe): Promise<Agent> {
    const events = new Queue<Event>();
    let emit = (event: Event): void => events.put(event);
    const account = { name: enrolment.device, password: enrolment.password };
    const tell = (error: SplitEasyError): void => observe({ type: "waiting", text: error.message });
    const link = new Link(() => connect(url, account), enrolment.device, (event) => emit(event), tell);
    link.run().catch((error: unknown) => emit({ type: "Failed", error }));
    try {
      const client = new Client(link, events, (text) => observe({ type: "waiting", text }));
      let job = await storedJob(state, enrolment);
      if (job === null) ({ job, shard: link.shard } = await fetchedJob(client, state, enrolment));
      else link.shard = await shardOf(client, job, enrolment.device);
      refuseUnsupported(job);
      link.chunkBytes = Math.min(link.chunkBytes, job.spec.link?.chunk_bytes ?? Infinity);
      const { parts, key } = await loadParts(job, engine, state, enrolment);
      const data = new DataSet(job);
      const kept = await state.tensors(DATA);
      if (kept !== null) data.load(kept);
      const attach = (next: (event: Event) => void): void => void (emit = next);
      return new Agent(enrolment, state, job, data, parts, key, observe, await History.open(state), { link, attach });
    } catch (error) {
      link.stop();
      throw error;
    }
  }

  /** Whether a training has begun on this device, so that its data can't be changed any more. */
  get hasBegun(): boolean {
    return this.state.binding !== null;
  }

  /** The last step that this device holds. */
  get step(): number {
    return this.session?.step ?? Math.max(0, ...this.state.held());
  }

  async saveData(): Promise<void> {
    await this.state.saveTensors(DATA, this.data.state());
  }

  /** No step begins while there is a reason not to. */
  pause(why: string | null): void {
    this.paused = why;
    this.events.put(why === null ? { type: "Go" } : { type: "Hold", why });
  }

  /** Train to the last step. Rejects with what ends it. */
  async train(restart: Restart): Promise<void> {
    const { trainer, settings } = await prepare(this.parts, this.key, this.data, this.state, this.enrolment.device, restart);
    this.trainer = trainer;
    const session = (this.session = new DeviceSession(settings, this.state.held()));
    if (this.link.isUp) session.handle({ type: "LinkUp" });
    if (this.paused !== null) session.handle({ type: "Hold", why: this.paused });
    this.observe({ type: "began", totalSteps: settings.total_steps, stepsPerEpoch: trainer.batches.stepsPerEpoch });
    try {
      await this.loop(session, trainer);
    } finally {
      for (const timer of this.timers.values()) clearTimeout(timer);
      this.timers.clear();
    }
  }

  /** The model's outputs for one sample, through the split. */
  async predict(sample: Uint8Array | Float32Array): Promise<number[]> {
    const trainer = this.trainer ?? (await this.trained());
    let kept: Kept = { values: [], order: null };
    const values = await trainer.headOutputs(this.data.inputTensor(sample, 1), "prediction", (its) => (kept = its));
    const attempt = await this.state.attempt();
    if (attempt === null) throw new SplitEasyError("there is no trained model yet", "train first");
    const about = { session: `${this.job.name}.${this.enrolment.device}`, request: newNonce(), attempt, step: trainer.step, samples: 1 };
    const client = new Client(this.link, this.events, (text) => this.observe({ type: "waiting", text }));
    const reply = await client.ask({ kind: "EVAL", ...about, ...values }, "EVALUATED", PREDICT_MS);
    const packed = { values: reply.values, codec: reply.codec ?? "fp32", packing: reply.packing ?? [], reply_codec: null };
    const [outputs] = await trainer.modelOutputs(packed, kept, 1);
    return Array.from(outputs.data as Float32Array);
  }

  /** Whether every step was taken, by what is kept here. */
  get isDone(): boolean {
    return this.hasBegun && this.history.done;
  }

  private async trained(): Promise<DeviceTrainer> {
    const { trainer } = await prepare(this.parts, this.key, this.data, this.state, this.enrolment.device, { restart: false, takeover: false });
    const step = Math.max(...this.state.held());
    await trainer.loadState(await this.state.loadCheckpoint(step), step);
    return (this.trainer = trainer);
  }

  private async loop(session: DeviceSession, trainer: DeviceTrainer): Promise<void> {
    for (let actions = session.start(); ; ) {
      for (const action of actions) {
        if (action.type === "Finish") return void (await this.finished(action.done));
        if (action.type === "Fail") throw action.error;
        this.perform(action, trainer);
      }
      const event = await this.events.next();
      if (event === null) throw new Error("the queue waits without end");
      if (event.type === "Failed") throw event.error;
      if (event.type === "Received") this.follow(event.message);
      actions = session.handle(event);
    }
  }

  private async finished(done: boolean): Promise<void> {
    if (done) await this.history.finish();
    this.observe({ type: "finished", done });
  }

  /** Send to the shard that serves the session, as a worker says. */
  private follow(message: Extract<Event, { type: "Received" }>["message"]): void {
    if (message.kind !== "OPENED" && message.kind !== "REOPEN") return;
    if (message.session === this.session?.plan.of.session) this.link.shard = message.shard ?? this.link.shard;
  }

  private perform(action: Exclude<Action, { type: "Finish" | "Fail" }>, trainer: DeviceTrainer): void {
    switch (action.type) {
      case "Send":
        return this.link.send(action.message, action.skip, action.whole);
      case "Arm":
        this.disarm(action.timer);
        this.timers.set(action.timer, setTimeout(() => this.events.put({ type: "Fired", timer: action.timer }), action.delay_s * 1000));
        return;
      case "Disarm":
        return this.disarm(action.timer);
      case "Note":
        return this.observe({ type: "note", text: action.text });
      default:
        void this.compute(action, trainer);
    }
  }

  private disarm(timer: Timer): void {
    clearTimeout(this.timers.get(timer));
    this.timers.delete(timer);
  }

  private async compute(action: Computation, trainer: DeviceTrainer): Promise<void> {
    if (action.type === "RunHead" && action.micro === 0) this.stepBegan = performance.now();
    try {
      if (action.type === "Save") await this.history.save(); // first: who goes on from the checkpoint has its curve
      const event = await perform(action, trainer, this.state);
      await this.report(action, event, trainer);
      this.events.put(event);
    } catch (error) {
      this.events.put({ type: "Failed", error });
    }
  }

  private async report(action: Computation, event: Event, trainer: DeviceTrainer): Promise<void> {
    if (action.type === "Restore") {
      this.history.rewind(trainer.step);
      this.observe({ type: "resumed", step: trainer.step, losses: this.history.losses, evaluations: this.history.evaluations });
    } else if (action.type === "Apply" || action.type === "TakeMean") {
      this.history.took(trainer.step, trainer.loss);
      const { bytesUp, bytesDown } = this.link;
      const seconds = (performance.now() - this.stepBegan) / 1000;
      this.observe({ type: "step", step: trainer.step, loss: trainer.loss, seconds, bytesUp, bytesDown });
    } else if (action.type === "Save") {
      this.observe({ type: "saved", step: action.step });
    } else if (event.type === "EvalTailDone" && !event.more) {
      const { samples, gathered } = trainer.evaluation;
      const metrics = Object.fromEntries([...gathered.keys()].map((name) => [name, numberOf(trainer.evaluation, name)]));
      const accuracy = accuracyOf(trainer.evaluation);
      const found = { step: trainer.step, samples, loss: numberOf(trainer.evaluation, "loss"), accuracy, metrics };
      this.history.evaluated(found);
      await this.history.save();
      this.observe({ type: "evaluated", ...found });
    }
  }
}
