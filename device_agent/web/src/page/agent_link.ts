/** The page's end of the agent's worker. */

import type { Command, Observation } from "../training/observations.ts";

const WORKER = "training.js";

export class AgentLink {
  private worker: Worker | null = null;

  constructor(private readonly heard: (observation: Observation) => void) {}

  /** Start the agent, in place of one that runs. */
  open(fragment: string, startOver: boolean): void {
    this.worker?.terminate();
    this.worker = new Worker(new URL(WORKER, document.baseURI), { type: "module" });
    this.worker.onmessage = ({ data }: MessageEvent<Observation>) => this.heard(data);
    this.worker.onerror = ({ message }) =>
      this.heard({ type: "failed", failure: { message: message || "the agent can't be loaded", hint: null, kind: "bug" } });
    this.tell({ type: "open", fragment, page: new URL(".", document.baseURI).href, startOver });
  }

  tell(command: Command): void {
    this.worker?.postMessage(command);
  }
}
