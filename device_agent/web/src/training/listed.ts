/** The list that the build writes: what graphs may call, which kinds of numbers there are, and settings that are refused. */

import { KINDS } from "../engine/nd_array.ts";
import { operatorNames } from "../engine/operators/index.ts";
import { REFUSED_SETTINGS, type Refusal } from "./refusals.ts";

interface Listed {
  readonly dtypes: readonly string[];
  readonly operators: readonly string[];
  /** An operator that writes in place has the name of the one that does not, with an underscore behind it. */
  readonly in_place: readonly string[];
  readonly refused: readonly Refusal[];
}

export function listed(): Listed {
  const operators = operatorNames();
  const inPlace = operators.filter((name) => name.startsWith("aten.")).map((name) => {
    const [namespace, base, overload] = name.split(".");
    return `${namespace}.${base}_.${overload}`;
  });
  return { dtypes: KINDS, operators, in_place: inPlace, refused: REFUSED_SETTINGS };
}
