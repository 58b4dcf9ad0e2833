/** What packages of jobs need beyond their first version: `spliteasy/job/package.py`, `FEATURES`. */

/** What a package may need, by the names that this build knows; and of what it can't do, what it is for a person. */
export const FEATURES: Readonly<Record<string, string | null>> = {
  "least-samples": null,
  "labelled-shares": null,
  "data-recipe": null,
  "secret-ends": null,
  defences: "transforms of what crosses the cut ([privacy])",
  rounds: "rounds of a fleet ([fleet])",
  accumulation: "accumulate",
  "averaged-weights": "[optimizer] ema",
  metrics: "[evaluation] metrics",
  "early-stopping": "[evaluation] patience",
  "keep-best": "[evaluation] keep_best",
  lengths: "samples with lengths of their own ([model] max_length)",
  "more-optimizers": "an optimizer other than sgd, adam and adamw",
};

/** The names of those that this build can train. */
export function trained(): string[] {
  return Object.keys(FEATURES).filter((name) => FEATURES[name] === null).sort();
}
