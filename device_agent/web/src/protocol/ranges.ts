/** Sets of bytes, as ranges: what has arrived of a message, and what is still to be sent. */

/** The first byte and one past the last. */
export type Range = readonly [number, number];

/** A set of byte positions, kept as ascending ranges that neither overlap nor touch. */
export class ByteRanges {
  private ranges: Range[] = [];

  constructor(ranges: Iterable<Range> = []) {
    for (const [begin, end] of ranges) this.add(begin, end);
  }

  get count(): number {
    return this.ranges.length;
  }

  get nbytes(): number {
    return this.ranges.reduce((sum, [begin, end]) => sum + end - begin, 0);
  }

  list(): Range[] {
    return [...this.ranges];
  }

  add(begin: number, end: number): void {
    if (begin >= end) return;
    const before = this.ranges.filter((range) => range[1] < begin);
    const after = this.ranges.filter((range) => range[0] > end);
    for (const [first, last] of this.ranges.slice(before.length, this.ranges.length - after.length)) {
      begin = Math.min(begin, first);
      end = Math.max(end, last);
    }
    this.ranges = [...before, [begin, end], ...after];
  }

  remove(begin: number, end: number): void {
    if (begin >= end) return;
    this.ranges = [...this.within(0, begin), ...this.within(end, Infinity)];
  }

  /** The parts of the set that lie from `begin` to before `end`. */
  within(begin: number, end: number): Range[] {
    return this.ranges
      .map(([first, last]): Range => [Math.max(begin, first), Math.min(end, last)])
      .filter(([first, last]) => first < last);
  }

  covers(begin: number, end: number): boolean {
    if (begin >= end) return true;
    const [found, ...more] = this.within(begin, end);
    return found !== undefined && !more.length && found[0] === begin && found[1] === end;
  }

  /** The ranges from 0 to before `end` that are not in the set. */
  gaps(end: number): Range[] {
    const found: Range[] = [];
    let done = 0;
    for (const [first, last] of this.within(0, end)) {
      if (first > done) found.push([done, first]);
      done = last;
    }
    if (done < end) found.push([done, end]);
    return found;
  }
}
