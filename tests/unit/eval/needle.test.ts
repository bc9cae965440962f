import { openCpu } from '@asa/backend-cpu';
import {
  type Backend,
  Engine,
  evaluateNeedle,
  type NeedleOptions,
  type NeedleTrial,
  needleCells,
  Random,
  type Tokenizer,
} from '@asa/core';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  introduction,
  type Needle,
  needleSentence,
  noise,
  question,
} from '../../../packages/core/src/eval/needle-forms';
import {
  type Haystack,
  NeedlePrompts,
  noiseHaystack,
  textHaystack,
} from '../../../packages/core/src/eval/needle-prompt';
import { gla, mla, tinyConfig, tinyModel } from '../engine/tiny-models';
import { trainedTokenizer } from '../text/trained';

const { tokenizer } = trainedTokenizer();
const text =
  'The sun rose. "Is it late?" he asked. Nobody spoke! 12 birds flew. It ' +
  'was cold…\n\nThen came Mr. Grey. “Sit,” she said. He sat.';

const number: Needle = { kind: 'number', key: 'bold-river', value: '7654321' };
const uuid: Needle = {
  kind: 'uuid',
  key: 'calm-stone',
  value: 'a0b1c2d3-e4f5-4a6b-8c7d-8e9fabcdef01',
};

/** The prompt as RULER writes it: lines of noise, or sentences in a row. */
function written(haystack: Haystack, needle: Needle, at: number): string {
  const separator = haystack[0]?.endsWith('\n') ? '\n' : ' ';
  const sentences = haystack.map((sentence) => sentence.trimEnd());
  sentences.splice(at, 0, needleSentence(needle));
  const context = sentences.join(separator);
  return `${introduction(needle.kind)}\n${context}\n${question(needle)}`;
}

describe('prompts', () => {
  const hays: [string, Haystack][] = [
    ['noise', noiseHaystack(9)],
    ['text', textHaystack(text, Random.fromSeed(1))],
  ];

  test.each(hays)('ids in parts are the ids of the whole: %s', (_, hay) => {
    const prompts = new NeedlePrompts(tokenizer);
    for (const needle of [number, uuid]) {
      for (let at = 0; at <= hay.length; at++) {
        const count = hay.length;
        const ids = prompts.encode(hay, needle, { count, depth: at / count });
        expect(ids).toEqual(tokenizer.encode(written(hay, needle, at)));
      }
    }
  });

  test('a text is cut behind sentences, and goes on from its start', () => {
    const hay = textHaystack(text, Random.fromSeed(4));
    const all = [...hay, ...hay].join('');
    expect(all).toContain('He sat. The sun rose. "Is it late?" he asked.');
    expect(hay).toContain('"Is it late?" he asked. ');
    expect(hay).toContain('“Sit,” she said. ');
  });

  test.each([600, 601, 602, 1200])('%i tokens are filled', (length) => {
    const prompts = new NeedlePrompts(tokenizer);
    const line = tokenizer.encode(noise, { addSpecialTokens: false }).length;
    const count = prompts.fit(noiseHaystack(1), uuid, length);
    for (const depth of [0, 0.3, 1]) {
      const ids = prompts.encode(noiseHaystack(1), uuid, { count, depth });
      expect(ids.length).toBeLessThanOrEqual(length);
      expect(ids.length).toBeGreaterThan(length - line - 2);
    }
  });

  test('what is too long for a sentence is refused', () => {
    const prompts = new NeedlePrompts(tokenizer);
    expect(() => prompts.fit(noiseHaystack(1), uuid, 100)).toThrow(
      /needle: the prompt must fit into 100 tokens/,
    );
  });
});

let backend: Backend;
let engine: Engine;
beforeAll(async () => {
  backend = await openCpu({ poison: true });
  const global = gla({ blocks: [4, 4, 8], sharing: 4 });
  const config = tinyConfig(
    'GL',
    { G: global, L: mla(24) },
    { vocabularySize: tokenizer.vocabularySize, context: 1200 },
  );
  engine = Engine.from(await tinyModel(backend, config), tokenizer);
});
afterAll(() => engine.free());

