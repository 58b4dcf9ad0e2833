/** The page: its parts, and what becomes of what the agent tells it. */

import { SplitEasyError } from "../errors.ts";
import { readEnrolment } from "../training/enrolment.ts";
import type { DataShown, Failure, JobShown, Observation } from "../training/observations.ts";
import { AboutView } from "./about_view.ts";
import { AgentLink } from "./agent_link.ts";
import { DataView } from "./data_view.ts";
import { button, element, show } from "./dom.ts";
import { WakeLock } from "./support.ts";
import { sentence, text } from "./texts.ts";
import { TrainView } from "./train_view.ts";
import { TryView } from "./try_view.ts";

const LEAST_OF_A_CLASS = 2;

export class App {
  private readonly agent = new AgentLink((observation) => this.heard(observation));
  private readonly heading = element("h1", {}, text("title"));
  private readonly status = element("p", { class: "status", role: "status" }, text("connecting"));
  private readonly problem = element("section", { class: "problem", role: "alert", hidden: true });
  private readonly news = element("section", { class: "news", role: "status", hidden: true });
  private readonly about = new AboutView();
  private readonly train = new TrainView(() => this.start(), (paused) => this.pause(paused));
  private readonly data: DataView;
  private readonly tryOut: TryView;
  private readonly wakeLock = new WakeLock(() => this.train.note(text("wakeLock")));
  private readonly views: HTMLElement[];
  private job: JobShown | null = null;
  private shown: DataShown | null = null;
  private step = 0;
  private startsOver = false;

  constructor(
    root: HTMLElement,
    private readonly fragment: string,
  ) {
    const refused = (error: unknown): void => this.complain(error instanceof Error ? error.message : String(error), error instanceof SplitEasyError ? error.hint : null);
    this.data = new DataView(this.agent, readEnrolment(fragment).samples, refused);
    this.tryOut = new TryView(this.agent, refused);
    this.views = [this.about.root, this.data.root, this.train.root, this.tryOut.root];
    root.replaceChildren(element("header", {}, this.heading, this.status), this.news, this.problem, ...this.views);
    for (const view of this.views) show(view, false);
    window.addEventListener("offline", () => (this.status.textContent = text("offline")));
    window.addEventListener("online", () => (this.status.textContent = text("connecting")));
    this.agent.open(fragment, false);
  }

  /** A new build of the page is there: it is used once the owner says so. */
  offerBuild(take: () => void): void {
    this.news.replaceChildren(element("p", {}, text("newBuild")), button(text("takeBuild"), take, "plain"));
    show(this.news, true);
  }

  private heard(observation: Observation): void {
    switch (observation.type) {
      case "waiting":
        this.status.textContent = navigator.onLine ? text("waiting", { why: observation.text }) : text("offline");
        return;
      case "locked":
        this.status.textContent = text("otherTab");
        return;
      case "ready":
        return this.ready(observation);
      case "data":
        return this.showData(observation.data);
      case "sample":
        return this.data.showSample(observation.input, observation.label);
      case "began":
        this.status.textContent = text("training", { name: this.job?.name ?? "" });
        return this.train.began(observation);
      case "resumed":
        if (this.shown) this.showData({ ...this.shown, locked: true });
        return this.train.resumed(observation);
      case "step":
        this.step = observation.step;
        return this.train.step(observation);
      case "evaluated":
        return this.train.evaluated(observation);
      case "note":
        return this.train.note(observation.text);
      case "finished":
        return this.finished(observation.done);
      case "predicted":
        return this.tryOut.predicted(observation.outputs);
      case "refused":
        return this.complain(observation.failure.message, observation.failure.hint);
      case "failed":
        return this.failed(observation.failure);
      case "saved":
        return;
    }
  }

  private ready({ job, data, step, done }: Extract<Observation, { type: "ready" }>): void {
    this.job = job;
    this.step = step;
    this.heading.textContent = text("training", { name: job.name });
    this.status.textContent = text("ready");
    for (const view of this.views) show(view, true);
    this.about.show(job, data);
    this.data.show(job, data);
    this.tryOut.show(job);
    this.showData(data);
    if (done) this.finished(true);
    else if (data.locked) this.start();
    void navigator.storage.persist?.();
  }

  private showData(data: DataShown): void {
    this.shown = data;
    this.about.showData(data);
    this.data.showData(data);
    const lacking = data.counts.filter((count) => count < LEAST_OF_A_CLASS).length;
    const why = data.locked ? null : !data.count ? text("dataNone") : lacking ? text("fewSamples", { missing: lacking }) : null;
    this.train.allow(why);
  }

  private start(takeover = false): void {
    show(this.problem, false);
    this.wakeLock.set(true);
    this.train.setRunning(true);
    this.agent.tell({ type: "train", restart: this.startsOver, takeover });
    this.startsOver = false;
  }

  private pause(paused: boolean): void {
    this.wakeLock.set(!paused);
    this.agent.tell({ type: "pause", why: paused ? text("paused") : null });
  }

  private finished(done: boolean): void {
    this.wakeLock.set(false);
    this.train.finished(this.step, done);
    this.tryOut.allow(done);
  }

  /** The training, or getting ready for it, has ended with an error: say what to do. */
  private failed({ message, hint, kind }: Failure): void {
    this.wakeLock.set(false);
    this.train.setRunning(false);
    this.status.textContent = "";
    if (kind === "account") return this.complain(text("expired"), null, this.loadAgain());
    if (kind !== "state") return this.complain(message, hint, this.loadAgain());
    const ways = [button(text("startOver"), () => this.startOver())];
    if (this.job !== null) ways.push(button(text("takeOver"), () => this.start(true), "plain"));
    const newer = message.includes("newer than this one");
    this.complain(newer ? text("superseded") : message, newer ? null : hint, ...ways);
  }

  private startOver(): void {
    this.startsOver = true;
    this.job = null;
    this.step = 0;
    show(this.problem, false);
    this.status.textContent = text("connecting");
    this.agent.open(this.fragment, true);
  }

  private loadAgain(): HTMLButtonElement {
    return button(text("loadAgain"), () => location.reload());
  }

  private complain(message: string, hint: string | null, ...ways: HTMLElement[]): void {
    const told = [element("h2", {}, text("problem")), element("p", {}, sentence(message)), hint === null ? null : element("p", { class: "hint" }, sentence(hint))];
    this.problem.replaceChildren(...told.filter((each) => each !== null), element("div", { class: "row" }, ...ways));
    show(this.problem, true);
    this.problem.scrollIntoView({ block: "nearest" });
  }
}
