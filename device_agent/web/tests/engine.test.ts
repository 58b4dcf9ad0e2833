/** What holds for any training: nothing grows, the same bits each time, refusals before anything is trained. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { DataError, NotSupported, OutOfMemory, PortableError } from "../src/errors.ts";
import { tensorsToBytes, type Engine, type SegmentTrainer, type State, type Tensor, type TrainerOptions } from "../src/engine/index.ts";
import { engine } from "./engine.ts";

const KEY = Uint8Array.from({ length: 32 }, (_, place) => place);
const OPTIONS: TrainerOptions = { role: "head", key: KEY, optimizer: { name: "adam", lr: 0.01 }, clip: { max_norm: 1 } };

/** A reproducible row of numbers. */
function numbers(count: number, seed: number): Float32Array {
  let state = seed;
  return Float32Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 31 - 1;
  });
}

const tensor = (shape: readonly number[], seed: number): Tensor => ({ dtype: "float32", shape, data: numbers(shape.reduce((a, b) => a * b, 1), seed) });
const ref = (slot: number): object => ({ ref: slot });
const B = { batch: 1 };

const TENSORS: readonly (readonly [string, string, readonly number[]])[] = [
  ["conv.weight", "parameter", [4, 1, 3, 3]], ["norm.weight", "parameter", [4]], ["norm.bias", "parameter", [4]],
  ["norm.mean", "buffer", [4]], ["norm.var", "buffer", [4]], ["fc.weight", "parameter", [3, 36]],
];

/** Convolution, norm, relu, pooling, dropout and a linear layer; `change` replaces nodes by their number. */
function graph(change: Readonly<Record<number, object>> = {}): Uint8Array {
  const nodes = (training: boolean): object[] =>
    [
      { op: "aten.conv2d.default", args: [ref(6), ref(0), null, [1, 1], [1, 1]] },
      { op: "aten.batch_norm.default", args: [ref(7), ref(1), ref(2), ref(3), ref(4), training, 0.1, 0.00001, false] },
      { op: "aten.relu_.default", args: [ref(8)] },
      { op: "aten.max_pool2d.default", args: [ref(9), [2, 2]] },
      { op: "aten.dropout.default", args: [ref(10), 0.5, training] },
      { op: "aten.flatten.using_ints", args: [ref(11), 1] },
      { op: "aten.linear.default", args: [ref(12), ref(5)] },
    ].map((node, place) => change[place] ?? node);
  const mode = (training: boolean): object => ({
    inputs: [{ name: "x", dtype: "float32", shape: [B, 1, 6, 6] }],
    nodes: nodes(training),
    results: [13],
    outputs: [{ name: "y", dtype: "float32", shape: [B, 3] }],
    wire: 1,
  });
  const tensors = TENSORS.map(([name, kind, shape]) => ({ names: [name], kind, dtype: "float32", shape, requires_grad: kind === "parameter" }));
  const text = JSON.stringify({ format: "spliteasy-graph", version: 1, name: "head", tensors, train: mode(true), eval: mode(false) });
  return new TextEncoder().encode(text.replace('0.1,0.00001', "1e-1,1e-05"));
}

function weights(): State {
  return Object.fromEntries(TENSORS.map(([name, , shape], place) => [name, name === "norm.var" ? { dtype: "float32" as const, shape, data: new Float32Array(4).fill(1) } : tensor(shape, place + 1)]));
}

const source = (json = graph()): { graph: Uint8Array; tensors: Uint8Array } => ({ graph: json, tensors: tensorsToBytes(weights()) });

async function step(trainer: SegmentTrainer, number: number, batch = 4): Promise<void> {
  const opened = await trainer.forward([tensor([batch, 1, 6, 6], number)]);
  await trainer.backward(opened, [tensor([batch, 3], number + 1)]);
  await trainer.apply();
}

async function trained(machine: Engine, steps: number, options = OPTIONS): Promise<Uint8Array> {
  const trainer = await machine.load(source(), options);
  for (let number = 1; number <= steps; number++) await step(trainer, number);
  const bytes = await trainer.exportState();
  await trainer.dispose();
  return bytes;
}

