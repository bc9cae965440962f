import { describe, expect, it, vi } from 'vitest';
import {
  checkLogitBias,
  type SamplingOptions,
  samplingOf,
} from '../../../packages/cli/src/sampling';

/** What `asa generate` makes of words; a command remembers what it has seen. */
async function parse(...args: string[]): Promise<SamplingOptions> {
  vi.resetModules();
  const { command } = await import(
    '../../../packages/cli/src/commands/generate'
  );
  command
    .exitOverride()
    .configureOutput({ writeErr() {} })
    .parseOptions(args);
  return command.opts();
}

describe('samplingOf', () => {
  it('passes on what was given, and nothing else', async () => {
    expect(samplingOf(await parse())).toEqual({ temperature: 0.8 });
    expect(
      samplingOf(
        await parse(
          ...['--max-tokens', '3', '--temperature', '0.5', '--top-k', '7'],
          ...['--top-p', '0.9', '--min-p', '0.1', '--seed', '0'],
          ...['--repetition-penalty', '1.1', '--frequency-penalty', '-1'],
          ...['--presence-penalty', '0.2', '--stop', 'a', '--stop', 'b'],
          ...['--logit-bias', '4=-1.5', '--logit-bias', '5=-inf'],
        ),
      ),
    ).toEqual({
      maxTokens: 3,
      temperature: 0.5,
      topK: 7,
      topP: 0.9,
      minP: 0.1,
      seed: 0,
      repetitionPenalty: 1.1,
      frequencyPenalty: -1,
      presencePenalty: 0.2,
      stop: ['a', 'b'],
      logitBias: new Map([
        [4, -1.5],
        [5, Number.NEGATIVE_INFINITY],
      ]),
    });
  });

  it('--greedy is temperature 0', async () =>
    expect(samplingOf(await parse('--greedy'))).toEqual({ temperature: 0 }));

  it.each([
    ['--top-p', '0'],
    ['--top-p', '1.1'],
    ['--min-p', '-0.1'],
    ['--repetition-penalty', '0'],
    ['--seed', '4294967296'],
    ['--logit-bias', '4'],
    ['--logit-bias', '-4=1'],
    ['--logit-bias', '4=inf'],
    ['--logit-bias', '4=1e'],
  ])('refuses %s %s', (option, value) =>
    expect(parse(option, value)).rejects.toThrow(option),
  );
});

it('checkLogitBias refuses a token that the model has not got', async () => {
  const options = await parse('--logit-bias', '10=1');
  expect(() => checkLogitBias(options, 11)).not.toThrow();
  expect(() => checkLogitBias(options, 10)).toThrow('from 0 to 9, got 10');
});
