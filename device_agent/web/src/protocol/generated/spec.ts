/** Made by `npm run types` out of the JSON Schemas; not to be changed by hand. */

export interface AdagradSpec {
  readonly ema?: number | null;
  readonly eps?: number;
  readonly groups?: readonly GroupSpec[];
  readonly initial_accumulator_value?: number;
  readonly lr: number;
  readonly lr_decay?: number;
  readonly name: "adagrad";
  readonly weight_decay?: number;
}

export interface AdamSpec {
  readonly betas?: readonly [number, number];
  readonly ema?: number | null;
  readonly eps?: number;
  readonly groups?: readonly GroupSpec[];
  readonly lr: number;
  readonly name: "adam";
  readonly weight_decay?: number;
}

export interface AdamWSpec {
  readonly betas?: readonly [number, number];
  readonly ema?: number | null;
  readonly eps?: number;
  readonly groups?: readonly GroupSpec[];
  readonly lr: number;
  readonly name: "adamw";
  readonly weight_decay?: number;
}

export interface ClipSpec {
  readonly max_norm: number;
  readonly scope?: string;
}

export interface ConstantSpec {
  readonly name?: "constant";
  readonly warmup_steps?: number;
}

export interface CosineSpec {
  readonly min_factor?: number;
  readonly name: "cosine";
  readonly steps: number;
  readonly warmup_steps?: number;
}

export interface DataSpec {
  readonly classes: readonly string[];
  readonly kind: "images";
  readonly mean?: readonly number[];
  readonly resize?: "none" | "stretch" | "crop" | "pad";
  readonly std?: readonly number[];
}

export interface DpSpec {
  readonly delta?: number;
  readonly epsilon?: number | null;
  readonly expected_batch: number;
  readonly max_grad_norm?: number;
  readonly noise_multiplier?: number | null;
}

export interface DurabilitySpec {
  readonly checkpoint_every?: number;
  readonly checkpoint_history?: number;
  readonly exactness?: string;
  readonly log_max_bytes?: number;
  readonly on_non_finite?: string;
  readonly on_replay_mismatch?: string;
  readonly retention_s?: number;
  readonly snapshot_every_s?: number;
  readonly snapshot_every_steps?: number;
}

export interface EvaluationSpec {
  readonly batch_size?: number;
  readonly best_by?: string | null;
  readonly best_is?: "lowest" | "highest" | null;
  readonly every_epochs?: number;
  readonly keep_best?: boolean;
  readonly metrics?: readonly string[];
  readonly min_delta?: number;
  readonly patience?: number | null;
}

export interface FleetSpec {
  readonly aggregate?: string | null;
  readonly deadline?: string;
  readonly devices_per_round?: number | null;
  readonly ends?: string;
  readonly max_norm?: number;
  readonly max_samples?: number | null;
  readonly mode?: string;
  readonly norm?: string;
  readonly optimizer?: string;
  readonly order?: string;
  readonly quorum?: number;
  readonly round_epochs?: number | null;
  readonly round_steps?: number | null;
  readonly weights?: string;
  readonly window?: number | null;
}

export interface GroupSpec {
  readonly frozen?: boolean;
  readonly lr?: number | null;
  readonly pattern: string;
  readonly weight_decay?: number | null;
}

export interface LimitsSpec {
  readonly canary_recovery?: number | null;
  readonly hijack_false_alarms?: number | null;
  readonly hijack_unnoticed?: number | null;
  readonly input_mse?: number | null;
  readonly label_recovery?: number | null;
  readonly linkage?: number | null;
  readonly membership_advantage?: number | null;
  readonly property_inference?: number | null;
  readonly token_recovery?: number | null;
}

export interface LinkSpec {
  readonly activations?: string;
  readonly allow?: readonly string[];
  readonly cache?: boolean;
  readonly chunk_bytes?: number;
  readonly gradients?: string;
}

export interface LionSpec {
  readonly betas?: readonly [number, number];
  readonly ema?: number | null;
  readonly groups?: readonly GroupSpec[];
  readonly lr: number;
  readonly name: "lion";
  readonly weight_decay?: number;
}

export interface LossSpec {
  readonly function?: string | null;
  readonly name?: "cross_entropy" | "nll" | "bce_with_logits" | "mse" | "l1" | "smooth_l1" | null;
}

export interface ModelSpec {
  readonly cuts: readonly string[];
  readonly example: string;
  readonly factory: string;
  readonly inputs?: readonly string[];
  readonly max_length?: number | null;
  readonly pad?: { readonly [name: string]: boolean | number };
  readonly targets?: readonly string[];
}

export interface PlanSpec {
  readonly device_memory?: string | null;
  readonly device_speed?: number;
  readonly downlink?: string;
  readonly max_input_correlation?: number | null;
  readonly min_head_layers?: number;
  readonly rtt?: string;
  readonly sample?: string | null;
  readonly server_speed?: number;
  readonly uplink?: string;
}

export interface PrivacySpec {
  readonly clip_activations?: number | null;
  readonly dp?: DpSpec | null;
  readonly ends?: string;
  readonly gradient_noise?: "max_norm" | number | null;
  readonly label_dp?: number | null;
  readonly limits?: LimitsSpec;
  readonly marvell?: number | null;
  readonly noise_activations?: number;
  readonly nopeek?: number | null;
  readonly peer_labels?: boolean;
  readonly perturb?: number;
  readonly preset?: "strict" | null;
  readonly shuffle_tokens?: boolean;
}

export interface RmsPropSpec {
  readonly alpha?: number;
  readonly centered?: boolean;
  readonly ema?: number | null;
  readonly eps?: number;
  readonly groups?: readonly GroupSpec[];
  readonly lr: number;
  readonly momentum?: number;
  readonly name: "rmsprop";
  readonly weight_decay?: number;
}

export interface SgdSpec {
  readonly dampening?: number;
  readonly ema?: number | null;
  readonly groups?: readonly GroupSpec[];
  readonly lr: number;
  readonly momentum?: number;
  readonly name: "sgd";
  readonly nesterov?: boolean;
  readonly weight_decay?: number;
}

export interface StepSpec {
  readonly gamma?: number;
  readonly name: "step";
  readonly step_size: number;
  readonly warmup_steps?: number;
}

export interface SpecRoot {
  readonly accumulate?: number;
  readonly batch_size: number;
  readonly clip?: ClipSpec | null;
  readonly data?: DataSpec | null;
  readonly drop_last?: boolean;
  readonly durability?: DurabilitySpec;
  readonly epochs: number;
  readonly evaluation?: EvaluationSpec;
  readonly fleet?: FleetSpec;
  readonly link?: LinkSpec;
  readonly loss: LossSpec;
  readonly micro_batches?: number;
  readonly model: ModelSpec;
  readonly name: string;
  readonly optimizer: SgdSpec | AdamSpec | AdamWSpec | RmsPropSpec | AdagradSpec | LionSpec;
  readonly plan?: PlanSpec;
  readonly precision?: string;
  readonly privacy?: PrivacySpec;
  readonly schedule?: ConstantSpec | StepSpec | CosineSpec;
  readonly seed?: number;
  readonly share_body?: boolean;
  readonly share_ends?: boolean;
  readonly share_inputs?: readonly string[];
  readonly share_labels?: boolean;
  readonly share_loss?: boolean;
}
