/**
 * A JavaScript function that gpu.js translates: one call computes one element,
 * the one at `this.thread`. Arrays are flat.
 *
 * It is text, not a function: gpu.js reads a function's source, which bundlers
 * minify and coverage tools instrument, and text lets programs share pieces
 * where gpu.js passes no arrays to helper functions.
 *
 * What gpu.js's translation asks of a program: locals are f32, exact for whole
 * numbers to 2^24; `Math.floor` inside brackets gives an integer, so that an
 * index larger than that stays exact; two loops in one scope do not share the
 * name of their counter; there are at most seven arrays, as WebGPU promises
 * eight buffers and the result is one.
 */
export interface Program<
  Arrays extends string = string,
  Numbers extends string = string,
> {
  readonly name: string;
  readonly arrays: readonly Arrays[];
  /** Whole numbers, i32. */
  readonly integers: readonly Numbers[];
  /** f32 */
  readonly reals: readonly Numbers[];
  readonly body: string;
}

/**
 * The arguments of a program, `T` standing for an array; more do no harm. Of a
 * program that is put together from pieces, the names are not known.
 */
export type Arguments<P, T> =
  P extends Program<infer Arrays, infer Numbers>
    ? string extends Arrays
      ? Readonly<Record<string, T | number | undefined>>
      : Readonly<Record<Arrays, T> & Record<Numbers, number>>
    : never;

export function program<
  const Arrays extends string,
  const Integers extends string = never,
  const Reals extends string = never,
>(
  name: string,
  parameters: {
    readonly arrays: readonly Arrays[];
    readonly integers?: readonly Integers[];
    readonly reals?: readonly Reals[];
  },
  body: string,
): Program<Arrays, Integers | Reals> {
  const { arrays, integers = [], reals = [] } = parameters;
  return { name, arrays, integers, reals, body };
}

/** The function's text. */
export function sourceOf({
  name,
  arrays,
  integers,
  reals,
  body,
}: Program): string {
  const names = [...arrays, ...integers, ...reals];
  return `function ${name}(${names.join(', ')}) {\n${body}\n}`;
}

/**
 * The whole quotient of two whole numbers, `a` below 2^20. Half a step more
 * keeps it right where a device's division is not exact.
 */
export function quotient(a: string, b: string): string {
  return `Math.floor((${a} + 0.5) / ${b})`;
}
