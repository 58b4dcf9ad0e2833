/** The page begins here: the link's fragment is read, kept on this device, and gone from the address bar at once. */

import { SplitEasyError } from "../errors.ts";
import { readEnrolment } from "../training/enrolment.ts";
import { App } from "./app.ts";
import { element } from "./dom.ts";
import { missing } from "./support.ts";
import { sentence, text } from "./texts.ts";

const KEPT = "spliteasy enrolment";

function fragmentOf(): string {
  const given = location.hash;
  if (given.length > 1) {
    history.replaceState(null, "", location.pathname);
    readEnrolment(given);
    localStorage.setItem(KEPT, given);
    return given;
  }
  const kept = localStorage.getItem(KEPT);
  if (kept === null) throw new SplitEasyError(text("noLink"));
  return kept;
}

function begin(root: HTMLElement): void {
  try {
    const why = missing();
    if (why !== null) throw new SplitEasyError(why);
    new App(root, fragmentOf());
  } catch (error) {
    if (!(error instanceof SplitEasyError)) throw error;
    const told = [element("h2", {}, text("problem")), element("p", {}, sentence(error.message)), ...(error.hint === null ? [] : [element("p", { class: "hint" }, sentence(error.hint))])];
    root.replaceChildren(element("header", {}, element("h1", {}, text("title"))), element("section", { class: "problem", role: "alert" }, ...told));
  }
}

const root = document.getElementById("page");
if (root !== null) begin(root);
window.addEventListener("hashchange", () => location.reload()); // another link was opened in this tab
