// The kernels: loops over float32 numbers in one linear memory. Compiled by AssemblyScript, not by TypeScript.

export { addInto, affine, binary, fill, notFinite, reluBack, unary, unaryBack } from "./elementwise";
export { multiply, multiplyScratch } from "./matrix";
export { convolve, convolveOne, convolveWeights, packGradients, packWeights, repack, scatterRows, spread } from "./convolution";
export {
  channelAffine, channelBack, channelStatistics, rowNormalize, rowNormalizeBack, rowSums, softmax, softmaxBack, squares,
} from "./norm";
export { averagePool, averagePoolBack, maxPool, maxPoolBack } from "./pool";
export { strided } from "./strided";
export { adagrad, adam, lerp, lion, rmsprop, sgd } from "./optimizer";

/** The first byte that the kernels do not use themselves. */
export function heapBase(): usize {
  return (__heap_base + 65535) & ~15;
}
