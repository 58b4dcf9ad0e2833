/** The training: how far it is, how well it goes, what it sends, how long it takes. */

import type { Evaluated } from "../training/history.ts";
import type { Observation } from "../training/observations.ts";
import { Chart } from "./chart.ts";
import { button, card, element, show } from "./dom.ts";
import { size, span, text } from "./texts.ts";

/** The newest steps whose times tell how long the rest takes. */
const TIMED = 30;

type Of<K extends Observation["type"]> = Extract<Observation, { type: K }>;

export class TrainView {
  readonly root = card(text("trainTitle"), "train");
  private readonly said = element("p", { class: "fact", role: "status" });
  private readonly progress = element("progress", { max: "1", value: "0", "aria-label": text("trainTitle") });
  private readonly facts: Record<"step" | "loss" | "accuracy" | "metrics" | "bytes" | "left", HTMLElement>;
  private readonly chart = new Chart(text("curve"));
  private readonly goButton: HTMLButtonElement;
  private readonly pauseButton: HTMLButtonElement;
  private losses: (number | null)[] = [];
  private total = 0;
  private stepsPerEpoch = 1;
  private times: number[] = [];

  constructor(train: () => void, pause: (paused: boolean) => void) {
    this.goButton = button(text("train"), () => (this.isPaused ? this.setPaused(false, pause) : train()));
    this.pauseButton = button(text("pause"), () => this.setPaused(true, pause), "plain");
    const fact = (): HTMLElement => element("dd", {}, text("notYet"));
    this.facts = { step: fact(), loss: fact(), accuracy: fact(), metrics: fact(), bytes: fact(), left: fact() };
    const told = (["loss", "accuracy", "metrics", "bytes", "left"] as const).flatMap((name) => [element("dt", {}, text(name)), this.facts[name]]);
    const buttons = element("div", { class: "row" }, this.goButton, this.pauseButton);
    this.root.append(this.said, this.progress, element("dl", {}, ...told), this.chart.root, buttons);
    this.setRunning(false);
  }

  isPaused = false;

  /** Whether there are samples enough; else why not. */
  allow(why: string | null): void {
    this.goButton.disabled = why !== null;
    if (why !== null) this.said.textContent = why;
    else if (!this.total) this.said.textContent = "";
  }

  stoppedAt(step: number): void {
    if (!step) return;
    this.said.textContent = text("stoppedAt", { step });
    this.goButton.textContent = text("goOn");
  }

  began({ totalSteps, stepsPerEpoch }: Of<"began">): void {
    this.total = totalSteps;
    this.stepsPerEpoch = stepsPerEpoch;
    this.times = [];
    this.setRunning(true);
  }

  resumed({ step, losses, evaluations }: Of<"resumed">): void {
    this.losses = [...losses];
    this.at(step);
    const newest = evaluations[evaluations.length - 1];
    if (newest) this.evaluated(newest);
  }

  step({ step, loss, seconds, bytesUp, bytesDown }: Of<"step">): void {
    this.losses[step - 1] = loss;
    this.times = [...this.times.slice(-TIMED), seconds];
    const each = this.times.reduce((sum, time) => sum + time, 0) / this.times.length;
    if (loss !== null) this.facts.loss.textContent = loss.toPrecision(3);
    this.facts.bytes.textContent = `↑ ${size(bytesUp)} ↓ ${size(bytesDown)}`;
    this.facts.left.textContent = span(each * (this.total - step));
    this.at(step);
  }

  evaluated({ accuracy, metrics = {} }: Evaluated): void {
    if (accuracy !== null) this.facts.accuracy.textContent = `${(100 * accuracy).toFixed(1)} %`;
    const measured = Object.entries(metrics).map(([name, value]) => `${name} ${value === null ? text("notYet") : value.toPrecision(3)}`);
    if (measured.length) this.facts.metrics.textContent = measured.join(", ");
  }

  finished(step: number, done: boolean): void {
    this.setRunning(false);
    if (!done) return this.stoppedAt(step);
    const early = this.total > step;
    this.said.textContent = early ? text("finishedEarly", { step }) : text("finished", { total: this.total || step });
    this.facts.left.textContent = text("notYet");
    this.progress.value = 1;
    show(this.goButton, false);
  }

  note(why: string): void {
    this.said.textContent = why;
  }

  setRunning(running: boolean): void {
    show(this.goButton, !running);
    show(this.pauseButton, running);
  }

  private at(step: number): void {
    this.progress.value = this.total ? step / this.total : 0;
    this.said.textContent = text("step", { step, total: this.total });
    if (step % Math.ceil(this.stepsPerEpoch / 4) === 0 || step >= this.total) this.chart.show(this.losses, this.total);
  }

  private setPaused(paused: boolean, pause: (paused: boolean) => void): void {
    this.isPaused = paused;
    this.goButton.textContent = text("goOn");
    this.setRunning(!paused);
    pause(paused);
  }
}
