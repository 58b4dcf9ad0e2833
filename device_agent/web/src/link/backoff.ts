/** Full-jitter backoff: how long to wait before trying again: `broker/transport/backoff.py`. */

const BASE_S = 0.1;
const MAX_S = 10;
const GROWTH = 1.2;

/** Delays in seconds, without end: each is uniform between 0 and a ceiling that grows. */
export function* fullJitter(random: () => number = Math.random): Generator<number, never> {
  for (let ceiling = BASE_S; ; ceiling = Math.min(ceiling * GROWTH, MAX_S)) yield random() * ceiling;
}
