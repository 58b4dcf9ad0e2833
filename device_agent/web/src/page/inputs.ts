/** Ways to give a sample: drawing, photos, a file, or numbers. */

import type { JobShown } from "../training/observations.ts";
import { button, element } from "./dom.ts";
import { DrawPad } from "./draw_pad.ts";
import { drawingOf, pictureOf, type Size } from "./pictures.ts";
import { samplesOf, type Samples, type Shape } from "./tables.ts";
import { text } from "./texts.ts";

export function sizeOf({ inputShape }: JobShown): Size {
  const [channels, height, width] = inputShape;
  return { channels, height, width };
}

export function shapeOf(job: JobShown): Shape {
  const numbers = job.inputShape.reduce((all, side) => all * side, 1);
  return { numbers, bytes: job.isPicture, classes: job.hasClasses ? job.classNames : null };
}

/** A canvas with a button under it; `take` gets what was drawn. */
export function drawing(job: JobShown, hint: string, label: string, take: (pixels: Uint8Array) => void, empty: () => void): HTMLElement {
  const pad = new DrawPad(hint);
  const add = button(label, () => {
    const pixels = drawingOf(pad.canvas, sizeOf(job));
    if (pixels === null) return empty();
    pad.clear();
    take(pixels);
  });
  pad.root.append(add);
  return pad.root;
}

/** A choice of photos; `take` gets those that are pictures, `refused` the names of the others. */
export function photos(
  job: JobShown, label: HTMLElement, several: boolean, take: (pictures: Uint8Array[]) => void, refused: (name: string) => void,
): HTMLElement {
  const input = element("input", { type: "file", accept: "image/*", multiple: several });
  input.addEventListener("change", () => {
    const files = [...(input.files ?? [])];
    input.value = "";
    void Promise.all(
      files.map((file) => pictureOf(file, sizeOf(job), job.resize).catch(() => (refused(file.name), null))),
    ).then((pictures) => take(pictures.filter((picture) => picture !== null)));
  });
  return element("label", { class: "pick" }, label, input);
}

/** A choice of a CSV or JSON file. */
export function table(job: JobShown, take: (samples: Samples) => void, refused: (error: unknown) => void): HTMLElement {
  const input = element("input", { type: "file", accept: ".csv,.json,.txt,text/csv,application/json" });
  input.addEventListener("change", () => {
    const [file] = input.files ?? [];
    input.value = "";
    if (file) void file.text().then((content) => take(samplesOf(content, shapeOf(job)))).catch(refused);
  });
  return element("div", {}, element("label", { class: "pick" }, text("filePick"), input), element("p", { class: "hint" }, text("fileHint")));
}
