import { Engine } from '@asa/core';
import { openFolder } from '@asa/core/node';
import { Option } from '@commander-js/extra-typings';
import { backendNames, withBackend } from './backends';
import { embeddedModel } from './paths';
import { withProgress } from './progress';

/** Options of every command that runs a model. */
export const modelOption = new Option(
  '--model <folder>',
  'a model folder; the one that comes with asa when left out',
).default(embeddedModel, 'the embedded model');

export const backendOption = new Option('--backend <name>', 'what computes')
  .choices(backendNames)
  .default('auto');

export const dtypeOption = new Option(
  '--dtype <type>',
  'type of weights and caches',
)
  .choices(['f32', 'f16', 'bf16', 'f64'] as const)
  .default('f32' as const);

export interface ModelOptions {
  readonly model: string;
  readonly backend: string;
  readonly dtype: 'f32' | 'f16' | 'bf16' | 'f64';
}

/** Opens backend and model, runs `work`, and frees both whatever happens. */
export async function withEngine<T>(
  { model, backend, dtype }: ModelOptions,
  work: (engine: Engine) => Promise<T>,
): Promise<T> {
  const folder = await openFolder(model);
  return withBackend(backend, async (opened) => {
    const engine = await withProgress('loading', (onProgress) =>
      Engine.open(folder, opened, { dtype, onProgress }),
    );
    try {
      return await work(engine);
    } finally {
      engine.free();
    }
  });
}
