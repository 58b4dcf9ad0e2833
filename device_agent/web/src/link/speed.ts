/** The speed of the link, measured by its own traffic: `device_agent/link/speed.py`. Rates are in bytes per second. */

/** A message below this shows the round trip; one above it the rate. */
const SMALL_BYTES = 4096;
const SHORTEST_S = 1e-6;

export class LinkSpeed {
  rttS: number | null = null;
  up: number | null = null;
  private measuredDown: number | null = null;
  private firstS: number | null = null;
  private bytes = 0;

  /** The downlink's speed; until a reply had several frames it is the uplink's: rarely is it the slower one. */
  get down(): number | null {
    return this.measuredDown ?? this.up;
  }

  /** The rate of the direction that is slower, as far as it is known. */
  get slower(): number | null {
    const rates = [this.up, this.down].filter((rate) => rate !== null);
    return rates.length ? Math.min(...rates) : null;
  }

  /** A connection was made, over who knows what network: the round trip is measured again. */
  connected(): void {
    this.rttS = this.firstS = null;
  }

  /** The last frame of a message was confirmed so long after the first was begun. */
  sent(nbytes: number, seconds: number): void {
    if (nbytes < SMALL_BYTES) {
      this.rttS = this.rttS === null ? seconds : Math.min(this.rttS, seconds);
      return;
    }
    // Where the round trip is nearly all of it, the rest says little: at least a quarter counts.
    const transferS = Math.max(seconds - (this.rttS ?? 0), seconds / 4, SHORTEST_S);
    this.up = mixed(this.up, nbytes / transferS);
  }

  /** A frame was not confirmed in so long, and then the connection was lost. */
  gaveUp(nbytes: number, seconds: number): void {
    if (this.up === null || nbytes < this.up * seconds) this.up = nbytes / Math.max(seconds, SHORTEST_S);
  }

  /** A frame of a reply has come whole; `last`: with it the reply is whole. */
  arrived(nbytes: number, nowS: number, last: boolean): void {
    if (this.firstS === null) {
      this.firstS = nowS;
      this.bytes = 0;
    } else {
      this.bytes += nbytes;
    }
    if (!last) return;
    if (this.bytes >= SMALL_BYTES) {
      this.measuredDown = mixed(this.measuredDown, this.bytes / Math.max(nowS - this.firstS, SHORTEST_S));
    }
    this.firstS = null;
  }
}

/** Halfway, as factors go: a link that became a thousand times slower shows in three messages. */
function mixed(before: number | null, now: number): number {
  return before === null ? now : Math.sqrt(before * now);
}
