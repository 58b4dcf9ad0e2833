/**
 * The interface of the engine: it trains head and tail of a job from their portable graphs.
 *
 * Everything that computes is asynchronous, so that an engine can live in another thread than its user. The agent's
 * own runs where the session runs, in a Web Worker; tests run it in Node. Calls of one engine are computed one after
 * the other, in the order in which they were made.
 */

/** The kinds of numbers that cross a cut, and the arrays that hold them. `bfloat16` and `float16` are raw 16-bit words. */
export interface Arrays {
  float32: Float32Array;
  float64: Float64Array;
  float16: Uint16Array;
  bfloat16: Uint16Array;
  int64: BigInt64Array;
  int32: Int32Array;
  int16: Int16Array;
  int8: Int8Array;
  uint8: Uint8Array;
  bool: Uint8Array;
}

export type DtypeName = keyof Arrays;

/** A tensor outside the engine: its elements in row-major order. */
export interface Tensor {
  readonly dtype: DtypeName;
  readonly shape: readonly number[];
  readonly data: Arrays[DtypeName];
}

/** A value that crosses a cut: a tensor, or an integer such as a batch size. */
export type Value = Tensor | number;

/** The settings of `[optimizer]`, `[schedule]` and `[clip]`, with the names and defaults of the job's spec. */
export interface GroupSpec {
  readonly pattern: string;
  readonly lr?: number | null;
  readonly weight_decay?: number | null;
  readonly frozen?: boolean;
}

interface OptimizerBase {
  readonly lr: number;
  readonly weight_decay?: number;
  readonly groups?: readonly GroupSpec[];
  /** The decay of a moving average of the weights, which evaluation uses. */
  readonly ema?: number | null;
}

export interface SgdSpec extends OptimizerBase {
  readonly name: "sgd";
  readonly momentum?: number;
  readonly dampening?: number;
  readonly nesterov?: boolean;
}

export interface AdamSpec extends OptimizerBase {
  readonly name: "adam" | "adamw";
  readonly betas?: readonly [number, number];
  readonly eps?: number;
}

export interface RmsPropSpec extends OptimizerBase {
  readonly name: "rmsprop";
  readonly alpha?: number;
  readonly eps?: number;
  readonly momentum?: number;
  readonly centered?: boolean;
}

export interface AdagradSpec extends OptimizerBase {
  readonly name: "adagrad";
  readonly lr_decay?: number;
  readonly initial_accumulator_value?: number;
  readonly eps?: number;
}

export interface LionSpec extends OptimizerBase {
  readonly name: "lion";
  readonly betas?: readonly [number, number];
}

export type OptimizerSpec = SgdSpec | AdamSpec | RmsPropSpec | AdagradSpec | LionSpec;

export type ScheduleSpec =
  | { readonly name?: "constant"; readonly warmup_steps?: number }
  | { readonly name: "step"; readonly step_size: number; readonly gamma?: number; readonly warmup_steps?: number }
  | { readonly name: "cosine"; readonly steps: number; readonly min_factor?: number; readonly warmup_steps?: number };

export interface ClipSpec {
  readonly max_norm: number;
  readonly scope?: "segment";
}

/** What a package has of a segment, and the tensors that this device drew for it (`ends`). */
export interface SegmentSource {
  /** The bytes of `head.json` or `tail.json`. */
  readonly graph: Uint8Array;
  /** The bytes of `head.safetensors` or `tail.safetensors`. Drawn tensors are not in it. */
  readonly tensors: Uint8Array;
  readonly drawn?: Readonly<Record<string, Tensor>>;
}

export interface TrainerOptions {
  readonly role: "head" | "tail";
  readonly optimizer: OptimizerSpec;
  readonly schedule?: ScheduleSpec;
  readonly clip?: ClipSpec | null;
  /** Batches whose gradients are added up before the optimizer steps; 1 if not given. */
  readonly accumulate?: number;
  /** The device's key for the job, 32 bytes: random layers draw from it. */
  readonly key: Uint8Array;
}

/** A loss by its name in the job's spec, or the parts `loss.json` and `loss.safetensors` of the package. */
export type LossSource =
  | { readonly name: "cross_entropy" | "nll" | "bce_with_logits" | "mse" | "l1" | "smooth_l1" }
  | { readonly graph: Uint8Array; readonly tensors: Uint8Array; /** How many of its last inputs are targets. */ readonly targets: number };

/** A forward whose backward has not run. It holds memory until `backward`, `backwardFromLoss`, `release` or `abort`. */
export interface OpenForward {
  /** A number that names the forward within its trainer. */
  readonly id: number;
  /** First the values for the wire, then those that stay on the device. */
  readonly outputs: readonly Value[];
}

export type Gradients = readonly (Tensor | null)[];

export interface LossAndGradients {
  /** The loss of the micro-batch, not yet times its share. */
  readonly loss: number;
  /** The gradients of the trainer's inputs, null where an input takes none. */
  readonly gradients: Gradients;
}

