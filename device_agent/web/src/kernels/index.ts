// The kernels: loops over float32 numbers in one linear memory. Compiled by AssemblyScript, not by TypeScript.

export { addInto } from "./elementwise";
