/** What drivers generate, to be compared with what the oracle does. */
import { fileURLToPath } from 'node:url';
import { type Backend, Engine, type ModelConfig } from '@asa/core';
import { openFolder } from '@asa/core/node';
import {
  gla,
  gqa,
  linear,
  mla,
  nsa,
  randomTokens,
  tinyConfig,
  tinyModel,
} from '../unit/engine/tiny-models';

const shape = { blocks: [4, 2, 8], sharing: 4, count: 4 } as const;

export const tinyModels = [
  ['ASA', tinyConfig('GL', { G: gla(shape), L: mla(9) })],
  ['NSA', tinyConfig('N', { N: nsa(shape, 7, 'independent') })],
  ['gated linear', tinyConfig('RF', { R: linear, F: gqa() })],
] as const;

/** 40 tokens behind a prompt of 50, greedy: ring, blocks and leaders turn. */
export async function continued(
  backend: Backend,
  config: ModelConfig,
): Promise<number[]> {
  const model = await tinyModel(backend, config);
  const engine = Engine.from(model);
  const tokens = await greedy(engine, randomTokens(50, 8), 40);
  engine.free();
  model.free();
  return tokens;
}

const embedded = fileURLToPath(
  new URL('../../packages/cli/models/default', import.meta.url),
);

/** What the model that comes with the command tells. */
export async function story(
  backend: Backend,
  length: number,
): Promise<number[]> {
  const engine = await Engine.open(await openFolder(embedded), backend);
  const tokens = await greedy(engine, 'Once upon a time', length);
  engine.free();
  return tokens;
}

async function greedy(
  engine: Engine,
  prompt: string | ArrayLike<number>,
  maxTokens: number,
): Promise<number[]> {
  const session = engine.session();
  const tokens: number[] = [];
  const options = { prompt, temperature: 0, maxTokens, chunk: 23 };
  for await (const event of engine.generate(session, options)) {
    if ('token' in event) tokens.push(event.token);
  }
  session.free();
  return tokens;
}
