/** JSON Schemas, as far as those of this protocol go: what comes from a server is checked against them. */

export interface Schema {
  readonly $ref?: string;
  readonly anyOf?: readonly Schema[];
  readonly oneOf?: readonly Schema[];
  readonly not?: Schema;
  readonly type?: string;
  readonly const?: unknown;
  readonly enum?: readonly unknown[];
  readonly pattern?: string;
  readonly minLength?: number;
  readonly maxLength?: number;
  readonly minimum?: number;
  readonly maximum?: number;
  readonly exclusiveMinimum?: number;
  readonly exclusiveMaximum?: number;
  readonly items?: Schema;
  readonly prefixItems?: readonly Schema[];
  readonly minItems?: number;
  readonly maxItems?: number;
  readonly properties?: Readonly<Record<string, Schema>>;
  readonly required?: readonly string[];
  readonly patternProperties?: Readonly<Record<string, Schema>>;
  readonly additionalProperties?: boolean | Schema;
  readonly propertyNames?: Schema;
  readonly maxProperties?: number;
  readonly $defs?: Readonly<Record<string, Schema>>;
}

const MAX_DEPTH = 64;
const patterns = new Map<string, RegExp>();

/** Why `value` does not fit, or null where it does. `newer`: unknown fields are of a newer version, and pass. */
export function misfit(value: unknown, schema: Schema, root: Schema = schema, newer = false): string | null {
  return new Checker(root, newer).check(value, schema, "", 0);
}

class Checker {
  constructor(
    private readonly root: Schema,
    private readonly newer: boolean,
  ) {}

  check(value: unknown, schema: Schema, where: string, depth: number): string | null {
    if (depth > MAX_DEPTH) return `${where}: too deep`;
    if (schema.$ref !== undefined) {
      const name = schema.$ref.slice("#/$defs/".length);
      return this.check(value, this.root.$defs![name], where, depth + 1);
    }
    const choices = schema.anyOf ?? schema.oneOf;
    if (choices) return this.oneOf(value, choices, where, depth);
    if ("const" in schema && value !== schema.const) return `${where}: another value than ${String(schema.const)}`;
    if (schema.enum && !schema.enum.includes(value)) return `${where}: none of the known values`;
    if (schema.not && this.check(value, schema.not, where, depth + 1) === null) return `${where}: not allowed`;
    return this.typed(value, schema, where, depth);
  }

  private oneOf(value: unknown, choices: readonly Schema[], where: string, depth: number): string | null {
    let told: string | null = null;
    for (const choice of choices) {
      const why = this.check(value, choice, where, depth + 1);
      if (why === null) return null;
      told ??= why;
    }
    return choices.length > 2 ? `${where}: none of the forms that it may have` : told;
  }

  private typed(value: unknown, schema: Schema, where: string, depth: number): string | null {
    switch (schema.type) {
      case undefined:
        return null;
      case "null":
        return value === null ? null : `${where}: not null`;
      case "boolean":
        return typeof value === "boolean" ? null : `${where}: not true or false`;
      case "string":
        return typeof value === "string" ? text(value, schema, where) : `${where}: not text`;
      case "integer":
        return Number.isSafeInteger(value) ? number(value as number, schema, where) : `${where}: not an integer`;
      case "number":
        return Number.isFinite(value) ? number(value as number, schema, where) : `${where}: not a number`;
      case "array":
        return Array.isArray(value) ? this.array(value, schema, where, depth) : `${where}: not a list`;
      case "object":
        return isRecord(value) ? this.record(value, schema, where, depth) : `${where}: not an object`;
      default:
        return `${where}: a schema that is not understood`;
    }
  }

  private array(value: readonly unknown[], schema: Schema, where: string, depth: number): string | null {
    if (value.length > (schema.maxItems ?? Infinity) || value.length < (schema.minItems ?? 0)) {
      return `${where}: ${value.length} items`;
    }
    for (const [at, item] of value.entries()) {
      const its = schema.prefixItems?.[at] ?? schema.items;
      const why = its ? this.check(item, its, `${where}.${at}`, depth + 1) : null;
      if (why !== null) return why;
    }
    return null;
  }

  private record(value: Record<string, unknown>, schema: Schema, where: string, depth: number): string | null {
    const names = Object.keys(value);
    if (names.length > (schema.maxProperties ?? Infinity)) return `${where}: too many fields`;
    const missing = schema.required?.find((name) => !Object.hasOwn(value, name));
    if (missing !== undefined) return `${where}.${missing}: missing`;
    for (const name of names) {
      const unnamed = schema.propertyNames && this.check(name, { type: "string", ...schema.propertyNames }, where, depth + 1);
      if (unnamed) return unnamed;
      const its = fieldOf(schema, name);
      if (its === false && !this.newer) return `${where}: an unknown field`;
      const why = typeof its === "object" ? this.check(value[name], its, `${where}.${name}`, depth + 1) : null;
      if (why !== null) return why;
    }
    return null;
  }
}

/** What a field of that name may hold; false: it may not be there. */
function fieldOf(schema: Schema, name: string): Schema | boolean | undefined {
  if (schema.properties && Object.hasOwn(schema.properties, name)) return schema.properties[name];
  if (!schema.patternProperties) return schema.additionalProperties;
  const found = Object.entries(schema.patternProperties).find(([pattern]) => matching(pattern).test(name));
  return found?.[1] ?? false;
}

function matching(pattern: string): RegExp {
  let made = patterns.get(pattern);
  if (!made) patterns.set(pattern, (made = new RegExp(pattern, "u")));
  return made;
}

export function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function text(value: string, schema: Schema, where: string): string | null {
  if (schema.maxLength !== undefined && value.length > 2 * schema.maxLength) return `${where}: too long`;
  const length = [...value].length; // of characters, as everywhere else, and not of halves of them
  if (length > (schema.maxLength ?? Infinity) || length < (schema.minLength ?? 0)) return `${where}: ${length} characters`;
  if (schema.pattern === undefined) return null;
  return matching(schema.pattern).test(value) ? null : `${where}: not of the form that it has`;
}

function number(value: number, schema: Schema, where: string): string | null {
  const fits =
    value >= (schema.minimum ?? -Infinity) && value <= (schema.maximum ?? Infinity) &&
    value > (schema.exclusiveMinimum ?? -Infinity) && value < (schema.exclusiveMaximum ?? Infinity);
  return fits ? null : `${where}: out of range`;
}
