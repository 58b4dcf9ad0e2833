/** Tensors as the vectors have them. */

import { fromHex, toHex } from "../src/protocol/hex.ts";
import { Tensor, type Dtype } from "../src/protocol/tensor.ts";

export interface TensorBits {
  readonly dtype: Dtype;
  readonly shape: readonly number[];
  readonly bytes: string;
}

export function tensorOf(bits: TensorBits): Tensor {
  return new Tensor(bits.dtype, bits.shape, fromHex(bits.bytes));
}

export function bitsOf(tensor: Tensor): TensorBits {
  const { dtype, shape, bytes } = tensor.contiguous();
  return { dtype, shape: [...shape], bytes: toHex(bytes) };
}