test("memory does not grow over 10,000 steps, with batches of two sizes and evaluations between", async () => {
  const machine = await engine();
  const trainer = await machine.load(source(), OPTIONS);
  const round = async (number: number): Promise<void> => {
    await step(trainer, number, number % 5 === 0 ? 3 : 4);
    if (number % 100 === 0) await trainer.evaluate([tensor([7, 1, 6, 6], number)]);
  };
  for (let number = 1; number <= 100; number++) await round(number);
  const early = await machine.memory();
  for (let number = 101; number <= 10_000; number++) await round(number);
  assert.deepEqual(await machine.memory(), early);
  await trainer.dispose();
  assert.equal((await machine.memory()).used, 0);
});

test("two trainings give the same bits", async () => {
  const [one, other] = [await trained(await engine(), 20), await trained(await engine(), 20)];
  assert.deepEqual(one, other);
});

const SETTINGS: readonly Partial<TrainerOptions>[] = [
  {},
  { accumulate: 3, optimizer: { name: "sgd", lr: 0.1, momentum: 0.9, ema: 0.5 } },
  { accumulate: 2, optimizer: { name: "adagrad", lr: 0.1, initial_accumulator_value: 0.2 } },
  { optimizer: { name: "rmsprop", lr: 0.01, momentum: 0.5, centered: true, ema: 0.9 } },
  { optimizer: { name: "lion", lr: 0.01 } },
];

for (const settings of SETTINGS) {
  const { name, ema = null } = settings.optimizer ?? OPTIONS.optimizer;
  const about = `${name}, accumulate ${settings.accumulate ?? 1}, ema ${ema}`;
  test(`a training that goes on from its exported state gives the same bits: ${about}`, async () => {
    const options = { ...OPTIONS, ...settings };
    const whole = await trained(await engine(), 12, options);
    const machine = await engine();
    const first = await machine.load(source(), options);
    for (let number = 1; number <= 5; number++) await step(first, number);
    await first.forward([tensor([4, 1, 6, 6], 99)]); // an open step is not in the state
    const state = await first.exportState();
    const second = await machine.load(source(), options);
    await second.importState(state, 5);
    for (let number = 6; number <= 12; number++) await step(second, number);
    assert.deepEqual(await second.exportState(), whole);
    await Promise.all([first.dispose(), second.dispose()]);
    assert.equal((await machine.memory()).used, 0);
  });
}

test("a step that is begun again, or given up, leaves no trace", async () => {
  const machine = await engine();
  const trainer = await machine.load(source(), OPTIONS);
  const before = await trainer.exportState();
  const evaluated = await trainer.evaluate([tensor([2, 1, 6, 6], 5)]);
  const opened = await trainer.forward([tensor([4, 1, 6, 6], 1)]);
  assert.deepEqual(await trainer.evaluate([tensor([2, 1, 6, 6], 5)]), evaluated);
  await trainer.backward(opened, [tensor([4, 3], 2)]);
  await trainer.abort();
  assert.deepEqual(await trainer.exportState(), before);
  await trainer.forward([tensor([4, 1, 6, 6], 3)]);
  await trainer.forward([tensor([4, 1, 6, 6], 4)]);
  await trainer.skip();
  assert.equal((await trainer.progress()).step, 1);
  const { "trainer/step": _, ...rest } = await trainer.snapshot();
  const { "trainer/step": __, ...start } = await (await machine.load(source(), OPTIONS)).snapshot();
  assert.deepEqual(rest, start);
});

