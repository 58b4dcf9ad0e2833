/** What will happen, what leaves the phone and what never does: before anything is trained. */

import type { DataShown, JobShown } from "../training/observations.ts";
import { card, element } from "./dom.ts";
import { size, text, TEXTS } from "./texts.ts";

export class AboutView {
  readonly root = card(text("aboutTitle"), "about");
  private readonly traffic = element("p", { class: "fact" });
  private job: JobShown | null = null;

  show(job: JobShown, data: DataShown): void {
    this.job = job;
    const samples = text(job.isPicture ? "pictures" : "rows");
    const stays = [text("staysSamples", { samples }), ...(job.sharesLabels ? [] : [text("staysLabels", { samples })])];
    const leaves = [
      text("leavesActivations", { samples }),
      ...(job.sharesLabels ? [text("leavesLabels", { samples })] : []),
      ...(job.sharesLoss ? [text("leavesLoss")] : []),
      ...(job.ends === null ? [] : [text(job.ends === "sealed" ? "leavesSealed" : "leavesOpen")]),
      ...(job.hasPublicWeights ? [text("leavesPublic")] : []),
      ...(job.signed ? [] : [text("unsigned")]),
    ];
    const [heading] = this.root.children;
    this.root.replaceChildren(
      heading,
      list(TEXTS.aboutDo),
      element("h3", {}, text("staysTitle")), list(stays, "stays"),
      element("h3", {}, text("leavesTitle")), list(leaves, "leaves"),
      this.traffic,
    );
    this.showData(data);
  }

  showData({ count, heldBack }: DataShown): void {
    if (this.job === null) return;
    const { bytesPerSample, epochs } = this.job;
    const trained = count - heldBack;
    this.traffic.textContent = trained
      ? text("traffic", { size: size(trained * epochs * bytesPerSample) })
      : text("trafficUnknown", { size: size(bytesPerSample), epochs });
  }
}

function list(items: readonly string[], kind = ""): HTMLElement {
  return element("ul", { class: kind }, ...items.map((item) => element("li", {}, item)));
}
