// Build everything that ships: `node build.mjs [--out FOLDER]`. The same sources give the same bytes.
import { copyFileSync, existsSync, mkdirSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

import asc from "assemblyscript/asc";
import { build } from "esbuild";

const HERE = dirname(fileURLToPath(import.meta.url));

/** The scripts that ship, by the name of the file that each becomes. A source that is missing is not built. */
const SCRIPTS = {
  engine: "src/engine/index.ts",
  page: "src/page/index.ts",
  training: "src/training/worker.ts",
  service: "src/page/service.ts",
};

/** A folder whose files ship as they are. */
const STATIC = "src/page/static";

export async function buildKernels(out) {
  const { error, stderr } = await asc.main([
    "src/kernels/index.ts", "--baseDir", HERE, "--outFile", join(out, "kernels.wasm"),
    "-O3", "--noAssert", "--runtime", "stub", "--enable", "simd", "--use", "abort=",
  ]);
  if (error) throw new Error(`the kernels can't be compiled: ${stderr.toString()}`, { cause: error });
}

export async function buildScripts(out, scripts) {
  const entries = Object.entries(scripts).filter(([, source]) => existsSync(join(HERE, source)));
  await build({
    absWorkingDir: HERE,
    entryPoints: Object.fromEntries(entries),
    outdir: out,
    bundle: true,
    format: "esm",
    target: "es2022",
    minify: true,
    charset: "utf8",
    legalComments: "none",
    logLevel: "warning",
  });
}

/** `operators.json`: what the agent can train, by kind of device. `submit` and `plan` read it. */
async function writeOperators(out) {
  const { outputFiles } = await build({
    absWorkingDir: HERE, entryPoints: ["src/training/listed.ts"], bundle: true, format: "esm", write: false,
  });
  const { listed } = await import(`data:text/javascript;base64,${Buffer.from(outputFiles[0].contents).toString("base64")}`);
  writeFileSync(join(out, "operators.json"), `${JSON.stringify({ browser: listed() }, null, 1)}\n`);
}

async function main() {
  const { values } = parseArgs({ options: { out: { type: "string", default: join(HERE, "dist") } } });
  const out = values.out;
  rmSync(out, { recursive: true, force: true });
  mkdirSync(out, { recursive: true });
  await buildKernels(out);
  await buildScripts(out, SCRIPTS);
  await writeOperators(out);
  const pages = join(HERE, STATIC);
  for (const name of existsSync(pages) ? readdirSync(pages).sort() : []) copyFileSync(join(pages, name), join(out, name));
  for (const name of readdirSync(out).sort()) console.log(join(out, name));
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await main();
