/** The owner's samples: giving them, counting them, looking at them. */

import type { DataShown, JobShown } from "../training/observations.ts";
import type { AgentLink } from "./agent_link.ts";
import { button, card, element, show } from "./dom.ts";
import { drawing, photos, shapeOf, sizeOf, table } from "./inputs.ts";
import { thumbnail } from "./pictures.ts";
import { samplesOf, type Samples } from "./tables.ts";
import { text } from "./texts.ts";

const LOOKED_AT = 12;

export class DataView {
  readonly root = card(text("dataTitle"), "data");
  private readonly said = element("p", { class: "fact", role: "status" });
  private readonly gallery = element("div", { class: "gallery", role: "group", "aria-label": text("look") });
  private readonly ways = element("div", { class: "ways" });
  private readonly label = element("select", { id: "label" });
  private readonly tally = element("ul", { class: "tally" });
  private job: JobShown | null = null;

  /** `samples` is a file of examples on the page's own server; `refused` is told of what can't be used. */
  constructor(
    private readonly agent: AgentLink,
    private readonly samples: string | null,
    private readonly refused: (error: unknown) => void,
  ) {
    this.root.append(this.said, this.tally, this.ways, this.gallery);
  }

  show(job: JobShown, data: DataShown): void {
    this.job = job;
    this.label.replaceChildren(...job.classNames.map((name, number) => element("option", { value: String(number) }, name)));
    const picked = element("span", {}, text("photosPick", { label: job.classNames[0] ?? "" }));
    this.label.onchange = () => (picked.textContent = text("photosPick", { label: job.classNames[Number(this.label.value)] }));
    const add = (inputs: Uint8Array[]): void => this.add({ inputs: joined(inputs), labels: inputs.map(() => Number(this.label.value)) });
    const empty = (): void => this.refused(new Error(text("emptyDrawing")));
    const failed = (name: string): void => this.refused(new Error(text("notAPicture", { name })));
    const pictures = job.isPicture && job.hasClasses;
    this.ways.replaceChildren(
      ...(pictures ? [element("div", { class: "row" }, element("label", { for: "label" }, text("label")), this.label)] : []),
      ...(pictures ? [drawing(job, text("drawHint"), text("add"), (pixels) => add([pixels]), empty)] : []),
      ...(pictures ? [photos(job, picked, true, add, failed)] : []),
      table(job, (samples) => this.add(samples), this.refused),
      ...(this.samples === null ? [] : [button(text("demo"), () => void this.addExamples(job), "plain")]),
      button(text("removeAll"), () => this.agent.tell({ type: "clear" }), "plain"),
    );
    this.showData(data);
  }

  showData({ count, counts, heldBack, locked }: DataShown): void {
    this.said.textContent = locked ? text("dataLocked") : count ? text("dataCount", { count, held: heldBack }) : text("dataNone");
    const names = this.job?.classNames ?? [];
    this.tally.replaceChildren(...counts.map((number, at) => element("li", { class: number ? "" : "none" }, `${names[at]}: ${number}`)));
    show(this.ways, !locked);
    this.gallery.replaceChildren();
    for (let index = count - 1; index >= Math.max(0, count - LOOKED_AT); index--) this.agent.tell({ type: "show", index });
  }

  /** A sample that was asked for: its picture and label, newest first. */
  showSample(input: Uint8Array | Float32Array, label: number): void {
    if (this.job === null || !(input instanceof Uint8Array) || this.gallery.childElementCount >= LOOKED_AT) return;
    const name = this.job.classNames[label] ?? String(label);
    const picture = thumbnail(input, sizeOf(this.job));
    picture.setAttribute("role", "img");
    picture.setAttribute("aria-label", name);
    this.gallery.append(element("figure", {}, picture, element("figcaption", {}, name)));
  }

  private async addExamples(job: JobShown): Promise<void> {
    try {
      const answer = await fetch(new URL(this.samples ?? "", document.baseURI));
      this.add(samplesOf(await answer.text(), shapeOf(job)));
    } catch (error) {
      this.refused(error);
    }
  }

  private add({ inputs, labels }: Samples): void {
    if (labels.length) this.agent.tell({ type: "add", inputs, labels });
  }
}

function joined(pictures: readonly Uint8Array[]): Uint8Array {
  const all = new Uint8Array(pictures.reduce((sum, picture) => sum + picture.length, 0));
  let at = 0;
  for (const picture of pictures) {
    all.set(picture, at);
    at += picture.length;
  }
  return all;
}
