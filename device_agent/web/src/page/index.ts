/** The page begins here: the link's fragment is read, kept on this device, and gone from the address bar at once. */

import { SplitEasyError } from "../errors.ts";
import { readEnrolment } from "../training/enrolment.ts";
import { App } from "./app.ts";
import { watchBuild } from "./build_watch.ts";
import { keepFragment, keptFragment } from "./credentials.ts";
import { element } from "./dom.ts";
import { missing } from "./support.ts";
import { sentence, text } from "./texts.ts";

/** The fragment of the link, or the one that this device keeps. */
async function fragmentOf(): Promise<string> {
  const given = location.hash;
  if (given.length > 1) {
    history.replaceState(null, "", location.pathname);
    readEnrolment(given);
    await keepFragment(given).catch(() => undefined); // then the link is needed again the next time
    return given;
  }
  const kept = await keptFragment().catch(() => null);
  if (kept === null) throw new SplitEasyError(text("noLink"));
  return kept;
}

async function begin(root: HTMLElement): Promise<void> {
  try {
    const why = missing();
    if (why !== null) throw new SplitEasyError(why);
    const app = new App(root, await fragmentOf());
    await watchBuild((take) => app.offerBuild(take)).catch(() => undefined); // such as in private browsing
  } catch (error) {
    if (!(error instanceof SplitEasyError)) throw error;
    const told = [element("h2", {}, text("problem")), element("p", {}, sentence(error.message)), ...(error.hint === null ? [] : [element("p", { class: "hint" }, sentence(error.hint))])];
    root.replaceChildren(element("header", {}, element("h1", {}, text("title"))), element("section", { class: "problem", role: "alert" }, ...told));
  }
}

const root = document.getElementById("page");
if (root !== null) void begin(root);
window.addEventListener("hashchange", () => location.reload()); // another link was opened in this tab
