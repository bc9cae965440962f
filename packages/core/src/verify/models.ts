import type { FloatType } from '../dtype';
import type { Model } from '../model/model';
import { Scope } from '../scope';
import type { Tensor } from '../tensor';
import { backpropagate, type Example, freeAll } from '../train/loss';
import {
  describeModel,
  type ModelCase,
  modelCases,
  modelOf,
  type patterns,
  tokensOf,
} from './arbitraries/models';
import { type Comparison, fine, worst } from './comparison';
import type { Trial } from './differential';
import { type FuzzOptions, fuzz, type Outcome } from './fuzz';
import { closeGradients, closeModels, type LawContext } from './laws/law';
import { isAmbiguous } from './laws/near-ties';
import { download, rootMeanSquare, type Values } from './values';

/** Tokens of a sequence: past several blocks, and quick. */
const longest = 16;

/**
 * Runs models of random shape, weights and tokens in f32, forward and backward,
 * and compares logits, losses and all gradients with the reference in double.
 */
export function compareModels(
  { backend, reference }: Trial,
  pattern: (typeof patterns)[number],
  options: FuzzOptions,
): Promise<Outcome> {
  const dtype = 'f32';
  const context = { backend, reference, dtype, isRowwise: false } as const;
  return fuzz(
    modelCases(pattern, longest),
    (modelCase) => compareWithReference(context, modelCase),
    (modelCase) => describeModel(modelCase, dtype),
    options,
  );
}

/**
 * Logits, losses and gradients against the reference's. Near ties of block
 * scores prove nothing: rounding may exchange such blocks.
 */
export async function compareWithReference(
  context: LawContext,
  modelCase: ModelCase,
): Promise<Comparison> {
  const examples = nextTokens(tokensOf(modelCase));
  const on = async (backend: LawContext['backend'], dtype: FloatType) => {
    const model = await modelOf(backend, modelCase, dtype, context.dtype);
    try {
      return {
        logits: await modelLogits(model, examples),
        gradients: await modelGradients(model, examples),
      };
    } finally {
      model.free();
    }
  };
  const got = await on(context.backend, context.dtype);
  const want = await on(context.reference, 'f64');
  const result = worst([
    closeModels(context, 'logits', got.logits, want.logits),
    compareGradients(context, got.gradients, want.gradients),
  ]);
  if (result.percent <= 100) return result;
  return (await isAmbiguous(context, modelCase)) ? fine : result;
}

/** Each token predicts the next; the last of a row predicts token 0. */
export function nextTokens(rows: readonly (readonly number[])[]): Example[] {
  return rows.map((tokens) => ({ tokens, targets: [...tokens.slice(1), 0] }));
}

/** Gradients by parameter, and `loss [N]`. */
export async function modelGradients(
  model: Model,
  examples: readonly Example[],
): Promise<Map<string, Values>> {
  const { loss, gradients } = backpropagate(model, examples, 1);
  gradients.set('loss', loss);
  try {
    return await readAll(gradients);
  } finally {
    freeAll(gradients);
  }
}

/** Each gradient, with errors measured against the largest of them, too. */
export function compareGradients(
  context: LawContext,
  got: ReadonlyMap<string, Values>,
  want: ReadonlyMap<string, Values>,
): Comparison {
  const sizes = [...want.values()].map(({ data }) => rootMeanSquare(data));
  const floor = 0.1 * Math.max(0, ...sizes);
  return worst(
    [...want].map(([name, gradient]) =>
      closeGradients(
        context,
        `gradient of ${name}`,
        got.get(name) ?? { ...gradient, data: new Float64Array(0) },
        gradient,
        floor,
      ),
    ),
  );
}

/** `[N, V]` of all tokens. */
async function modelLogits(
  model: Model,
  examples: readonly Example[],
): Promise<Values> {
  const scope = new Scope(model.backend);
  const batch = model.batch(examples);
  try {
    return await download(model.logits(scope, model.forward(scope, batch)));
  } finally {
    scope.free();
    batch.free();
  }
}

async function readAll(
  tensors: ReadonlyMap<string, Tensor>,
): Promise<Map<string, Values>> {
  const read = new Map<string, Values>();
  for (const [name, tensor] of tensors) read.set(name, await download(tensor));
  return read;
}
