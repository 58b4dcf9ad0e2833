/** A device's connection to the broker, through a gateway's WebSocket: `broker/gateway/client.py`. */

import { LinkError, WireError } from "../errors.ts";
import { encodePacket, errorOf, EXCLUSIVE, Kind, parsePacket, PROTOCOL, type Packet } from "./packets.ts";

const CONNECT_MS = 15_000;
/** A frame that is not confirmed for so long, while nothing of it leaves, was lost with its connection. */
const SILENCE_MS = 60_000;
const LOOK_MS = 5_000;
const PREFETCH = 16;

export interface Account {
  readonly name: string;
  readonly password: string;
}

/** What a link needs of a connection. */
export interface Transport {
  declare(queue: string): Promise<void>;
  /** Hand every frame of the queue over, and acknowledge it once that has returned. */
  subscribe(queue: string, take: (frame: Uint8Array) => void): Promise<void>;
  /** Resolves once the broker has the frame. Rejects with Unroutable where no queue takes it. */
  publish(key: string, replyTo: string, frame: Uint8Array): Promise<void>;
  /** Resolves with the reason once the connection is gone. */
  readonly lost: Promise<LinkError>;
  close(): void;
}

interface Waiting {
  readonly done: () => void;
  readonly failed: (error: LinkError) => void;
}

/** Connect and authenticate. Rejects with LinkError. */
export function connect(url: string, account: Account): Promise<Transport> {
  return new Promise((connected, failed) => {
    const transport = new GatewayTransport(new WebSocket(url, PROTOCOL), account, () => connected(transport));
    void transport.lost.then(failed);
  });
}

class GatewayTransport implements Transport {
  readonly lost: Promise<LinkError>;
  private lose!: (error: LinkError) => void;
  private isLost = false;
  private welcomed = false;
  private lastNumber = 0;
  private heard = performance.now();
  private buffered = 0;
  private readonly waiting = new Map<number, Waiting>();
  private readonly readers = new Map<number, (frame: Uint8Array) => void>();
  private readonly timers: ReturnType<typeof setTimeout>[];

  constructor(
    private readonly socket: WebSocket,
    account: Account,
    private readonly ready: () => void,
  ) {
    this.lost = new Promise((lose) => (this.lose = lose));
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      const body = new TextEncoder().encode(account.password);
      socket.send(encodePacket(Kind.HELLO, { text: account.name, body }));
    };
    socket.onmessage = ({ data }) => this.read(data);
    socket.onclose = () => this.end(new LinkError(this.welcomed ? "the connection was lost" : "the server can't be reached"));
    this.timers = [
      setTimeout(() => this.welcomed || this.end(new LinkError("the server does not answer")), CONNECT_MS),
      setInterval(() => this.look(), LOOK_MS),
    ];
  }

  async declare(queue: string): Promise<void> {
    await this.request(Kind.DECLARE, { text: queue });
  }

  async subscribe(queue: string, take: (frame: Uint8Array) => void): Promise<void> {
    const number = this.nextNumber();
    this.readers.set(number, take);
    await this.request(Kind.SUBSCRIBE, { number, flags: EXCLUSIVE, argument: PREFETCH, text: queue });
  }

  async publish(key: string, replyTo: string, frame: Uint8Array): Promise<void> {
    await this.request(Kind.PUBLISH, { text: `${key}\n${replyTo}`, body: frame });
  }

  close(): void {
    this.end(new LinkError("the connection is closed"));
  }

  private request(kind: number, its: Partial<Omit<Packet, "kind">>): Promise<void> {
    return new Promise((done, failed) => {
      if (this.isLost) return failed(new LinkError("the connection was lost"));
      const number = its.number ?? this.nextNumber();
      this.waiting.set(number, { done, failed });
      this.socket.send(encodePacket(kind, { ...its, number }));
    });
  }

  private nextNumber(): number {
    return (this.lastNumber = (this.lastNumber % 0xffffffff) + 1);
  }

  private read(data: unknown): void {
    this.heard = performance.now();
    try {
      if (!(data instanceof ArrayBuffer)) throw new WireError("a packet that is no bytes");
      this.take(parsePacket(new Uint8Array(data)));
    } catch (error) {
      if (!(error instanceof WireError)) throw error;
      this.end(new LinkError(`what the server says can't be read: ${error.message}`));
    }
  }

  private take(packet: Packet): void {
    if (packet.kind === Kind.WELCOME && !this.welcomed) {
      this.welcomed = true;
      return this.ready();
    }
    if (packet.kind === Kind.FAILED && !packet.number) return this.end(errorOf(packet));
    if (!this.welcomed || packet.kind === Kind.WELCOME) throw new WireError("WELCOME comes once, and first");
    if (packet.kind === Kind.DELIVERY) {
      const reader = this.readers.get(packet.number);
      if (!reader) return;
      reader(packet.body);
      this.socket.send(encodePacket(Kind.ACK, { number: packet.number, argument: packet.argument }));
    } else if (packet.kind === Kind.ENDED) {
      if (this.readers.delete(packet.number)) this.end(errorOf(packet));
    } else {
      const waiting = this.waiting.get(packet.number);
      this.waiting.delete(packet.number);
      if (packet.kind === Kind.DONE) waiting?.done();
      else waiting?.failed(errorOf(packet));
    }
  }

  /** Give the link up where a request waits, nothing comes, and nothing that waits to be sent leaves. */
  private look(): void {
    const moved = this.socket.bufferedAmount < this.buffered;
    this.buffered = this.socket.bufferedAmount;
    if (moved || !this.waiting.size) this.heard = performance.now();
    else if (performance.now() - this.heard > SILENCE_MS) this.end(new LinkError("nothing came from the server for a minute"));
  }

  private end(error: LinkError): void {
    if (this.isLost) return;
    this.isLost = true;
    for (const timer of this.timers) clearTimeout(timer);
    for (const { failed } of this.waiting.values()) failed(error);
    this.waiting.clear();
    this.readers.clear();
    this.lose(error);
    this.socket.close();
  }
}
