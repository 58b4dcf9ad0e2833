/** Every text of the page. `{name}` is filled in. */

export const TEXTS = {
  title: "Train with this phone",
  training: "Training “{name}”",
  connecting: "Connecting …",
  ready: "Ready",
  aboutTitle: "What will happen",
  aboutDo: [
    "Your phone trains a part of a model on the samples that you give it. The rest of the model trains on a server.",
    "The page has to stay open and the screen on while it trains. Close it whenever you like: it goes on where it was.",
  ],
  staysTitle: "What never leaves this phone",
  staysSamples: "Your {samples}. The page keeps them on this phone and sends them nowhere.",
  staysLabels: "Which {samples} have which label.",
  leavesTitle: "What is sent to the server",
  leavesActivations: "Numbers that the first layers of the model compute from your {samples}, and what the last layers learn back. They are not your {samples}, but whoever runs the server may be able to guess something about them and their labels.",
  leavesLabels: "The labels of your {samples}: in this training the server computes the error itself.",
  leavesLoss: "How large the error is in each step.",
  leavesSealed: "What this phone’s part of the model has learnt, sealed: other phones of the same training go on from it, and the server can’t read it.",
  leavesOpen: "What this phone’s part of the model has learnt: other phones go on from it, and the server can read it.",
  leavesPublic: "This training begins with weights that the server knows, so that it can guess more than otherwise.",
  unsigned: "Nobody has signed this training: the link names no operator’s key.",
  traffic: "The whole training sends and receives about {size}. Use Wi-Fi if your data is limited.",
  trafficUnknown: "Each sample takes about {size} in each of {epochs} rounds.",
  pictures: "pictures",
  rows: "rows",
  dataTitle: "Your samples",
  dataNone: "There are none yet. Add some for each label.",
  dataCount: "{count} samples, of which {held} are held back to see how good the model is.",
  dataLocked: "The training has begun with these samples. To change them, start over.",
  label: "Label",
  draw: "Draw",
  drawHint: "Draw here, then press Add",
  clearDrawing: "Clear",
  add: "Add",
  photos: "Photos",
  photosPick: "Choose photos of “{label}”",
  file: "File",
  filePick: "Choose a CSV or JSON file",
  fileHint: "CSV: the numbers of a sample and its label at the end of each line. JSON: an object with “inputs” and “labels”.",
  demo: "Use the example samples",
  removeAll: "Remove all samples",
  look: "The newest samples",
  fewSamples: "Give at least two samples of each label; {missing} still need some.",
  trainTitle: "Training",
  train: "Train",
  goOn: "Go on",
  pause: "Pause",
  paused: "paused by you",
  step: "Step {step} of {total}",
  loss: "Error",
  accuracy: "Right on held-back samples",
  metrics: "Other measures",
  bytes: "Sent and received",
  left: "Time left",
  notYet: "–",
  stoppedAt: "This phone has trained {step} steps. Press Go on.",
  finished: "Finished: all {total} steps are done.",
  finishedEarly: "Finished after {step} steps: the model no longer gets better.",
  tryTitle: "Try the model",
  tryLocked: "When the training has finished, try it here on something new.",
  tryDraw: "Draw something new",
  tryPhoto: "Choose a photo",
  tryRow: "Numbers, separated by commas",
  tryIt: "What is it?",
  tryResult: "It says: {label}, {percent} sure",
  tryNumber: "It says: {number}",
  emptyDrawing: "Draw something first.",
  otherTab: "This training is open in another tab or window. Close that one: then this one goes on by itself.",
  offline: "This phone is offline. The training goes on by itself when it is back.",
  waiting: "Waiting: {why}. It goes on by itself.",
  newBuild: "There is a new version of this page. This phone goes on with the one that you know until you take the new one.",
  takeBuild: "Take the new version",
  problem: "This does not work",
  loadAgain: "Load the page again",
  startOver: "Start over",
  takeOver: "Go on from this phone",
  noLink: "Open this page with the link or the code that its operator gave you. It begins with the address that you see above and has a long part after a “#”.",
  insecure: "This page came over http, where browsers keep no files and check no signatures. Open the link that begins with https.",
  noStorage: "This browser lets the page keep no files, so that a training could not go on after the page was closed. Leave private browsing, or use a newer browser.",
  noEngine: "This browser can’t compute fast enough (it has no WebAssembly SIMD). Use Chrome, Edge, Firefox or Safari of the last two years.",
  noLocks: "This browser can’t tell whether another tab trains already. Use a newer browser.",
  expired: "The server does not know this phone any more: the link is old, or was withdrawn. Ask its operator for a new link.",
  superseded: "The server has a newer state of this training than this phone. Another phone or browser may train with the same link, or this browser has cleared what the page kept.",
  notAPicture: "“{name}” is no picture that this browser can read. It was left out.",
  noRows: "The file has no samples. {hint}",
  rowLength: "Line {line} has {found} numbers; this training takes {wanted} and a label.",
  unknownLabel: "Line {line} has the label “{label}”, which this training does not know. It knows: {known}.",
  notNumber: "Line {line} has “{value}”, which is no number.",
  notKept: "Your browser may delete what this page keeps when space gets scarce. Add the page to your home screen to prevent that.",
  wakeLock: "The screen may turn off by itself: touch it now and then, or change that in your phone’s settings.",
  curve: "Error of each step, from the first to the last",
} as const;

type Name = { [K in keyof typeof TEXTS]: (typeof TEXTS)[K] extends string ? K : never }[keyof typeof TEXTS];

/** A text with its places filled in. */
export function text(name: Name, values: Readonly<Record<string, string | number>> = {}): string {
  return TEXTS[name].replace(/\{(\w+)\}/g, (_, key: string) => String(values[key] ?? ""));
}

/** An error's message as a sentence begins. */
export function sentence(message: string): string {
  return message.charAt(0).toUpperCase() + message.slice(1);
}

/** Bytes for a person. */
export function size(bytes: number): string {
  const [unit, name] = bytes < 1e6 ? [1e3, "kB"] : bytes < 1e9 ? [1e6, "MB"] : [1e9, "GB"];
  const number = bytes / unit;
  return `${number < 10 ? Math.max(0.1, number).toFixed(1) : Math.round(number)}\u00a0${name}`;
}

/** A span of time for a person. */
export function span(seconds: number): string {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}
