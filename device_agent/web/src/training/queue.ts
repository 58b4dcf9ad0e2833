/** Events wait here until somebody takes them. */

export class Queue<T> {
  private items: T[] = [];
  private wake: (() => void) | null = null;

  put(item: T): void {
    this.items.push(item);
    this.wake?.();
  }

  /** The next one; null where none comes within `ms`. */
  async next(ms: number | null = null): Promise<T | null> {
    if (!this.items.length) {
      await new Promise<void>((wake) => {
        const timer = ms === null ? undefined : setTimeout(wake, ms);
        this.wake = () => {
          clearTimeout(timer);
          wake();
        };
      });
      this.wake = null;
    }
    return this.items.shift() ?? null;
  }
}