/** One segment's weights, buffers and optimizer at a step: `spliteasy/training/segment_trainer.py`, method by method. */
export interface SegmentTrainer {
  readonly name: string;
  /** Whether any weight takes a gradient. */
  readonly trainable: boolean;
  /** Whether training changes nothing in the segment, so that any step can be computed at any time. */
  readonly fixed: boolean;
  /** The number of outputs, counted from the first, that go over the wire in training and in evaluation. */
  readonly wire: { readonly train: number; readonly eval: number };
  readonly inputs: { readonly train: readonly ValueSpec[]; readonly eval: readonly ValueSpec[] };
  readonly outputs: { readonly train: readonly ValueSpec[]; readonly eval: readonly ValueSpec[] };
  /** Steps taken, and those of them that took over a mean instead of training (`rebases`). */
  progress(): Promise<{ readonly step: number; readonly rebases: number; readonly taken: number }>;
  /** Run the training graph for step `taken + 1`. Micro-batch 0 starts the step over. */
  forward(values: readonly Value[], micro?: number): Promise<OpenForward>;
  /** Return what `forward` will give at optimizer step `step`, of a `fixed` segment; the open step is not touched. */
  forwardAhead(values: readonly Value[], step: number, micro: number): Promise<OpenForward>;
  /** Add to the weights' gradients; `gradients` belong to the outputs. Resolves to the gradients of the inputs. */
  backward(opened: OpenForward, gradients: Gradients): Promise<Gradients>;
  /** Loss and backward of it times `share`, the part of the batch's loss that this micro-batch counts for. */
  backwardFromLoss(opened: OpenForward, loss: Loss, targets: readonly Tensor[], share: number): Promise<LossAndGradients>;
  /** Forget a forward that will have no backward. */
  release(opened: OpenForward): Promise<void>;
  /** What of the open step is NaN or infinite, for a person; null where all is finite. */
  notFinite(): Promise<string | null>;
  /** Take the optimizer step. The caller has looked whether the gradients are finite. */
  apply(): Promise<void>;
  /** Let a step pass without effect. */
  skip(): Promise<void>;
  /**
   * Take a step that trains nothing: go on from `state`, as `snapshot` gives it, where there is one. `scheduled`: the
   * steps that the schedule goes on from, where these are not the segment's own.
   */
  rebase(state: State | null, scheduled: number | null): Promise<void>;
  /** Forget an open step: gradients go, buffers are what they were before it. */
  abort(): Promise<void>;
  /** Run the evaluation graph on the state after the last step; an open step is neither seen nor touched. */
  evaluate(values: readonly Value[]): Promise<readonly Value[]>;
  /** The names in `snapshot` of the weights that training does not change. */
  fixedNames(): Promise<readonly string[]>;
  /** A copy of all state after the last step: `model/…`, `optimizer/…/…`, `trainer/step`. */
  snapshot(): Promise<State>;
  /** Take over a state that `snapshot` gave; rejects with DataError where it is not this segment's, or of another step. */
  loadState(state: State, step: number): Promise<void>;
  /** `snapshot` as safetensors: the same state gives the same bytes. */
  exportState(): Promise<Uint8Array>;
  /** The reverse, with the checks of `loadState`. */
  importState(bytes: Uint8Array, step: number): Promise<void>;
  dispose(): Promise<void>;
}

export type State = Readonly<Record<string, Tensor>>;

/** Scores and labels of the elements that have a label. */
export interface Judged {
  /** [elements, classes], or [elements] where there are questions in place of classes. */
  readonly scores: Float32Array;
  /** The class of each, or 1 for yes and 0 for no. */
  readonly labels: readonly number[];
  /** null: scores are answers, and one above `threshold` says yes. */
  readonly classes: number | null;
  readonly threshold: number;
}

/** A loss, and the counts beside it: `spliteasy/training/measures.py`. */
export interface Loss {
  readonly id: number;
  /** What its predictions are; null where it shows none. */
  readonly shows: "classes" | "answers" | null;
  /** It is one mean over labelled elements. */
  readonly isMean: boolean;
  /** The mean loss of the batch. */
  value(outputs: readonly Tensor[], targets: readonly Tensor[]): Promise<number>;
  /** What the loss's mean over these targets is over: labelled elements, or samples. */
  elements(targets: readonly Tensor[]): Promise<number>;
  /** The share of each micro-batch, given by its targets, in the loss of the batch. Rejects with DataError where no one share is right. */
  shares(parts: readonly (readonly Tensor[])[]): Promise<number[]>;
  /** The elements that have a label; null where the loss shows none. */
  judged(outputs: readonly Tensor[], targets: readonly Tensor[]): Promise<Judged | null>;
  /** [right, counted] of the predictions; null where the accuracy can't be measured. */
  right(outputs: readonly Tensor[], targets: readonly Tensor[]): Promise<readonly [number, number] | null>;
  dispose(): Promise<void>;
}

export interface MemoryFigures {
  /** Bytes of the kernels' memory. It never shrinks. */
  readonly reserved: number;
  /** Bytes of it that hold something now: weights, optimizer state, open forwards. */
  readonly used: number;
  /** The most that was ever used. */
  readonly peak: number;
  /** The most that `reserved` may become. */
  readonly limit: number;
}

export interface Engine {
  /**
   * Load a segment at step 0. Rejects with NotSupported where an operator, a dtype or a way of calling it is none that
   * this build can run (all are named), and with PortableError where graph or tensors are malformed or don't fit.
   */
  load(source: SegmentSource, options: TrainerOptions): Promise<SegmentTrainer>;
  loadLoss(source: LossSource): Promise<Loss>;
  memory(): Promise<MemoryFigures>;
  dispose(): Promise<void>;
}

export interface EngineOptions {
  /** The bytes of `kernels.wasm`, or the module compiled from them. */
  readonly kernels: BufferSource | WebAssembly.Module;
  /** The most bytes that the kernels' memory may have; at most 4 GiB, 1 GiB if not given. */
  readonly maxBytes?: number;
}

/** A dimension is a number, or `batch * B + plus` at a batch of B samples. */
export type Dim = number | { readonly batch: number; readonly plus?: number };

/** What a value that enters or leaves a graph is; an integer has no dtype, and its value is the one entry of `shape`. */
export interface ValueSpec {
  readonly name: string;
  readonly dtype: DtypeName | null;
  readonly shape?: readonly Dim[];
  readonly needs_grad?: boolean;
}
