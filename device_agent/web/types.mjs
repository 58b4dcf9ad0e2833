// Write the types of what travels as JSON, from its schemas: `node types.mjs [--check]`.
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const HERE = dirname(fileURLToPath(import.meta.url));
const SCHEMAS = join(HERE, "..", "..", "tests", "vectors", "schemas");
const OUT = join(HERE, "src", "protocol", "generated");
const NAMES = ["message", "manifest", "spec", "ends"];
const ALWAYS_SENT = new Set(["kind", "request"]);
const SAID = "/** Made by `npm run types` out of the JSON Schemas; not to be changed by hand. */\n";

function typeOf(schema, depth = 0) {
  if (schema.$ref) return schema.$ref.slice("#/$defs/".length);
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices) return [...new Set(choices.map((choice) => typeOf(choice, depth)))].join(" | ");
  if ("const" in schema) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  if (schema.type === "integer" || schema.type === "number") return "number";
  if (schema.type === "string" || schema.type === "boolean" || schema.type === "null") return schema.type;
  if (schema.type === "array") return arrayOf(schema, depth);
  if (schema.type === "object" && schema.properties) return recordOf(schema, depth);
  if (schema.type === "object") {
    const its = Object.values(schema.patternProperties ?? {})[0] ?? schema.additionalProperties;
    const values = typeof its === "object" ? typeOf(its, depth) : "unknown";
    return `{ readonly [name: string]: ${values} }`;
  }
  return "unknown";
}

function arrayOf(schema, depth) {
  if (schema.prefixItems) return `readonly [${schema.prefixItems.map((item) => typeOf(item, depth)).join(", ")}]`;
  const item = schema.items ? typeOf(schema.items, depth) : "unknown";
  return `readonly ${/[ |]/.test(item) && !item.startsWith("{") ? `(${item})` : item}[]`;
}

function recordOf(schema, depth) {
  const indent = "  ".repeat(depth + 1);
  const required = new Set(schema.required ?? []);
  const fields = Object.entries(schema.properties).map(([name, its]) => {
    const optional = required.has(name) || ALWAYS_SENT.has(name) ? "" : "?";
    return `${indent}readonly ${name}${optional}: ${typeOf(its, depth + 1)};\n`;
  });
  return `{\n${fields.join("")}${"  ".repeat(depth)}}`;
}

/** The schema without what is only for people. */
function bare(schema, isNames = false) {
  if (Array.isArray(schema)) return schema.map((item) => bare(item));
  if (typeof schema !== "object" || schema === null) return schema;
  const dropped = new Set(isNames ? [] : ["$schema", "title", "description", "default", "discriminator"]);
  const kept = Object.entries(schema).filter(([key]) => !dropped.has(key));
  return Object.fromEntries(kept.map(([key, its]) => [key, bare(its, key === "properties" || key === "$defs")]));
}

const files = {};
const texts = [];
for (const name of NAMES) {
  const schema = JSON.parse(readFileSync(join(SCHEMAS, `${name}.json`), "utf8"));
  const parts = Object.entries(schema.$defs ?? {}).map(([part, its]) =>
    its.properties ? `export interface ${part} ${recordOf(its, 0)}\n` : `export type ${part} = ${typeOf(its)};\n`,
  );
  const whole = schema.properties ? `export interface ${capital(name)}Root ${recordOf(schema, 0)}\n` : "";
  files[`${name}.ts`] = `${SAID}\n${[...parts, whole].filter(Boolean).join("\n")}`;
  texts.push(`  ${name}: ${JSON.stringify(bare(schema))},\n`);
}
files["schemas.ts"] = `${SAID}\nexport const SCHEMAS: { readonly [name: string]: unknown } = {\n${texts.join("")}};\n`;

function capital(name) {
  return name[0].toUpperCase() + name.slice(1);
}

mkdirSync(OUT, { recursive: true });
let stale = false;
for (const [name, text] of Object.entries(files)) {
  const file = join(OUT, name);
  if (!process.argv.includes("--check")) writeFileSync(file, text);
  else if (readFileSync(file, "utf8") !== text) stale = Boolean(console.error(`${file} is not what the schemas say: npm run types`)) || true;
}
if (stale) process.exitCode = 1;