test("micro-batches add up to the batch where nothing looks at the whole of it", async () => {
  const machine = await engine();
  const plain = graph({ 1: { op: "aten.clone.default", args: [ref(7)] }, 4: { op: "aten.clone.default", args: [ref(10)] } });
  const options: TrainerOptions = { ...OPTIONS, optimizer: { name: "sgd", lr: 0.1 }, clip: null };
  const [x, g] = [tensor([4, 1, 6, 6], 1), tensor([4, 3], 2)];
  const half = ({ shape, data }: Tensor, at: number): Tensor => {
    const size = data.length / 2;
    return { dtype: "float32", shape: [2, ...shape.slice(1)], data: (data as Float32Array).slice(at * size, (at + 1) * size) };
  };
  const whole = await machine.load(source(plain), options);
  await whole.backward(await whole.forward([x]), [g]);
  await whole.apply();
  const parts = await machine.load(source(plain), options);
  const open = [await parts.forward([half(x, 0)], 0), await parts.forward([half(x, 1)], 1)];
  for (const at of [0, 1]) await parts.backward(open[at], [half(g, at)]);
  await parts.apply();
  const [a, b] = [await whole.snapshot(), await parts.snapshot()];
  for (const name of ["model/conv.weight", "model/fc.weight"]) {
    (a[name].data as Float32Array).forEach((value, place) => assert(Math.abs(value - Number(b[name].data[place])) < 1e-5, name));
  }
});

test("a gradient that is not finite is told by its name", async () => {
  const trainer = await (await engine()).load(source(), OPTIONS);
  const opened = await trainer.forward([tensor([4, 1, 6, 6], 1)]);
  const gradient = tensor([4, 3], 2);
  (gradient.data as Float32Array)[5] = NaN;
  await trainer.backward(opened, [gradient]);
  assert.match((await trainer.notFinite())!, /^the gradient of /);
});

test("what this build can't run is refused by name, before anything is trained", async () => {
  const machine = await engine();
  const unknown = { 2: { op: "aten.lgamma.default", args: [ref(8)] }, 4: { op: "aten.erfinv.default", args: [ref(10)] } };
  await assert.rejects(machine.load(source(graph(unknown)), OPTIONS), (error: NotSupported) => {
    assert(error instanceof NotSupported);
    assert.deepEqual(error.operators, ["aten.erfinv.default", "aten.lgamma.default"]);
    return true;
  });
  const asked = graph({ 3: { op: "aten.max_pool2d.default", args: [ref(9), [2, 2], [2, 2], [0, 0], [1, 1], false, 9] } });
  await assert.rejects(machine.load(source(asked), OPTIONS), NotSupported);
  const parameter = graph({ 2: { op: "aten.relu_.default", args: [ref(1)] } });
  await assert.rejects(machine.load(source(parameter), OPTIONS), NotSupported);
  const optimizer = { name: "adadelta", lr: 0.1 };
  await assert.rejects(machine.load(source(), { ...OPTIONS, optimizer } as unknown as TrainerOptions), NotSupported);
  assert.equal((await machine.memory()).used, 0);
});

test("graphs, tensors and values that don't fit are refused", async () => {
  const machine = await engine();
  const forwards = graph({ 0: { op: "aten.relu.default", args: [ref(9)] } });
  await assert.rejects(machine.load(source(forwards), OPTIONS), PortableError);
  await assert.rejects(machine.load({ graph: graph(), tensors: tensorsToBytes({}) }, OPTIONS), PortableError);
  await assert.rejects(machine.load({ graph: graph().slice(0, 40), tensors: tensorsToBytes({}) }, OPTIONS), PortableError);
  const trainer = await machine.load(source(), OPTIONS);
  await assert.rejects(trainer.forward([tensor([4, 1, 6, 5], 1)]), DataError);
  const { "model/norm.bias": _, ...lacking } = await trainer.snapshot();
  await assert.rejects(trainer.loadState(lacking, 0), DataError);
  await assert.rejects(trainer.loadState(await trainer.snapshot(), 3), DataError);
});

test("memory has a limit, and what was taken comes back", async () => {
  const machine = await engine(4 << 20);
  const trainer = await machine.load(source(), OPTIONS);
  const { used } = await machine.memory();
  await assert.rejects(trainer.forward([tensor([8000, 1, 6, 6], 1)]), OutOfMemory);
  await trainer.abort();
  assert.equal((await machine.memory()).used, used);
  await step(trainer, 1);
});
