/** Errors that a person may read: what was wrong, and where it helps a hint of what to do. See `spliteasy/errors.py`. */

export class SplitEasyError extends Error {
  readonly hint: string | null;

  constructor(message: string, hint: string | null = null) {
    super(message);
    this.name = new.target.name;
    this.hint = hint;
  }
}

/** A job package that is wrong. */
export class JobError extends SplitEasyError {}

/** Data that does not fit the job. */
export class DataError extends SplitEasyError {}

/** A graph or tensors that are malformed or not allowed. */
export class PortableError extends SplitEasyError {}

/** The job needs what this build of the agent can't do; `operators` are the operators' names, where it is about those. */
export class NotSupported extends SplitEasyError {
  readonly operators: readonly string[];

  constructor(message: string, operators: readonly string[] = [], hint: string | null = null) {
    super(message, hint);
    this.operators = operators;
  }
}

/** The engine would need more memory than it may have. */
export class OutOfMemory extends SplitEasyError {}

/** Bytes that are not of this protocol. */
export class WireError extends SplitEasyError {}

/** What this device keeps of a training can't be used. */
export class StateError extends SplitEasyError {}

/** A worker refused a request for good. */
export class RemoteError extends SplitEasyError {
  constructor(
    message: string,
    readonly code: string,
    hint: string | null = null,
  ) {
    super(message, hint);
  }
}

/** The connection failed; `retriable`: it may work later without anybody's doing. */
export class LinkError extends SplitEasyError {
  constructor(
    message: string,
    hint: string | null = null,
    readonly retriable: boolean = true,
  ) {
    super(message, hint);
  }
}

/** The account or its password is not taken any more. */
export class AccountRefused extends LinkError {
  constructor(message: string, hint: string | null = null) {
    super(message, hint, false);
  }
}

/** No queue takes a frame, since no worker has served this broker yet. */
export class Unroutable extends LinkError {}
