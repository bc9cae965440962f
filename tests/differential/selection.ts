/** Lists of chosen blocks, of one key each, for comparisons of backends. */
import { type Backend, operators, Random, Scope, Sequences } from '@asa/core';

export interface Choice {
  readonly queries: number;
  readonly heads: number;
  readonly groups: number;
  readonly width: number;
  readonly keys: number;
  /** Blocks of a list. */
  readonly count: number;
  /** Every so many keys are the same. */
  readonly period: number;
  readonly scale: number;
  /** Bits of every LSE, in place of the true ones. */
  readonly lseBits?: number;
}

/** Lists `[queries, groups, count]` of random queries and keys. */
export async function choose(
  backend: Backend,
  choice: Choice,
): Promise<readonly number[]> {
  const { queries, heads, groups, width, keys, count, period, scale } = choice;
  const random = Random.fromSeed(keys);
  const normal = (count: number) =>
    Float32Array.from({ length: count }, () => random.normal());
  const q = normal(queries * heads * width);
  const some = normal(period * groups * width);
  const k = Float32Array.from(
    { length: keys * groups * width },
    (_, i) => some[i % some.length] ?? 0,
  );
  const blocking = { length: 1, stride: 1, sharing: 1 };
  const sequences = Sequences.uniform(1, queries, keys, blocking);
  const scope = new Scope(backend);
  const operands = {
    q: scope.tensor(q, [queries, heads, width], 'f32'),
    k: scope.tensor(k, [keys, groups, width], 'f32'),
  };
  const attributes = { sequences, length: 1, stride: 1, scale };
  const { lse } = scope.run(
    operators.compressedAttention,
    { ...operands, v: operands.k },
    attributes,
  );
  const { lseBits } = choice;
  const bits = new Uint32Array(queries * heads).fill(lseBits ?? 0);
  const known =
    lseBits === undefined
      ? lse
      : scope.tensor(new Float32Array(bits.buffer), lse.shape, 'f32');
  const { indices } = scope.run(
    operators.selectBlocks,
    { ...operands, lse: known },
    {
      ...{ ...attributes, groups, blockSize: 1, sharing: 1 },
      ...{ count, initial: 1, local: 2 },
    },
  );
  const lists = [...(await scope.read(indices))];
  scope.free();
  sequences.free();
  return lists;
}
