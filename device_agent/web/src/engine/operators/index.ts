/** All operators: importing this file fills the table. */

import "./arithmetic.ts";
import "./attention.ts";
import "./convolution.ts";
import "./factories.ts";
import "./functions.ts";
import "./indexing.ts";
import "./linear.ts";
import "./logic.ts";
import "./losses.ts";
import "./norm.ts";
import "./pooling.ts";
import "./reductions.ts";
import "./scatter.ts";
import "./views.ts";

export { functionalName, operatorNames, operatorOf, type Operator, type Result } from "./rules.ts";