async function run(
  options: Partial<NeedleOptions>,
  on: Engine = engine,
): Promise<NeedleTrial[]> {
  const trials: NeedleTrial[] = [];
  for await (const trial of evaluateNeedle(on, {
    lengths: [600],
    depths: [0, 0.5, 1],
    text,
    answerTokens: 20,
    ...options,
  })) {
    trials.push(trial);
  }
  return trials;
}

/** Reads the value out of its prompt, where its sentence is not the last. */
function reader(tokenizer: Tokenizer): Engine {
  const answer: Engine['generateBatch'] = async function* (sessions, options) {
    for (const [index, { prompt }] of options.entries()) {
      const ids = [...(sessions[index]?.tokens ?? []), ...(prompt as number[])];
      const found = / is: (\S+)\.\s(?!What)/.exec(tokenizer.decode(ids));
      const said = `${found?.[1] ?? 'unknown'}.`;
      for (const character of said) {
        yield { index, event: { token: 0, logprob: 0, text: character } };
      }
    }
  };
  return new Proxy(engine, {
    get(target, name) {
      if (name === 'generateBatch') return answer;
      const value = Reflect.get(target, name, target);
      return typeof value === 'function' ? value.bind(target) : value;
    },
  });
}

describe('trials', () => {
  test('shared starts change no answer', async () => {
    const together = await run({ batch: 8 });
    const apart = await run({ batch: 1 });
    expect(together).toEqual(apart);
    expect(together).toHaveLength(9);
    expect(new Set(together.map(({ answer }) => answer)).size).toBeGreaterThan(
      1,
    );
  });

  test('an answer counts when the value stands in it', async () => {
    const trials = await run({ samples: 2 }, reader(tokenizer));
    for (const { depth, isCorrect, answer, value } of trials) {
      expect(isCorrect).toBe(depth < 1);
      expect(answer.includes(value)).toBe(depth < 1);
    }
    const [first] = needleCells(trials, 'length');
    expect(first).toEqual({
      task: 1,
      length: 600,
      trials: 6,
      correct: 4,
      accuracy: 2 / 3,
      standardError: Math.sqrt(2 / 9 / 5),
    });
    expect(needleCells(trials, 'depth').slice(0, 3)).toMatchObject([
      { task: 1, depth: 0, trials: 2, correct: 2 },
      { task: 1, depth: 0.5, trials: 2, correct: 2 },
      { task: 1, depth: 1, trials: 2, correct: 0 },
    ]);
  });

  test('a place has its needle, whatever else is asked for', async () => {
    const key = ({ task, key, value }: NeedleTrial) => [task, key, value];
    const all = await run({ samples: 2 });
    const some = await run({ samples: 1, tasks: [2] });
    const wanted = all.filter((t) => t.task === 2 && t.sample === 0);
    expect(some.map(key)).toEqual(wanted.map(key));
    const other = await run({ samples: 1, tasks: [2], seed: 1 });
    expect(other.map(key)).not.toEqual(some.map(key));
  });

  test.each([
    [{ lengths: [1201] }, /a length must be an integer from 1 to 1200/],
    [{ depths: [1.5] }, /a depth must be a number from 0 to 1, got 1.5/],
    [{ text: ' ' }, /tasks 2 and 3 need a text/],
    [{ samples: 0 }, /samples must be/],
    [{ words: { adjectives: [], nouns: ['a'] } }, /words must have/],
  ])('refuses %j', async (options, message) => {
    await expect(run(options)).rejects.toThrow(message);
  });

  test('a signal ends it', async () => {
    const signal = AbortSignal.abort(new Error('enough'));
    await expect(run({ signal })).rejects.toThrow('enough');
  });
});
