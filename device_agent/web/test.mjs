// Run the tests: `node test.mjs [PART OF A FILE'S NAME …]`. They are bundled first, since Node 20 reads no TypeScript.
import { spawnSync } from "node:child_process";
import { mkdirSync, readdirSync, rmSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";

import { buildKernels } from "./build.mjs";

const HERE = dirname(fileURLToPath(import.meta.url));
const OUT = join(HERE, "build", "tests", String(process.pid));

const wanted = process.argv.slice(2);
const tests = readdirSync(join(HERE, "tests"), { recursive: true })
  .filter((name) => name.endsWith(".test.ts") && (!wanted.length || wanted.some((part) => name.includes(part))))
  .sort();
mkdirSync(OUT, { recursive: true });
try {
  await buildKernels(OUT);
  await build({
    absWorkingDir: HERE,
    entryPoints: tests.map((name) => join("tests", name)),
    outbase: "tests",
    outdir: OUT,
    outExtension: { ".js": ".mjs" },
    bundle: true,
    format: "esm",
    platform: "node",
    target: "node20",
    sourcemap: "inline",
    logLevel: "warning",
  });
  const files = tests.map((name) => join(OUT, name.replace(/\.ts$/, ".mjs")));
  const vectors = join(HERE, "..", "..", "tests");
  const env = { ...process.env, SPLITEASY_TESTS: vectors, SPLITEASY_KERNELS: join(OUT, "kernels.wasm") };
  const { status } = spawnSync(process.execPath, ["--enable-source-maps", "--test", ...files], {
    stdio: "inherit", env, cwd: HERE,
  });
  if (status) console.error(`tests failed: ${relative(process.cwd(), HERE)}`);
  process.exitCode = status ?? 1;
} finally {
  rmSync(OUT, { recursive: true, force: true });
}
