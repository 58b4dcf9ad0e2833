/** The send window bounds the frames that wait for confirms: `broker/transport/send_window.py`. */

interface Waiting {
  readonly urgency: number;
  readonly ticket: number;
  readonly nbytes: number;
  readonly admit: () => void;
}

export class SendWindow {
  private flying = 0;
  private flyingBytes = 0;
  private tickets = 0;
  private waiting: Waiting[] = [];

  /** At most `frames` frames, and about `limitBytes()` bytes but never less than two frames, wait at any time. */
  constructor(
    private readonly frames: number,
    private readonly limitBytes: () => number,
  ) {}

  /** Number a message: among messages of one urgency, the smaller number sends first. */
  ticket(): number {
    return ++this.tickets;
  }

  /** Resolves when a frame may be sent; the smallest urgency comes first, then the smallest ticket. */
  acquire(nbytes: number, urgency: number, ticket: number): Promise<void> {
    return new Promise((admit) => {
      const place = this.waiting.findIndex((each) => each.urgency > urgency || (each.urgency === urgency && each.ticket > ticket));
      this.waiting.splice(place < 0 ? this.waiting.length : place, 0, { urgency, ticket, nbytes, admit });
      this.admitNext();
    });
  }

  /** A frame was confirmed, or was not sent after all. */
  release(nbytes: number): void {
    this.flying -= 1;
    this.flyingBytes -= nbytes;
    this.admitNext();
  }

  private admitNext(): void {
    for (let next = this.waiting[0]; next !== undefined && this.fits(next.nbytes); next = this.waiting[0]) {
      this.waiting.shift();
      this.flying += 1;
      this.flyingBytes += next.nbytes;
      next.admit();
    }
  }

  private fits(nbytes: number): boolean {
    const within = this.flying < 2 || this.flyingBytes + nbytes <= this.limitBytes();
    return this.flying < this.frames && within;
  }
}
