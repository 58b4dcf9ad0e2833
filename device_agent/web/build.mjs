// Build everything that ships: `node build.mjs [--out FOLDER]`. The same sources give the same bytes.
import { createHash } from "node:crypto";
import { copyFileSync, existsSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
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
};
/** The service worker is built last, since it has the digests of all other files. */
const SERVICE = { service: "src/page/service.ts" };

const INDEX = "index.html";
/** Files beside the page: the page needs none of them. */
const LEFT_OUT = ["engine.js", "operators.json"];

/** A folder whose files ship as they are. */
const STATIC = "src/page/static";

export async function buildKernels(out) {
  const { error, stderr } = await asc.main([
    "src/kernels/index.ts", "--baseDir", HERE, "--outFile", join(out, "kernels.wasm"),
    "-O3", "--noAssert", "--runtime", "stub", "--enable", "simd", "--use", "abort=",
  ]);
  if (error) throw new Error(`the kernels can't be compiled: ${stderr.toString()}`, { cause: error });
}

/** The digest of a file, as the attribute `integrity` has it. */
function integrityOf(out, name) {
  return `sha384-${createHash("sha384").update(readFileSync(join(out, name))).digest("base64")}`;
}

/** `define` has the values of names that the scripts do not set themselves. */
export async function buildScripts(out, scripts, define = {}) {
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
    define: Object.fromEntries(Object.entries(define).map(([name, value]) => [name, JSON.stringify(value)])),
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
  await buildScripts(out, SCRIPTS, { KERNELS_INTEGRITY: integrityOf(out, "kernels.wasm") });
  await writeOperators(out);
  const pages = join(HERE, STATIC);
  for (const name of readdirSync(pages).sort()) copyFileSync(join(pages, name), join(out, name));
  const index = readFileSync(join(out, INDEX), "utf8").replace(/\{([\w.]+)\}/g, (_, name) => integrityOf(out, name));
  writeFileSync(join(out, INDEX), index);
  const files = Object.fromEntries(readdirSync(out).filter((name) => !LEFT_OUT.includes(name)).sort().map((name) => [name, integrityOf(out, name)]));
  const digest = createHash("sha256").update(JSON.stringify(files)).digest("hex").slice(0, 16);
  await buildScripts(out, SERVICE, { FILES: files, BUILD: digest });
  for (const name of readdirSync(out).sort()) console.log(join(out, name));
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await main();
