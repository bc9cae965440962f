import {
  blockImportance,
  type SelectBlocksAttributes,
} from '../../ops/select-blocks';
import { Scope } from '../../scope';
import type { Tensor } from '../../tensor';
import { type ModelCase, modelOf, tokensOf } from '../arbitraries/models';
import { roundoff } from '../values';
import { withKernels } from '../wrap-backend';
import type { LawContext } from './law';

/** Scores behind a layer in f32 carry this many roundings. */
const growth = 4096;

/**
 * Whether some leader of a model has two block scores, one chosen and one not,
 * that rounding in the type on trial could exchange. Told by the reference in
 * double.
 */
export async function isAmbiguous(
  { reference, dtype }: LawContext,
  modelCase: ModelCase,
): Promise<boolean> {
  if (dtype === 'f64') return false;
  const reads: Promise<boolean>[] = [];
  const backend = withKernels(reference, {
    selectBlocks: (own) => (inputs, outputs, attributes) => {
      own(inputs, outputs, attributes);
      const { indices } = outputs;
      const { q, k, qRope, kRope, lse } = inputs;
      if (!indices || !q || !k || !lse) return;
      const scope = new Scope(backend);
      const ranking = { q, k, qRope, kRope, lse };
      const given = attributes as SelectBlocksAttributes;
      const { importance } = scope.run(blockImportance, ranking, given);
      reads.push(hasNearTie(scope, importance, indices, roundoff[dtype]));
    },
  });
  const model = await modelOf(backend, modelCase, 'f64', dtype);
  const scope = new Scope(backend);
  const batch = model.batch(tokensOf(modelCase).map((tokens) => ({ tokens })));
  try {
    model.forward(scope, batch);
    return (await Promise.all(reads)).some((isNear) => isNear);
  } finally {
    scope.free();
    batch.free();
    model.free();
  }
}

async function hasNearTie(
  scope: Scope,
  importance: Tensor,
  indices: Tensor,
  unit: number,
): Promise<boolean> {
  const blocks = importance.shape[2] ?? 0;
  const count = indices.shape[2] ?? 0;
  try {
    const reads = [scope.read(importance), scope.read(indices)] as const;
    const [scores, lists] = await Promise.all(reads);
    for (let row = 0; row * count < lists.length; row++) {
      const list = [...lists.slice(row * count, (row + 1) * count)];
      const own = Math.max(...list);
      const score = (block: number) => scores[row * blocks + block] ?? 0;
      for (let left = 0; left <= own; left++) {
        if (list.includes(left)) continue;
        const isNear = list.some(
          (block) =>
            block >= 0 &&
            Math.abs(score(block) - score(left)) <=
              growth * unit * (score(block) + score(left)),
        );
        if (isNear) return true;
      }
    }
    return false;
  } finally {
    scope.free();
  }
}
