/** The list that the build writes: what graphs may call, and which kinds of numbers. */

import { KINDS } from "../nd_array.ts";
import { operatorNames } from "./index.ts";

/** An operator that writes in place has the name of the one that does not, with an underscore behind it. */
export function listed(): { dtypes: readonly string[]; operators: readonly string[]; in_place: readonly string[] } {
  const operators = operatorNames();
  const inPlace = operators.filter((name) => name.startsWith("aten.")).map((name) => {
    const [namespace, base, overload] = name.split(".");
    return `${namespace}.${base}_.${overload}`;
  });
  return { dtypes: KINDS, operators, in_place: inPlace };
}
