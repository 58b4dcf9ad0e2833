/** Trying the trained model on something new, through the split. */

import type { JobShown } from "../training/observations.ts";
import type { AgentLink } from "./agent_link.ts";
import { button, card, element, show } from "./dom.ts";
import { drawing, photos, shapeOf } from "./inputs.ts";
import { samplesOf } from "./tables.ts";
import { text } from "./texts.ts";

export class TryView {
  readonly root = card(text("tryTitle"), "try");
  private readonly said = element("p", { class: "result", role: "status" });
  private readonly ways = element("div", { class: "ways" });
  private job: JobShown | null = null;

  constructor(
    private readonly agent: AgentLink,
    private readonly refused: (error: unknown) => void,
  ) {
    this.root.append(this.ways, this.said);
  }

  show(job: JobShown): void {
    this.job = job;
    const ask = (sample: Uint8Array | Float32Array): void => {
      this.said.textContent = "…";
      this.agent.tell({ type: "predict", sample });
    };
    const failed = (name: string): void => this.refused(new Error(text("notAPicture", { name })));
    const empty = (): void => this.refused(new Error(text("emptyDrawing")));
    const [first, ...more] = job.isPicture
      ? [
          drawing(job, text("tryDraw"), text("tryIt"), ask, empty),
          photos(job, element("span", {}, text("tryPhoto")), false, (pictures) => pictures.slice(0, 1).forEach(ask), failed),
        ]
      : [this.numbers(job, ask)];
    this.ways.replaceChildren(first, ...more);
    this.allow(false);
  }

  allow(allowed: boolean): void {
    show(this.ways, allowed);
    if (!allowed) this.said.textContent = text("tryLocked");
    else if (this.said.textContent === text("tryLocked")) this.said.textContent = "";
  }

  /** What the model says: the likeliest class, or the number itself. */
  predicted(outputs: readonly number[]): void {
    const names = this.job?.classNames ?? [];
    if (!this.job?.hasClasses || outputs.length !== names.length) {
      this.said.textContent = text("tryNumber", { number: outputs.map((value) => value.toPrecision(3)).join(", ") });
      return;
    }
    const largest = Math.max(...outputs);
    const weights = outputs.map((value) => Math.exp(value - largest));
    const share = 1 / weights.reduce((sum, weight) => sum + weight, 0);
    this.said.textContent = text("tryResult", { label: names[outputs.indexOf(largest)], percent: `${Math.round(100 * share)} %` });
  }

  private numbers(job: JobShown, ask: (sample: Float32Array | Uint8Array) => void): HTMLElement {
    const input = element("input", { type: "text", id: "numbers", inputmode: "decimal" });
    const act = (): void => {
      try {
        ask(samplesOf(`${input.value},0`, { ...shapeOf(job), classes: null }).inputs);
      } catch (error) {
        this.refused(error);
      }
    };
    return element("div", { class: "row" }, element("label", { for: "numbers" }, text("tryRow")), input, button(text("tryIt"), act));
  }
}
