import assert from "node:assert/strict";
import { test } from "node:test";

import { DataError, SplitEasyError } from "../../src/errors.ts";
import { samplesOf, type Shape } from "../../src/page/tables.ts";
import { readEnrolment } from "../../src/training/enrolment.ts";

const ROWS: Shape = { numbers: 2, bytes: false, classes: ["cat", "dog"] };

test("CSV and JSON give the same samples", () => {
  const expected = { inputs: Float32Array.of(1.5, -2, 3, 4), labels: [1, 0] };
  for (const content of [
    "1.5,-2,dog\n3,4,cat\n",
    "a,b,kind\n1.5,-2,dog\n\n3,4,0",
    "1.5;-2;1\r\n3;4;0\r\n",
    '{"inputs": [[1.5, -2], [[3], [4]]], "labels": ["dog", 0]}',
  ]) {
    assert.deepEqual(samplesOf(content, ROWS), expected, content);
  }
});

test("what is wrong in a file is told by its line", () => {
  const wrong: [string, Shape, RegExp][] = [
    ["1,2,cat\n1,cat", ROWS, /Line 2 has 1 numbers/],
    ["1,2,cow", ROWS, /label “cow”.*cat, dog/],
    ["1,2,2", ROWS, /label “2”/],
    ["1,x,cat\n1,2,cat", { ...ROWS, classes: ["cat"] }, /^$/],
    ["1,2,cat\n1,,cat", ROWS, /no number/],
    ["1,256,cat", { ...ROWS, bytes: true }, /“256”, which is no number/],
    ["", ROWS, /no samples/],
    ["{", ROWS, /no JSON/],
    ['{"inputs": [], "labels": [1]}', ROWS, /no samples/],
  ];
  for (const [content, shape, message] of wrong) {
    if (message.source === "^$") assert.equal(samplesOf(content, shape).labels.length, 1, "the first line is a header");
    else assert.throws(() => samplesOf(content, shape), (error) => error instanceof DataError && message.test(error.message), content);
  }
});

test("a link is read, and one that was cut off is not", () => {
  const said = { v: 1, device: "phone-7", password: "pässword", job: "digits", key: "ab".repeat(32) };
  const link = (value: object): string => Buffer.from(JSON.stringify(value)).toString("base64url");
  const read = readEnrolment(`#${link(said)}`);
  assert.deepEqual(read, { device: "phone-7", password: "pässword", job: "digits", operatorKey: said.key, fleetKey: null, samples: null });
  assert.equal(readEnrolment(`#${link({ ...said, fleet: "cd".repeat(32) })}`).fleetKey, "cd".repeat(32));
  const whole = link(said);
  for (const broken of ["", "#", whole.slice(0, -5), "%%%", link({ ...said, v: 2 }), link({ ...said, device: "Phone 7" }), link({ ...said, samples: "https://evil" }), link({ ...said, key: "ab" }), link({ ...said, fleet: "cd" })]) {
    assert.throws(() => readEnrolment(broken), SplitEasyError, broken);
  }
});
